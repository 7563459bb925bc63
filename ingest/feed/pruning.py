"""Prunes old events of a channel, and rejects readers that missed pruned ones.

Events are pruned in the order of arrival, so a position shows whether its reader missed any.
Sessions and users stay.
"""

from datetime import datetime

from django.db import connection, transaction
from django.db.models import Value

from ingest.db.prepared import fetch_all
from ingest.events import RequestError
from ingest.feed import daily_counts, reader
from ingest.feed.values import START, FeedPosition
from ingest.feed.watermark import allocate_position, fetch_watermark, lock_positioned_tables
from ingest.models import DerivationState, PruneState, StoredEvent
from ingest.models.fields import CurrentPosition

PRUNE_ROWS = 10_000


def fetch_prune_state(channel_id: int) -> PruneState | None:
    """Returns None for a channel without pruned events."""
    return PruneState.objects.filter(pk=channel_id).first()


def get_pruned_position(prune_state: PruneState | None) -> FeedPosition:
    """Returns the last pruned position. A reader at or after it missed no event."""
    return FeedPosition(prune_state.xid, prune_state.event_id) if prune_state else START


def describe_pruning(prune_state: PruneState) -> str:
    return (
        f"Events that arrived before {prune_state.pruned_before:%Y-%m-%d %H:%M} UTC are not kept."
    )


_PRUNED_SQL = """
SELECT CAST(CAST(xid AS text) AS bigint), event_id FROM ingest_prunestate WHERE channel_id = %s
"""


def require_unpruned(channel_id: int, position: FeedPosition) -> None:
    """Raises `RequestError` (410) where events after this position were pruned.

    Call it after reading: a pruning changes the state in the same commit, so none is missed.
    """
    if all(position >= FeedPosition(*begins) for begins in fetch_all(_PRUNED_SQL, [channel_id])):
        return
    if prune_state := fetch_prune_state(channel_id):
        raise RequestError(
            "gone",
            f"cursor: {describe_pruning(prune_state)} Some after this cursor are deleted. Begin"
            " again: pull without a cursor, or rewind a destination to time 0.",
            410,
        )


@transaction.atomic
def prune_events(channel_id: int, before: datetime, limit: int = PRUNE_ROWS) -> int:
    """Deletes the channel's oldest events that arrived before. Returns how many, at most `limit`.

    Stops at the first event that arrived later, and at one that the derivation has not read.
    """
    watermark = fetch_watermark()  # an open transaction may still bring an earlier position
    lock_positioned_tables()
    PruneState.objects.get_or_create(pk=channel_id, defaults={"pruned_before": before})
    prune_state = PruneState.objects.select_for_update().get(pk=channel_id)
    derivation = DerivationState.objects.filter(pk=channel_id).first()
    derived_position = FeedPosition(derivation.xid, derivation.event_id) if derivation else START
    rows = reader.select_after(
        StoredEvent.objects.filter(channel_id=channel_id),
        get_pruned_position(prune_state),
        watermark,
    )
    pruned: list[FeedPosition] = []
    for row in reader.fetch_ordered(rows.only("xid", "received_at")[:limit]):
        if row.received_at >= before or FeedPosition(row.xid, row.pk) > derived_position:
            break
        pruned.append(FeedPosition(row.xid, row.pk))
    if not pruned:
        return 0
    events = StoredEvent.objects.filter(pk__in=[row.id for row in pruned])
    daily_counts.take_off(channel_id, events)
    events.delete()
    PruneState.objects.filter(pk=channel_id).update(
        xid=pruned[-1].xid,
        event_id=pruned[-1].id,
        pruned_before=before,
        pruned_xid=CurrentPosition()
        if connection.vendor == "postgresql"
        else Value(allocate_position()),
    )
    return len(pruned)
