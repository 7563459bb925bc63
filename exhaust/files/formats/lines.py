"""Formats of a line for each row: CSV and JSON Lines, plain or gzip."""

import re
import zlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring

from exhaust.datasets.cells import (
    Cell,
    Column,
    Kind,
    escape_formula,
    escape_json_separators,
    escape_split_formulas,
    is_number,
    may_hold_formulas,
)

# this level of zlib makes nearly the smallest files, at nearly twice the speed of its default
GZIP_LEVEL = 4
BLOCK_BYTES = 256 * 1024
UTF8_BOM = b"\xef\xbb\xbf"  # without it, Excel reads the machine's old code page
# what Excel may read as a number, a date or a time, and what of it it shows unchanged
_looks_numeric = re.compile(r"[\s+-]*[(.,]?[0-9][0-9\s().,:/%eE+-]*").fullmatch
_shows_unchanged = re.compile(
    r"(?=.{1,11}\Z)(?!-0\Z)-?(?:0|[1-9][0-9]*)(?:\.[0-9]*[1-9])?"
).fullmatch
_EXACT_DIGITS = 15  # of a number
# csv.writer does not quote a lone \r when lines end in \n
_END_OF_DATA = "\\."  # of COPY, which quotes it where it is alone in its line
_NEEDS_QUOTES = re.compile('[",\r\n]')


def format_csv_line(cells: Sequence[Cell]) -> bytes:
    """Returns one line. None is an empty cell, as COPY writes it."""
    if cells == [_END_OF_DATA]:
        return f'"{_END_OF_DATA}"\n'.encode()
    return (",".join(map(_format_field, cells)) + "\n").encode()


def _format_field(cell: Cell) -> str:
    if cell is None:
        return ""
    if _NEEDS_QUOTES.search(cell) or cell == "":
        return '"' + cell.replace('"', '""') + '"'
    return cell


@dataclass
class LineChunk:
    """Finished lines: their bytes, the end of each, and how many are written."""

    data: bytes  # or another buffer
    ends: Sequence[int]
    lines_taken: int = 0

    @property
    def rows_left(self) -> int:
        return len(self.ends) - self.lines_taken


class LinesWriter:
    """Collects lines into blocks."""

    unconvertible_cells = 0

    def __init__(self, limit: int, *, gzip: bool) -> None:
        self._block_bytes = min(BLOCK_BYTES, limit)
        self._buffer: list[bytes | memoryview] = []
        self._size = 0  # of the buffer
        # zlib's gzip header holds no time and no name
        self._gzip = zlib.compressobj(GZIP_LEVEL, wbits=31) if gzip else None

    def start(self) -> bytes:
        return b""

    def add_line(self, line: bytes) -> bytes:
        self._append(line)
        return self._flush() if self._size >= self._block_bytes else b""

    def add_lines(self, chunk: LineChunk) -> bytes:
        """Adds lines until the block is full or none is left, as if each came by itself."""
        ends = chunk.ends
        begin = ends[chunk.lines_taken - 1] if chunk.lines_taken else 0
        last = bisect_left(ends, begin + self._block_bytes - self._size, chunk.lines_taken)
        is_full = last < len(ends)
        self._append(memoryview(chunk.data)[begin : ends[last] if is_full else None])
        chunk.lines_taken = last + 1 if is_full else len(ends)
        return self._flush() if is_full else b""

    def end(self) -> bytes:
        return self._flush() + (self._gzip.flush() if self._gzip else b"")

    def _append(self, lines: bytes | memoryview) -> None:
        self._buffer.append(lines)
        self._size += len(lines)

    def _flush(self) -> bytes:
        data = b"".join(self._buffer)
        self._buffer.clear()
        self._size = 0
        return self._gzip.compress(data) if self._gzip else data


class CsvWriter(LinesWriter):
    """RFC 4180 in UTF-8 with LF and always a header. Formulas in free text are escaped."""

    def __init__(self, columns: Sequence[Column], limit: int, *, gzip: bool = False) -> None:
        super().__init__(limit, gzip=gzip)
        self._columns = columns
        self._escaped_columns = may_hold_formulas(columns)

    def start(self) -> bytes:
        self._append(format_csv_line([column.header for column in self._columns]))
        return self._flush()

    def add(self, row: Sequence[Cell]) -> bytes:
        return self.add_line(
            format_csv_line(
                [
                    escape_formula(cell) if guard and cell is not None else cell
                    for cell, guard in zip(row, self._escaped_columns, strict=True)
                ]
            )
        )


class ExcelCsvWriter(CsvWriter):
    """CSV that Excel opens by a double click: a BOM, and an apostrophe before what it would change.

    That is a text of digits that would become a rounded number or a date, a number of more than 15
    characters, and a formula that begins where a system with `;` or tab between cells ends one.
    """

    def start(self) -> bytes:
        self._append(UTF8_BOM)
        return super().start()

    def add(self, row: Sequence[Cell]) -> bytes:
        return super().add(
            [
                cell if cell is None else protect_from_excel(cell, column.kind)
                for cell, column in zip(row, self._columns, strict=True)
            ]
        )


def protect_from_excel(cell: str, kind: Kind) -> str:
    """The cell with an apostrophe before what Excel would run, or turn into another value."""
    if kind in {"time", "uuid"}:
        return cell
    cell = escape_json_separators(cell) if kind == "json" else escape_split_formulas(cell)
    if not _looks_numeric(cell):
        return cell
    is_kept = (
        _shows_unchanged(cell) if kind == "text" else len(cell) <= _EXACT_DIGITS and is_number(cell)
    )
    return cell if is_kept else "'" + cell


class JsonLinesWriter(LinesWriter):
    """An object for each row, by the headers: numbers as numbers, JSON as it is, null for None.

    What is no number in a column of numbers is a text.
    """

    def __init__(self, columns: Sequence[Column], limit: int, *, gzip: bool = False) -> None:
        super().__init__(limit, gzip=gzip)
        self._names = [f"{encode_basestring(column.header)}:" for column in columns]
        self._encoders = [_JSON_ENCODERS[column.kind] for column in columns]

    def add(self, row: Sequence[Cell]) -> bytes:
        fields = [
            name + ("null" if cell is None else encode(cell))
            for name, encode, cell in zip(self._names, self._encoders, row, strict=True)
        ]
        return self.add_line(f"{{{','.join(fields)}}}\n".encode())


def _encode_number(cell: str) -> str:
    return cell if is_number(cell) else encode_basestring(cell)


_JSON_ENCODERS: dict[Kind, Callable[[str], str]] = {
    "text": encode_basestring,
    "time": encode_basestring,
    "uuid": encode_basestring,
    "number": _encode_number,
    "whole": _encode_number,
    "json": str,
}
