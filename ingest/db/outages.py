"""Which errors say that the database cannot be used now, and which that a connection is lost."""

import sqlite3
from typing import Any, cast

import psycopg
from django.db import Error, OperationalError, connection
from django.utils.translation import gettext_noop

from ingest.db import pool
from ingest.db.pool import Pool, Unavailable

WORKER_PATIENCE_SECONDS = 10.0  # a restart of the server need not cost an attempt
READ_ONLY, DISK_FULL, CANCELED = "25006", "53100", "57014"
# the server ends the session, or has ended it; another connection may work, also on another server
_LOST = {READ_ONLY, "25P03", "57P01", "57P02", "57P03", "57P04", "57P05"}
_SQLITE = {
    sqlite3.SQLITE_BUSY: gettext_noop("locked by another process"),
    sqlite3.SQLITE_LOCKED: gettext_noop("locked by another process"),
    sqlite3.SQLITE_FULL: gettext_noop("the disk is full"),
    sqlite3.SQLITE_READONLY: gettext_noop("read-only"),
    sqlite3.SQLITE_IOERR: gettext_noop("unreachable"),
    sqlite3.SQLITE_CANTOPEN: gettext_noop("unreachable"),
    sqlite3.SQLITE_NOMEM: gettext_noop("out of memory"),
}


def is_lost(error: BaseException) -> bool:
    """Returns whether a new connection may succeed where this one failed."""
    cause = _find_cause(error)
    is_other = isinstance(cause, Unavailable | psycopg.errors.PipelineAborted)
    if is_other or not isinstance(cause, psycopg.Error):
        return False
    if cause.sqlstate is None:  # libpq's own
        return isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError)
    return cause.sqlstate in _LOST or cause.sqlstate.startswith("08")


def close_ended() -> None:
    """Closes this thread's connection if the server has ended it since the last call."""
    used = connection.connection
    is_idle = used is not None and not connection.in_atomic_block
    if connection.vendor == "postgresql" and is_idle and not pool.is_alive(used):
        connection.close()


def describe_outage(error: BaseException) -> str:
    """Returns why the database cannot be used now, in a few words; "" for an error of another kind.

    The same call may succeed later.
    """
    cause = _find_cause(error)
    if isinstance(cause, sqlite3.Error):
        return _SQLITE.get(getattr(cause, "sqlite_errorcode", 0) & 0xFF, "")
    sqlstate = getattr(cause, "sqlstate", None)
    if sqlstate == READ_ONLY:
        return gettext_noop("read-only")
    if sqlstate == DISK_FULL:
        return gettext_noop("the disk is full")
    if sqlstate == CANCELED:  # by our statement_timeout
        return gettext_noop("too busy")
    is_temporary = isinstance(cause, psycopg.OperationalError | OperationalError)
    return gettext_noop("unreachable") if is_temporary or is_lost(error) else ""


def _find_cause(error: BaseException) -> BaseException:
    """Returns the driver's error behind Django's."""
    return error.__cause__ or error if isinstance(error, Error) else error


def log_unreachable(patience_seconds: float = 0.0) -> None:
    """Logs, now and from now on, why a server cannot be reached. For a process that serves.

    `patience_seconds` is how long its calls wait for a server that restarts.
    """
    if connection.vendor != "postgresql":
        return
    try:
        cast(Any, connection).open_connection().close()
    except Unavailable as error:
        pool.logger.error(str(error))
    Pool.is_logging, Pool.patience_seconds = True, patience_seconds
