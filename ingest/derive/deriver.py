"""Derives sessions and users from the feed, a step at a time, after the request is over, and
closes the sessions whose time is over.

A step reads events behind the channel's position, brings the records up to them and moves the
position, in one commit; the position's row keeps two derivers of a channel apart.
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic, sleep

from django.db import connection, transaction
from django.db.models import Exists, F, OuterRef, QuerySet, Value
from django.utils import timezone

from ingest.derive import sessions, users
from ingest.derive.payloads import traits
from ingest.feed import reader, values
from ingest.feed.reader import After
from ingest.feed.values import Place
from ingest.feed.watermark import ahead, taken, watermark, writing
from ingest.models import Channel, Deriver, Session, StoredEvent
from ingest.models.fields import Position
from ingest.times import moment

log = logging.getLogger(__name__)

STEP = 5_000


def derive_all(seconds: float) -> int:
    """Derives whatever is behind, for about so long; how many events were read."""
    until = monotonic() + seconds
    total = closed = 0
    _know_every_channel()
    for channel_id in _behind():
        while monotonic() < until and (count := step(channel_id)):
            total += count
    for channel_id in _closing():
        while count := close(channel_id):  # once even where deriving took all the time
            closed += count
            if monotonic() >= until:
                break
    if total or closed:
        log.info("derived events=%d closed=%d", total, closed)
    return total


def step(channel_id: int, limit: int = STEP) -> int:
    """One step of a channel; 0 when there was nothing to read or another deriver is at it."""
    mark = watermark()
    with transaction.atomic():
        writing()
        at = Deriver.objects.select_for_update(skip_locked=True).filter(pk=channel_id).first()
        if at is None:
            return 0
        rows = reader.read(channel_id, Place(at.xid, at.event_id), mark, limit)
        if not rows:
            return 0
        position = taken()
        until = moment(max(row.received for row in rows))
        told = [(row, traits(row)) for row in rows if reader.lived(row)]
        sessions.derive(channel_id, told, reader.superseded_by(channel_id, rows), position, until)
        users.derive(channel_id, told, position)
        moved = Deriver.objects.filter(pk=channel_id, xid=at.xid, event_id=at.event_id).update(
            xid=rows[-1].xid, event_id=rows[-1].id, derived_at=timezone.now()
        )
        if moved != 1:
            raise RuntimeError(f"channel {channel_id} was derived by another at the same time")
    return len(rows)


def catch_up(channel_id: int, mark: int, patience: float) -> int | None:
    """Derives all of a channel's events below a watermark.

    Gives the watermark below which all that was made of them stands once it is committed; what is
    made of later events, or changed by them, gets a position at or above it. None when there was
    no step for `patience` seconds.
    """
    _know_every_channel()
    until = monotonic() + patience
    while _waits(channel_id, mark):
        if step(channel_id):
            until = monotonic() + patience
        elif monotonic() > until:
            return None
        else:  # another deriver is at it
            sleep(0.05)
    return ahead()  # what is derived takes a number of its own


def _waits(channel_id: int, mark: int) -> bool:
    at = Deriver.objects.get(pk=channel_id)
    events = StoredEvent.objects.filter(channel_id=channel_id)
    return reader.after(events, Place(at.xid, at.event_id), mark).exists()


def close(channel_id: int, limit: int = STEP, now: datetime | None = None) -> int:
    """Closes sessions of a channel whose time is over; how many.

    Each gets a new position, so that a reader of the feed meets it once more. While an event that
    arrived before a session's close is still to be read, the session stays open.
    """
    with transaction.atomic():
        writing()
        at = Deriver.objects.select_for_update(skip_locked=True).filter(pk=channel_id).first()
        if at is None:
            return 0
        now = now or timezone.now()
        unread = _unread(channel_id, at).values_list("received_at", flat=True).first()
        over = Session.objects.filter(
            channel_id=channel_id, closed=False, closes_at__lte=min(unread or now, now)
        )
        found = list(over.order_by("closes_at").values_list("pk", flat=True)[:limit])
        if not found:
            return 0
        position = Position() if connection.vendor == "postgresql" else Value(taken())
        Session.objects.filter(pk__in=found).update(
            closed=True, xid=position, version=F("version") + 1, modified_at=timezone.now()
        )
    return len(found)


def _closing() -> list[int]:
    over = Session.objects.filter(closed=False, closes_at__lte=timezone.now())
    return list(over.order_by().values_list("channel_id", flat=True).distinct())


def _unread(channel_id: int, at: Deriver | None) -> "QuerySet[StoredEvent]":
    place = Place(at.xid, at.event_id) if at else values.START
    return reader.after(StoredEvent.objects.filter(channel_id=channel_id), place)


def _know_every_channel() -> None:
    unknown = Channel.objects.filter(deriver=None).values_list("id", flat=True)
    Deriver.objects.bulk_create(
        [Deriver(channel_id=channel_id) for channel_id in unknown], ignore_conflicts=True
    )


def _behind() -> list[int]:
    waiting = StoredEvent.objects.filter(
        After("xid", "id", OuterRef("xid"), OuterRef("event_id")),
        channel_id=OuterRef("pk"),
        xid__lt=watermark(),
    )
    return list(
        Deriver.objects.filter(Exists(waiting)).order_by("derived_at").values_list("pk", flat=True)
    )


@dataclass(frozen=True)
class Lag:
    """How far the deriver of a channel is behind what is committed."""

    events: int  # counted up to COUNTED
    age: timedelta  # since the next one to read arrived


COUNTED = 100_000


def lag(channel_id: int) -> Lag:
    at = Deriver.objects.filter(pk=channel_id).first()
    waiting = _unread(channel_id, at)
    oldest = waiting.values_list("received_at", flat=True).first()
    if oldest is None:
        return Lag(0, timedelta())
    return Lag(waiting[:COUNTED].count(), max(timezone.now() - oldest, timedelta()))
