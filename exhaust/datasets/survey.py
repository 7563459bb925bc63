"""`uci-survey-exhaust`: a conversation's answers as a table, a column for each question."""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self

from exhaust.datasets.answers import (
    ANSWER,
    ID,
    MAX_TITLE,
    PATH,
    TIME,
    AnswerTable,
    Order,
    Question,
    answer_filter,
    iterate_answers,
    read_text,
    session_sql,
)
from exhaust.datasets.base import DatasetLimitExceeded
from exhaust.datasets.cells import (
    Cell,
    Column,
    escape_formula,
    escape_split_formulas,
    make_cell_reader,
)
from exhaust.datasets.response import RESPONSE
from exhaust.datasets.selection import Selection

ROWS = ("session", "participant")
ANSWERS = ("last", "first", "all")
ANSWER_SEPARATOR = " | "  # between all answers to a question
_COLUMNS = (TIME, PATH, ID, ANSWER)
MAX_ROW_CHARACTERS = 8 * 1024 * 1024


@dataclass
class _Row:
    """The answers of a session or a participant so far, by the place of their question."""

    key: tuple[str, str]  # device and session
    first_at: Cell
    last_at: Cell
    texts: dict[int, list[str]] = field(default_factory=dict)
    size: int = 0  # of the texts in characters


class SurveyDataset(AnswerTable):
    name = "uci-survey-exhaust"
    title = "Survey (a column for each question)"
    name_suffix = "survey"
    optional_fields = ("rows", "answers")
    columns: Sequence[Column] = (
        Column("Conversation ID", "text", ("conversation",), "The bot's id."),
        Column("Conversation Name", "text", ("conversation_name",), "The bot's name."),
        Column(
            "Device ID", "text", ("device_id",), "The device; the key to the private file.",
            is_personal=True,
        ),
        Column("Session ID", "text", ("session_id",), "The sender's session."),
        Column("First Answer", "time", ("first_at",), "When, in UTC to the millisecond."),
        Column("Last Answer", "time", ("last_at",), "When, in UTC to the millisecond."),
    )  # fmt: skip

    def pin_columns(self, selection: Selection, config: Mapping[str, Any]) -> Self:
        pinned = super().pin_columns(selection, config)
        fixed = [
            column
            for column in self.columns
            if column.path != ("session_id",) or pinned.has_session_rows or config.get("columns")
        ]
        pinned.columns = (*fixed, *make_question_columns(pinned.questions, fixed))
        return pinned

    @property
    def has_session_rows(self) -> bool:
        """Whether a row is a session, not a participant."""
        return str(self.config.get("rows", ROWS[0])) == "session"

    def iterate_rows(self, selection: Selection) -> Iterator[list[Cell]]:
        numbers = range(len(self.questions))
        read_cells = make_cell_reader(self.columns[: len(self.columns) - len(numbers)])
        with closing(self._iterate_row_answers(selection)) as rows:
            for row in islice(rows, selection.limit):
                device_id, session_id = row.key
                envelope = {
                    "conversation": selection.conversation,
                    "conversation_name": selection.conversation_name,
                    "device_id": selection.displayed_device_id(device_id),
                    "session_id": session_id,
                    "first_at": row.first_at,
                    "last_at": row.last_at,
                }
                texts = row.texts
                yield read_cells(envelope, "null", False) + [
                    ANSWER_SEPARATOR.join(texts[number]) if number in texts else None
                    for number in numbers
                ]

    def _iterate_row_answers(self, selection: Selection) -> Generator[_Row]:
        """Yields the rows by device, then by session. Raises `DatasetLimitExceeded`."""
        choice = self.config.get("answers", ANSWERS[0])
        row: _Row | None = None
        with closing(iterate_answers(selection, _COLUMNS, self._order)) as answers:
            for device_id, session_id, occurred_at, path, identifier, answer in answers:
                has_session = self.has_session_rows or not device_id
                key = (device_id, session_id if has_session else "")
                if row is None or key != row.key or key == ("", ""):
                    if row is not None:
                        yield row
                    row = _Row(key, occurred_at, occurred_at)
                row.last_at = occurred_at
                text = read_text(answer) if answer is not None and self.numbers else ""
                if not text:
                    continue
                number = self.find_number(path, identifier)
                texts = row.texts.get(number)
                if texts is None:
                    row.texts[number] = [text]
                elif choice == "all":
                    texts.append(text)
                elif choice == "last":
                    row.size -= len(texts[0])
                    texts[0] = text
                else:
                    continue
                row.size += len(text)
                if row.size > MAX_ROW_CHARACTERS:
                    raise DatasetLimitExceeded(
                        f"The answers of one row have more than {MAX_ROW_CHARACTERS:,} characters;"
                        f" ask for fewer days, or for {RESPONSE.name}, which has a row for each"
                        " answer."
                    )
        if row is not None:
            yield row

    @property
    def _order(self) -> Order:
        return "session" if self.has_session_rows else "participant"

    def count_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        where, params = answer_filter(selection)
        nameless = "CASE WHEN e.device_id = '' AND e.session_id = '' THEN e.id END"
        return (
            f"SELECT DISTINCT e.device_id, {session_sql(self._order)}, {nameless}"  # noqa: S608
            f" FROM ingest_storedevent e WHERE {where}",
            params,
        )


def make_question_columns(questions: Sequence[Question], taken: Sequence[Column]) -> list[Column]:
    """A column for each question, headed by its title; equal titles have the question's name."""
    labels = [question.title or question.name[:MAX_TITLE] or "Question" for question in questions]
    counts = Counter(label.casefold() for label in labels)
    headers = {column.header.casefold() for column in taken}
    columns = []
    for question, label in zip(questions, labels, strict=True):
        if question.name and (counts[label.casefold()] > 1 or label.casefold() in headers):
            label = f"{label} ({question.name[:MAX_TITLE]})"
        # a spreadsheet would run it
        header = inert = escape_split_formulas(escape_formula(label))
        number = 2
        while header.casefold() in headers:
            header, number = f"{inert} ({number})", number + 1
        headers.add(header.casefold())
        columns.append(
            Column(
                header,
                "text",
                ("texts",),
                f"Question {question.id}{f' at {question.path}' if question.path else ''}.",
                needs_consent=True,
                is_personal=True,
            )
        )
    return columns


SURVEY = SurveyDataset()
