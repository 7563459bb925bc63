"""A conversation's answers as values: their questions in order, and their texts.

The datasets that arrange or count answers read them here.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self

from django.conf import settings
from django.db import connection

from exhaust.datasets import cells
from exhaust.datasets.base import Dataset, DatasetLimitExceeded, copy_texts, stream_rows
from exhaust.datasets.cells import Cell, Column, decode_json, format_json
from exhaust.datasets.event_table import CONSENT_REFUSED_SQL
from exhaust.datasets.response import RESPONSE
from exhaust.datasets.selection import Selection

MAX_QUESTIONS = 500  # of a file
MAX_VERSIONS = 10_000  # of these questions
SAMPLE_ANSWERS = 10_000  # that order the questions
PREVIEW_ANSWERS = 2_000
MAX_NAME = 1000  # characters of a path, an id or an option; longer ones count as their start
MAX_TITLE = 200

_COLUMNS = {column.header: column for column in RESPONSE.columns}
DEVICE = _COLUMNS["Device ID"]
PATH, ID, TITLE = _COLUMNS["X Path"], _COLUMNS["Question Id"], _COLUMNS["Question Title"]
OPTIONS, ANSWER = _COLUMNS["Question Options"], _COLUMNS["Question Response"]
TIME = _COLUMNS["Timestamp"]
Order = Literal["time", "session", "participant"]  # within a session or participant by time
BY_TIME = "e.occurred_at, e.id"
NEWEST = "e.occurred_at DESC, e.id DESC"


class Version(NamedTuple):
    """A question as one form has it. Empty where it has no path or no id."""

    path: str
    id: str


class Question(NamedTuple):
    """A question of a file."""

    path: str
    id: str  # of its most common version
    title: str  # its most common one
    name: str  # its path, or its id where that tells it from others


class AnswerTable(Dataset):
    """A dataset of the answers in `uci-response-exhaust`, by question.

    `pin_columns` makes the one that a job reads. Only that one knows questions and has answers.
    """

    is_private = False
    scope = RESPONSE.scope
    default_days = RESPONSE.default_days
    required_fields = ("conversationId",)
    unsupported_reasons = {
        "since": "Later answers change earlier rows: leave it out, and take the new file in place"
        " of the old one.",
    }
    config: Mapping[str, Any] = {}
    questions: Sequence[Question] = ()
    numbers: Mapping[tuple[Cell, Cell], int] = {}  # of versions: places in `questions`
    is_sampled = False  # whether a preview reads not all of the answers

    def pin_columns(self, selection: Selection, config: Mapping[str, Any]) -> Self:
        pinned = copy(self)
        pinned.config = config
        pinned.questions, pinned.numbers, answer_count = find_questions(selection)
        pinned.is_sampled = selection.limit is not None and answer_count == PREVIEW_ANSWERS
        if pinned.is_sampled:
            pinned.preview_note = (
                f"The rows are made of the first {PREVIEW_ANSWERS:,} answers; the file has all."
            )
        return pinned

    def find_number(self, path: Cell, identifier: Cell) -> int:
        """The place in `questions` of the answered one."""
        number = self.numbers.get((path, identifier))
        return self.numbers[make_version(path, identifier)] if number is None else number


# Reading ------------------------------------------------------------------------------------------


def iterate_answers(
    selection: Selection, columns: Sequence[Column], order: Order = "time", limit: int | None = None
) -> Generator[Sequence[Any]]:
    """Yields the stored device and session, and these cells of each answer.

    A limit is one of the first answers, whatever the order. A selection with a limit is of a
    preview, which reads the first `PREVIEW_ANSWERS` only.
    """
    seconds: int | None = settings.EXHAUST_MAX_SECONDS
    if selection.limit is not None:
        limit, seconds = PREVIEW_ANSWERS, None
    if selection.archive is not None:
        rows = selection.archive.iterate_answers(selection, columns, order, limit)
        with closing(rows):
            yield from rows
        return
    source, params = _answers_sql(selection, limit)
    order_sql = _order_sql(order)
    if connection.vendor == "postgresql":
        cells_sql = _cells_sql(columns, source)
        sql = f"SELECT e.device_id, e.session_id, {cells_sql} ORDER BY {order_sql}"
        with copy_texts(sql, params, seconds) as texts:
            yield from texts
        return
    yield from _read_portably(source, params, columns, order_sql)


def _order_sql(order: Order) -> str:
    if order == "time":
        return BY_TIME
    # the same order on both databases, in any locale
    collation = ' COLLATE "C"' if connection.vendor == "postgresql" else ""
    return f"e.device_id{collation}, {session_sql(order)}{collation}, {BY_TIME}"


def session_sql(order: Order) -> str:
    """The session, or nothing for a known device whose sessions are one participant's."""
    if order == "participant":
        return "CASE WHEN e.device_id = '' THEN e.session_id ELSE '' END"
    return "e.session_id"


def _read_portably(
    source: str, params: dict[str, Any], columns: Sequence[Column], order: str
) -> Iterator[Sequence[Any]]:
    sql = (
        f"SELECT e.device_id, e.session_id, e.occurred_at, e.payload, {CONSENT_REFUSED_SQL}"  # noqa: S608
        f" FROM {source} ORDER BY {order}"
    )
    read_cells = cells.make_cell_reader(columns)
    with stream_rows(sql, params) as rows:
        for device_id, session_id, occurred_at, payload, is_refused in rows:
            envelope = {"occurred_at": occurred_at, "device_id": device_id}
            yield (device_id, session_id, *read_cells(envelope, payload, is_refused))


def count_cells(
    selection: Selection, columns: Sequence[Column], limit: int
) -> Counter[tuple[Cell, ...]]:
    """How many of the newest `limit` answers have the same cells."""
    source, params = _answers_sql(selection, limit, NEWEST)
    if connection.vendor != "postgresql":
        return Counter(
            tuple(cells) for _, _, *cells in _read_portably(source, params, columns, NEWEST)
        )
    keys = ", ".join(str(number + 2) for number in range(len(columns)))
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*), {_cells_sql(columns, source)} GROUP BY {keys}", params)
        return Counter({tuple(cells): count for count, *cells in cursor})


def answer_filter(selection: Selection) -> tuple[str, dict[str, Any]]:
    """The SQL condition on answers, and its parameters."""
    where, params = selection.event_filter()
    return f"{where} AND e.is_answer", params


def _answers_sql(
    selection: Selection, limit: int | None, order: str = BY_TIME
) -> tuple[str, dict[str, Any]]:
    """The answers, or the first ones of that order, as a table `e`."""
    where, params = answer_filter(selection)
    first = "" if limit is None else f" ORDER BY {order} LIMIT {limit:d}"
    return f"(SELECT e.* FROM ingest_storedevent e WHERE {where}{first}) e", params  # noqa: S608


def _cells_sql(columns: Sequence[Column], source: str) -> str:
    expressions = cells.cells_sql(columns, CONSENT_REFUSED_SQL)
    select_list = ", ".join(f"{cell} AS cell_{number}" for number, cell in enumerate(expressions))
    return f"{select_list} FROM {source} {cells.joins_sql(columns)}"


# Questions ----------------------------------------------------------------------------------------


@dataclass
class _Appearance:
    """Where and under which titles a version appears in the answers."""

    first_seen: str
    titles: Counter[str] = field(default_factory=Counter)
    answer_count: int = 0
    session_count: int = 0
    place_sum: int = 0  # of the places at which these sessions first answer it


_Versions = dict[Version, _Appearance]


def find_questions(
    selection: Selection,
) -> tuple[list[Question], dict[tuple[Cell, Cell], int], int]:
    """The answered questions in order, each version's place in it, and the size of the sample.

    Versions at one path are one question, such as its languages, unless one session answers two
    of them. The order is that of the sessions among the first `SAMPLE_ANSWERS`, by the mean place
    at which they answer a question; a question that appears later follows.

    Raises `DatasetLimitExceeded`.
    """
    versions, shared_paths = _read_sample(selection)
    answer_count = sum(appearance.answer_count for appearance in versions.values())
    if answer_count == SAMPLE_ANSWERS and selection.limit is None:
        versions = _read_all_versions(selection) | versions
    groups: dict[Version, _Versions] = {}
    for version, appearance in versions.items():
        is_path_enough = version.path and version.path not in shared_paths
        group = Version(version.path, "") if is_path_enough else version
        groups.setdefault(group, {})[version] = appearance
    if len(groups) > MAX_QUESTIONS or len(versions) > MAX_VERSIONS:
        raise DatasetLimitExceeded(
            f"There are more than {MAX_QUESTIONS} questions; ask for fewer days, or for"
            f" {RESPONSE.name}, which has a row for each answer."
        )
    order = sorted(groups, key=lambda group: (*_rank(groups[group].values()), group))
    numbers: dict[tuple[Cell, Cell], int] = {
        version: n for n, group in enumerate(order) for version in groups[group]
    }
    return [_describe(group, groups[group]) for group in order], numbers, answer_count


def make_version(path: Cell, identifier: Cell) -> Version:
    return Version((path or "")[:MAX_NAME], (identifier or "")[:MAX_NAME])


def _read_sample(selection: Selection) -> tuple[_Versions, set[str]]:
    """The versions in the first answers, and the paths at which a session answers two of them."""
    versions: _Versions = {}
    sessions: dict[tuple[str, str], dict[Version, None]] = {}
    rows = iterate_answers(selection, (TIME, PATH, ID, TITLE), limit=SAMPLE_ANSWERS)
    for device_id, session_id, occurred_at, path, identifier, title in rows:
        version = make_version(path, identifier)
        appearance = versions.setdefault(version, _Appearance(occurred_at))
        appearance.titles[_shorten_title(title)] += 1
        appearance.answer_count += 1
        answered = sessions.setdefault((device_id, session_id), {})
        if version not in answered and (device_id or session_id):
            appearance.place_sum += len(answered)
            appearance.session_count += 1
            answered[version] = None
    paths = [Counter(version.path for version in answered) for answered in sessions.values()]
    return versions, {path for counts in paths for path, count in counts.items() if count > 1}


def _read_all_versions(selection: Selection) -> _Versions:
    """The versions in all answers, each with its first time and its least title."""
    columns = (TIME, PATH, ID, TITLE)
    rows: Iterable[Sequence[Any]]
    if connection.vendor == "postgresql" and selection.archive is None:
        source, params = _answers_sql(selection, None)
        sql = (
            f"SELECT MIN(cell_0), left(cell_1, {MAX_NAME}), left(cell_2, {MAX_NAME}),"  # noqa: S608
            f' MIN(left(cell_3, {MAX_NAME}) COLLATE "C")'
            f" FROM (SELECT {_cells_sql(columns, source)}) answers"
            f" GROUP BY 2, 3 LIMIT {MAX_VERSIONS + 1}"
        )
        with connection.cursor() as cursor:
            cursor.execute(sql, params)
            rows = cursor.fetchall()
    else:
        rows = (row[2:] for row in iterate_answers(selection, columns))
    versions: _Versions = {}
    least_titles: dict[Version, str] = {}
    for first_seen, path, identifier, title in rows:
        version = make_version(path, identifier)
        versions.setdefault(version, _Appearance(first_seen))
        if title is not None:
            title = title[:MAX_NAME]
            least_titles[version] = min(title, least_titles.get(version, title))
        if len(versions) > MAX_VERSIONS:
            break
    for version, title in least_titles.items():
        versions[version].titles[_shorten_title(title)] = 1
    return versions


def _rank(appearances: Iterable[_Appearance]) -> tuple[float, str]:
    """The mean place in a session, and the first time."""
    places, sessions, times = zip(
        *((each.place_sum, each.session_count, each.first_seen) for each in appearances),
        strict=True,
    )
    return sum(places) / sum(sessions) if any(sessions) else float("inf"), min(times)


def _describe(group: Version, versions: _Versions) -> Question:
    titles: Counter[str] = sum((each.titles for each in versions.values()), Counter())
    titles.pop("", None)
    ids = {version.id: appearance.answer_count for version, appearance in versions.items()}
    return Question(group.path, _most_common(ids), _most_common(titles), group.id or group.path)


def _most_common(counts: Mapping[str, int]) -> str:
    """The text with the highest count; the least of several."""
    return min(counts, key=lambda text: (-counts[text], text), default="")


def _shorten_title(title: Cell) -> str:
    """The title in one line."""
    text = " ".join((title or "")[:MAX_NAME].split())
    return text if len(text) <= MAX_TITLE else text[: MAX_TITLE - 1] + "…"


# Texts --------------------------------------------------------------------------------------------

OPTION_SEPARATOR = "; "  # between the options of one answer
_CACHED_CHARACTERS = 2_000  # most answers repeat a few options
Choice = tuple[str, str]  # an option's key and its text


def read_text(answer: str) -> str:
    """The answer as plain text: of each chosen option its text, or the free text."""
    return _read_text(answer) if len(answer) > _CACHED_CHARACTERS else _read_short_text(answer)


def _read_text(answer: str) -> str:
    return OPTION_SEPARATOR.join(text for _, text in list_choices(answer))


_read_short_text = lru_cache(maxsize=2048)(_read_text)


def list_choices(value: str) -> list[Choice]:
    """The keys and texts in JSON like `[{"2": {"text": "Rice"}}, {"ans1": "free text"}]`."""
    decoded = decode_json(value)
    choices: list[Choice] = []
    for entry in decoded if isinstance(decoded, list) else [decoded]:
        fields = entry if isinstance(entry, dict) else {"": entry}
        for key in sorted(fields, key=lambda key: (len(key.encode()), key.encode())):
            field = fields[key]
            text = field["text"] if isinstance(field, dict) and "text" in field else field
            if text not in (None, ""):
                choices.append((key, text if isinstance(text, str) else format_json(text)))
    return choices
