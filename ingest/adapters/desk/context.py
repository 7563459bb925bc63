"""The user, the device, the system and the place of a session."""

from typing import Any

import msgspec
from msgspec import structs

from ingest.adapters.fields import SessionDetails, bounded_text, select_details
from ingest.events import NO_CONTEXT, EventContext
from ingest.feed.values import EventRow

_FIELDS = (*SessionDetails.__annotations__, "userId", "userType", "visitType")
_decode = msgspec.json.Decoder(
    msgspec.defstruct("_Payload", [(field, Any, None) for field in _FIELDS])
).decode


def read_context(row: EventRow) -> EventContext:
    if row.type != "session":
        return NO_CONTEXT
    payload = structs.asdict(_decode(row.payload))
    user_type = payload["userType"] or payload["visitType"]
    return EventContext(
        bounded_text(payload["userId"]),
        "",
        {"userType": (user_type, row.occurred_us)} if user_type else {},
        select_details(payload),
    )
