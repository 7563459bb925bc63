"""The rows of a query by PostgreSQL's COPY; a large one in slices of time, over two connections.

Making a row costs PostgreSQL several times as much as it costs us, and one process makes one
statement: parallel plans pass every row to a leader, which costs as much as they save. So each
slice is a statement of its own and two run at a time. Rows come in the order of the file. All
slices see the same rows as one statement would, by the job's watermark.
"""

import queue
import select
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import accumulate
from typing import Any

import psycopg
from django.conf import settings
from django.db import connection, connections

from exhaust.files.formats.lines import BLOCK_BYTES, LineChunk

Query = tuple[str, dict[str, Any]]

SLICE_ROWS = 10_000
MAX_SLICES = 1_000
CONNECTIONS = 2
BATCH_ROWS, BATCH_BYTES = 256, BLOCK_BYTES  # that one thread hands to the other at once
MAX_QUEUED_BATCHES = 32  # of a slice ahead of the file: about as much as a slice

# An index returns the rows in the file's order. Without fresh statistics the planner would sort
# them on disk, payloads included.
PLANNER_SETTINGS = """
SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off; SET LOCAL work_mem = '64MB';
SET LOCAL max_parallel_workers_per_gather = 0
"""


class CancellableQueries:
    """The connections whose statements make a file, so that another thread can cancel them."""

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
    """Yields rows of cells, or chunks of CSV lines as PostgreSQL writes them, query after query."""
    if len(queries) == 1:
        connection.ensure_connection()
        statements.add(connection.connection)  # it may have changed
        with closing(stream_query_rows(*queries[0], by_line=by_line)) as rows:  # type: ignore[type-var]
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


def stream_query_rows(
    sql: str,
    params: dict[str, Any],
    *,
    by_line: bool,
    line_format: str = "csv",
    planner_settings: str = PLANNER_SETTINGS,
) -> Iterator[Any]:
    """Yields the rows of one statement on this thread's connection; one message is one row.

    `line_format` has COPY's options for lines.
    """
    with (
        connection.wrap_database_errors,
        connection.connection.transaction(),
        psycopg.Cursor(connection.connection) as cursor,
    ):
        cursor.execute(planner_settings)
        limit = settings.EXHAUST_MAX_SECONDS * 1000
        cursor.execute(f"SET LOCAL statement_timeout = {limit}")
        # a slice that the server has sent whole waits for a slow format or storage to take it
        cursor.execute(f"SET LOCAL idle_in_transaction_session_timeout = {limit}")
        message_count = 0
        copy_format = line_format if by_line else "text"
        with cursor.copy(f"COPY ({sql}) TO STDOUT (FORMAT {copy_format})", params) as copy:
            rows = _Messages(connection.connection.pgconn) if by_line else copy.rows()
            for row in rows:
                message_count += 1
                yield row
        row_count = rows.row_count if isinstance(rows, _Messages) else cursor.rowcount
        if message_count != row_count:  # the protocol does not promise it
            raise RuntimeError(f"COPY sent {message_count} messages for {row_count} rows")


class _Messages:
    """The messages of a COPY under way. `psycopg.Copy` takes several times as long for each."""

    def __init__(self, pgconn: Any) -> None:
        self._pgconn = pgconn
        self._poll = select.poll()
        self._poll.register(pgconn.socket, select.POLLIN)
        self.row_count: int | None = None  # by the server, in the end

    def __iter__(self) -> Iterator[memoryview]:
        read_message = self._pgconn.get_copy_data
        while True:
            size, message = read_message(1)
            if size > 0:
                yield message
            elif size == 0:
                self._wait()
            else:
                break
        while self._pgconn.is_busy():
            self._wait()
        results = list(iter(self._pgconn.get_result, None))
        for result in results:
            if result.status != psycopg.pq.ExecStatus.COMMAND_OK:
                raise psycopg.errors.error_from_result(result)
            self.row_count = result.command_tuples

    def _wait(self) -> None:
        self._poll.poll()
        self._pgconn.consume_input()


def _batch_rows(rows: Iterator[Any], *, by_line: bool) -> Iterator[list[Any]]:
    """Yields rows, or chunks of lines, in batches: one by one they cost the next thread more."""
    batch: list[Any] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row) if by_line else sum(len(cell) for cell in row if cell)
        if size >= BATCH_BYTES or len(batch) >= BATCH_ROWS:
            yield _join_lines(batch) if by_line else batch
            batch, size = [], 0
    if batch:
        yield _join_lines(batch) if by_line else batch


def _join_lines(lines: list[Any]) -> list[LineChunk]:
    return [LineChunk(b"".join(lines), list(accumulate(map(len, lines))))]


class _ReaderGone(Exception):
    """The reader wants no more rows."""


_SLICE_END: list[Any] = []  # of a slice


class SliceWorker(threading.Thread):
    """Copies some of the slices, one after the other, over its own connection."""

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
        self._batches: queue.Queue[list[Any] | BaseException] = queue.Queue(MAX_QUEUED_BATCHES)
        self._raw_connection: Any = None

    def read_slice(self) -> Iterator[Any]:
        """Yields the rows of the next slice, in the reader's thread. Raises the slice's error."""
        while (item := self._batches.get()) is not _SLICE_END:
            if isinstance(item, BaseException):
                raise item
            yield from item

    def stop(self) -> None:
        """Cancels a statement under way and waits until the connection is closed, 10 s at most.

        A server that does not answer is left to the end of the process.
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
                self.put_item(_SLICE_END)
        except _ReaderGone:
            pass
        except BaseException as error:  # the reader raises it
            with suppress(_ReaderGone):
                self.put_item(error)
        finally:
            connections.close_all()

    def _copy_query(self, query: Query) -> None:
        with closing(stream_query_rows(*query, by_line=self._by_line)) as rows:  # type: ignore[type-var]
            for batch in _batch_rows(rows, by_line=self._by_line):
                self.put_item(batch)

    def put_item(self, item: list[Any] | BaseException) -> None:
        while not self._reader_gone.is_set():
            with suppress(queue.Full):
                self._batches.put(item, timeout=0.2)
                return
        raise _ReaderGone
