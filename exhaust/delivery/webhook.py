"""Signed messages as Standard Webhooks writes them (https://www.standardwebhooks.com)."""

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence
from datetime import datetime

_SECRET_PREFIX = "whsec_"  # noqa: S105


def generate_secret() -> str:
    """Returns a new signing secret: `whsec_` and base64 of 32 bytes."""
    return _SECRET_PREFIX + b64encode(secrets.token_bytes(32)).decode()


def compute_signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Returns `v1,` and base64 of the HMAC-SHA256 over id, timestamp (epoch seconds) and body."""
    key = b64decode(secret.removeprefix(_SECRET_PREFIX))
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + b64encode(hmac.digest(key, content, hashlib.sha256)).decode()


def build_signature_headers(
    message_id: str, body: bytes, signing_secrets: Sequence[str], sent_at: datetime
) -> dict[str, str]:
    """Returns the headers that sign a message with each of the secrets."""
    timestamp = int(sent_at.timestamp())
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(
            compute_signature(secret, message_id, timestamp, body) for secret in signing_secrets
        ),
    }
