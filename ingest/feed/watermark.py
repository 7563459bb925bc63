"""Where a row stands in the order of arrival: `(xid, id)`, complete below a watermark.

On PostgreSQL xid is the writing transaction's number; below the watermark nothing can commit any
more, so a reader misses nothing. SQLite writes one batch at a time, and a batch's xid is its
first row's id, so that one comparison serves both; what is derived takes a number between them.

A dump that is restored into another cluster meets smaller transaction numbers than its rows hold.
So a position is the transaction's number and a shift, and `restored` makes the shift larger: new
rows come behind every place that any reader has ever been told. Both are functions of the database
(`exhaust_position`, `exhaust_shift`), and so a part of its dump.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.db import connection, transaction

from ingest.db.prepared import fetch_all
from ingest.models.fields import XidField

# Who writes rows with a position holds a lock on their table before it has a number (`writing`). So
# of the numbers given out until now only those of the lock's holders can still commit such rows;
# other transactions of the cluster, however long, hold nothing back, as pg_snapshot_xmin would let
# them. A holder that is missing in the second look has ended, and a new reader sees what it wrote.
_WATERMARK_SQL = """
SELECT exhaust_shift(), pg_snapshot_xmax(pg_current_snapshot())::text::bigint, (
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
POSITIONED_TABLES = ("ingest_storedevent", "ingest_session", "ingest_appuser")


def fetch_watermark() -> int:
    """The xid below which every row with a position that there will ever be is committed."""
    if connection.vendor == "postgresql":
        ((shift, next_xid, writer_xids),) = fetch_all(_WATERMARK_SQL, [list(POSITIONED_TABLES)])
        oldest = min([next_xid, *(_widen_xid(next_xid, writer) for writer in writer_xids or ())])
        return int(shift + oldest)
    with connection.cursor() as cursor:
        cursor.execute("SELECT seq + 1 FROM sqlite_sequence WHERE name = 'ingest_storedevent'")
        row = cursor.fetchone()
    return int(row[0]) if row else 1


def fetch_upper_bound() -> int:
    """Above every position given out until now, whether it is committed or not."""
    if connection.vendor != "postgresql":
        return fetch_watermark()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT exhaust_shift() + pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
        )
        return int(cursor.fetchone()[0])


_OLDEST_WRITER_SQL = """
SELECT max(clock_timestamp() - activity.xact_start)
FROM pg_locks held JOIN pg_stat_activity activity USING (pid)
WHERE held.locktype = 'relation' AND held.granted
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND held.relation = ANY(%s::regclass[]::oid[])
  AND held.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                    'AccessExclusiveLock')
  AND activity.pid <> pg_backend_pid()
"""


def fetch_oldest_writer_age() -> timedelta:
    """For how long the oldest open writer has held back what others committed after it began."""
    if connection.vendor != "postgresql":
        return timedelta()
    from ingest.tenancy import session  # models are made of positions

    # of other roles' transactions PostgreSQL tells no age
    with session.unrestricted_connection():
        ((age,),) = fetch_all(_OLDEST_WRITER_SQL, [list(POSITIONED_TABLES)])
    return age or timedelta()


def allocate_position() -> int:
    """A position behind every place that was read, for what this transaction writes.

    For SQLite alone: PostgreSQL's rows take the transaction's own number.
    """
    if connection.vendor == "postgresql":
        return 0
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'ingest_storedevent'"
            " RETURNING seq"
        )
        return int(cursor.fetchone()[0])


def _widen_xid(reference: int, low_bits: int) -> int:
    """A lock's 32-bit transaction number as the one of 64 bits that lies near another."""
    return reference + (low_bits - reference + (1 << 31)) % (1 << 32) - (1 << 31)


def lock_positioned_tables() -> None:
    """Comes before whatever gives the transaction a number, where it writes rows with a position.

    A statement that itself writes such rows locks their table before it takes a number.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {', '.join(POSITIONED_TABLES)} IN ROW EXCLUSIVE MODE")


# A restored database -----------------------------------------------------------------------------

_REBASE_STEP = 1 << 40  # more than a reader of the old cluster can be ahead of its last dump


def build_shift_sql(shift: int) -> str:
    """Makes the two functions; a shift of nothing costs an insert nothing."""
    number = "pg_current_xact_id()"
    if shift:
        number = f"({number}::text::bigint + {shift})::text::xid8"
    return f"""
        CREATE OR REPLACE FUNCTION exhaust_shift() RETURNS bigint
            LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT {shift}::bigint';
        CREATE OR REPLACE FUNCTION exhaust_position() RETURNS xid8
            LANGUAGE sql STABLE AS 'SELECT {number}';
    """


def fetch_last_position() -> int:
    """The position of the event that was stored last; 0 for none."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT xid FROM ingest_storedevent ORDER BY id DESC LIMIT 1")
        row = cursor.fetchone()
    return int(str(row[0])) if row else 0


def rebase_positions() -> int:
    """Puts new positions behind all that rows hold or readers were told; by how much.

    For PostgreSQL alone. Run once after a dump was restored, before anything writes.
    """
    if connection.vendor != "postgresql":
        return 0
    with transaction.atomic(), connection.cursor() as cursor:
        highest_position = max(
            _fetch_highest(cursor, *column) for column in _list_position_columns()
        )
        raised_by = max(0, highest_position - fetch_upper_bound()) + _REBASE_STEP
        cursor.execute("SELECT exhaust_shift()")
        cursor.execute(build_shift_sql(int(cursor.fetchone()[0]) + raised_by))
    return raised_by


def _list_position_columns() -> Iterator[tuple[str, str]]:
    for model in apps.get_models():
        for field in model._meta.local_fields:
            if isinstance(field, XidField):
                yield model._meta.db_table, str(field.column)


def _fetch_highest(cursor: Any, table: str, column: str) -> int:
    cursor.execute(f'SELECT "{column}" FROM "{table}" ORDER BY 1 DESC NULLS LAST LIMIT 1')  # noqa: S608
    row = cursor.fetchone()
    return int(str(row[0])) if row and row[0] is not None else 0
