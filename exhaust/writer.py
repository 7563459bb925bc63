"""A dataset's rows as CSV bytes: RFC 4180 quoting, UTF-8, LF, a header always.

On PostgreSQL the database writes the lines where it can; the portable way makes the same bytes.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg
from django.db import connection

from exhaust.datasets.columns import Cell
from exhaust.datasets.selection import Dataset, Selection

CONTENT_TYPE = "text/csv; charset=utf-8"
_BLOCK = 256 * 1024
# csv.writer leaves a lone \r unquoted when lines end in \n
_quoted = re.compile('[",\r\n]')


@dataclass
class Progress:
    """Rows written so far; another thread reads it."""

    rows: int = 0


def csv_line(cells: Sequence[Cell]) -> bytes:
    """One line. Raises nothing; a None is an empty cell, as COPY writes it."""
    return (",".join(map(_field, cells)) + "\n").encode()


def _field(cell: Cell) -> str:
    if cell is None:
        return ""
    if _quoted.search(cell) or cell == "":
        return '"' + cell.replace('"', '""') + '"'
    return cell


def blocks(
    dataset: Dataset, selection: Selection, progress: Progress, *, portable: bool = False
) -> Iterator[bytes | bytearray]:
    """The file, in blocks of about 256 KiB."""
    yield csv_line([column.header for column in dataset.columns])
    query = None if portable or connection.vendor != "postgresql" else dataset.copy(selection)
    lines = (csv_line(row) for row in dataset.rows(selection)) if query is None else _copied(*query)
    block = bytearray()
    for line in lines:
        block += line
        progress.rows += 1
        if len(block) >= _BLOCK:
            yield block
            block = bytearray()
    yield block


# An index gives the rows in the file's order. Without fresh statistics the planner would rather
# sort them, payloads and all, on disk. A row costs far more to make than to hand over, which the
# planner cannot see: told so, it lets its workers help with smaller files too.
_PLANNING = """
SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off; SET LOCAL work_mem = '64MB';
SET LOCAL parallel_tuple_cost = 0.01
"""


def _copied(sql: str, params: dict[str, object]) -> Iterator[bytes | bytearray | memoryview]:
    """PostgreSQL's own CSV: one message is one row."""
    connection.ensure_connection()
    with (
        connection.wrap_database_errors,
        connection.connection.transaction(),
        psycopg.Cursor(connection.connection) as cursor,
    ):
        cursor.execute(_PLANNING)
        seen = 0
        with cursor.copy(f"COPY ({sql}) TO STDOUT (FORMAT csv)", params) as copy:
            for line in copy:
                seen += 1
                yield line
        if seen != cursor.rowcount:  # a habit of the server, not a promise
            raise RuntimeError(f"COPY sent {seen} messages for {cursor.rowcount} rows")


class Stream(io.RawIOBase):
    """What storage reads: exactly the bytes asked for until the end, counted and hashed."""

    def __init__(self, blocks: Iterator[bytes | bytearray]) -> None:
        self._blocks = blocks
        self._held = bytearray()
        self._sha256 = hashlib.sha256()
        self.byte_count = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._held) < size:
            block = next(self._blocks, None)
            if block is None:
                size = len(self._held)
            else:
                self._held += block
        with memoryview(self._held) as view:
            taken = bytes(view[:size])
        del self._held[:size]
        self._sha256.update(taken)
        self.byte_count += len(taken)
        return taken

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()
