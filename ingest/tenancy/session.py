"""Narrows a database session to a channel's rows."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import psycopg
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

log = logging.getLogger(__name__)


ROLE = "exhaust_walled"


_POLICY = "channels"


_inside: ContextVar[str | None] = ContextVar("inside", default=None)


_ENTER = f"SELECT set_config('exhaust.channels', %s, false), set_config('role', '{ROLE}', false)"


_LEAVE = "SELECT set_config('role', 'none', false), set_config('exhaust.channels', '', false)"


def enter(channels: Iterable[int]) -> None:
    """From here to `leave` this thread's connection sees the rows of these channels only."""
    if connection.vendor == "postgresql" and _stands(str(connection.settings_dict["NAME"])):
        connection.ensure_connection()
        _inside.set(",".join(map(str, sorted(channels))))
        _apply()


def narrow(channel_id: int) -> None:
    """Of the channels that were let in, the one that the call is about."""
    if _inside.get() not in (None, str(channel_id)):
        enter([channel_id])


def inside() -> bool:
    """Whether this thread's connection, or the one it gets next, is to see some channels only."""
    return _inside.get() is not None


def leave() -> None:
    """The connection sees what its login role does."""
    if _inside.get() is None:
        return
    _inside.set(None)
    if connection.connection is None:
        return
    try:
        _forget()
    except psycopg.Error:  # nobody gets it from the pool as it is
        connection.connection.close()
        connection.close()


@contextmanager
def outside() -> Iterator[None]:
    """For what concerns the server and no channel."""
    channels = _inside.get()
    leave()
    try:
        yield
    finally:
        if channels is not None:
            _inside.set(channels)
            _apply()


def connected(connection: BaseDatabaseWrapper, **_: Any) -> None:
    """A connection that was made anew in the middle of a request."""
    if connection.vendor != "postgresql" or connection.alias != "default":
        return
    if _inside.get() is not None:
        _apply()
    elif getattr(connection.connection, _WALLED, False):  # closed in a request, back from the pool
        _forget()


_WALLED = "walled"  # marks psycopg's connection


def _apply() -> None:
    setattr(connection.connection, _WALLED, True)
    with connection.wrap_database_errors:
        psycopg.Cursor(connection.connection).execute(_ENTER, [_inside.get()])


def _forget() -> None:
    cleared(connection.connection)


def cleared(raw: Any) -> Any:
    """A connection of the pool, as its login role, whatever request had it before."""
    if getattr(raw, _WALLED, False):
        psycopg.Cursor(raw).execute(_LEAVE)
        setattr(raw, _WALLED, False)
    return raw


@cache
def _stands(database: str) -> bool:
    """Whether the wall is there; said once a process where it is not."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_policies WHERE policyname = %s) AND EXISTS (SELECT FROM"
            " pg_roles WHERE rolname = %s AND pg_has_role(current_user, oid, 'MEMBER'))",
            [_POLICY, ROLE],
        )
        there = bool(cursor.fetchone()[0])
    if not there:
        log.warning("walls.absent role=%s", ROLE)  # `check` tells the remedy
    return there
