"""Previews a request: its approximate size, and its first rows with personal data masked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection

from exhaust.datasets.base import Dataset, DatasetLimitExceeded
from exhaust.datasets.cells import Cell, Column, decode_json, format_json
from exhaust.datasets.layout import arrange_columns
from exhaust.datasets.own import require_dataset
from exhaust.datasets.resolve import resolve_selection
from exhaust.datasets.selection import Selection
from exhaust.files.formats.lines import format_csv_line
from exhaust.jobs.submit import Submission
from ingest.db.time_limit import limit_query_seconds
from ingest.feed.watermark import fetch_watermark

PREVIEW_ROWS = 20
PREVIEW_BYTES = 1024 * 1024
QUERY_SECONDS = 1.5  # for counting, and again for the rows
MASK = "***"
TOO_SLOW = "Reading took too long; no row is shown."


@dataclass(frozen=True)
class Preview:
    """The cells are masked; a number that took too long is None."""

    row_count: int | None
    byte_count: int | None  # as CSV
    is_counted: bool  # else the planner's estimate
    columns: Sequence[Column]
    rows: list[list[Cell]]
    message: str


def build_preview(submission: Submission) -> Preview:
    """Previews the request over all events so far; takes about five seconds at most."""
    dataset = arrange_columns(
        require_dataset(submission.channel_id, submission.dataset), submission.config
    )
    selection = resolve_selection(
        dataset, submission.channel_id, submission.config, fetch_watermark(), PREVIEW_ROWS
    )
    try:
        with limit_query_seconds(QUERY_SECONDS):
            dataset = dataset.pin_columns(selection, submission.config)
        return _preview_rows(dataset, selection)
    except TimeoutError:
        message = TOO_SLOW
    except DatasetLimitExceeded as error:
        message = str(error)
    return Preview(None, None, is_counted=False, rows=[], message=message, columns=dataset.columns)


def _preview_rows(dataset: Dataset, selection: Selection) -> Preview:
    notes = []
    row_count: int | None = None
    try:
        with limit_query_seconds(QUERY_SECONDS):
            row_count = dataset.count_rows(selection)
    except TimeoutError:
        notes.append("Counting took too long; rows and bytes are estimates.")
        if connection.vendor == "postgresql":
            row_count = dataset.estimate_rows(selection)
    is_counted = not notes
    notes += filter(None, [dataset.preview_note])
    rows: list[list[Cell]] | None = None
    try:
        with limit_query_seconds(QUERY_SECONDS):
            rows, is_cut = _take_rows(dataset.iterate_rows(selection))
        if is_cut:
            notes.append("The rows are large; fewer are shown.")
    except TimeoutError:
        notes.append(TOO_SLOW)
    byte_count = None
    if row_count is not None and (rows or row_count == 0):
        header = len(format_csv_line([column.header for column in dataset.columns]))
        lengths = [len(format_csv_line(row)) for row in rows or ()]
        byte_count = header + (row_count * sum(lengths) // len(lengths) if lengths else 0)
    return Preview(
        row_count,
        byte_count,
        is_counted,
        dataset.columns,
        [
            [mask_cell(column, cell) for column, cell in zip(dataset.columns, row, strict=True)]
            for row in rows or ()
        ],
        " ".join(notes),
    )


def _take_rows(found: Iterable[list[Cell]]) -> tuple[list[list[Cell]], bool]:
    """Returns rows with `PREVIEW_BYTES` together, one at least, and whether there are more."""
    rows: list[list[Cell]] = []
    size = 0
    is_cut = False
    for row in found:  # all of them: a stream that is left open holds its cursor
        size += sum(len(cell) for cell in row if cell is not None)
        is_cut = bool(rows) and size > PREVIEW_BYTES
        if not is_cut:
            rows.append(row)
    return rows, is_cut


def mask_cell(column: Column, cell: Cell) -> Cell:
    """Masks a personal cell: text keeps its first character, JSON its names and shape."""
    if cell is None or not column.is_personal:
        return cell
    if column.kind == "json":
        try:
            return format_json(_mask_json(decode_json(cell)))
        except RecursionError:
            return MASK
    return cell[0] + MASK if len(cell) > 1 else MASK


def _mask_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _mask_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_mask_json(item) for item in value]
    return MASK
