"""The feed: what a channel took in, in the order of arrival, from a position up to a watermark.

Pull, push and whatever is derived read through here, and so speak of the same positions.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from django.db import connection, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.functions import Cast

from ingest.models import StoredEvent
from ingest.positions import XidField

M = TypeVar("M", bound=models.Model)


class Place(NamedTuple):
    """A position: everything up to and including it has been read."""

    xid: int = 0
    id: int = 0


START = Place()


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
    rows = rows.filter(After("xid", "id", xid, models.Value(place.id)))
    return (rows if mark is None else rows.filter(xid__lt=mark)).order_by("xid", "id")


class Arrived(NamedTuple):
    """A stored event as its readers need it; the payload is its JSON text."""

    xid: int
    id: int
    superseded_xid: int | None
    occurred_at: datetime
    received_at: datetime
    application_id: int | None
    is_answer: bool
    identity: UUID
    dialect: str
    type: str
    device_id: str
    session_id: str
    payload: str

    @property
    def place(self) -> Place:
        return Place(self.xid, self.id)


_FIELDS = (*Arrived._fields[:-1], "text")


def _arrived(rows: "models.QuerySet[StoredEvent]") -> list[Arrived]:
    rows = rows.annotate(text=Cast("payload", models.TextField()))
    return [Arrived(*row) for row in rows.values_list(*_FIELDS)]


def read(channel_id: int, place: Place, mark: int, limit: int) -> list[Arrived]:
    """The next rows of a channel, superseded ones among them."""
    with transaction.atomic():
        _by_index()
        rows = after(StoredEvent.objects.filter(channel_id=channel_id), place, mark)
        return _arrived(rows[:limit])


def _by_index() -> None:
    """Without fresh statistics PostgreSQL would sort all that waits to give the first rows."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off")


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
    old = _arrived(
        StoredEvent.objects.filter(
            channel_id=channel_id, superseded_xid__range=(rows[0].xid, rows[-1].xid)
        )
    )
    if not old:
        return []
    # a transaction may bring an identity more than once, and be read in more than one step
    successors: dict[tuple[UUID, int], int] = {}
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
