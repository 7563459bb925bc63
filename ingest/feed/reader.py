"""Reads a channel's feed: its rows in the order of arrival, after a position, below a watermark.

Pull, push and derivation read through this module, so they share their positions.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
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
    """`(xid, id) > (x, i)` as one comparison, which an index on both columns serves."""

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
    """Returns the rows after a position and below a watermark, in their order.

    The model needs `xid` and `id`. Filter by channel too, or no index serves the query.
    """
    xid = models.Value(position.xid, XidField())
    pk = models.Value(position.id, models.BigIntegerField())
    rows = rows.filter(IsAfterPosition("xid", "id", xid, pk))
    return (rows if watermark is None else rows.filter(xid__lt=watermark)).order_by("xid", "id")


class Microseconds(models.Func):
    """A time as microseconds since 1970, which a reader decodes far faster than a date.

    The way over a double is exact until 2106, and six times as fast as PostgreSQL's numeric.
    """

    output_field = models.BigIntegerField()
    template = "CAST(date_part('epoch', %(expressions)s) * 1000000 AS bigint)"

    def as_sqlite(self, *args: Any, **context: Any) -> tuple[str, Any]:
        # SQLite's text has six digits after the point, or no point
        context["template"] = (
            "strftime('%%%%s', substr(%(expressions)s, 1, 19)) * 1000000"
            " + CAST(substr(%(expressions)s, 21) AS integer)"
        )
        return self.as_sql(*args, **context)


class Utf8Bytes(models.Func):
    """A column's text as UTF-8 bytes."""

    output_field = models.BinaryField()
    template = "textsend(CAST(%(expressions)s AS text))"

    def as_sqlite(self, *args: Any, **context: Any) -> tuple[str, Any]:
        return self.as_sql(*args, **{**context, "template": "CAST(%(expressions)s AS blob)"})


def cast_xid(column: str) -> Cast:
    """Returns the expression of an xid as a bigint."""
    return Cast(Cast(column, models.TextField()), models.BigIntegerField())


# one index lookup a row; with EXISTS PostgreSQL would read all refusals
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
CHUNK_ROWS = 100  # the server makes the next chunk while this one is processed


def _iterate_events(rows: "models.QuerySet[StoredEvent]") -> Iterator[EventRow]:
    annotated = rows.annotate(
        **{f"computed_{name}": sql for name, sql in _COMPUTED_COLUMNS.items()}
    )
    # an end before the last row frees the connection here, and not when the garbage is collected
    with closing(_iterate_tuples(annotated.values_list(*_COLUMN_NAMES))) as values:
        event_rows = map(EventRow._make, values)
        if connection.vendor == "postgresql":
            yield from event_rows
        else:
            for row in event_rows:
                yield row._replace(identity=str(UUID(row.identity)), payload=bytes(row.payload))


def _iterate_tuples(rows: "models.QuerySet[Any, Any]") -> Generator[Any]:
    """Yields the rows of a `values_list`. On PostgreSQL in binary, in a third of the ORM's time."""
    if connection.vendor != "postgresql":
        yield from rows
        return
    try:
        sql, params = rows.query.sql_with_params()
    except EmptyResultSet:
        return
    yield from stream_query(sql, params)


def stream_query(sql: str, params: Any) -> Generator[Any]:
    """Yields the rows of a query on PostgreSQL while the server makes the next ones.

    The connection is locked until the generator ends. Close it where an error may come between two
    rows: the error's traceback would keep it open.
    """
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        yield from cursor.stream(sql, params, binary=True, size=CHUNK_ROWS)


def stream_events(rows: "models.QuerySet[StoredEvent]") -> Generator[EventRow]:
    """Yields the events of a `select_after` query. Run no other query until it ends."""
    with _force_index_scan():
        yield from _iterate_events(rows)


def fetch_events(rows: "models.QuerySet[StoredEvent]") -> list[EventRow]:
    """Returns the events of any query."""
    return list(_iterate_events(rows))


def stream_tuples(rows: "models.QuerySet[Any, Any]") -> Generator[Any]:
    """Yields a `values_list` of a `select_after` query. Run no other query until it ends."""
    with _force_index_scan():
        yield from _iterate_tuples(rows)


def fetch_ordered(rows: "models.QuerySet[M]") -> list[M]:
    """Returns the rows of a `select_after` query."""
    with _force_index_scan():
        return list(rows)


def fetch_page(
    channel_id: int, position: FeedPosition, watermark: int, limit: int
) -> list[EventRow]:
    """Returns a channel's next events, superseded ones included."""
    rows = select_after(StoredEvent.objects.filter(channel_id=channel_id), position, watermark)
    return list(stream_events(rows[:limit]))


@contextmanager
def _force_index_scan() -> Iterator[None]:
    """Keeps PostgreSQL from sorting the whole backlog, which it does on stale statistics."""
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off")
        yield


def was_visible(row: EventRow) -> bool:
    """Returns whether a reader could see this version before its replacement.

    A replacement can have a lower position than the row it replaces: of two transactions, the one
    that began first may write last.
    """
    return row.superseded_xid is None or row.superseded_xid > row.xid


def fetch_superseded(channel_id: int, rows: Sequence[EventRow]) -> list[EventRow]:
    """Returns the visible versions that these rows replace, each once, with its first successor."""
    if not rows:
        return []
    superseded = fetch_events(
        StoredEvent.objects.filter(
            channel_id=channel_id, superseded_xid__range=(rows[0].xid, rows[-1].xid)
        )
    )
    if not superseded:
        return []
    # a transaction may hold an identity more than once, and may span pages
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
