"""Where a row stands in the order of arrival: `(xid, id)`, complete below a watermark.

On PostgreSQL xid is the writing transaction's number; below the watermark nothing can commit any
more, so a reader misses nothing. SQLite writes one batch at a time, and a batch's xid is its
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


# Who writes rows with a position holds a lock on their table before it has a number (`writing`). So
# of the numbers given out until now only those of the lock's holders can still commit such rows;
# other transactions of the cluster, however long, hold nothing back, as pg_snapshot_xmin would let
# them. A holder that is missing in the second look has ended, and a new reader sees what it wrote.
_WATERMARK = """
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, (
    SELECT array_agg(number.transactionid::text::bigint)
    FROM pg_locks held JOIN pg_locks number USING (virtualtransaction)
    WHERE held.locktype = 'relation'
      AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND held.relation = ANY(%s::regclass[]::oid[])
      AND held.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                        'AccessExclusiveLock')
      AND number.locktype = 'transactionid' AND number.mode = 'ExclusiveLock' AND number.granted
)
"""
POSITIONED = ("ingest_storedevent", "ingest_session", "ingest_appuser")


def watermark() -> int:
    """The xid below which every row with a position that there will ever be is committed."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(_WATERMARK, [list(POSITIONED)])
            ahead, writers = cursor.fetchone()
            return int(min([ahead, *(_whole(ahead, writer) for writer in writers or ())]))
        cursor.execute("SELECT seq + 1 FROM sqlite_sequence WHERE name = 'ingest_storedevent'")
        row = cursor.fetchone()
    return int(row[0]) if row else 1


def _whole(near: int, number: int) -> int:
    """A lock's 32-bit transaction number as the one of 64 bits that lies near another."""
    return near + (number - near + (1 << 31)) % (1 << 32) - (1 << 31)


def writing() -> None:
    """Comes before whatever gives the transaction a number, where it writes rows with a position.

    A statement that itself writes such rows locks their table before it takes a number.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {', '.join(POSITIONED)} IN ROW EXCLUSIVE MODE")
