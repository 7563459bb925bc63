"""How far back a channel's events are kept, and what is said to who asks for earlier ones.

Events are pruned in the order of arrival, so that a position tells whether a reader has missed
any. Sessions and users stay.
"""

from datetime import datetime

from django.db import connection, transaction
from django.db.models import Value

from ingest.db.prepared import asked
from ingest.events import Refused
from ingest.feed import reader
from ingest.feed.values import START, Place
from ingest.feed.watermark import taken, watermark, writing
from ingest.models import Deriver, Horizon, StoredEvent
from ingest.models.fields import Position

STEP = 10_000


def of(channel_id: int) -> Horizon | None:
    """None where nothing was pruned."""
    return Horizon.objects.filter(pk=channel_id).first()


def place(horizon: Horizon | None) -> Place:
    """The last position that was pruned: who has read so far has missed nothing."""
    return Place(horizon.xid, horizon.event_id) if horizon else START


def told(horizon: Horizon) -> str:
    return f"Events that arrived before {horizon.arrived_before:%Y-%m-%d %H:%M} UTC are not kept."


_BEGINS = """
SELECT CAST(CAST(xid AS text) AS bigint), event_id FROM ingest_horizon WHERE channel_id = %s
"""


def require(channel_id: int, read: Place) -> None:
    """Raises `Refused` (410) where events behind this position were pruned.

    Comes after the reading: what a pruning took meanwhile it tells in the same commit.
    """
    if all(read >= Place(*begins) for begins in asked(_BEGINS, [channel_id])):
        return
    if horizon := of(channel_id):
        raise Refused(
            "gone",
            f"cursor: {told(horizon)} Some behind this one are gone; begin again with what is"
            " kept: pull without a cursor, rewind a sink to time 0.",
            410,
        )


@transaction.atomic
def prune(channel_id: int, before: datetime, limit: int = STEP) -> int:
    """Deletes the feed's first events while they arrived before; how many, `limit` at most.

    Not what the deriver has still to read, and never past one that arrived later.
    """
    mark = watermark()  # an open transaction may still bring an earlier position
    writing()
    Horizon.objects.get_or_create(pk=channel_id, defaults={"arrived_before": before})
    horizon = Horizon.objects.select_for_update().get(pk=channel_id)
    derived = Deriver.objects.filter(pk=channel_id).first()
    until = Place(derived.xid, derived.event_id) if derived else START
    rows = reader.after(StoredEvent.objects.filter(channel_id=channel_id), place(horizon), mark)
    found: list[Place] = []
    for row in reader.in_order(rows.only("xid", "received_at")[:limit]):
        if row.received_at >= before or Place(row.xid, row.pk) > until:
            break
        found.append(Place(row.xid, row.pk))
    if not found:
        return 0
    StoredEvent.objects.filter(pk__in=[row.id for row in found]).delete()
    Horizon.objects.filter(pk=channel_id).update(
        xid=found[-1].xid,
        event_id=found[-1].id,
        arrived_before=before,
        pruned_xid=Position() if connection.vendor == "postgresql" else Value(taken()),
    )
    return len(found)
