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
withdrawn = Signal()
_TURN, _PROFILES = 7382, 7383  # of PostgreSQL's advisory locks
_BATCH = 500


@dataclass(frozen=True)
class Known:
    """What a participant's row says that a file may show."""

    consent: bool | None
    has_phone: bool

    @property
    def shows(self) -> bool:
        return self.consent is True and self.has_phone


def known(channel_id: int, device_ids: Sequence[str]) -> dict[str, Known]:
    """The participants among these; their rows are ours until the transaction ends."""
    found: dict[str, Known] = {}
    for batch in _batches(device_ids):
        rows = Participant.objects.filter(channel_id=channel_id, device_id__in=batch)
        bytewise = Collate("device_id", "C") if connection.vendor == "postgresql" else "device_id"
        for device_id, consent, phone in (
            rows.order_by(bytewise)  # as Python sorts: one order of locking
            .select_for_update()
            .values_list("device_id", "consent", "sealed_phone")
        ):
            found[device_id] = Known(consent, phone is not None)
    return found


def changed(channel_id: int, before: dict[str, Known], after: dict[str, Known]) -> None:
    """Records what changed, and ends what was made with a consent that is no more."""
    granted = sum(
        now.consent is True and (device_id not in before or before[device_id].consent is not True)
        for device_id, now in after.items()
    )
    over = [
        device_id
        for device_id, was in before.items()
        if was.consent is True
        and (after[device_id].consent is not True or (was.shows and not after[device_id].shows))
    ]
    if over:
        withdraw(channel_id, over)
    if granted or over:
        audit.record(
            "consent.changed",
            channel=Channel.objects.values_list("identifier", flat=True).get(pk=channel_id),
            granted=granted,
            withdrawn=len(over),
        )


def withdraw(channel_id: int, device_ids: Sequence[str], *, erased: bool = False) -> None:
    """Within the transaction that changes the rows of these people."""
    take_turn(channel_id)
    for batch in _batches(device_ids):
        rows = Participant.objects.filter(channel_id=channel_id, device_id__in=batch)
        rows.update(withdrawn_at=Now())
    withdrawn.send(
        sender=Participant, channel_id=channel_id, device_ids=list(device_ids), erased=erased
    )


def _batches(device_ids: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(sorted(set(device_ids)))
    while batch := list(islice(rest, _BATCH)):
        yield batch


# Turns ------------------------------------------------------------------------------------------


def take_turn(channel_id: int) -> None:
    """No file of the channel is published until this transaction ends. SQLite has one writer."""
    _lock("pg_advisory_xact_lock", channel_id)


def settle(channel_id: int) -> None:
    """Waits for withdrawals that are under way, and holds up others until the transaction ends."""
    _lock("pg_advisory_xact_lock_shared", channel_id)


def profiles(channel_id: int) -> None:
    """Nobody is begun to be erased until this transaction, which takes profiles in, ends. Comes
    before the turn and the rows of people, as `no_profiles` does: or each would wait for the other.
    """
    _lock("pg_advisory_xact_lock_shared", channel_id, _PROFILES)


def no_profiles(channel_id: int) -> None:
    """Waits for profiles that are on their way, and holds up others until the transaction ends."""
    _lock("pg_advisory_xact_lock", channel_id, _PROFILES)


def _lock(function: str, channel_id: int, kind: int = _TURN) -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {function}(%s, %s)", [kind, channel_id])


def withdrawn_since(channel_id: int, moment: datetime) -> list[str]:
    """Devices of those who withdrew then or later, for who has `settled`."""
    rows = Participant.objects.filter(channel_id=channel_id, withdrawn_at__gte=moment)
    return list(rows.values_list("device_id", flat=True))


def is_erasing(channel_id: int, since: datetime) -> bool:
    """Whether somebody is being erased, or was since then."""
    recent = Q(finished_at=None) | Q(finished_at__gte=since) | Q(asked_at__gte=since)
    return Erasure.objects.filter(recent, channel_id=channel_id).exists()


def ended(channel_id: int, since: datetime) -> bool:
    """Whether somebody refused, took back consent or was erased since then."""
    people = Participant.objects.filter(channel_id=channel_id)
    withdrew = people.filter(withdrawn_at__gte=since)
    refused = people.filter(consent=False, updated_at__gte=since)
    return is_erasing(channel_id, since) or withdrew.exists() or refused.exists()


# Hashes under a channel's secret ------------------------------------------------------------------
