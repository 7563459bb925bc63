"""The feed: what a channel took in, in the order of arrival, from a position up to a watermark.

Pull, push and whatever is derived read through here, and so speak of the same positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from django.core.exceptions import EmptyResultSet
from django.db import connection, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.functions import Cast

from ingest.feed.values import EventRow, FeedPosition
from ingest.models import Participant, StoredEvent
from ingest.models.fields import XidField

M = TypeVar("M", bound=models.Model)


class IsAfterPosition(models.Func):
    """`(xid, id) > (x, i)` as one comparison, the form that an index on both serves whole."""

    output_field = models.BooleanField()

    def as_sql(  # type: ignore[override]
        self, compiler: Any, connection: BaseDatabaseWrapper, **_: Any
    ) -> tuple[str, list[Any]]:
        parts = [compiler.compile(expression) for expression in self.get_source_expressions()]
        sql = "({}, {}) > ({}, {})".format(*(sql for sql, _ in parts))
        return sql, [param for _, params in parts for param in params]


def select_after(
    rows: "models.QuerySet[M]", position: FeedPosition, watermark: int | None = None
) -> "models.QuerySet[M]":
    """The rows behind `place` in their order, up to a watermark: no other can come before them.

    For any model with `xid` and `id`; name the channel too, or no index serves it.
    """
    xid = models.Value(position.xid, XidField())
    pk = models.Value(position.id, models.BigIntegerField())
    rows = rows.filter(IsAfterPosition("xid", "id", xid, pk))
    return (rows if watermark is None else rows.filter(xid__lt=watermark)).order_by("xid", "id")


class Microseconds(models.Func):
    """A moment as microseconds since 1970: whole numbers cost a reader far less than dates.

    By way of a double, which is exact until 2106 and costs PostgreSQL a sixth of its numeric.
    """

    output_field = models.BigIntegerField()
    template = "CAST(date_part('epoch', %(expressions)s) * 1000000 AS bigint)"

    def as_sqlite(self, *args: Any, **context: Any) -> tuple[str, Any]:
        # its text has six digits behind the point, or no point
        context["template"] = (
            "strftime('%%%%s', substr(%(expressions)s, 1, 19)) * 1000000"
            " + CAST(substr(%(expressions)s, 21) AS integer)"
        )
        return self.as_sql(*args, **context)


class Utf8Bytes(models.Func):
    """A column as the UTF-8 of its text."""

    output_field = models.BinaryField()
    template = "textsend(CAST(%(expressions)s AS text))"

    def as_sqlite(self, *args: Any, **context: Any) -> tuple[str, Any]:
        return self.as_sql(*args, **{**context, "template": "CAST(%(expressions)s AS blob)"})


def cast_xid(column: str) -> Cast:
    """An xid as a whole number."""
    return Cast(Cast(column, models.TextField()), models.BigIntegerField())


# a look into the index for each row: EXISTS would have PostgreSQL read all that refuse
_CONSENT_REFUSED = Participant.objects.filter(
    channel=models.OuterRef("channel"), device_id=models.OuterRef("device_id"), consent=False
).values(refused=models.Value(True))
_COMPUTED_COLUMNS: dict[str, Any] = {
    "xid": cast_xid("xid"),
    "superseded_xid": cast_xid("superseded_xid"),
    "occurred_us": Microseconds("occurred_at"),
    "received_us": Microseconds("received_at"),
    "identity": Cast("identity", models.TextField()),
    "is_consent_refused": models.Case(
        models.When(is_answer=True, then=models.Subquery(_CONSENT_REFUSED))
    ),
    "payload": Utf8Bytes("payload"),
}
_COLUMN_NAMES = [
    f"computed_{name}" if name in _COMPUTED_COLUMNS else name for name in EventRow._fields
]
CHUNK_ROWS = 100  # rows: while the server makes the next ones, these are worked on


def _iterate_events(rows: "models.QuerySet[StoredEvent]") -> Iterator[EventRow]:
    annotated = rows.annotate(
        **{f"computed_{name}": sql for name, sql in _COMPUTED_COLUMNS.items()}
    )
    event_rows = map(EventRow._make, _iterate_tuples(annotated.values_list(*_COLUMN_NAMES)))
    if connection.vendor == "postgresql":
        yield from event_rows
    else:
        for row in event_rows:
            yield row._replace(identity=str(UUID(row.identity)), payload=bytes(row.payload))


def _iterate_tuples(rows: "models.QuerySet[Any, Any]") -> Iterator[Any]:
    """The rows of a `values_list`; on PostgreSQL past the ORM, in binary: a third of the time."""
    if connection.vendor != "postgresql":
        yield from rows
        return
    try:
        sql, params = rows.query.sql_with_params()
    except EmptyResultSet:
        return
    yield from stream_query(sql, params)


def stream_query(sql: str, params: Any) -> Iterator[Any]:
    """The rows of PostgreSQL's answer, while it makes the next ones."""
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        yield from cursor.stream(sql, params, binary=True, size=CHUNK_ROWS)


def stream_events(rows: "models.QuerySet[StoredEvent]") -> Iterator[EventRow]:
    """The events of a query made with `after`; ask the database nothing else meanwhile."""
    with _force_index_scan():
        yield from _iterate_events(rows)


def fetch_events(rows: "models.QuerySet[StoredEvent]") -> list[EventRow]:
    """The events of any query."""
    return list(_iterate_events(rows))


def stream_tuples(rows: "models.QuerySet[Any, Any]") -> Iterator[Any]:
    """A `values_list` of a query made with `after`; ask the database nothing else meanwhile."""
    with _force_index_scan():
        yield from _iterate_tuples(rows)


def fetch_ordered(rows: "models.QuerySet[M]") -> list[M]:
    """The records of a query made with `after`."""
    with _force_index_scan():
        return list(rows)


def fetch_page(
    channel_id: int, position: FeedPosition, watermark: int, limit: int
) -> list[EventRow]:
    """The next rows of a channel, superseded ones among them."""
    rows = select_after(StoredEvent.objects.filter(channel_id=channel_id), position, watermark)
    return list(stream_events(rows[:limit]))


@contextmanager
def _force_index_scan() -> Iterator[None]:
    """Without fresh statistics PostgreSQL would sort all that waits to give the first rows."""
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off")
        yield


def was_visible(row: EventRow) -> bool:
    """False for a version that was superseded before anybody could read it.

    Its successor may even stand before it: of two transactions the one that began first may
    write last.
    """
    return row.superseded_xid is None or row.superseded_xid > row.xid


def fetch_superseded(channel_id: int, rows: Sequence[EventRow]) -> list[EventRow]:
    """The versions that lived until these rows; each is told once, with its first successor."""
    if not rows:
        return []
    superseded = fetch_events(
        StoredEvent.objects.filter(
            channel_id=channel_id, superseded_xid__range=(rows[0].xid, rows[-1].xid)
        )
    )
    if not superseded:
        return []
    # a transaction may bring an identity more than once, and be read in more than one step
    successors: dict[tuple[str, int], int] = {}
    for row in (*superseded, *rows):
        key = (row.identity, row.xid)
        successors[key] = min(row.id, successors.get(key, row.id))
    current_ids = {row.id for row in rows}
    return [
        row
        for row in superseded
        if row.superseded_xid is not None
        and was_visible(row)
        and successors.get((row.identity, row.superseded_xid)) in current_ids
    ]
