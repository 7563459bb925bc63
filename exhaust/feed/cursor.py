"""Cursors: where a reader stands, opaque and signed, good for one question only."""

import hashlib
import json
from typing import Any

from django.core import signing

from ingest.events import Refused

_signer = signing.Signer(salt="exhaust.feed.cursor")


def seal(position: list[Any], question: list[Any]) -> str:
    """The text of a position, bound to the question (channel, resource, filters) it belongs to."""
    return _signer.sign_object([position, _digest(question)])


def unseal(text: str, question: list[Any]) -> list[Any]:
    """The position. Raises `Refused` (400) for a text that is altered or another question's."""
    try:
        position, digest = _signer.unsign_object(text)
    except (signing.BadSignature, ValueError):
        raise Refused("cursor", "cursor: was altered; use it exactly as it was given.") from None
    if digest != _digest(question):
        raise Refused("cursor", "cursor: belongs to another question; ask as you did before.")
    return list(position)


def _digest(question: list[Any]) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]
