"""Signed messages as Standard Webhooks writes them (https://www.standardwebhooks.com)."""

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence
from datetime import datetime

from exhaust.delivery import http_client
from exhaust.delivery.http_client import Answer

_PREFIX = "whsec_"


def new_secret() -> str:
    """A signing secret as its two holders keep it: `whsec_` and base64 of 32 bytes."""
    return _PREFIX + b64encode(secrets.token_bytes(32)).decode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and base64 of the HMAC-SHA256 over id, timestamp (epoch seconds) and body."""
    key = b64decode(secret.removeprefix(_PREFIX))
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + b64encode(hmac.digest(key, content, hashlib.sha256)).decode()


def signed(message_id: str, body: bytes, signing: Sequence[str], at: datetime) -> dict[str, str]:
    """The headers of a message."""
    timestamp = int(at.timestamp())
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(
            signature(secret, message_id, timestamp, body) for secret in signing
        ),
    }


def send(url: str, message_id: str, body: bytes, signing: Sequence[str], at: datetime) -> Answer:
    """POSTs a JSON body, signed with each of the secrets: a receiver may hold any of them.

    Raises what `http.post` raises.
    """
    headers = {"Content-Type": "application/json", **signed(message_id, body, signing, at)}
    return http_client.post(url, body, headers, seconds=http_client.SECONDS)
