"""Replays rejected events after a fix, takes a mended one, and dismisses others."""

from collections.abc import Iterable, Sequence
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
from ingest.store import batches, resolve
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
    try:
        batch = _parse(rejected, raw)
    except RequestError as error:
        return [Rejection(0, error.reason, error.detail, raw)]
    return list(batches.append_batch(rejected.channel_id, batch).rejections)


def _parse(rejected: RejectedEvent, raw: bytes) -> Batch:
    call = Call(
        channel=rejected.channel.identifier,
        received_at=rejected.received_at,
        application=rejected.application.identifier if rejected.application else "",
        application_id=rejected.application_id,
    )
    batch = ADAPTERS[rejected.source].parse(raw, call)
    return structs.replace(batch, events=_drop_outdated(batch)) if batch.last_wins else batch


def resend(rejected: RejectedEvent, raw: bytes) -> list[Rejection]:
    """Stores a mended text in place of a rejected event, as if it had come then.

    Returns the rejections that remain. Where there is one, nothing is stored.
    """
    try:
        batch = _parse(rejected, raw)
    except RequestError as error:
        return [Rejection(0, error.reason, error.detail, raw)]
    if batch.rejections:
        return list(batch.rejections)
    if not batch.events and not batch.profiles:
        return [Rejection(0, "empty", "There is no event in it.", raw)]
    with transaction.atomic():
        rejections = list(batches.append_batch(rejected.channel_id, batch).rejections)
        if not rejections:
            RejectedEvent.objects.filter(pk=rejected.pk).update(replayed_at=read_clock())
            audit.record(
                "rejected_event.replayed",
                channel=rejected.channel.identifier,
                subject=str(rejected.pk),
                source=rejected.source,
                edited=True,
            )
    return rejections


def dismiss(rejected_events: Sequence[RejectedEvent], channel: str) -> int:
    """Deletes rejected events of a channel for good. Returns how many."""
    with transaction.atomic():
        pks = [each.pk for each in rejected_events]
        RejectedEvent.objects.filter(pk__in=pks).delete()
        if pks:
            audit.record(
                "rejected_event.dismissed",
                channel=channel,
                subject=str(pks[0]) if len(pks) == 1 else rejected_events[0].reason,
                events=sum(each.count for each in rejected_events),
            )
    return len(pks)


def _drop_outdated(batch: Batch) -> list[Event]:
    """Returns the events without those that have a later version meanwhile."""
    events = resolve.resolve_events(batch.application_id, batch.events)
    newer = StoredEvent.objects.filter(
        identity__in=[UUID(bytes=event.identity) for event in events],
        superseded_xid__isnull=True,
        received_at__gt=batch.received_at,
    )
    outdated = {identity.bytes for identity in newer.values_list("identity", flat=True)}
    return [event for event in events if event.identity not in outdated]
