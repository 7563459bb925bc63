"""Withdrawals of consent, and the locks that order them with publications and erasures.

A withdrawal marks its participants in its own transaction. Downloads ask for the marks, so links
are dead at once; a task finds the files that were made with the consent, and takes the marks away.
A publication takes the same advisory lock of the channel (`lock_shared`), so that each of the two
sees the other.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import psycopg
from django.db import connection
from django.db.models import Q, QuerySet
from django.db.models.functions import Collate, Now

from ingest import audit
from ingest.db.prepared import fetch_all
from ingest.models import Erasure, Participant

_SHARED_LOCK = "pg_advisory_xact_lock_shared"
_WITHDRAWAL_LOCK, _PROFILE_LOCK = 7382, 7383  # first keys of PostgreSQL's advisory locks
_BATCH_SIZE = 500
MAX_EARLIER = 20  # of a participant


@dataclass(frozen=True)
class ConsentState:
    """The consent of a participant, and whether a file may show the phone."""

    consent: bool | None
    has_phone: bool
    consent_at: datetime | None

    @property
    def is_exportable(self) -> bool:
        return self.consent is True and self.has_phone


def lock_participants(channel_id: int, device_ids: Sequence[str]) -> dict[str, ConsentState]:
    """Returns the known ones among these participants, and locks their rows."""
    states: dict[str, ConsentState] = {}
    for batch in _split_batches(device_ids):
        rows = Participant.objects.filter(channel_id=channel_id, device_id__in=batch)
        byte_order = Collate("device_id", "C") if connection.vendor == "postgresql" else "device_id"
        for device_id, consent, phone, consent_at in (
            rows.order_by(byte_order)  # the order of Python: every transaction locks alike
            .select_for_update()
            .values_list("device_id", "consent", "encrypted_phone", "consent_at")
        ):
            states[device_id] = ConsentState(consent, phone is not None, consent_at)
    return states


# the columns of `ConsentState`, behind the device
STATE_COLUMNS = "device_id, consent, encrypted_phone IS NOT NULL, consent_at"
_LOCK_STATES = f"""
SELECT {STATE_COLUMNS} FROM ingest_participant
WHERE channel_id = %s AND device_id = ANY(ARRAY(SELECT unnest(%s::text[])))
ORDER BY device_id COLLATE "C" FOR UPDATE
"""  # noqa: S608


def lock_profiles(
    channel_id: int, device_ids: Sequence[str]
) -> tuple[bool, dict[str, ConsentState]]:
    """Delays erasures until this transaction ends, and then does what `lock_participants` does.

    Also returns whether the channel has an erasure. On PostgreSQL this takes one round trip. Take
    this lock before the others and before rows of participants, or there is a deadlock.
    """
    if connection.vendor != "postgresql":
        is_erased = Erasure.objects.filter(channel_id=channel_id).exists()
        return is_erased, lock_participants(channel_id, device_ids)
    connection.ensure_connection()
    database = connection.connection
    lock, erasures, known = (psycopg.Cursor(database) for _ in range(3))
    with connection.wrap_database_errors, database.pipeline():
        lock.execute(f"SELECT {_SHARED_LOCK}(%s, %s)", [_PROFILE_LOCK, channel_id])
        # a statement of its own: it sees what was committed before the lock
        exists = "SELECT EXISTS (SELECT FROM ingest_erasure WHERE channel_id = %s)"
        erasures.execute(exists, [channel_id])
        if device_ids:
            known.execute(_LOCK_STATES, [channel_id, sorted(set(device_ids))])
    (is_erased,) = erasures.fetchone() or (False,)
    return is_erased, read_states(known.fetchall()) if device_ids else {}


def read_states(rows: Iterable[tuple[Any, ...]]) -> dict[str, ConsentState]:
    """Returns the states of rows of `STATE_COLUMNS`, by device."""
    return {device_id: ConsentState(*state) for device_id, *state in rows}


def apply_changes(
    channel_id: int, before: dict[str, ConsentState], after: dict[str, ConsentState]
) -> None:
    """Audits the changed consents, and withdraws the revoked ones."""
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
            channel=fetch_all("SELECT identifier FROM ingest_channel WHERE id = %s", [channel_id])[
                0
            ][0],
            granted=granted_count,
            withdrawn=len(revoked),
        )


def keep_earlier(
    channel_id: int,
    before: dict[str, ConsentState],
    after: dict[str, ConsentState],
    changed_at: datetime,
) -> None:
    """Adds the consents that have changed to the earlier ones of their locked participants."""
    changed = [
        device_id
        for device_id, old in before.items()
        if old.consent is not None and after[device_id].consent is not old.consent
    ]
    for batch in _split_batches(changed):
        rows = list(Participant.objects.filter(channel_id=channel_id, device_id__in=batch))
        for row in rows:
            old = before[row.device_id]
            earlier = {
                "consent": old.consent,
                "consentAt": old.consent_at and old.consent_at.isoformat(),
                "until": changed_at.isoformat(),
            }
            row.earlier_consents = [*(row.earlier_consents or ()), earlier][-MAX_EARLIER:]
        Participant.objects.bulk_update(rows, ["earlier_consents"])


def withdraw(channel_id: int, device_ids: Sequence[str]) -> None:
    """Withdraws consent, in the transaction that changes the participants' rows."""
    lock_exclusive(channel_id)
    for batch in _split_batches(device_ids):
        rows = Participant.objects.filter(channel_id=channel_id, device_id__in=batch)
        rows.update(withdrawn_at=Now(), files_pending=True)


def find_marked() -> QuerySet[Participant]:
    """Returns the participants whose files are still to be found."""
    return Participant.objects.filter(files_pending=True)


def _split_batches(device_ids: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(sorted(set(device_ids)))
    while batch := list(islice(rest, _BATCH_SIZE)):
        yield batch


# Locks ------------------------------------------------------------------------------------------


def lock_exclusive(channel_id: int) -> None:
    """Delays the channel's publications until this transaction ends. SQLite has one writer."""
    _lock("pg_advisory_xact_lock", channel_id)


def lock_shared(channel_id: int) -> None:
    """Waits for running withdrawals, and delays others until this transaction ends."""
    _lock(_SHARED_LOCK, channel_id)


def lock_profiles_exclusive(channel_id: int) -> None:
    """Waits for transactions that store profiles, and delays others until this one ends."""
    _lock("pg_advisory_xact_lock", channel_id, _PROFILE_LOCK)


def _lock(function: str, channel_id: int, kind: int = _WITHDRAWAL_LOCK) -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {function}(%s, %s)", [kind, channel_id])


def fetch_withdrawn_since(channel_id: int, moment: datetime) -> list[str]:
    """Returns the devices withdrawn at that time or later. Take `lock_shared` first."""
    rows = Participant.objects.filter(channel_id=channel_id, withdrawn_at__gte=moment)
    return list(rows.values_list("device_id", flat=True))


def is_erasing(channel_id: int, since: datetime) -> bool:
    """Returns whether an erasure is running, or was since then."""
    recent = Q(finished_at=None) | Q(finished_at__gte=since) | Q(requested_at__gte=since)
    return Erasure.objects.filter(recent, channel_id=channel_id).exists()


def has_revocations_since(channel_id: int, since: datetime) -> bool:
    """Returns whether a participant refused, withdrew or was erased since then."""
    participants = Participant.objects.filter(channel_id=channel_id)
    withdrawn_rows = participants.filter(withdrawn_at__gte=since)
    refused_rows = participants.filter(consent=False, updated_at__gte=since)
    return is_erasing(channel_id, since) or withdrawn_rows.exists() or refused_rows.exists()
