"""Replays rejected events after a fix."""

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from cryptography.fernet import InvalidToken
from django.db import transaction
from django.db.models import QuerySet
from msgspec import structs

from ingest import audit
from ingest.adapters import ADAPTERS
from ingest.db.clock import read_clock
from ingest.events import Batch, Call, Event, Rejection, RequestError
from ingest.models import RejectedEvent, StoredEvent
from ingest.privacy.encryption import decrypt
from ingest.store import batches
from ingest.store.rejections import NOT_KEPT


@dataclass
class ReplayCounts:
    """The outcomes of a replay."""

    accepted: int = 0
    still_rejected: int = 0
    unreadable: int = 0  # truncated when stored, or encrypted with a key that is gone


def waiting_rejections() -> QuerySet[RejectedEvent]:
    """Returns the rejected events that no replay has accepted, without those only counted."""
    rows = RejectedEvent.objects.filter(replayed_at=None).exclude(reason=NOT_KEPT)
    return rows.select_related("channel", "application").order_by("id")


def replay(rejected_events: Iterable[RejectedEvent]) -> ReplayCounts:
    """Parses and stores each with its channel, application and time of arrival."""
    counts = ReplayCounts()
    for rejected in rejected_events:
        try:
            raw = decrypt(rejected.encrypted_body)
        except InvalidToken:
            counts.unreadable += 1
            continue
        if len(raw) != rejected.size:
            counts.unreadable += 1
            continue
        with transaction.atomic():
            rejections = _replay_one(rejected, raw)
            # none where the sample of its day, or an erasure, has deleted it meanwhile
            row = RejectedEvent.objects.filter(pk=rejected.pk)
            if rejections:
                counts.still_rejected += 1
                row.update(reason=rejections[0].reason[:64], detail=rejections[0].detail)
            else:
                counts.accepted += 1
                row.update(replayed_at=read_clock())
            audit.record(
                "rejected_event.replayed",
                channel=rejected.channel.identifier,
                subject=str(rejected.pk),
                outcome="rejected" if rejections else "done",
                source=rejected.source,
            )
    return counts


def _replay_one(rejected: RejectedEvent, raw: bytes) -> list[Rejection]:
    """Returns the rejections that remain; empty if it was stored."""
    call = Call(
        channel=rejected.channel.identifier,
        received_at=rejected.received_at,
        application=rejected.application.identifier if rejected.application else "",
        application_id=rejected.application_id,
    )
    try:
        batch = ADAPTERS[rejected.source].parse(raw, call)
    except RequestError as error:
        return [Rejection(0, error.reason, error.detail, raw)]
    if batch.last_wins:
        batch = structs.replace(batch, events=_drop_outdated(batch))
    return list(batches.append_batch(rejected.channel_id, batch).rejections)


def _drop_outdated(batch: Batch) -> list[Event]:
    """Returns the events without those that have a later version meanwhile."""
    newer = StoredEvent.objects.filter(
        identity__in=[UUID(bytes=event.identity) for event in batch.events],
        superseded_xid__isnull=True,
        received_at__gt=batch.received_at,
    )
    outdated = {identity.bytes for identity in newer.values_list("identity", flat=True)}
    return [event for event in batch.events if event.identity not in outdated]
