"""Narrows a database session to a channel's rows."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import psycopg
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

from ingest import logs

log = logs.get_logger(__name__)


TENANT_ROLE = "exhaust_tenant"


POLICY = "channels"


_visible_channels: ContextVar[str | None] = ContextVar("inside", default=None)


_RESTRICT_SQL = (
    f"SELECT set_config('exhaust.channels', %s, false), set_config('role', '{TENANT_ROLE}', false)"
)


_RESET_SQL = "SELECT set_config('role', 'none', false), set_config('exhaust.channels', '', false)"


def restrict_to_channels(channels: Iterable[int]) -> None:
    """From here to `leave` this thread's connection sees the rows of these channels only."""
    if connection.vendor == "postgresql" and has_policies(str(connection.settings_dict["NAME"])):
        connection.ensure_connection()
        _visible_channels.set(",".join(map(str, sorted(channels))))
        _apply_restriction()


def narrow_to_channel(channel_id: int) -> None:
    """Of the channels that were let in, the one that the call is about."""
    if _visible_channels.get() not in (None, str(channel_id)):
        restrict_to_channels([channel_id])


def is_restricted() -> bool:
    """Whether this thread's connection, or the one it gets next, is to see some channels only."""
    return _visible_channels.get() is not None


def lift_restriction() -> None:
    """The connection sees what its login role does."""
    if _visible_channels.get() is None:
        return
    _visible_channels.set(None)
    if connection.connection is None:
        return
    try:
        _reset_connection()
    except psycopg.Error:  # nobody gets it from the pool as it is
        connection.connection.close()
        connection.close()


@contextmanager
def unrestricted_connection() -> Iterator[None]:
    """For what concerns the server and no channel."""
    channels = _visible_channels.get()
    lift_restriction()
    try:
        yield
    finally:
        if channels is not None:
            _visible_channels.set(channels)
            _apply_restriction()


def restore_restriction(connection: BaseDatabaseWrapper, **_: Any) -> None:
    """A connection that was made anew in the middle of a request."""
    if connection.vendor != "postgresql" or connection.alias != "default":
        return
    if _visible_channels.get() is not None:
        _apply_restriction()
    elif getattr(
        connection.connection, _RESTRICTED_ATTRIBUTE, False
    ):  # closed in a request, back from the pool
        _reset_connection()


_RESTRICTED_ATTRIBUTE = "walled"  # marks psycopg's connection


def _apply_restriction() -> None:
    setattr(connection.connection, _RESTRICTED_ATTRIBUTE, True)
    with connection.wrap_database_errors:
        psycopg.Cursor(connection.connection).execute(_RESTRICT_SQL, [_visible_channels.get()])


def _reset_connection() -> None:
    reset_connection(connection.connection)


def reset_connection(psycopg_connection: Any) -> Any:
    """A connection of the pool, as its login role, whatever request had it before."""
    if getattr(psycopg_connection, _RESTRICTED_ATTRIBUTE, False):
        psycopg.Cursor(psycopg_connection).execute(_RESET_SQL)
        setattr(psycopg_connection, _RESTRICTED_ATTRIBUTE, False)
    return psycopg_connection


@cache
def has_policies(database: str) -> bool:
    """Whether the wall is there; said once a process where it is not."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_policies WHERE policyname = %s) AND EXISTS (SELECT FROM"
            " pg_roles WHERE rolname = %s AND pg_has_role(current_user, oid, 'MEMBER'))",
            [POLICY, TENANT_ROLE],
        )
        is_present = bool(cursor.fetchone()[0])
    if not is_present:
        log.warning("tenancy.rls_missing", role=TENANT_ROLE)  # `check` tells the remedy
    return is_present
