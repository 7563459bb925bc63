"""Django's backend for PostgreSQL, with our pool and the settings of our sessions."""

import os
import re
from contextlib import closing
from functools import cached_property
from time import monotonic
from types import TracebackType
from typing import Any

import psycopg
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.postgresql import base
from django.db.utils import DatabaseErrorWrapper

from ingest.db import outages
from ingest.db.busy_time import Connection
from ingest.db.pool import (
    Pool,
    Unavailable,
    Unsuitable,
    describe_failure,
    fetch_backend_pid,
)

SESSION_SETTINGS = {
    "jit": "off",  # costs more than it saves here
    "idle_in_transaction_session_timeout": "60000",  # an idle writer would hold the feed back
    "lock_timeout": "20000",
}
WEB_STATEMENT_MS = 30_000  # of a web process, whose caller does not wait longer
SESSION_LOOKS = 5  # at two connections in turn, while others use the pooler too
_OPTION = re.compile(r"(?:-c\s*|--)([\w.-]+)\s*=")  # PostgreSQL takes - for _ here


class DatabaseWrapper(base.DatabaseWrapper):
    """A thread's connection. Its own are discarded as soon as an error shows that they are lost."""

    _connection_pools: dict[str, Pool] = {}
    loss_count = 0  # of this thread
    has_own_sessions = False  # a pooler gives each connection a session of its own

    def open_connection(self) -> Any:
        """Returns a new connection beside the pool, with autocommit. Raises `Unavailable`."""
        params = {**self.get_connection_params(), "autocommit": True}
        try:
            opened = Connection.connect(**params)
        except psycopg.Error as error:
            raise Unavailable(describe_failure(error)) from error
        try:
            self._prepare_session(opened, params)
        except psycopg.Error as error:
            opened.close()
            if isinstance(error, Unavailable):
                raise
            raise Unavailable(describe_failure(error)) from error
        opened.made_at = monotonic()  # type: ignore[attr-defined] # for the pool
        return opened

    def _prepare_session(self, opened: Any, params: dict[str, Any]) -> None:
        """Makes our settings, but those that `options` in DATABASE_URL makes.

        PgBouncer refuses a connection that brings `options`, so a statement has to make ours.
        """
        self._require_unicode(opened)
        given = {name.replace("-", "_") for name in _OPTION.findall(params.get("options", ""))}
        values = [
            "pg_backend_pid()",
            *(
                f"set_config('{name}', '{value}', false)"
                for name, value in SESSION_SETTINGS.items()
                if name not in given
            ),
        ]
        sql = f"SELECT {', '.join(values)}"
        ((pid, *_),) = psycopg.Cursor(opened).execute(sql, prepare=False).fetchall()
        # a pooler makes numbers up
        if pid != opened.info.backend_pid and not DatabaseWrapper.has_own_sessions:
            self._require_own_sessions(opened, params)
        self._configure_connection(opened)  # type: ignore[attr-defined] # Django's

    def _require_unicode(self, opened: Any) -> None:
        """Raises `Unsuitable` for a database that cannot hold every text."""
        encoding = opened.info.parameter_status("server_encoding")  # a pooler may leave it out
        if self.alias != NO_DB_ALIAS and encoding not in ("UTF8", None):
            raise Unsuitable(
                f"DATABASE_URL: the database has the encoding {encoding}; create one with ENCODING"
                " 'UTF8' TEMPLATE template0."
            )

    @staticmethod
    def _require_own_sessions(opened: Any, params: dict[str, Any]) -> None:
        """Raises `Unsuitable` where two connections at once meet the same session.

        The roles and settings of a session would reach the requests of others.
        """
        with closing(psycopg.connect(**params)) as other:
            pids = []
            for each in (opened, other) * SESSION_LOOKS:
                if (pid := fetch_backend_pid(each)) is None:
                    return  # the pooler is full: the next connection looks again
                pids.append(pid)
        if pids[0] == pids[1] or pids != pids[:2] * SESSION_LOOKS:
            raise Unsuitable(
                "DATABASE_URL: PgBouncer shares PostgreSQL's sessions between connections; set its"
                " pool_mode = session."
            )
        DatabaseWrapper.has_own_sessions = True

    @property
    def pool(self) -> Pool | None:
        options = self.settings_dict["OPTIONS"].get("pool")
        if self.alias == NO_DB_ALIAS or not options:
            return None
        pool = self._connection_pools.get(self.alias)
        if pool is None:
            pool = self._connection_pools.setdefault(
                self.alias, Pool(self.open_connection, **options)
            )
        return pool

    def close_pool(self) -> None:
        """Closes the idle connections. Other threads go on: Celery calls this after each task."""
        if self.pool is not None:
            self.pool.discard_idle()

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        return self.open_connection() if self.pool is None else self.pool.getconn()

    def init_connection_state(self) -> None:
        super(base.DatabaseWrapper, self).init_connection_state()  # the rest is done

    @cached_property
    def wrap_database_errors(self) -> DatabaseErrorWrapper:
        return _ErrorWrapper(self)

    def discard_lost(self) -> None:
        """Closes the thread's connection, which does not return to the pool, and the idle ones."""
        lost = self.connection
        if getattr(lost, "is_discarded", False):
            return
        self.loss_count += 1
        if lost is not None:
            lost.is_discarded = True
            lost.close()
        self.close_pool()


class _ErrorWrapper(DatabaseErrorWrapper):
    """Also discards connections that are lost, or lead to a server that only reads."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and outages.is_lost(error):
            self.wrapper.discard_lost()  # type: ignore[attr-defined]
        super().__exit__(kind, error, traceback)


# a forked child uses none of its parent's connections, and closes none
os.register_at_fork(after_in_child=DatabaseWrapper._connection_pools.clear)
