"""The only write of profiles: who is known, by device id, and what they said of consent."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import connection, transaction

from ingest.adapters.participants import DIALECT, Profile
from ingest.events import Rejection
from ingest.privacy import consent, erasure
from ingest.privacy.encryption import seal
from ingest.store import rejections

# A consent is replaced only by one given later; what is not said (NULL) changes nothing.
_UPSERT = """
INSERT INTO ingest_participant AS known
    (channel_id, device_id, user_name, sealed_phone, consent, consent_at, updated_at)
VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (channel_id, device_id) DO UPDATE SET
    user_name = CASE WHEN %s THEN excluded.user_name ELSE known.user_name END,
    sealed_phone = CASE WHEN %s THEN excluded.sealed_phone ELSE known.sealed_phone END,
    consent = CASE WHEN excluded.consent IS NOT NULL
        AND (known.consent_at IS NULL OR excluded.consent_at >= known.consent_at)
        THEN excluded.consent ELSE known.consent END,
    consent_at = CASE WHEN excluded.consent IS NOT NULL
        AND (known.consent_at IS NULL OR excluded.consent_at >= known.consent_at)
        THEN excluded.consent_at ELSE known.consent_at END,
    updated_at = excluded.updated_at
"""


def keep_participants(
    channel_id: int,
    received_at: datetime,
    profiles: Sequence[Profile],
    rejected: Sequence[Rejection],
) -> list[Profile]:
    """Makes or updates participants, and keeps what was no profile, in one commit.

    Gives the profiles that were not kept, because the person was erased and has not consented anew.
    """
    when = connection.ops.adapt_datetimefield_value
    sealed = {id(p): seal(p.phone.encode()) for p in profiles if p.phone}
    with transaction.atomic():
        consent.profiles(channel_id)
        refused = erasure.refused(channel_id, profiles)
        out = set(map(id, refused))
        kept = [p for p in profiles if id(p) not in out] if out else profiles
        _upsert(channel_id, when(received_at), kept, sealed)
        rejections.keep(channel_id, DIALECT, received_at, rejected)
    return refused


def _upsert(
    channel_id: int, received_at: Any, kept: Sequence[Profile], sealed: dict[int, bytes]
) -> None:
    when = connection.ops.adapt_datetimefield_value
    rows = [
        (
            channel_id,
            p.device_id,
            p.user_name or "",
            sealed.get(id(p)),
            p.consent,
            when(p.consent_at) if p.consent is not None else None,
            received_at,
            p.user_name is not None,
            p.phone is not None,
        )
        for p in sorted(kept, key=lambda p: p.device_id)  # stable: the last said stays last
    ]
    # only what says something of consent or takes a phone away can change who is shown
    is_telling = any(p.consent is not None or p.phone == "" for p in kept)
    devices = [row[1] for row in rows] if is_telling else []
    before = consent.known(channel_id, devices)  # locked in the order of the upsert
    with connection.cursor() as cursor:
        cursor.executemany(_UPSERT, rows)
    if is_telling:
        consent.changed(channel_id, before, consent.known(channel_id, devices))
