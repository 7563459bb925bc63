"""The user of a session."""

from typing import Any

import msgspec

from ingest.adapters.fields import bounded_text
from ingest.events import NO_CONTEXT, EventContext
from ingest.feed.values import EventRow


class _Payload(msgspec.Struct):
    user_id: Any = msgspec.field(name="userId", default=None)
    user_type: Any = msgspec.field(name="userType", default=None)


_decode = msgspec.json.Decoder(_Payload).decode


def read_context(row: EventRow) -> EventContext:
    if row.type != "session":
        return NO_CONTEXT
    payload = _decode(row.payload)
    occurred = row.occurred_us
    return EventContext(
        bounded_text(payload.user_id),
        "",
        {"userType": (payload.user_type, occurred)} if payload.user_type else {},
    )
