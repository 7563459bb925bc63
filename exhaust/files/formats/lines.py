"""A line a row: CSV and JSON Lines, plain or gzip."""

import re
import zlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring

from exhaust.datasets.columns import Cell, Column, Kind, guarded, guards, is_number

# of zlib's, the one that makes nearly the smallest files at nearly twice the speed of its default
GZIP_LEVEL = 4
_BLOCK = 256 * 1024
# csv.writer leaves a lone \r unquoted when lines end in \n
_quoted = re.compile('[",\r\n]')


def csv_line(cells: Sequence[Cell]) -> bytes:
    """One line. Raises nothing; a None is an empty cell, as COPY writes it."""
    return (",".join(map(_field, cells)) + "\n").encode()


def _field(cell: Cell) -> str:
    if cell is None:
        return ""
    if _quoted.search(cell) or cell == "":
        return '"' + cell.replace('"', '""') + '"'
    return cell


@dataclass
class Sheaf:
    """Lines as PostgreSQL wrote them: their bytes, where each ends, how many a file has taken."""

    data: bytes
    ends: list[int]
    taken: int = 0

    @property
    def left(self) -> int:
        return len(self.ends) - self.taken


class Lines:
    """Lines, given away in blocks."""

    misfits = 0

    def __init__(self, limit: int, *, gzip: bool) -> None:
        self._block = min(_BLOCK, limit)
        self._held: list[bytes | memoryview] = []
        self._size = 0  # of what is held
        # a gzip header by zlib holds no moment and no name
        self._gzip = zlib.compressobj(GZIP_LEVEL, wbits=31) if gzip else None

    def start(self) -> bytes:
        return b""

    def add_line(self, line: bytes) -> bytes:
        self._hold(line)
        return self._given() if self._size >= self._block else b""

    def add_lines(self, sheaf: Sheaf) -> bytes:
        """As many lines as fill the block, or all that are left: as if each came by itself."""
        ends = sheaf.ends
        begin = ends[sheaf.taken - 1] if sheaf.taken else 0
        last = bisect_left(ends, begin + self._block - self._size, sheaf.taken)
        is_full = last < len(ends)
        self._hold(memoryview(sheaf.data)[begin : ends[last] if is_full else None])
        sheaf.taken = last + 1 if is_full else len(ends)
        return self._given() if is_full else b""

    def end(self) -> bytes:
        return self._given() + (self._gzip.flush() if self._gzip else b"")

    def _hold(self, lines: bytes | memoryview) -> None:
        self._held.append(lines)
        self._size += len(lines)

    def _given(self) -> bytes:
        given = b"".join(self._held)
        self._held.clear()
        self._size = 0
        return self._gzip.compress(given) if self._gzip else given


class CsvLines(Lines):
    """RFC 4180 quoting, UTF-8, LF, a header always; free text that no spreadsheet runs."""

    def __init__(self, columns: Sequence[Column], limit: int, *, gzip: bool = False) -> None:
        super().__init__(limit, gzip=gzip)
        self._columns = columns
        self._guards = guards(columns)

    def start(self) -> bytes:
        self._hold(csv_line([column.header for column in self._columns]))
        return self._given()

    def add(self, row: Sequence[Cell]) -> bytes:
        return self.add_line(
            csv_line(
                [
                    guarded(cell) if guard and cell is not None else cell
                    for cell, guard in zip(row, self._guards, strict=True)
                ]
            )
        )


class JsonLines(Lines):
    """An object a row, by the headers: numbers as numbers, JSON as it is, null for nothing.

    What is no number in a column of numbers is a text.
    """

    def __init__(self, columns: Sequence[Column], limit: int, *, gzip: bool = False) -> None:
        super().__init__(limit, gzip=gzip)
        self._names = [f"{encode_basestring(column.header)}:" for column in columns]
        self._encoders = [_JSON[column.kind] for column in columns]

    def add(self, row: Sequence[Cell]) -> bytes:
        fields = [
            name + ("null" if cell is None else encode(cell))
            for name, encode, cell in zip(self._names, self._encoders, row, strict=True)
        ]
        return self.add_line(f"{{{','.join(fields)}}}\n".encode())


def _number(cell: str) -> str:
    return cell if is_number(cell) else encode_basestring(cell)


_JSON: dict[Kind, Callable[[str], str]] = {
    "text": encode_basestring,
    "time": encode_basestring,
    "uuid": encode_basestring,
    "number": _number,
    "whole": _number,
    "json": str,
}
