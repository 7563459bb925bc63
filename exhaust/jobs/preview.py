"""What a request would give: about how much, and its first rows with what is personal masked."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import OperationalError, connection, transaction
from psycopg.errors import QueryCanceled

from exhaust.datasets import DATASETS
from exhaust.datasets.columns import Cell, Column, decode, json_text
from exhaust.datasets.selection import selected
from exhaust.files.formats.lines import csv_line
from exhaust.jobs.submit import Submission
from ingest.feed.watermark import watermark

ROWS = 20
SECONDS = 1.5  # for counting, and for the rows
MASK = "***"


@dataclass(frozen=True)
class Preview:
    """The cells are masked; a number is None where nothing could be said in time."""

    row_count: int | None
    byte_count: int | None  # as CSV
    counted: bool  # else the rows are the planner's guess
    rows: list[list[Cell]]
    message: str


def preview(submission: Submission) -> Preview:
    """Reads what has arrived until now; about three seconds at most."""
    dataset = DATASETS[submission.dataset]
    selection = selected(
        submission.dataset, submission.channel_id, submission.config, watermark(), ROWS
    )
    missing = []
    row_count: int | None = None
    try:
        with within_seconds(SECONDS):
            row_count = dataset.count(selection)
    except TimeoutError:
        missing.append("Counting took too long; rows and bytes are a guess.")
        if connection.vendor == "postgresql":
            row_count = dataset.estimate(selection)
    counted = not missing
    rows: list[list[Cell]] | None = None
    try:
        with within_seconds(SECONDS):
            rows = list(dataset.rows(selection))
    except TimeoutError:
        missing.append("Reading took too long; no row is shown.")
    byte_count = None
    if row_count is not None and (rows or row_count == 0):
        header = len(csv_line([column.header for column in dataset.columns]))
        lengths = [len(csv_line(row)) for row in rows or ()]
        byte_count = header + (row_count * sum(lengths) // len(lengths) if lengths else 0)
    return Preview(
        row_count,
        byte_count,
        counted,
        [
            [masked(column, cell) for column, cell in zip(dataset.columns, row, strict=True)]
            for row in rows or ()
        ],
        " ".join(missing),
    )


@contextmanager
def within_seconds(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` where a statement takes longer."""
    until = time.monotonic() + seconds
    try:
        with transaction.atomic():
            if connection.vendor == "postgresql":
                with connection.cursor() as cursor:
                    cursor.execute(f"SET LOCAL statement_timeout = {int(seconds * 1000)}")
                yield
                return
            connection.connection.set_progress_handler(lambda: time.monotonic() > until, 10_000)
            try:
                yield
            finally:
                connection.connection.set_progress_handler(None, 0)
    except OperationalError as error:
        if isinstance(error.__cause__, QueryCanceled) or "interrupted" in str(error):
            raise TimeoutError from None
        raise


def masked(column: Column, cell: Cell) -> Cell:
    """A personal text keeps its first character, personal JSON its names and shape."""
    if cell is None or not column.personal:
        return cell
    if column.kind == "json":
        try:
            return json_text(_emptied(decode(cell)))
        except RecursionError:
            return MASK
    return cell[0] + MASK if len(cell) > 1 else MASK


def _emptied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _emptied(held) for name, held in value.items()}
    if isinstance(value, list):
        return [_emptied(held) for held in value]
    return MASK
