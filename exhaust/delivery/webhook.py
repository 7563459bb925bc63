"""Signed messages as Standard Webhooks writes them (https://www.standardwebhooks.com)."""

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence
from datetime import datetime

_SECRET_PREFIX = "whsec_"  # noqa: S105
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
SECRET_RULE = (
    f"Write {_SECRET_PREFIX} and base64 of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes."
)


def generate_secret() -> str:
    """Returns a new signing secret: `whsec_` and base64 of 32 bytes."""
    return _SECRET_PREFIX + b64encode(secrets.token_bytes(32)).decode()


def is_secret(text: str) -> bool:
    """Returns whether a text is a signing secret of the standard."""
    try:
        key = b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except ValueError:
        return False
    is_long_enough = MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES
    return text.startswith(_SECRET_PREFIX) and is_long_enough


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
