"""The only write of participants: profiles and consent, by device id."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg
from django.db import connection, transaction

from ingest.db.clock import read_clock
from ingest.events import Profile
from ingest.privacy import consent, erasure, phones
from ingest.privacy.consent import ConsentState
from ingest.privacy.encryption import encrypt

# A later consent replaces an earlier one; a missing field (NULL) changes nothing.
_UPSERT = """
INSERT INTO ingest_participant AS known
    (channel_id, device_id, user_name, encrypted_phone, phone_digest, consent, consent_at,
     updated_at)
{rows}
ON CONFLICT (channel_id, device_id) DO UPDATE SET
    user_name = CASE WHEN %s THEN excluded.user_name ELSE known.user_name END,
    encrypted_phone = CASE WHEN %s THEN excluded.encrypted_phone ELSE known.encrypted_phone END,
    phone_digest = CASE WHEN %s THEN excluded.phone_digest ELSE known.phone_digest END,
    consent = CASE WHEN excluded.consent IS NOT NULL
        AND (known.consent_at IS NULL OR excluded.consent_at >= known.consent_at)
        THEN excluded.consent ELSE known.consent END,
    consent_at = CASE WHEN excluded.consent IS NOT NULL
        AND (known.consent_at IS NULL OR excluded.consent_at >= known.consent_at)
        THEN excluded.consent_at ELSE known.consent_at END,
    updated_at = excluded.updated_at
{returning}"""
_UPSERT_ONE = _UPSERT.format(rows="VALUES (%s, %s, %s, %s, %s, %s, %s, %s)", returning="")
_UPSERT_ARRAYS = _UPSERT.format(
    rows="SELECT %s, d, n, p, h, c, a, %s FROM unnest"
    "(%s::text[], %s::text[], %s::bytea[], %s::bigint[], %s::boolean[], %s::timestamptz[])"
    " AS u(d, n, p, h, c, a)",
    returning=f"RETURNING {consent.STATE_COLUMNS}",
)


def store_participants(
    channel_id: int,
    received_at: datetime,
    profiles: Sequence[Profile],
) -> list[Profile]:
    """Inserts or updates participants in one commit.

    Returns the profiles that it does not store: of persons who were erased and have not consented
    since.
    """
    encrypted_phones = {id(p): encrypt(p.phone.encode()) for p in profiles if p.phone}
    digests = phones.hash_phones(channel_id, (p.phone for p in profiles if p.phone))
    # only a consent or a removed phone can change which persons appear in files
    changes_consent = any(p.consent is not None or p.phone == "" for p in profiles)
    devices = [p.device_id for p in profiles] if changes_consent else []
    with transaction.atomic():
        has_erasures, before = consent.lock_profiles(channel_id, devices)
        erased = erasure.find_erased(channel_id, profiles) if has_erasures else []
        if erased:
            erased_ids = set(map(id, erased))
            profiles = [p for p in profiles if id(p) not in erased_ids]
            kept = {p.device_id for p in profiles}
            before = {device_id: state for device_id, state in before.items() if device_id in kept}
        after = _upsert(channel_id, received_at, profiles, encrypted_phones, digests, before)
        if changes_consent:
            consent.apply_changes(channel_id, before, after)
            consent.keep_earlier(channel_id, before, after, received_at)
    return erased


def _upsert(
    channel_id: int,
    received_at: datetime,
    profiles: Sequence[Profile],
    encrypted_phones: dict[int, bytes],
    digests: dict[str, int],
    before: dict[str, ConsentState],
) -> dict[str, ConsentState]:
    """Returns the states after it."""
    when = connection.ops.adapt_datetimefield_value
    # in the order in which `before` was locked; stable: the last profile stays last
    profiles = sorted(profiles, key=lambda p: p.device_id)
    consent_times = _date_consents(profiles, before)
    rows = [
        (
            channel_id,
            p.device_id,
            p.user_name or "",
            encrypted_phones.get(id(p)),
            digests.get(p.phone or ""),
            p.consent,
            when(consent_at) if p.consent is not None else None,
            when(received_at),
            p.user_name is not None,
            p.phone is not None,
            p.phone is not None,
        )
        for p, consent_at in zip(profiles, consent_times, strict=True)
    ]
    if connection.vendor == "postgresql" and len({row[1] for row in rows}) == len(rows):
        return _upsert_arrays(channel_id, when(received_at), rows)
    # of a device that comes twice, each profile counts in turn
    with connection.cursor() as cursor:
        cursor.executemany(_UPSERT_ONE, rows)
    return consent.lock_participants(channel_id, [row[1] for row in rows])


def _date_consents(
    profiles: Sequence[Profile], before: dict[str, consent.ConsentState]
) -> list[datetime]:
    """Returns the times of the consents; a refusal is later than one that is still to come.

    Only a clock that is ahead writes such a consent, and no refusal could replace it in time.
    """
    now = read_clock()
    latest = {device_id: state.consent_at for device_id, state in before.items()}
    consent_times = []
    for profile in profiles:
        consent_at, known_at = profile.consent_at, latest.get(profile.device_id)
        if profile.consent is False and known_at is not None and known_at > now:
            consent_at = max(consent_at, known_at + timedelta(microseconds=1))
        if profile.consent is not None:
            latest[profile.device_id] = max(consent_at, known_at or consent_at)
        consent_times.append(consent_at)
    return consent_times


def _upsert_arrays(
    channel_id: int, received_at: Any, rows: Sequence[tuple[Any, ...]]
) -> dict[str, ConsentState]:
    """Upserts rows of different devices, in a statement for each set of fields that was sent."""
    states: dict[str, ConsentState] = {}
    by_fields: dict[tuple[bool, ...], list[tuple[Any, ...]]] = {}
    for row in rows:
        by_fields.setdefault(row[8:], []).append(row)
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        for fields, group in sorted(by_fields.items()):
            arrays = [list(column) for column in zip(*(row[1:7] for row in group), strict=True)]
            cursor.execute(_UPSERT_ARRAYS, [channel_id, received_at, *arrays, *fields])
            states |= consent.read_states(cursor.fetchall())
    return states
