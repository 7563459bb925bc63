"""The formats a dataset can be asked in; adding one means copying the nearest neighbour.

Rows come as cells: texts, or None for nothing. The kind of its column tells how to read a text.
"""

import os
from collections.abc import Sequence
from functools import partial

from exhaust.datasets.cells import Column
from exhaust.files.formats.base import Format, FormatLimitExceeded, FormatWriter
from exhaust.files.formats.lines import CsvWriter, ExcelCsvWriter, JsonLinesWriter

# Only a process that writes Parquet loads pyarrow, which takes tens of MiB.


def _make_parquet_writer(columns: Sequence[Column], limit: int) -> FormatWriter:
    # Arrow's own allocator keeps some 46 MiB too much; pyarrow reads this when it is loaded
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from exhaust.files.formats.parquet import ParquetFileWriter

    return ParquetFileWriter(columns, limit)


def _make_xlsx_writer(columns: Sequence[Column], limit: int) -> FormatWriter:
    from exhaust.files.formats.xlsx import XlsxFileWriter

    return XlsxFileWriter(columns)


_GZIP = "application/gzip"
_EMPTY_FILE = "the file is empty"
_CSV_TYPE = "text/csv; charset=utf-8"
CSV = Format("csv", _CSV_TYPE, CsvWriter, has_add_lines=True)
FORMATS: dict[str, Format] = {
    file_format.name: file_format
    for file_format in (
        CSV,
        Format("csv.gz", _GZIP, partial(CsvWriter, gzip=True), has_add_lines=True),
        Format("csv-excel", _CSV_TYPE, ExcelCsvWriter, file_suffix="csv"),
        Format("jsonl", "application/x-ndjson", JsonLinesWriter, empty_message=_EMPTY_FILE),
        Format("jsonl.gz", _GZIP, partial(JsonLinesWriter, gzip=True), empty_message=_EMPTY_FILE),
        Format(
            "parquet",
            "application/vnd.apache.parquet",
            _make_parquet_writer,
            unconvertible_message="hold no number where their column has numbers; parquet leaves"
            " them empty, csv and jsonl do not.",
        ),
        Format(
            "xlsx",
            "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
            _make_xlsx_writer,
            max_rows=1_048_575,  # and the header
            is_splittable=False,
            unconvertible_message="are longer than the 32,767 characters that xlsx holds, and end"
            " there; csv, jsonl and parquet have them whole.",
        ),
    )
}

__all__ = ["CSV", "FORMATS", "Format", "FormatLimitExceeded", "FormatWriter"]
