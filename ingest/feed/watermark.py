"""Positions in the order of arrival, `(xid, id)`, and the watermark below which they are final.

On PostgreSQL xid is the number of the writing transaction. No transaction commits below the
watermark any more, so a reader misses no row. SQLite writes one batch at a time. There xid is the
id of the batch's first row, so one comparison serves both databases. Derived rows take a number in
between.

A crash of PostgreSQL loses the transaction numbers that were not flushed, and the next transactions
get them again. So a reader is given no position beyond the last committed row
(`fetch_end_position`); the watermark only bounds what is read.

A position is the transaction number plus a shift (`restore.py`).
"""

from datetime import timedelta

from django.db import connection

from ingest.db.prepared import fetch_all
from ingest.feed.values import START, FeedPosition
from ingest.tenancy import session

# A transaction locks the tables of positioned rows before it gets its number
# (`lock_positioned_tables`). So of the numbers until now, only those of the lock's holders can
# still commit such rows. Other transactions of the cluster hold nothing back, however long they
# last; by pg_snapshot_xmin they would. A holder that the join no longer finds has ended, and a new
# reader sees its rows.
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
    """Returns the xid below which every positioned row is committed, now and later."""
    if connection.vendor == "postgresql":
        ((shift, next_xid, writer_xids),) = fetch_all(_WATERMARK_SQL, [list(POSITIONED_TABLES)])
        oldest = min([next_xid, *(widen_xid(next_xid, writer) for writer in writer_xids or ())])
        return int(shift + oldest)
    with connection.cursor() as cursor:
        cursor.execute("SELECT seq + 1 FROM sqlite_sequence WHERE name = 'ingest_storedevent'")
        row = cursor.fetchone()
    return int(row[0]) if row else 1


def fetch_end_position(table: str, channel_id: int, watermark: int) -> FeedPosition:
    """Returns the position of a channel's last row below a watermark; `START` without rows.

    `table` is one of `POSITIONED_TABLES`.
    """
    rows = fetch_all(build_end_sql(table), [channel_id, watermark])
    return FeedPosition(*rows[0]) if rows else START


def build_end_sql(table: str) -> str:
    # by its alias the index's column is sorted, and not the cast one
    cast = "%s::text::xid8" if connection.vendor == "postgresql" else "%s"
    return (
        f"SELECT CAST(CAST(e.xid AS text) AS bigint), e.id FROM {table} e"  # noqa: S608
        f" WHERE e.channel_id = %s AND e.xid < {cast} ORDER BY e.xid DESC, e.id DESC LIMIT 1"
    )


def fetch_upper_bound() -> int:
    """Returns an xid above every position until now, committed or not."""
    if connection.vendor != "postgresql":
        return fetch_watermark()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT exhaust_shift()"
            " + greatest(pg_snapshot_xmax(pg_current_snapshot())::text::bigint,"
            " 1 + pg_current_xact_id_if_assigned()::text::bigint)"
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
    """Returns for how long the oldest open writer has held the watermark back."""
    if connection.vendor != "postgresql":
        return timedelta()

    # the tenant role does not see when other roles' transactions began
    with session.unrestricted_connection():
        ((age,),) = fetch_all(_OLDEST_WRITER_SQL, [list(POSITIONED_TABLES)])
    return age or timedelta()


def allocate_position() -> int:
    """Returns the next xid for rows of this transaction. On PostgreSQL 0: the default is used."""
    if connection.vendor == "postgresql":
        return 0
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'ingest_storedevent'"
            " RETURNING seq"
        )
        return int(cursor.fetchone()[0])


def widen_xid(reference: int, low_bits: int) -> int:
    """Returns the 64-bit number near the reference whose low 32 bits a lock shows."""
    return reference + (low_bits - reference + (1 << 31)) % (1 << 32) - (1 << 31)


def lock_positioned_tables() -> None:
    """Locks the tables of positioned rows. Call it before the transaction's first write.

    An INSERT into such a table locks it by itself before its transaction gets a number.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {', '.join(POSITIONED_TABLES)} IN ROW EXCLUSIVE MODE")
