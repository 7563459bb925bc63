"""Cursors: opaque, signed positions, each valid for one query."""

import hashlib
import json
from typing import Any

from django.core import signing

from ingest.events import RequestError

_signer = signing.Signer(salt="exhaust.feed.cursor")


def encode(position: list[Any], query: list[Any]) -> str:
    """Returns the text of a position, bound to a query (channel, resource, filters)."""
    return _signer.sign_object([position, _query_digest(query)])


def decode(text: str, query: list[Any]) -> list[Any]:
    """Returns the position. Raises `RequestError` (400) for an altered text or another query."""
    try:
        position, digest = _signer.unsign_object(text)
    except (signing.BadSignature, ValueError):
        raise RequestError(
            "cursor", "cursor: was altered; use it exactly as you received it."
        ) from None
    if digest != _query_digest(query):
        raise RequestError(
            "cursor", "cursor: belongs to another query; repeat the query that returned it."
        )
    return list(position)


def _query_digest(query: list[Any]) -> str:
    return hashlib.sha256(json.dumps(query, sort_keys=True).encode()).hexdigest()[:16]
