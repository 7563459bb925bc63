"""The user and the page of a telemetry event."""

from typing import Any

import msgspec

from ingest.adapters.fields import MAX_URL, bounded_text
from ingest.events import EventContext
from ingest.feed.values import EventRow


class _Actor(msgspec.Struct):
    id: Any = None
    type: Any = None


class _Edata(msgspec.Struct):
    uri: Any = None


class _Payload(msgspec.Struct):
    actor: _Actor | None = None
    edata: _Edata | None = None


_decode = msgspec.json.Decoder(_Payload).decode


def read_context(row: EventRow) -> EventContext:
    payload = _decode(row.payload)
    url = bounded_text(payload.edata.uri, MAX_URL) if payload.edata else ""
    actor = payload.actor
    if actor is None or str(actor.type or "User").lower() != "user":
        return EventContext("", url)
    user_id = bounded_text(actor.id)
    # senders without a sign-in repeat the device
    return EventContext("" if user_id == row.device_id else user_id, url)
