"""`uci-summary-exhaust`: how often participants chose each option of a conversation's questions."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from exhaust.datasets.answers import (
    ANSWER,
    ID,
    MAX_NAME,
    OPTIONS,
    PATH,
    TIME,
    AnswerTable,
    Choice,
    answer_filter,
    iterate_answers,
    list_choices,
)
from exhaust.datasets.base import DatasetLimitExceeded
from exhaust.datasets.cells import Cell, Column, make_cell_reader
from exhaust.datasets.selection import Selection

BY = ("range", "day")
MAX_ROWS = 100_000
FREE_TEXT: Choice = ("", "(text)")
_CACHED_CHARACTERS = 4_000
_Counts = tuple[Counter[tuple[str, int, Choice]], Counter[tuple[str, int]]]


class SummaryDataset(AnswerTable):
    """Answers with free text share a row, and answers without consent are not counted."""

    name = "uci-summary-exhaust"
    title = "Summary (counts for each option)"
    name_suffix = "summary"
    optional_fields = ("by",)
    columns: Sequence[Column] = (
        Column("Conversation ID", "text", ("conversation",), "The bot's id."),
        Column("Conversation Name", "text", ("conversation_name",), "The bot's name."),
        Column("Day", "text", ("day",), "In the request's time zone; empty without by: day."),
        Column("X Path", "text", ("path",), "The question's place in the form."),
        Column("Question Id", "text", ("id",), "The question's id; of several the most common."),
        Column("Question Title", "text", ("title",), "The text of the question, in one line."),
        Column("Option", "text", ("option",), "The option's key."),
        Column("Option Text", "text", ("text",), "The option; (text) for all free texts."),
        Column("Answers", "whole", ("answers",), "The number of answers with this option."),
        Column("Question Answers", "whole", ("total",), "The number of answers to the question."),
        Column("Share", "number", ("share",), "Answers divided by Question Answers."),
    )

    def iterate_rows(self, selection: Selection) -> Iterator[list[Cell]]:
        counts, totals = self._count_answers(selection)
        read_cells = make_cell_reader(self.columns)
        for day, number, choice in sorted(counts, key=_sort_key)[: selection.limit]:
            count, total = counts[day, number, choice], totals[day, number]
            question = self.questions[number]
            envelope = {
                "conversation": selection.conversation,
                "conversation_name": selection.conversation_name,
                "day": day,
                "path": question.path,
                "id": question.id,
                "title": question.title,
                "option": choice[0],
                "text": choice[1],
                "answers": count,
                "total": total,
                "share": format_share(count, total),
            }
            yield read_cells(envelope, "null", False)

    def _count_answers(self, selection: Selection) -> _Counts:
        """The answers by day, question and option; and by day and question.

        Raises `DatasetLimitExceeded`.
        """
        is_by_day = self.config.get("by", BY[0]) == "day"
        counts: Counter[tuple[str, int, Choice]] = Counter()
        totals: Counter[tuple[str, int]] = Counter()
        rows = iterate_answers(selection, (TIME, PATH, ID, OPTIONS, ANSWER))
        for _, _, occurred_at, path, identifier, options, answer in rows:
            choices = find_choices(options or "[]", answer or "[]")
            if not (choices and self.numbers):
                continue
            day = find_day(occurred_at, selection) if is_by_day else ""
            number = self.find_number(path, identifier)
            totals[day, number] += 1
            for choice in choices:
                counts[day, number, choice] += 1
            if len(counts) > MAX_ROWS:
                raise DatasetLimitExceeded(
                    f"There are more than {MAX_ROWS:,} counts; ask for fewer days, or leave out"
                    " by: day."
                )
        return counts, totals

    def count_rows(self, selection: Selection, at_most: int | None = None) -> int:
        if selection.limit is not None and self.is_sampled:
            raise TimeoutError
        return len(self._count_answers(selection)[0])

    def estimate_rows(self, selection: Selection) -> int:
        return len(self.questions)

    def count_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        where, params = answer_filter(selection)
        return f"SELECT 1 FROM ingest_storedevent e WHERE {where}", params  # noqa: S608


def _sort_key(row: tuple[str, int, Choice]) -> tuple[Any, ...]:
    """By day and question; options by key, so that 10 follows 9, and free text last."""
    day, number, (option, text) = row
    return day, number, (option, text) == FREE_TEXT, len(option), option, text


def find_choices(options: str, answer: str) -> frozenset[Choice]:
    """The chosen ones of a question's options, both as JSON.

    Anything else in the answer is free text, and no part of it is returned.
    """
    is_short = len(options) + len(answer) <= _CACHED_CHARACTERS
    return (_find_short_choices if is_short else _find_choices)(options, answer)


def _find_choices(options: str, answer: str) -> frozenset[Choice]:
    offered = set(list_choices(options))
    return frozenset(
        (choice[0][:MAX_NAME], choice[1][:MAX_NAME]) if choice in offered else FREE_TEXT
        for choice in list_choices(answer)
    )


_find_short_choices = lru_cache(maxsize=1024)(_find_choices)


def find_day(time: str, selection: Selection) -> str:
    """The day of a time in UTC in the time zone of the request."""
    return datetime.fromisoformat(time).astimezone(selection.start.tzinfo).date().isoformat()


def format_share(count: int, total: int) -> str:
    """The share with four digits, rounded half up."""
    share = (20_000 * count + total) // (2 * total)
    return f"{share // 10_000}.{share % 10_000:04}"


SUMMARY = SummaryDataset()
