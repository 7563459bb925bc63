"""Derives sessions and users from the feed, a step at a time, after the request is over.

A step reads events behind the channel's position, brings the records up to them and moves the
position, in one commit; the position's row keeps two derivers of a channel apart.
"""

import logging
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic

from django.db import transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from ingest import feed, sessions, users
from ingest.feed import After, Place
from ingest.models import Channel, Deriver, StoredEvent
from ingest.positions import watermark, writing
from ingest.traits import traits

log = logging.getLogger(__name__)

STEP = 5_000


def derive_all(seconds: float) -> int:
    """Derives whatever is behind, for about so long; how many events were read."""
    until = monotonic() + seconds
    total = 0
    _know_every_channel()
    for channel_id in _behind():
        while monotonic() < until and (count := step(channel_id)):
            total += count
    if total:
        log.info("derived events=%d", total)
    return total


def step(channel_id: int, limit: int = STEP) -> int:
    """One step of a channel; 0 when there was nothing to read or another deriver is at it."""
    mark = watermark()
    with transaction.atomic():
        writing()
        at = Deriver.objects.select_for_update(skip_locked=True).filter(pk=channel_id).first()
        if at is None:
            return 0
        rows = feed.read(channel_id, Place(at.xid, at.event_id), mark, limit)
        if not rows:
            return 0
        position = rows[-1].id  # on SQLite; PostgreSQL takes the transaction's number
        told = [(row, traits(row)) for row in rows if feed.lived(row)]
        sessions.derive(channel_id, told, feed.superseded_by(channel_id, rows), position)
        users.derive(channel_id, told, position)
        moved = Deriver.objects.filter(pk=channel_id, xid=at.xid, event_id=at.event_id).update(
            xid=rows[-1].xid, event_id=rows[-1].id, derived_at=timezone.now()
        )
        if moved != 1:
            raise RuntimeError(f"channel {channel_id} was derived by another at the same time")
    return len(rows)


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
    place = Place(at.xid, at.event_id) if at else feed.START
    waiting = feed.after(StoredEvent.objects.filter(channel_id=channel_id), place)
    oldest = waiting.values_list("received_at", flat=True).first()
    if oldest is None:
        return Lag(0, timedelta())
    return Lag(waiting[:COUNTED].count(), max(timezone.now() - oldest, timedelta()))
