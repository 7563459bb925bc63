"""Reads a channel's feed: its rows in the order of arrival, after a position, below a watermark.

Pull, push and derivation read through this module, so they share their positions.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from time import monotonic
from typing import Any, NamedTuple, TypeVar
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
WINDOW_ROWS = 10_000  # that one statement of a search reads, whatever it looks for


class IsAfterPosition(models.Func):
    """`(xid, id) > (x, i)` as one comparison, which an index on both columns serves."""

    operator = ">"
    output_field = models.BooleanField()

    def as_sql(  # type: ignore[override]
        self, compiler: Any, connection: BaseDatabaseWrapper, **_: Any
    ) -> tuple[str, list[Any]]:
        parts = [compiler.compile(expression) for expression in self.get_source_expressions()]
        sql = "({}, {}) {operator} ({}, {})".format(
            *(sql for sql, _ in parts), operator=self.operator
        )
        return sql, [param for _, params in parts for param in params]


class IsUpToPosition(IsAfterPosition):
    """`(xid, id) <= (x, i)`."""

    operator = "<="


class IsFromPosition(IsAfterPosition):
    """`(xid, id) >= (x, i)`."""

    operator = ">="


class Window(NamedTuple):
    """A part of the feed, after `start` and up to `end`: bounded, however rare a match is."""

    start: FeedPosition
    end: FeedPosition | None  # None where the feed has no more rows than these


def select_after(
    rows: "models.QuerySet[M]", position: FeedPosition, watermark: int | None = None
) -> "models.QuerySet[M]":
    """Returns the rows after a position and below a watermark, in their order.

    The model needs `xid` and `id`. Filter by channel too, or no index serves the query.
    """
    rows = rows.filter(_compare(IsAfterPosition, position))
    return (rows if watermark is None else rows.filter(xid__lt=watermark)).order_by("xid", "id")


def select_window(
    rows: "models.QuerySet[M]", window: Window, watermark: int
) -> "models.QuerySet[M]":
    """Returns the rows of a window, as `select_after` does."""
    rows = select_after(rows, window.start, watermark)
    return rows if window.end is None else rows.filter(_compare(IsUpToPosition, window.end))


def _compare(comparison: type[IsAfterPosition], position: FeedPosition) -> IsAfterPosition:
    xid = models.Value(position.xid, XidField())
    return comparison("xid", "id", xid, models.Value(position.id, models.BigIntegerField()))


def iterate_windows(
    rows: "models.QuerySet[M]", position: FeedPosition, watermark: int, seconds: float
) -> Iterator[Window]:
    """Yields the windows after a position: one, and others until so many seconds have passed.

    `rows` are all of a channel's. A search goes on after the end of the last window, if it has one.
    """
    deadline = monotonic() + seconds
    while True:
        end = find_window_end(select_after(rows, position, watermark))
        yield Window(position, end)
        if end is None or monotonic() >= deadline:
            return
        position = end


def limit_to_newest(
    rows: "models.QuerySet[M]",
) -> tuple["models.QuerySet[M]", FeedPosition | None]:
    """Returns the newest `WINDOW_ROWS`, the newest first, and the position of the last.

    That is None where no more follow. `rows` are all of a channel's, or those before a position.
    """
    rows = rows.order_by("-xid", "-id")
    end = find_window_end(rows)
    return (rows if end is None else rows.filter(_compare(IsFromPosition, end))), end


def find_window_end(rows: "models.QuerySet[M]") -> FeedPosition | None:
    """Returns the position of the last of the first `WINDOW_ROWS`; None where no more follow.

    `rows` are in the order of an index, as those of `select_after`.
    """
    ends: Any = fetch_ordered(rows.only("xid")[WINDOW_ROWS - 1 : WINDOW_ROWS + 1])
    return FeedPosition(ends[0].xid, ends[0].pk) if len(ends) > 1 else None


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
    with force_index_scan():
        yield from _iterate_events(rows)


def fetch_events(rows: "models.QuerySet[StoredEvent]") -> list[EventRow]:
    """Returns the events of any query."""
    return list(_iterate_events(rows))


def stream_tuples(rows: "models.QuerySet[Any, Any]") -> Generator[Any]:
    """Yields a `values_list` of a `select_after` query. Run no other query until it ends."""
    with force_index_scan():
        yield from _iterate_tuples(rows)


def fetch_ordered(rows: "models.QuerySet[M]") -> list[M]:
    """Returns the rows of a `select_after` query."""
    with force_index_scan():
        return list(rows)


def fetch_page(
    channel_id: int, position: FeedPosition, watermark: int, limit: int
) -> list[EventRow]:
    """Returns a channel's next events, superseded ones included."""
    rows = select_after(StoredEvent.objects.filter(channel_id=channel_id), position, watermark)
    return list(stream_events(rows[:limit]))


@contextmanager
def force_index_scan() -> Iterator[None]:
    """Keeps PostgreSQL from reading a whole table and from sorting it.

    It does so on stale statistics, and where it does not know that a row is wide.
    """
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(
                    "SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off;"
                    " SET LOCAL enable_seqscan = off"
                )
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
