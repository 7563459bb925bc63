"""Consent taken back: what was made with it must end in the same transaction.

Whoever keeps such things listens to `withdrawn`. A file that is being made meanwhile is held up by
`settled`: withdrawals of a channel and publications of its files take turns, so that each sees the
other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from django.db import connection
from django.db.models import Q
from django.db.models.functions import Collate, Now
from django.dispatch import Signal

from ingest import audit
from ingest.models import Channel, Erasure, Participant

# keyword arguments: channel_id, device_ids, and erased: whether nothing at all may stay
consent_withdrawn = Signal()
_TURN, _PROFILES = 7382, 7383  # of PostgreSQL's advisory locks
_BATCH_SIZE = 500


@dataclass(frozen=True)
class ConsentState:
    """What a participant's row says that a file may show."""

    consent: bool | None
    has_phone: bool

    @property
    def is_exportable(self) -> bool:
        return self.consent is True and self.has_phone


def lock_participants(channel_id: int, device_ids: Sequence[str]) -> dict[str, ConsentState]:
    """The participants among these; their rows are ours until the transaction ends."""
    states: dict[str, ConsentState] = {}
    for batch in _split_batches(device_ids):
        rows = Participant.objects.filter(channel_id=channel_id, device_id__in=batch)
        byte_order = Collate("device_id", "C") if connection.vendor == "postgresql" else "device_id"
        for device_id, consent, phone in (
            rows.order_by(byte_order)  # as Python sorts: one order of locking
            .select_for_update()
            .values_list("device_id", "consent", "encrypted_phone")
        ):
            states[device_id] = ConsentState(consent, phone is not None)
    return states


def apply_changes(
    channel_id: int, before: dict[str, ConsentState], after: dict[str, ConsentState]
) -> None:
    """Records what changed, and ends what was made with a consent that is no more."""
    granted_count = sum(
        new.consent is True and (device_id not in before or before[device_id].consent is not True)
        for device_id, new in after.items()
    )
    revoked = [
        device_id
        for device_id, old in before.items()
        if old.consent is True
        and (
            after[device_id].consent is not True
            or (old.is_exportable and not after[device_id].is_exportable)
        )
    ]
    if revoked:
        withdraw(channel_id, revoked)
    if granted_count or revoked:
        audit.record(
            "consent.changed",
            channel=Channel.objects.values_list("identifier", flat=True).get(pk=channel_id),
            granted=granted_count,
            withdrawn=len(revoked),
        )


def withdraw(channel_id: int, device_ids: Sequence[str], *, erased: bool = False) -> None:
    """Within the transaction that changes the rows of these people."""
    lock_exclusive(channel_id)
    for batch in _split_batches(device_ids):
        rows = Participant.objects.filter(channel_id=channel_id, device_id__in=batch)
        rows.update(withdrawn_at=Now())
    consent_withdrawn.send(
        sender=Participant, channel_id=channel_id, device_ids=list(device_ids), erased=erased
    )


def _split_batches(device_ids: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(sorted(set(device_ids)))
    while batch := list(islice(rest, _BATCH_SIZE)):
        yield batch


# Turns ------------------------------------------------------------------------------------------


def lock_exclusive(channel_id: int) -> None:
    """No file of the channel is published until this transaction ends. SQLite has one writer."""
    _lock("pg_advisory_xact_lock", channel_id)


def lock_shared(channel_id: int) -> None:
    """Waits for withdrawals that are under way, and holds up others until the transaction ends."""
    _lock("pg_advisory_xact_lock_shared", channel_id)


def lock_profiles_shared(channel_id: int) -> None:
    """Nobody is begun to be erased until this transaction, which takes profiles in, ends. Comes
    before the turn and the rows of people, as `no_profiles` does: or each would wait for the other.
    """
    _lock("pg_advisory_xact_lock_shared", channel_id, _PROFILES)


def lock_profiles_exclusive(channel_id: int) -> None:
    """Waits for profiles that are on their way, and holds up others until the transaction ends."""
    _lock("pg_advisory_xact_lock", channel_id, _PROFILES)


def _lock(function: str, channel_id: int, kind: int = _TURN) -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {function}(%s, %s)", [kind, channel_id])


def fetch_withdrawn_since(channel_id: int, moment: datetime) -> list[str]:
    """Devices of those who withdrew then or later, for who has `settled`."""
    rows = Participant.objects.filter(channel_id=channel_id, withdrawn_at__gte=moment)
    return list(rows.values_list("device_id", flat=True))


def is_erasing(channel_id: int, since: datetime) -> bool:
    """Whether somebody is being erased, or was since then."""
    recent = Q(finished_at=None) | Q(finished_at__gte=since) | Q(requested_at__gte=since)
    return Erasure.objects.filter(recent, channel_id=channel_id).exists()


def has_revocations_since(channel_id: int, since: datetime) -> bool:
    """Whether somebody refused, took back consent or was erased since then."""
    participants = Participant.objects.filter(channel_id=channel_id)
    withdrawn_rows = participants.filter(withdrawn_at__gte=since)
    refused_rows = participants.filter(consent=False, updated_at__gte=since)
    return is_erasing(channel_id, since) or withdrawn_rows.exists() or refused_rows.exists()


# Hashes under a channel's secret ------------------------------------------------------------------
