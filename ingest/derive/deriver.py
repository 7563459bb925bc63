"""Derives sessions and users from the feed in steps, and closes sessions.

A step reads events after the channel's position, updates the records and moves the position in one
commit. A lock on the position's row keeps two derivers of a channel apart.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic, sleep

from django.db import connection, transaction
from django.db.models import Exists, F, OuterRef, QuerySet, Value

from ingest import logs
from ingest.adapters import read_context
from ingest.db.clock import read_clock
from ingest.derive import sessions, users
from ingest.feed import daily_counts, reader, values
from ingest.feed.reader import IsAfterPosition
from ingest.feed.values import FeedPosition
from ingest.feed.watermark import (
    allocate_position,
    fetch_upper_bound,
    fetch_watermark,
    lock_positioned_tables,
)
from ingest.models import Channel, DerivationState, Session, StoredEvent
from ingest.models.fields import CurrentPosition
from ingest.times import from_microseconds

log = logs.get_logger(__name__)

STEP_EVENTS = 5_000


def derive_all(seconds: float) -> int:
    """Derives the channels that are behind, for about `seconds`.

    Returns the number of events read.
    """
    deadline = monotonic() + seconds
    total = closed_count = 0
    _create_missing_states()
    for channel_id in _channels_behind():
        while monotonic() < deadline and (count := derive_step(channel_id)):
            total += count
        daily_counts.count_step(channel_id)
    for channel_id in _channels_with_ended_sessions():
        while count := close_sessions(channel_id):  # at least once, even with no time left
            closed_count += count
            if monotonic() >= deadline:
                break
    if total or closed_count:
        log.info("sessions.derived", events=total, closed=closed_count)
    return total


def has_work() -> bool:
    """Returns whether an event is unread, a session ended or a channel is new."""
    return (
        bool(_channels_behind() or _channels_with_ended_sessions())
        or Channel.objects.filter(derivationstate=None).exists()
    )


def derive_step(channel_id: int, limit: int = STEP_EVENTS) -> int:
    """Derives one step. Returns the number of events read, 0 if another deriver has the channel."""
    watermark_xid = fetch_watermark()
    with transaction.atomic():
        lock_positioned_tables()
        state = (
            DerivationState.objects.select_for_update(skip_locked=True)
            .filter(pk=channel_id)
            .first()
        )
        if state is None:
            return 0
        rows = reader.fetch_page(
            channel_id, FeedPosition(state.xid, state.event_id), watermark_xid, limit
        )
        if not rows:
            return 0
        position = allocate_position()
        last_received_at = from_microseconds(max(row.received_us for row in rows))
        events = [(row, read_context(row)) for row in rows if reader.was_visible(row)]
        superseded = reader.fetch_superseded(channel_id, rows)
        sessions.derive(channel_id, events, superseded, position, last_received_at)
        users.derive(channel_id, events, position)
        users.delete_moved(channel_id, rows, superseded)
        updated_count = DerivationState.objects.filter(
            pk=channel_id, xid=state.xid, event_id=state.event_id
        ).update(xid=rows[-1].xid, event_id=rows[-1].id, derived_at=read_clock())
        if updated_count != 1:
            raise RuntimeError(f"channel {channel_id} was derived by another at the same time")
    return len(rows)


def catch_up(channel_id: int, watermark_xid: int, patience_seconds: float) -> int | None:
    """Derives all events of a channel below a watermark.

    Returns the watermark that is above every record of them; records that later events make or
    change get a position at or above it. Returns None after `patience_seconds` without a step.
    """
    _create_missing_states()
    deadline = monotonic() + patience_seconds
    while has_unread_events(channel_id, watermark_xid):
        if derive_step(channel_id):
            deadline = monotonic() + patience_seconds
        elif monotonic() > deadline:
            return None
        else:  # another deriver has the channel
            sleep(0.05)
    return fetch_upper_bound()  # derived records have positions of their own


def has_unread_events(channel_id: int, watermark_xid: int) -> bool:
    state = DerivationState.objects.get(pk=channel_id)
    events = StoredEvent.objects.filter(channel_id=channel_id)
    return reader.select_after(
        events, FeedPosition(state.xid, state.event_id), watermark_xid
    ).exists()


def close_sessions(channel_id: int, limit: int = STEP_EVENTS, now: datetime | None = None) -> int:
    """Closes ended sessions of a channel. Returns their number.

    Each gets a new position, so that a reader of the feed reads it again. A session stays open
    while an event that arrived before its close is unread.
    """
    with transaction.atomic():
        lock_positioned_tables()
        state = (
            DerivationState.objects.select_for_update(skip_locked=True)
            .filter(pk=channel_id)
            .first()
        )
        if state is None:
            return 0
        now = now or read_clock()
        unread = _unread_events(channel_id, state).values_list("received_at", flat=True).first()
        ended = Session.objects.filter(
            channel_id=channel_id, closed=False, closes_at__lte=min(unread or now, now)
        )
        session_ids = list(ended.order_by("closes_at").values_list("pk", flat=True)[:limit])
        if not session_ids:
            return 0
        position = (
            CurrentPosition() if connection.vendor == "postgresql" else Value(allocate_position())
        )
        Session.objects.filter(pk__in=session_ids).update(
            closed=True, xid=position, version=F("version") + 1, modified_at=read_clock()
        )
    return len(session_ids)


def _channels_with_ended_sessions() -> list[int]:
    ended = Session.objects.filter(closed=False, closes_at__lte=read_clock())
    return list(ended.order_by().values_list("channel_id", flat=True).distinct())


def _unread_events(channel_id: int, state: DerivationState | None) -> "QuerySet[StoredEvent]":
    position = FeedPosition(state.xid, state.event_id) if state else values.START
    return reader.select_after(StoredEvent.objects.filter(channel_id=channel_id), position)


def _create_missing_states() -> None:
    channel_ids = Channel.objects.filter(derivationstate=None).values_list("id", flat=True)
    DerivationState.objects.bulk_create(
        [DerivationState(channel_id=channel_id) for channel_id in channel_ids],
        ignore_conflicts=True,
    )


def _channels_behind() -> list[int]:
    unread = StoredEvent.objects.filter(
        IsAfterPosition("xid", "id", OuterRef("xid"), OuterRef("event_id")),
        channel_id=OuterRef("pk"),
        xid__lt=fetch_watermark(),
    )
    return list(
        DerivationState.objects.filter(Exists(unread))
        .order_by("derived_at")
        .values_list("pk", flat=True)
    )


@dataclass(frozen=True)
class Lag:
    """The events of a channel that are committed and not yet derived."""

    events: int  # counted up to MAX_COUNTED_EVENTS
    age: timedelta  # of the oldest


MAX_COUNTED_EVENTS = 100_000


def measure_lag(channel_id: int) -> Lag:
    """Returns the lag of a channel."""
    state = DerivationState.objects.filter(pk=channel_id).first()
    unread = _unread_events(channel_id, state)
    oldest = unread.values_list("received_at", flat=True).first()
    if oldest is None:
        return Lag(0, timedelta())
    return Lag(unread[:MAX_COUNTED_EVENTS].count(), max(read_clock() - oldest, timedelta()))
