"""A connection to PostgreSQL whose prepared statements run on the event loop, without a thread.

It drives libpq itself: psycopg's own asynchronous connection takes twice the processor time, and a
thread three times.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import psycopg
from django.db import connection as django_connection
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format

from ingest.db.binary_arrays import Column
from ingest.db.pool import Pool, Unavailable

TIMEOUT_SECONDS = 30.0  # of one call
LOOK_SECONDS = 0.2  # uvloop does not tell every reset connection
_PARAMETER = re.compile(r"%\((\w+)\)[bs]")
Row = tuple[bytes | None, ...]


class LoopConnection:
    """Executes a few prepared statements. It connects when it is first used, and after a failure.

    `statements` are SQL texts with `%(name)b` parameters; `types` has the types of those that are
    no `Column` in the first call, as PostgreSQL's numbers; `settings` is SQL that a new connection
    runs first.
    """

    def __init__(
        self, statements: Sequence[str], types: Mapping[str, int], settings: str = ""
    ) -> None:
        self._statements = {sql: _Prepared(index, sql) for index, sql in enumerate(statements)}
        self._types = types
        self._settings = settings
        self._connection: psycopg.Connection[Any] | None = None
        self._pool: Pool | None = None  # whose rules of age hold here too
        self._socket = -1
        self._rows: list[list[Row]] = []
        self._error: psycopg.Error | None = None
        self._done: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def execute(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[Row]]:
        """Executes statements in one commit and one round trip. Returns the rows of each.

        A row has PostgreSQL's binary values. Raises `psycopg.Error`, and then nothing is stored;
        after `OperationalError` that is not sure. Raises `Unavailable` where a second call would
        wait in vain, too.
        """
        loop = asyncio.get_running_loop()
        if (
            self._connection is not None
            and self._pool
            and not self._pool.is_fresh(self._connection)
        ):
            self.close()
        if self._connection is None:
            self._connection = await loop.run_in_executor(None, self._connect, calls)
            self._socket = self._connection.pgconn.socket  # libpq forgets it when it is lost
            loop.add_reader(self._socket, self._read)
        pgconn = self._connection.pgconn
        self._rows, self._error = [], None
        self._done = loop.create_future()
        try:
            for sql, parameters in calls:
                prepared = self._statements[sql]
                values, formats = prepared.dump(parameters)
                pgconn.send_query_prepared(prepared.name, values, formats, Format.BINARY)
            pgconn.pipeline_sync()
            if pgconn.flush():
                loop.add_writer(self._socket, self._write)
            self._look_later(loop, loop.time() + TIMEOUT_SECONDS)
            await self._done
        except BaseException:
            self.close()
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
        if self._error is not None:
            if isinstance(self._error, psycopg.errors.ReadOnlySqlTransaction):
                self.close()  # a new one may be able to write
            raise self._error
        return self._rows

    def close(self) -> None:
        """Closes the connection; the next call makes a new one."""
        if self._connection is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket)
            loop.remove_writer(self._socket)
            self._connection.close()
            self._connection = None

    def _connect(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> psycopg.Connection[Any]:
        database = cast(Any, django_connection)  # of this thread; a task of the loop has none
        connected: psycopg.Connection[Any] = database.open_connection()
        self._pool = database.pool
        # to plan for a few values takes longer than to execute
        connected.execute("SET plan_cache_mode = force_generic_plan")
        if self._settings:
            connected.execute(self._settings)
        types = {
            name: value.oid
            for _, parameters in calls
            for name, value in parameters.items()
            if isinstance(value, Column)
        }
        types.update(self._types)
        for prepared in self._statements.values():
            oids = [types[name] for name in prepared.names]
            result = connected.pgconn.prepare(prepared.name, prepared.sql, oids)
            if result.status != ExecStatus.COMMAND_OK:
                raise error_from_result(result)
        connected.pgconn.nonblocking = 1
        connected.pgconn.enter_pipeline_mode()
        return connected

    def _look_later(self, loop: asyncio.AbstractEventLoop, ends_at: float) -> None:
        self._timer = loop.call_later(LOOK_SECONDS, self._look, loop, ends_at)

    def _look(self, loop: asyncio.AbstractEventLoop, ends_at: float) -> None:
        self._read()
        if self._done is None or self._done.done():
            return
        if loop.time() > ends_at:
            self._done.set_exception(Unavailable("The database does not answer."))
        else:
            self._look_later(loop, ends_at)

    def _write(self) -> None:
        self._guard(self._flush)

    def _flush(self, pgconn: Any) -> None:
        if not pgconn.flush():
            asyncio.get_running_loop().remove_writer(self._socket)

    def _read(self) -> None:
        self._guard(self._consume)

    def _consume(self, pgconn: Any) -> None:
        pgconn.consume_input()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:  # between two statements, or nothing has come
                if self._done is None or self._done.done():
                    return
                continue
            if result.status == ExecStatus.TUPLES_OK:
                columns, get_value = range(result.nfields), result.get_value
                self._rows.append(
                    [
                        tuple([get_value(row, column) for column in columns])
                        for row in range(result.ntuples)
                    ]
                )
            elif result.status == ExecStatus.PIPELINE_SYNC:
                if self._done is not None and not self._done.done():
                    self._done.set_result(None)
                return
            elif result.status == ExecStatus.FATAL_ERROR and self._error is None:
                self._error = error_from_result(result)

    def _guard(self, work: Callable[[Any], None]) -> None:
        """Ends the call that waits, and the connection, if libpq finds it broken."""
        if self._connection is None:
            return
        try:
            work(self._connection.pgconn)
        except psycopg.Error as error:
            if self._done is not None and not self._done.done():
                self._done.set_exception(error)
            else:
                self.close()


class _Prepared:
    """A statement under its name, with its parameters in order."""

    def __init__(self, index: int, sql: str) -> None:
        self.name = f"loop_{index}".encode()
        self.names: list[str] = list(dict.fromkeys(_PARAMETER.findall(sql)))
        numbers = {name: f"${number}" for number, name in enumerate(self.names, 1)}
        self.sql = _PARAMETER.sub(lambda match: numbers[match[1]], sql).encode()

    def dump(self, parameters: Mapping[str, Any]) -> tuple[list[bytes | None], list[int]]:
        values: list[bytes | None] = []
        formats: list[int] = []
        for name in self.names:
            value = parameters[name]
            if isinstance(value, Column):
                values.append(value.data)
                formats.append(Format.BINARY)
            else:
                values.append(None if value is None else str(value).encode())
                formats.append(Format.TEXT)
        return values, formats
