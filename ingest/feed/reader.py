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

from ingest.feed.values import Arrived, Place
from ingest.models import Participant, StoredEvent
from ingest.models.fields import XidField

M = TypeVar("M", bound=models.Model)


class After(models.Func):
    """`(xid, id) > (x, i)` as one comparison, the form that an index on both serves whole."""

    output_field = models.BooleanField()

    def as_sql(  # type: ignore[override]
        self, compiler: Any, connection: BaseDatabaseWrapper, **_: Any
    ) -> tuple[str, list[Any]]:
        parts = [compiler.compile(each) for each in self.get_source_expressions()]
        sql = "({}, {}) > ({}, {})".format(*(sql for sql, _ in parts))
        return sql, [param for _, params in parts for param in params]


def after(
    rows: "models.QuerySet[M]", place: Place, mark: int | None = None
) -> "models.QuerySet[M]":
    """The rows behind `place` in their order, up to a watermark: no other can come before them.

    For any model with `xid` and `id`; name the channel too, or no index serves it.
    """
    xid = models.Value(place.xid, XidField())
    pk = models.Value(place.id, models.BigIntegerField())
    rows = rows.filter(After("xid", "id", xid, pk))
    return (rows if mark is None else rows.filter(xid__lt=mark)).order_by("xid", "id")


class Micros(models.Func):
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


class Bytes(models.Func):
    """A column as the UTF-8 of its text."""

    output_field = models.BinaryField()
    template = "textsend(CAST(%(expressions)s AS text))"

    def as_sqlite(self, *args: Any, **context: Any) -> tuple[str, Any]:
        return self.as_sql(*args, **{**context, "template": "CAST(%(expressions)s AS blob)"})


def number(column: str) -> Cast:
    """An xid as a whole number."""
    return Cast(Cast(column, models.TextField()), models.BigIntegerField())


# a look into the index for each row: EXISTS would have PostgreSQL read all that refuse
_REFUSED = Participant.objects.filter(
    channel=models.OuterRef("channel"), device_id=models.OuterRef("device_id"), consent=False
).values(refused=models.Value(True))
_COMPUTED: dict[str, Any] = {
    "xid": number("xid"),
    "superseded_xid": number("superseded_xid"),
    "occurred": Micros("occurred_at"),
    "received": Micros("received_at"),
    "identity": Cast("identity", models.TextField()),
    "refused": models.Case(models.When(is_answer=True, then=models.Subquery(_REFUSED))),
    "payload": Bytes("payload"),
}
_FIELDS = [f"said_{name}" if name in _COMPUTED else name for name in Arrived._fields]
CHUNK = 100  # rows: while the server makes the next ones, these are worked on


def _arrived(rows: "models.QuerySet[StoredEvent]") -> Iterator[Arrived]:
    said = rows.annotate(**{f"said_{name}": sql for name, sql in _COMPUTED.items()})
    found = map(Arrived._make, _tuples(said.values_list(*_FIELDS)))
    if connection.vendor == "postgresql":
        yield from found
    else:
        for row in found:
            yield row._replace(identity=str(UUID(row.identity)), payload=bytes(row.payload))


def _tuples(rows: "models.QuerySet[Any, Any]") -> Iterator[Any]:
    """The rows of a `values_list`; on PostgreSQL past the ORM, in binary: a third of the time."""
    if connection.vendor != "postgresql":
        yield from rows
        return
    try:
        sql, params = rows.query.sql_with_params()
    except EmptyResultSet:
        return
    yield from streamed(sql, params)


def streamed(sql: str, params: Any) -> Iterator[Any]:
    """The rows of PostgreSQL's answer, while it makes the next ones."""
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        yield from cursor.stream(sql, params, binary=True, size=CHUNK)


def arrived(rows: "models.QuerySet[StoredEvent]") -> Iterator[Arrived]:
    """The events of a query made with `after`; ask the database nothing else meanwhile."""
    with _by_index():
        yield from _arrived(rows)


def told(rows: "models.QuerySet[StoredEvent]") -> list[Arrived]:
    """The events of any query."""
    return list(_arrived(rows))


def tuples(rows: "models.QuerySet[Any, Any]") -> Iterator[Any]:
    """A `values_list` of a query made with `after`; ask the database nothing else meanwhile."""
    with _by_index():
        yield from _tuples(rows)


def in_order(rows: "models.QuerySet[M]") -> list[M]:
    """The records of a query made with `after`."""
    with _by_index():
        return list(rows)


def read(channel_id: int, place: Place, mark: int, limit: int) -> list[Arrived]:
    """The next rows of a channel, superseded ones among them."""
    rows = after(StoredEvent.objects.filter(channel_id=channel_id), place, mark)
    return list(arrived(rows[:limit]))


@contextmanager
def _by_index() -> Iterator[None]:
    """Without fresh statistics PostgreSQL would sort all that waits to give the first rows."""
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off")
        yield


def lived(row: Arrived) -> bool:
    """False for a version that was superseded before anybody could read it.

    Its successor may even stand before it: of two transactions the one that began first may
    write last.
    """
    return row.superseded_xid is None or row.superseded_xid > row.xid


def superseded_by(channel_id: int, rows: Sequence[Arrived]) -> list[Arrived]:
    """The versions that lived until these rows; each is told once, with its first successor."""
    if not rows:
        return []
    old = told(
        StoredEvent.objects.filter(
            channel_id=channel_id, superseded_xid__range=(rows[0].xid, rows[-1].xid)
        )
    )
    if not old:
        return []
    # a transaction may bring an identity more than once, and be read in more than one step
    successors: dict[tuple[str, int], int] = {}
    for row in (*old, *rows):
        key = (row.identity, row.xid)
        successors[key] = min(row.id, successors.get(key, row.id))
    read_now = {row.id for row in rows}
    return [
        row
        for row in old
        if row.superseded_xid is not None
        and lived(row)
        and successors.get((row.identity, row.superseded_xid)) in read_now
    ]
