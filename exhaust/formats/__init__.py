"""The formats a dataset can be asked in; adding one means copying the nearest neighbour.

Rows come as cells: texts, or None for nothing. A column's kind says what a text stands for.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from exhaust.datasets.columns import Cell, Column
from exhaust.formats.lines import CsvLines, JsonLines


class Unfit(Exception):
    """What was asked for does not go into the format; the message is for the requester."""


class Body(Protocol):
    """One file on its way. Each call gives the bytes that are ready, often none."""

    misfits: int  # cells left empty, because their column's type cannot hold them

    def start(self) -> bytes: ...

    def add(self, row: Sequence[Cell]) -> bytes:
        """Raises `Unfit`."""

    def end(self) -> bytes: ...


@dataclass(frozen=True)
class Format:
    """A format. `begin` is given the columns, and at how many bytes a part will end."""

    name: str  # also the suffix of a file
    content_type: str
    begin: Callable[[Sequence[Column], int], Body]
    max_rows: int | None = None
    splits: bool = True  # into parts of `EXHAUST_PART_BYTES`
    copied: bool = False  # its body has `add_lines`, for what PostgreSQL's COPY writes
    empty: str = "the file holds only its header"


# pyarrow is loaded by those who write Parquet only: it costs tens of MiB


def _parquet(columns: Sequence[Column], limit: int) -> Body:
    # its own allocator keeps some 46 MiB more than it needs; read when pyarrow is loaded
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from exhaust.formats.parquet import Parquet

    return Parquet(columns, limit)


def _xlsx(columns: Sequence[Column], limit: int) -> Body:
    from exhaust.formats.xlsx import Xlsx

    return Xlsx(columns)


_GZIP = "application/gzip"
_NOTHING = "the file is empty"
CSV = Format("csv", "text/csv; charset=utf-8", CsvLines, copied=True)
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        CSV,
        Format("csv.gz", _GZIP, partial(CsvLines, gzip=True), copied=True),
        Format("jsonl", "application/x-ndjson", JsonLines, empty=_NOTHING),
        Format("jsonl.gz", _GZIP, partial(JsonLines, gzip=True), empty=_NOTHING),
        Format("parquet", "application/vnd.apache.parquet", _parquet),
        Format(
            "xlsx",
            "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
            _xlsx,
            max_rows=1_048_575,  # and the header
            splits=False,
        ),
    )
}
