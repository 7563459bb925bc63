"""A dataset's rows as files: bytes in the asked format, in parts where they are large.

On PostgreSQL the database makes the cells where it can, and CSV's lines by itself; the portable way
makes the same bytes.
"""

import hashlib
import io
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import psycopg
from django.conf import settings
from django.db import connection

from exhaust.datasets.selection import Dataset, Selection
from exhaust.formats import CSV, Format


@dataclass
class Progress:
    """Rows written so far; another thread reads it. And cells that a format left empty."""

    rows: int = 0
    misfits: int = 0


def blocks(
    dataset: Dataset,
    selection: Selection,
    progress: Progress,
    form: Format = CSV,
    *,
    portable: bool = False,
) -> Generator[bytes]:
    """The whole answer as one file, in blocks of bounded size."""
    for part in parts(dataset, selection, progress, form, limit=0, portable=portable):
        yield from part


def parts(
    dataset: Dataset,
    selection: Selection,
    progress: Progress,
    form: Format,
    *,
    limit: int,
    portable: bool = False,
) -> Generator[Iterator[bytes]]:
    """The files, each in blocks, each to be read to its end before the next is asked for.

    A file ends at the row at which it has `limit` bytes, if rows are left; 0 is no limit.
    """
    limit = limit or sys.maxsize
    copied = connection.vendor == "postgresql" and not portable
    query = dataset.copy(selection, guarded=form.copied) if copied else None
    by_line = query is not None and form.copied
    rows: Any = dataset.rows(selection) if query is None else _copied(*query, by_line=by_line)
    ahead: list[Any] = []
    more = True

    def part() -> Iterator[bytes]:
        nonlocal ahead, more
        body: Any = form.begin(dataset.columns, limit)
        add = body.add_line if by_line else body.add
        yield (block := body.start())
        size = len(block)
        more = False
        for row in chain(ahead, rows):
            block = add(row)
            progress.rows += 1
            if block:
                yield block
                size += len(block)
                if size >= limit:
                    ahead = list(islice(rows, 1))
                    more = bool(ahead)
                    break
        yield body.end()
        progress.misfits += body.misfits

    with closing(rows):
        while more:
            yield part()


# An index gives the rows in the file's order. Without fresh statistics the planner would rather
# sort them, payloads and all, on disk. A row costs far more to make than to hand over, which the
# planner cannot see: told so, it lets its workers help with smaller files too.
_PLANNING = """
SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off; SET LOCAL work_mem = '64MB';
SET LOCAL parallel_tuple_cost = 0.01
"""


def _copied(sql: str, params: dict[str, object], *, by_line: bool) -> Iterator[Any]:
    """Rows of cells, or PostgreSQL's own lines of CSV: one message is one row."""
    connection.ensure_connection()
    with (
        connection.wrap_database_errors,
        connection.connection.transaction(),
        psycopg.Cursor(connection.connection) as cursor,
    ):
        cursor.execute(_PLANNING)
        cursor.execute(f"SET LOCAL statement_timeout = {settings.EXHAUST_MAX_SECONDS * 1000}")
        seen = 0
        kind = "csv" if by_line else "text"
        with cursor.copy(f"COPY ({sql}) TO STDOUT (FORMAT {kind})", params) as copy:
            for row in copy if by_line else copy.rows():
                seen += 1
                yield row
        if seen != cursor.rowcount:  # a habit of the server, not a promise
            raise RuntimeError(f"COPY sent {seen} messages for {cursor.rowcount} rows")


class Stream(io.RawIOBase):
    """What storage reads: exactly the bytes asked for until the end, counted and hashed."""

    def __init__(self, blocks: Iterator[bytes | bytearray]) -> None:
        self._blocks = blocks
        self._held = bytearray()
        self._sha256 = hashlib.sha256()
        self.byte_count = 0
        self.ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._held) < size:
            block = next(self._blocks, None)
            if block is None:
                self.ended = True
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
