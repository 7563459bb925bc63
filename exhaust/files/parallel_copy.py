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

from exhaust.files.formats.lines import LineChunk

Query = tuple[str, dict[str, Any]]

SLICE_ROWS = 10_000
MAX_SLICES = 1_000
CONNECTIONS = 2
_BATCH_ROWS, _BATCH_BYTES = 256, 256 * 1024  # that pass from one thread to the other at once
_MAX_QUEUED_BATCHES = 32  # that a slice may be ahead of the file: about as much as a slice

# An index gives the rows in the file's order. Without fresh statistics the planner would rather
# sort them, payloads and all, on disk.
PLANNER_SETTINGS = """
SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off; SET LOCAL work_mem = '64MB';
SET LOCAL max_parallel_workers_per_gather = 0
"""


class CancellableQueries:
    """The connections whose statements make a file, for whoever has to end them."""

    def __init__(self, *raw_connections: Any) -> None:
        self._raw_connections = [
            raw for raw in raw_connections if isinstance(raw, psycopg.Connection)
        ]

    def add(self, raw_connection: Any) -> None:
        self._raw_connections.append(raw_connection)

    def cancel_all(self, timeout: float) -> None:
        for raw in list(self._raw_connections):
            with suppress(psycopg.Error):
                raw.cancel_safe(timeout=timeout)


def copy_rows(
    queries: Sequence[Query], *, by_line: bool, statements: CancellableQueries
) -> Iterator[Any]:
    """Rows of cells, or sheaves of PostgreSQL's own lines of CSV, of one query after the other."""
    if len(queries) == 1:
        connection.ensure_connection()
        statements.add(connection.connection)  # it may be another than before
        with closing(_stream_query_rows(*queries[0], by_line=by_line)) as rows:  # type: ignore[type-var]
            for batch in _batch_rows(rows, by_line=by_line):
                yield from batch
        return
    reader_gone = threading.Event()
    workers = [
        SliceWorker(queries[number::CONNECTIONS], reader_gone, statements, by_line=by_line)
        for number in range(CONNECTIONS)
    ]
    try:
        for worker in workers:
            worker.start()
        for number in range(len(queries)):
            yield from workers[number % CONNECTIONS].read_slice()
    finally:
        reader_gone.set()
        for worker in workers:
            worker.stop()


def _stream_query_rows(sql: str, params: dict[str, Any], *, by_line: bool) -> Iterator[Any]:
    """The rows of one statement on this thread's connection: one message is one row."""
    with (
        connection.wrap_database_errors,
        connection.connection.transaction(),
        psycopg.Cursor(connection.connection) as cursor,
    ):
        cursor.execute(PLANNER_SETTINGS)
        cursor.execute(f"SET LOCAL statement_timeout = {settings.EXHAUST_MAX_SECONDS * 1000}")
        message_count = 0
        copy_format = "csv" if by_line else "text"
        with cursor.copy(f"COPY ({sql}) TO STDOUT (FORMAT {copy_format})", params) as copy:
            for row in copy if by_line else copy.rows():
                message_count += 1
                yield row
        if message_count != cursor.rowcount:  # a habit of the server, not a promise
            raise RuntimeError(f"COPY sent {message_count} messages for {cursor.rowcount} rows")


def _batch_rows(rows: Iterator[Any], *, by_line: bool) -> Iterator[list[Any]]:
    """The rows, or a sheaf of lines, some at a time: one by one they cost the next thread more."""
    batch: list[Any] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row) if by_line else sum(len(cell) for cell in row if cell)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_ROWS:
            yield _join_lines(batch) if by_line else batch
            batch, size = [], 0
    if batch:
        yield _join_lines(batch) if by_line else batch


def _join_lines(lines: list[Any]) -> list[LineChunk]:
    return [LineChunk(b"".join(lines), list(accumulate(map(len, lines))))]


class _ReaderGone(Exception):
    """Nobody wants the rest."""


_SLICE_END: list[Any] = []  # of a slice


class SliceWorker(threading.Thread):
    """Some of the slices, one after the other, over a connection of its own."""

    def __init__(
        self,
        queries: Sequence[Query],
        reader_gone: threading.Event,
        statements: CancellableQueries,
        *,
        by_line: bool,
    ) -> None:
        super().__init__(name="copying", daemon=True)
        self._queries = queries
        self._reader_gone = reader_gone
        self._statements = statements
        self._by_line = by_line
        self._batches: queue.Queue[list[Any] | BaseException] = queue.Queue(_MAX_QUEUED_BATCHES)
        self._raw_connection: Any = None

    def read_slice(self) -> Iterator[Any]:
        """The rows of its next slice, in the reader's thread; raises what the slice failed with."""
        while (item := self._batches.get()) is not _SLICE_END:
            if isinstance(item, BaseException):
                raise item
            yield from item

    def stop(self) -> None:
        """Behind the reader's last word: a statement under way is cut off, the connection closed.

        A server that does not answer is not waited for; the process's end takes the rest.
        """
        for _ in range(10):
            if not self.is_alive():
                return
            if self._raw_connection is not None:
                with suppress(psycopg.Error):
                    self._raw_connection.cancel_safe(timeout=2)
            self.join(1)

    def run(self) -> None:
        try:
            connection.ensure_connection()
            self._raw_connection = connection.connection
            self._statements.add(self._raw_connection)
            for query in self._queries:
                self._copy_query(query)
                self._put_item(_SLICE_END)
        except _ReaderGone:
            pass
        except BaseException as error:  # the reader's
            with suppress(_ReaderGone):
                self._put_item(error)
        finally:
            connections.close_all()

    def _copy_query(self, query: Query) -> None:
        with closing(_stream_query_rows(*query, by_line=self._by_line)) as rows:  # type: ignore[type-var]
            for batch in _batch_rows(rows, by_line=self._by_line):
                self._put_item(batch)

    def _put_item(self, item: list[Any] | BaseException) -> None:
        while not self._reader_gone.is_set():
            with suppress(queue.Full):
                self._batches.put(item, timeout=0.2)
                return
        raise _ReaderGone
