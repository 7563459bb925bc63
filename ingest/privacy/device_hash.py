"""Hashes of devices under a channel's secret."""

import hashlib
import hmac
import secrets

from django.db import transaction

from ingest.models import Channel
from ingest.privacy.encryption import seal, unseal


def secret(channel_id: int) -> bytes:
    """32 bytes, made once; every hash of a device of this channel is under it."""
    rows = Channel.objects.filter(pk=channel_id)
    sealed = rows.values_list("sealed_secret", flat=True).get()
    if sealed is None:
        with transaction.atomic():
            rows.filter(sealed_secret=None).update(sealed_secret=seal(secrets.token_bytes(32)))
            sealed = rows.values_list("sealed_secret", flat=True).get()
    return unseal(sealed or b"")


def key_for(channel_id: int, purpose: str) -> bytes:
    """32 bytes of the secret for one purpose, so that hashes of two purposes never meet."""
    return hmac.digest(secret(channel_id), purpose.encode(), hashlib.sha256)


def subject(channel_id: int, device_id: str) -> str:
    """A person as certificates and the ledger name them."""
    return subject_under(key_for(channel_id, "erasure"), device_id)


def subject_under(key: bytes, device_id: str) -> str:
    return hmac.digest(key, device_id.encode(), hashlib.sha256).hex()
