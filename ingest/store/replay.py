"""Replays rejected events after a fix."""

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from cryptography.fernet import InvalidToken
from django.db import transaction
from django.utils import timezone
from msgspec import structs

from ingest import audit
from ingest.adapters import ADAPTERS
from ingest.events import Batch, Call, Event, Rejection, RequestError
from ingest.models import RejectedEvent, StoredEvent
from ingest.privacy.encryption import decrypt
from ingest.store import batches


@dataclass
class ReplayCounts:
    """The outcomes of a replay."""

    accepted: int = 0
    still_rejected: int = 0
    unreadable: int = 0  # truncated when stored, or encrypted with a key that is gone


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
            if rejections:
                counts.still_rejected += 1
                rejected.reason, rejected.detail = rejections[0].reason[:64], rejections[0].detail
            else:
                counts.accepted += 1
                rejected.replayed_at = timezone.now()
            rejected.save(update_fields=["reason", "detail", "replayed_at"])
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
