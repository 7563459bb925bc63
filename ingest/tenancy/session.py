"""Restricts a database session to the rows of some channels, and lifts the restriction."""

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
POLICY = "tenant_isolation"
_RESTRICT_SQL = (
    f"SELECT set_config('exhaust.channels', %s, false), set_config('role', '{TENANT_ROLE}', false)"
)
_RESET_SQL = "SELECT set_config('role', 'none', false), set_config('exhaust.channels', '', false)"
_RESTRICTED_ATTRIBUTE = "is_restricted"  # of psycopg's connection
visible_channels: ContextVar[str | None] = ContextVar("visible_channels", default=None)


def restrict_to_channels(channels: Iterable[int]) -> None:
    """Shows this thread's connection only the rows of these channels, until `lift_restriction`."""
    if connection.vendor == "postgresql" and has_policies(str(connection.settings_dict["NAME"])):
        connection.ensure_connection()
        visible_channels.set(",".join(map(str, sorted(channels))))
        _apply_restriction()


def narrow_to_channel(channel_id: int) -> None:
    """Narrows a restricted session to the one channel that the request names."""
    if visible_channels.get() not in (None, str(channel_id)):
        restrict_to_channels([channel_id])


def is_restricted() -> bool:
    """Returns whether this thread's connection, or its next one, sees some channels only."""
    return visible_channels.get() is not None


def lift_restriction() -> None:
    """Makes this thread's connection the login role's again."""
    if visible_channels.get() is None:
        return
    visible_channels.set(None)
    if connection.connection is None:
        return
    try:
        reset_connection(connection.connection)
    except psycopg.Error:  # it must not go back to the pool restricted
        connection.connection.close()
        connection.close()


@contextmanager
def unrestricted_connection() -> Iterator[None]:
    """Lifts the restriction for statements that concern the server and no channel."""
    channels = visible_channels.get()
    lift_restriction()
    try:
        yield
    finally:
        if channels is not None:
            visible_channels.set(channels)
            _apply_restriction()


def restore_restriction(connection: BaseDatabaseWrapper, **_: Any) -> None:
    """Restricts a connection that was made in the middle of a request."""
    if connection.vendor != "postgresql" or connection.alias != "default":
        return
    if visible_channels.get() is not None:
        _apply_restriction()
    else:  # one that a request closed may come back from the pool
        reset_connection(connection.connection)


def reset_connection(psycopg_connection: Any) -> Any:
    """Returns a pooled connection as its login role, also after a request that restricted it."""
    if getattr(psycopg_connection, _RESTRICTED_ATTRIBUTE, False):
        psycopg.Cursor(psycopg_connection).execute(_RESET_SQL)
        setattr(psycopg_connection, _RESTRICTED_ATTRIBUTE, False)
    return psycopg_connection


def _apply_restriction() -> None:
    setattr(connection.connection, _RESTRICTED_ATTRIBUTE, True)
    with connection.wrap_database_errors:
        psycopg.Cursor(connection.connection).execute(_RESTRICT_SQL, [visible_channels.get()])


@cache
def has_policies(database: str) -> bool:
    """Returns whether row-level security is set up. Logs once a process that it is not."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_policies WHERE policyname = %s) AND EXISTS (SELECT FROM"
            " pg_roles WHERE rolname = %s AND pg_has_role(current_user, oid, 'MEMBER'))",
            [POLICY, TENANT_ROLE],
        )
        is_present = bool(cursor.fetchone()[0])
    if not is_present:
        log.warning("tenancy.rls_missing", role=TENANT_ROLE)  # `manage.py check` has the remedy
    return is_present
