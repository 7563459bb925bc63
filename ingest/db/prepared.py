"""Statements that nearly every request asks, past what the ORM and Django's cursor cost.

The ORM would take three times as long, and Django's cursor on PostgreSQL has a statement planned
anew each time. They are not among the queries that Django's tests count.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import connection


def asked(sql: str, parameters: list[Any]) -> list[tuple[Any, ...]]:
    """The rows, on either database."""
    if connection.vendor == "postgresql":
        with connection.wrap_database_errors, _held() as held, psycopg.Cursor(held) as cursor:
            return cursor.execute(sql, parameters).fetchall()
    with connection.cursor() as lite:
        lite.execute(sql, parameters)
        return list(lite.fetchall())


@contextmanager
def _held() -> Iterator[Any]:
    """The request's connection, or, before it has one and the wall, the pool's for a moment: while
    a body is slow to come, none is held."""
    from ingest.tenancy import session  # models are made of positions, which are asked for here

    pool = None if connection.connection or session.inside() else getattr(connection, "pool", None)
    if pool:
        pool.open()
        with pool.connection() as held:
            yield session.cleared(held)
    else:
        connection.ensure_connection()
        yield connection.connection
