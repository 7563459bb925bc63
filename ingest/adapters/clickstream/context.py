"""The user, the user's attributes and the page of a Clickstream event."""

import math
from typing import Any

import msgspec

from ingest.adapters.fields import MAX_URL, bounded_text
from ingest.events import EventContext
from ingest.feed.values import EventRow


class _Page(msgspec.Struct):
    url: Any = msgspec.field(name="_page_url", default=None)


class _Payload(msgspec.Struct):
    user: dict[str, Any] | None = None
    user_id: Any = None
    attributes: _Page | None = None


_decode = msgspec.json.Decoder(_Payload).decode


def read_context(row: EventRow) -> EventContext:
    payload = _decode(row.payload)
    url = bounded_text(payload.attributes.url, MAX_URL) if payload.attributes else ""
    occurred, latest = row.occurred_us, row.received_us
    attributes: dict[str, tuple[Any, int]] = {}
    for name, attribute in (payload.user or {}).items():
        if isinstance(attribute, dict) and "value" in attribute:
            attributes[name] = (
                attribute["value"],
                _attribute_set_at(attribute.get("set_timestamp"), occurred, latest),
            )
        else:
            attributes[name] = (attribute, occurred)
    signed_in, _ = attributes.pop("_user_id", (payload.user_id, occurred))
    return EventContext(bounded_text(signed_in), url, attributes)


def _attribute_set_at(milliseconds: Any, occurred: int, latest: int) -> int:
    """Returns when an attribute was set, at most its arrival: a later time would win for ever."""
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return occurred
    if not math.isfinite(milliseconds) or milliseconds <= 0:
        return occurred
    return min(int(milliseconds * 1000), max(occurred, latest))
