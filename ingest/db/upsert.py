"""Inserts or updates derived records in one statement.

Each gets the position of this change, so that a reader of the feed meets it again.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from django.db import connection


def bulk_upsert(
    table: str,
    columns: Mapping[str, str],
    unique: Sequence[str],
    rows: Sequence[Sequence[Any]],
    position: int,
) -> None:
    """Upserts rows of these columns (name: PostgreSQL's type). A JSON value is its text.

    `position` is for SQLite; PostgreSQL takes the transaction's own.
    """
    if not rows:
        return
    names = ", ".join(columns)
    changes = ", ".join(f"{name} = excluded.{name}" for name in ("xid", *columns))
    on_conflict = f"ON CONFLICT ({', '.join(unique)}) DO UPDATE SET {changes}"
    if connection.vendor == "postgresql":
        array_types = {
            name: "text" if type_ == "jsonb" else type_ for name, type_ in columns.items()
        }
        casts = ", ".join(f"{name}::{type_}" for name, type_ in columns.items())
        arrays = ", ".join(f"%({name})b::{type_}[]" for name, type_ in array_types.items())
        connection.ensure_connection()
        with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
            cursor.execute(
                f"INSERT INTO {table} (xid, {names})"  # noqa: S608
                f" SELECT (SELECT exhaust_position()), {casts}"
                f" FROM unnest({arrays}) AS u({names}) {on_conflict}",
                dict(
                    zip(columns, (list(column) for column in zip(*rows, strict=True)), strict=True)
                ),
            )
        return
    placeholders = ", ".join(["%s"] * len(columns))
    with connection.cursor() as sqlite_cursor:
        sqlite_cursor.executemany(
            f"INSERT INTO {table} (xid, {names}) VALUES (%s, {placeholders}) {on_conflict}",  # noqa: S608
            [(position, *map(_adapt_value, row)) for row in rows],
        )


def _adapt_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    return value.hex if isinstance(value, UUID) else value
