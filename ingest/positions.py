"""Where a row stands in the order of arrival: `(xid, id)`, complete below a watermark.

On PostgreSQL xid is the writing transaction's number; below `pg_snapshot_xmin` nothing can commit
any more, so a reader misses nothing. SQLite writes one batch at a time, and a batch's xid is its
first row's id, so that one comparison serves both.
"""

from typing import Any

from django.db import connection, models
from django.db.backends.base.base import BaseDatabaseWrapper


class XidField(models.BigIntegerField):  # type: ignore[type-arg]
    """A transaction number: `xid8` on PostgreSQL, a bigint on SQLite; an int in Python."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str | None:
        return "xid8" if connection.vendor == "postgresql" else super().db_type(connection)

    def from_db_value(self, value: Any, *_: Any) -> int | None:
        return None if value is None else int(value)

    def get_db_prep_value(
        self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False
    ) -> Any:
        value = super().get_db_prep_value(value, connection, prepared)
        if connection.vendor == "postgresql" and isinstance(value, int):
            return str(value)  # PostgreSQL compares xid8 with no integer type
        return value

    def get_placeholder(self, value: Any, compiler: Any, connection: BaseDatabaseWrapper) -> str:
        return "%s::xid8" if connection.vendor == "postgresql" else "%s"


class Position(models.Func):
    """The writing transaction's number, as a column's default."""

    output_field = XidField()

    def as_sql(self, *_: Any, **__: Any) -> tuple[str, list[Any]]:  # type: ignore[override]
        return "0", []

    def as_postgresql(self, *_: Any, **__: Any) -> tuple[str, list[Any]]:
        return "pg_current_xact_id()", []


def watermark() -> int:
    """The xid below which every row there will ever be is committed."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
        else:
            cursor.execute("SELECT seq + 1 FROM sqlite_sequence WHERE name = 'ingest_storedevent'")
        row = cursor.fetchone()
    return int(row[0]) if row else 1
