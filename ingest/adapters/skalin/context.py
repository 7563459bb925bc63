"""The user, their attributes, the page and the address of an identity or a feature."""

from typing import Any

import msgspec

from ingest.adapters.fields import MAX_URL, bounded_text, select_details
from ingest.events import EventContext
from ingest.feed.values import EventRow


class _Payload(msgspec.Struct):
    identity: Any = None
    url: Any = None
    customer_id: Any = None
    customer: Any = msgspec.field(name="customerId", default=None)
    ip: Any = msgspec.field(name="cip", default=None)


_decode = msgspec.json.Decoder(_Payload).decode


def read_context(row: EventRow) -> EventContext:
    payload = _decode(row.payload)
    identity = (
        msgspec.json.decode(payload.identity)
        if isinstance(payload.identity, str)
        else payload.identity
    )
    url, details = bounded_text(payload.url, MAX_URL), select_details({"ip": payload.ip})
    if not isinstance(identity, dict):
        return EventContext("", url, details=details)
    occurred = row.occurred_us
    attributes = {name: (value, occurred) for name, value in identity.items()}
    if customer := payload.customer or payload.customer_id:
        attributes["customerId"] = (customer, occurred)
    user_id = bounded_text(identity.get("id"))
    if not user_id:  # of an application, the device is the one that the e-mail stands for
        user_id = (row.application_id and row.device_id) or bounded_text(identity.get("email"))
    return EventContext(user_id, url, attributes, details)
