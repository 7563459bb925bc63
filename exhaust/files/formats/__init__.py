"""The formats a dataset can be asked in; adding one means copying the nearest neighbour.

Rows come as cells: texts, or None for nothing. The kind of its column tells how to read a text.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from django.utils.translation import gettext_noop

from exhaust.datasets.cells import Column
from exhaust.files.formats.base import CellChunk, Format, FormatLimitExceeded, FormatWriter
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
_EMPTY_FILE = gettext_noop("the file is empty")
_CSV_TYPE = "text/csv; charset=utf-8"
CSV = Format("csv", _CSV_TYPE, CsvWriter, has_add_lines=True, archive_rows="csv lines")
_JSON_LINES = partial(Format, archive_rows="json lines", empty_message=_EMPTY_FILE)
FORMATS: dict[str, Format] = {
    file_format.name: file_format
    for file_format in (
        CSV,
        replace(CSV, name="csv.gz", content_type=_GZIP, make_writer=partial(CsvWriter, gzip=True)),
        Format("csv-excel", _CSV_TYPE, ExcelCsvWriter, file_suffix="csv"),
        _JSON_LINES("jsonl", "application/x-ndjson", JsonLinesWriter),
        _JSON_LINES("jsonl.gz", _GZIP, partial(JsonLinesWriter, gzip=True)),
        Format(
            "parquet",
            "application/vnd.apache.parquet",
            _make_parquet_writer,
            archive_rows="cells",
            unconvertible_message="Cells without a number in a column of numbers: {}. Parquet"
            " leaves them empty, csv and jsonl do not.",
        ),
        Format(
            "xlsx",
            "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
            _make_xlsx_writer,
            archive_rows="cells",
            max_rows=1_048_575,  # and the header
            is_splittable=False,
            unconvertible_message="Cells longer than the 32,767 characters that xlsx holds: {}."
            " They end there; csv, jsonl and parquet have them whole.",
        ),
    )
}

__all__ = ["CSV", "FORMATS", "CellChunk", "Format", "FormatLimitExceeded", "FormatWriter"]
