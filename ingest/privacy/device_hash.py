"""Hashes of devices under a channel's secret."""

import hashlib
import hmac
import secrets

from django.db import transaction

from ingest.db.prepared import fetch_all
from ingest.models import Channel
from ingest.privacy.encryption import decrypt, encrypt


def fetch_channel_secret(channel_id: int) -> bytes:
    """Returns the channel's 32 secret bytes, made at the first use."""
    found = fetch_all("SELECT encrypted_secret FROM ingest_channel WHERE id = %s", [channel_id])
    encrypted = found[0][0] if found else None
    if encrypted is None:
        rows = Channel.objects.filter(pk=channel_id)
        with transaction.atomic():
            rows.filter(encrypted_secret=None).update(
                encrypted_secret=encrypt(secrets.token_bytes(32))
            )
            encrypted = rows.values_list("encrypted_secret", flat=True).get()
    return decrypt(encrypted or b"")


def derive_key(channel_id: int, purpose: str) -> bytes:
    """Returns a key of 32 bytes for one purpose, so that hashes of two purposes differ."""
    return hmac.digest(fetch_channel_secret(channel_id), purpose.encode(), hashlib.sha256)


def hash_subject(channel_id: int, device_id: str) -> str:
    """Returns the name of a person in certificates and in the audit log."""
    return hash_subject_with(derive_key(channel_id, "erasure"), device_id)


def hash_subject_with(key: bytes, device_id: str) -> str:
    return hmac.digest(key, device_id.encode(), hashlib.sha256).hex()
