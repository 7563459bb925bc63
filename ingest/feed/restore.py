"""Keeps positions rising when the database is set back: a restored dump or backup, a failover.

A position is the transaction number plus a shift, which the functions `exhaust_position` and
`exhaust_shift` of the database compute, so a dump contains them.

- A promoted standby, or a recovery to a point in time, may lack transactions whose positions
  readers hold. Either begins a new timeline, and each timeline adds a step to the shift.
- A restored dump, copy or snapshot begins none. `rebase_positions` raises the shift; until then
  `find_fault` names it, where rows, readers' cursors or the storage show that it is needed.
"""

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.db import Error, connection, transaction

from ingest import logs
from ingest.db.prepared import fetch_all
from ingest.events import RequestError
from ingest.feed.values import FeedPosition
from ingest.feed.watermark import fetch_upper_bound
from ingest.models import LostPosition
from ingest.models.fields import XidField
from ingest.tenancy import session

log = logs.get_logger(__name__)
REBASE = "run manage.py rebase_positions"
_STEP = 1 << 40  # more than a reader can be ahead of the database
_TIMELINE_SQL = """
CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
     ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END
"""


def create_functions(shift: int) -> None:
    """Creates the two functions on PostgreSQL. New positions are `shift` above their numbers."""
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        sql = str(shift)
        if timeline := _fetch_timeline(cursor):
            sql += f" + ({_TIMELINE_SQL} - {timeline})::bigint * {_STEP}"
        cursor.execute(f"""
            CREATE OR REPLACE FUNCTION exhaust_shift() RETURNS bigint
                LANGUAGE sql STABLE PARALLEL SAFE AS $$SELECT {sql}$$;
            CREATE OR REPLACE FUNCTION exhaust_position() RETURNS xid8 LANGUAGE sql STABLE AS
                'SELECT (pg_current_xact_id()::text::bigint + exhaust_shift())::text::xid8';
        """)


def _fetch_timeline(cursor: Any) -> int:
    """Returns the timeline; 0 where a provider's PostgreSQL has no such function."""
    try:
        with transaction.atomic():
            cursor.execute(f"SELECT {_TIMELINE_SQL}")
            return int(cursor.fetchone()[0])
    except Error:
        return 0


# Faults ------------------------------------------------------------------------------------------

_LAST_SQL = """
SELECT CAST(CAST(xid AS text) AS bigint) FROM ingest_storedevent ORDER BY id DESC LIMIT 1
"""
_LOST_SQL = "SELECT CAST(CAST(xid AS text) AS bigint) FROM ingest_lostposition"


def fetch_last_position() -> int:
    """Returns the xid of the last stored event; 0 without events."""
    return max((xid for (xid,) in fetch_all(_LAST_SQL, [])), default=0)


def find_fault() -> str:
    """Returns what of the database would have readers miss events, with the remedy; "" for none."""
    if connection.vendor == "postgresql":
        ((is_synchronous,),) = fetch_all(
            "SELECT current_setting('synchronous_commit') <> 'off'", []
        )
        if not is_synchronous:
            return (
                "not safe: synchronous_commit is off, and a crash loses events that were answered;"
                " set it to on for this database and role"
            )
    lost = max((xid for (xid,) in fetch_all(_LOST_SQL, [])), default=0)
    if max(lost, fetch_last_position()) >= fetch_upper_bound():
        return f"set back to an earlier state: {REBASE}"
    return ""


def require_reached(position: FeedPosition) -> None:
    """Raises `RequestError` (409) for a position that this database has not reached.

    Readers are given reached positions only, so the database was set back since.
    """
    if position.xid < fetch_upper_bound():
        return
    record_lost_position(position.xid)
    raise RequestError(
        "cursor_ahead",
        "cursor: is ahead of the database, which was set back to an earlier state. Tell the"
        f" operator to {REBASE}; then this cursor goes on. Rows that arrived between the two may"
        " lie before it: begin again without a cursor to read them too.",
        409,
    )


def record_lost_position(xid: int) -> None:
    """Keeps a position that was given out and that this database has not reached."""
    log.error("feed.set_back", position=xid)
    with session.unrestricted_connection():
        row, is_new = LostPosition.objects.get_or_create(pk=1, defaults={"xid": xid})
        if not is_new and row.xid < xid:
            LostPosition.objects.filter(pk=1).update(xid=xid)


# The remedy --------------------------------------------------------------------------------------


def rebase_positions() -> int:
    """Raises new positions above those of all rows and readers. Returns by how much.

    Run it once after the database was set back, before the first write.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        highest_position = max(
            _fetch_highest(cursor, *column) for column in _list_position_columns()
        )
        raised_by = max(0, highest_position - fetch_upper_bound()) + _STEP
        if connection.vendor == "postgresql":
            cursor.execute("SELECT exhaust_shift()")
            create_functions(int(cursor.fetchone()[0]) + raised_by)
        else:
            sequence = "sqlite_sequence WHERE name = 'ingest_storedevent'"
            cursor.execute(f"SELECT coalesce(max(seq), 0) FROM {sequence}")  # noqa: S608
            seq = cursor.fetchone()[0] + raised_by
            cursor.execute(f"DELETE FROM {sequence}")  # noqa: S608
            cursor.execute("INSERT INTO sqlite_sequence VALUES ('ingest_storedevent', %s)", [seq])
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
