"""Statements that nearly every request asks, past what the ORM and Django's cursor cost.

The ORM would take three times as long, and Django's cursor on PostgreSQL has a statement planned
anew each time. They are not among the queries that Django's tests count.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import connection


def fetch_all(sql: str, parameters: list[Any]) -> list[tuple[Any, ...]]:
    """The rows, on either database."""
    if connection.vendor == "postgresql":
        with (
            connection.wrap_database_errors,
            _borrow_connection() as database,
            psycopg.Cursor(database) as cursor,
        ):
            return cursor.execute(sql, parameters).fetchall()
    with connection.cursor() as sqlite_cursor:
        sqlite_cursor.execute(sql, parameters)
        return list(sqlite_cursor.fetchall())


@contextmanager
def _borrow_connection() -> Iterator[Any]:
    """The request's connection, or, before it has one and the wall, the pool's for a moment: while
    a body is slow to come, none is held."""
    from ingest.tenancy import session  # models are made of positions, which are asked for here

    pool = (
        None
        if connection.connection or session.is_restricted()
        else getattr(connection, "pool", None)
    )
    if pool:
        pool.open()
        with pool.connection() as pooled:
            yield session.reset_connection(pooled)
    else:
        connection.ensure_connection()
        yield connection.connection
