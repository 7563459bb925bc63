"""A query's rows by PostgreSQL's COPY; a large one in slices of time, over two connections.

To make a row costs PostgreSQL several times what it costs us, and one statement is made by one of
its processes (its own parallel plans hand row after row to a leader, which costs what they bring).
So each slice is a statement of its own, two of them run at a time, and their rows are given in the
order of the file. All slices see the same rows as one statement would, by the job's watermark.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import accumulate
from typing import Any

import psycopg
from django.conf import settings
from django.db import connection, connections

from exhaust.files.formats.lines import Sheaf

Query = tuple[str, dict[str, Any]]

SLICE_ROWS = 10_000
MOST_SLICES = 1_000
AT_ONCE = 2
_BATCH_ROWS, _BATCH_BYTES = 256, 256 * 1024  # that pass from one thread to the other at once
_BATCHES = 32  # that a slice may be ahead of the file: about as much as a slice

# An index gives the rows in the file's order. Without fresh statistics the planner would rather
# sort them, payloads and all, on disk.
PLANNING = """
SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off; SET LOCAL work_mem = '64MB';
SET LOCAL max_parallel_workers_per_gather = 0
"""


class Statements:
    """The connections whose statements make a file, for whoever has to end them."""

    def __init__(self, *raws: Any) -> None:
        self._raws = [raw for raw in raws if isinstance(raw, psycopg.Connection)]

    def add(self, raw: Any) -> None:
        self._raws.append(raw)

    def cancel_safe(self, timeout: float) -> None:
        for raw in list(self._raws):
            with suppress(psycopg.Error):
                raw.cancel_safe(timeout=timeout)


def copied(queries: Sequence[Query], *, by_line: bool, statements: Statements) -> Iterator[Any]:
    """Rows of cells, or sheaves of PostgreSQL's own lines of CSV, of one query after the other."""
    if len(queries) == 1:
        connection.ensure_connection()
        statements.add(connection.connection)  # it may be another than before
        with closing(_rows(*queries[0], by_line=by_line)) as rows:  # type: ignore[type-var]
            for batch in _batches(rows, by_line=by_line):
                yield from batch
        return
    over = threading.Event()
    lanes = [
        _Lane(queries[number::AT_ONCE], over, statements, by_line=by_line)
        for number in range(AT_ONCE)
    ]
    try:
        for lane in lanes:
            lane.start()
        for number in range(len(queries)):
            yield from lanes[number % AT_ONCE].slice()
    finally:
        over.set()
        for lane in lanes:
            lane.end()


def _rows(sql: str, params: dict[str, Any], *, by_line: bool) -> Iterator[Any]:
    """The rows of one statement on this thread's connection: one message is one row."""
    with (
        connection.wrap_database_errors,
        connection.connection.transaction(),
        psycopg.Cursor(connection.connection) as cursor,
    ):
        cursor.execute(PLANNING)
        cursor.execute(f"SET LOCAL statement_timeout = {settings.EXHAUST_MAX_SECONDS * 1000}")
        seen = 0
        kind = "csv" if by_line else "text"
        with cursor.copy(f"COPY ({sql}) TO STDOUT (FORMAT {kind})", params) as copy:
            for row in copy if by_line else copy.rows():
                seen += 1
                yield row
        if seen != cursor.rowcount:  # a habit of the server, not a promise
            raise RuntimeError(f"COPY sent {seen} messages for {cursor.rowcount} rows")


def _batches(rows: Iterator[Any], *, by_line: bool) -> Iterator[list[Any]]:
    """The rows, or a sheaf of lines, some at a time: one by one they cost the next thread more."""
    batch: list[Any] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row) if by_line else sum(len(cell) for cell in row if cell)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_ROWS:
            yield _together(batch) if by_line else batch
            batch, size = [], 0
    if batch:
        yield _together(batch) if by_line else batch


def _together(lines: list[Any]) -> list[Sheaf]:
    return [Sheaf(b"".join(lines), list(accumulate(map(len, lines))))]


class _Over(Exception):
    """Nobody wants the rest."""


_END: list[Any] = []  # of a slice


class _Lane(threading.Thread):
    """Some of the slices, one after the other, over a connection of its own."""

    def __init__(
        self,
        queries: Sequence[Query],
        over: threading.Event,
        statements: Statements,
        *,
        by_line: bool,
    ) -> None:
        super().__init__(name="copying", daemon=True)
        self._queries = queries
        self._over = over
        self._statements = statements
        self._by_line = by_line
        self._batches: queue.Queue[list[Any] | BaseException] = queue.Queue(_BATCHES)
        self._raw: Any = None

    def slice(self) -> Iterator[Any]:
        """The rows of its next slice, in the reader's thread; raises what the slice failed with."""
        while (said := self._batches.get()) is not _END:
            if isinstance(said, BaseException):
                raise said
            yield from said

    def end(self) -> None:
        """Behind the reader's last word: a statement under way is cut off, the connection closed.

        A server that does not answer is not waited for; the process's end takes the rest.
        """
        for _ in range(10):
            if not self.is_alive():
                return
            if self._raw is not None:
                with suppress(psycopg.Error):
                    self._raw.cancel_safe(timeout=2)
            self.join(1)

    def run(self) -> None:
        try:
            connection.ensure_connection()
            self._raw = connection.connection
            self._statements.add(self._raw)
            for query in self._queries:
                self._copy(query)
                self._put(_END)
        except _Over:
            pass
        except BaseException as error:  # the reader's
            with suppress(_Over):
                self._put(error)
        finally:
            connections.close_all()

    def _copy(self, query: Query) -> None:
        with closing(_rows(*query, by_line=self._by_line)) as rows:  # type: ignore[type-var]
            for batch in _batches(rows, by_line=self._by_line):
                self._put(batch)

    def _put(self, said: list[Any] | BaseException) -> None:
        while not self._over.is_set():
            with suppress(queue.Full):
                self._batches.put(said, timeout=0.2)
                return
        raise _Over
