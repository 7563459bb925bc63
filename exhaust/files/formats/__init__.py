"""The formats a dataset can be asked in; adding one means copying the nearest neighbour.

Rows come as cells: texts, or None for nothing. A column's kind says what a text stands for.
"""

import os
from collections.abc import Sequence
from functools import partial

from exhaust.datasets.columns import Column
from exhaust.files.formats.base import Body, Format, Unfit
from exhaust.files.formats.lines import CsvLines, JsonLines

# pyarrow is loaded by those who write Parquet only: it costs tens of MiB


def _parquet(columns: Sequence[Column], limit: int) -> Body:
    # its own allocator keeps some 46 MiB more than it needs; read when pyarrow is loaded
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from exhaust.files.formats.parquet import Parquet

    return Parquet(columns, limit)


def _xlsx(columns: Sequence[Column], limit: int) -> Body:
    from exhaust.files.formats.xlsx import Xlsx

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

__all__ = ["CSV", "FORMATS", "Body", "Format", "Unfit"]
