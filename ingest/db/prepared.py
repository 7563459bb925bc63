"""Statements of nearly every request, without the cost of the ORM and of Django's cursor.

The ORM takes three times as long, and on PostgreSQL Django's cursor has a statement planned at each
call. Django's query counts in tests do not include them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import psycopg
from django.db import Error, connection
from django.db.models import Model
from django.db.models.expressions import DatabaseDefault

from ingest.db import outages
from ingest.tenancy import session

Result = TypeVar("Result")


def fetch_all(sql: str, parameters: list[Any] | dict[str, Any]) -> list[tuple[Any, ...]]:
    """Returns the rows, on either database."""
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


def insert(row: Model) -> None:
    """Writes a new row and sets its primary key, as `save` does; it sends no signals.

    Raises `IntegrityError`.
    """
    fields = [f for f in row._meta.local_concrete_fields if not (f.primary_key or f.generated)]
    given = [(field, field.pre_save(row, add=True)) for field in fields]
    values = {
        str(field.column): field.get_db_prep_save(value, connection)
        for field, value in given
        if not isinstance(value, DatabaseDefault)
    }
    ((row.pk,),) = fetch_all(_build_insert(type(row), tuple(values)), [*values.values()])


@cache
def _build_insert(model: type[Model], columns: tuple[str, ...]) -> str:
    table, key = model._meta.db_table, model._meta.pk.column
    places = ", ".join(["%s"] * len(columns))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places}) RETURNING {key}"  # noqa: S608


@contextmanager
def _borrow_connection() -> Iterator[Any]:
    """Yields the request's connection, or one of the pool before the request has its own.

    So a request holds no connection while it waits for a slow body.
    """
    pool = (
        None
        if connection.connection or session.is_restricted()
        else getattr(connection, "pool", None)
    )
    if pool:
        with pool.connection() as pooled:
            yield session.reset_connection(pooled)
    else:
        connection.ensure_connection()
        yield connection.connection


def retry_if_lost(call: Callable[[], Result]) -> Result:
    """Returns the result of a call; makes it again, on a new connection, where this one is lost.

    A call whose commit was lost on the way is made twice, so it has to be one that may be repeated.
    """
    try:
        return call()
    except Error as error:
        if connection.in_atomic_block or not outages.is_lost(error):
            raise
        connection.close()
        return call()
