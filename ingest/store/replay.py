"""Rejected things sent through their door once more, after a fix."""

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from cryptography.fernet import InvalidToken
from django.db import transaction
from django.utils import timezone
from msgspec import structs

from ingest import audit
from ingest.adapters import ADAPTERS, participants, skalin
from ingest.events import Batch, Call, Event, Refused, Rejection
from ingest.models import Rejected, StoredEvent
from ingest.privacy.encryption import unseal
from ingest.store import batches
from ingest.store.participants import keep_participants


@dataclass
class Replayed:
    """What became of them, in counts."""

    accepted: int = 0
    still_rejected: int = 0
    unreadable: int = 0  # cut off when they were kept, or sealed under a key that is gone


def replay(found: Iterable[Rejected]) -> Replayed:
    """Puts each through its adapter as it came: same channel, application and time of arrival."""
    counts = Replayed()
    for rejected in found:
        try:
            raw = unseal(rejected.sealed)
        except InvalidToken:
            counts.unreadable += 1
            continue
        if len(raw) != rejected.size:
            counts.unreadable += 1
            continue
        with transaction.atomic():
            rejections = _again(rejected, raw)
            if rejections:
                counts.still_rejected += 1
                rejected.reason, rejected.detail = rejections[0].reason[:64], rejections[0].detail
            else:
                counts.accepted += 1
                rejected.replayed_at = timezone.now()
            rejected.save(update_fields=["reason", "detail", "replayed_at"])
            audit.record(
                "rejected.replayed",
                channel=rejected.channel.identifier,
                subject=str(rejected.pk),
                outcome="refused" if rejections else "done",
                dialect=rejected.dialect,
            )
    return counts


def _again(rejected: Rejected, raw: bytes) -> list[Rejection]:
    """What is wrong with it still; empty when it went in."""
    call = Call(
        channel=rejected.channel.identifier,
        received_at=rejected.received_at,
        application=rejected.application.identifier if rejected.application else "",
        application_id=rejected.application_id,
    )
    try:
        if rejected.dialect == participants.DIALECT:
            profiles, rejections = participants.parse(raw, "", rejected.received_at)
            keep_participants(rejected.channel_id, rejected.received_at, profiles, [])
            return rejections
        batch = ADAPTERS[rejected.dialect].parse(raw, call)
    except Refused as refused:
        return [Rejection(0, refused.reason, refused.detail, raw)]
    if rejected.dialect == skalin.DIALECT:
        keep_participants(rejected.channel_id, batch.received_at, skalin.people(batch), [])
    if batch.last_wins:
        batch = structs.replace(batch, events=_not_outdated(batch))
    return list(batches.append(rejected.channel_id, batch).rejections)


def _not_outdated(batch: Batch) -> list[Event]:
    """Without the events of which a later version came in meanwhile: that one is the last."""
    later = StoredEvent.objects.filter(
        identity__in=[UUID(bytes=event.identity) for event in batch.events],
        superseded_xid__isnull=True,
        received_at__gt=batch.received_at,
    )
    outdated = {identity.bytes for identity in later.values_list("identity", flat=True)}
    return [event for event in batch.events if event.identity not in outdated]
