"""Finds participants by phone: phones are encrypted, so each has a keyed hash that is searched."""

import hashlib
import hmac
from collections.abc import Iterable
from time import monotonic

from cryptography.fernet import InvalidToken

from ingest.models import Participant
from ingest.privacy import device_hash
from ingest.privacy.encryption import decrypt

BATCH_ROWS = 500


def hash_phones(channel_id: int, phones: Iterable[str]) -> dict[str, int]:
    """Returns a hash for each phone; none where the channel's key is lost."""
    numbers = set(phones)
    if not numbers:
        return {}
    try:
        key = device_hash.derive_key(channel_id, "phone")
    except InvalidToken:  # with its encryption key: the profiles are stored all the same
        return {}
    return {phone: _hash_phone(key, phone) for phone in numbers}


def _hash_phone(key: bytes, phone: str) -> int:
    digest = hmac.digest(key, phone.encode(), hashlib.sha256)
    return int.from_bytes(digest[:8], "big", signed=True)


def find_participants(
    channel_id: int, phone: str, seconds: float
) -> tuple[list[Participant], bool]:
    """Returns the participants with a phone, and whether all rows were searched.

    Hashes rows of before there were hashes for about that many seconds; a next call goes on.
    """
    hashes = hash_phones(channel_id, [phone])
    is_complete = _hash_stored(channel_id, monotonic() + seconds)
    rows = Participant.objects.filter(channel_id=channel_id, phone_digest__in=hashes.values())
    return [row for row in rows.order_by("-pk")[:100] if _read_phone(row) == phone], is_complete


def _hash_stored(channel_id: int, until: float) -> bool:
    """Returns False where it ended before all rows have a hash."""
    last_pk = 0  # a row without a key stays as it is
    while True:
        unhashed = Participant.objects.filter(
            channel_id=channel_id, phone_digest=None, encrypted_phone__isnull=False, pk__gt=last_pk
        )
        rows = list(unhashed.order_by("pk")[:BATCH_ROWS])
        if not rows:
            return True
        phones = {row.pk: _read_phone(row) for row in rows}
        hashes = hash_phones(channel_id, filter(None, phones.values()))
        for row in rows:
            if digest := hashes.get(phones[row.pk]):
                # unless it has got another phone meanwhile
                current = Participant.objects.filter(pk=row.pk, phone_digest=None)
                current.filter(encrypted_phone=row.encrypted_phone).update(phone_digest=digest)
        last_pk = rows[-1].pk
        if monotonic() > until:
            return False


def _read_phone(row: Participant) -> str:
    """Returns the phone; "" where no key decrypts it."""
    try:
        return decrypt(row.encrypted_phone or b"").decode()
    except InvalidToken:
        return ""
