"""The user, the page and the device of a telemetry event."""

from typing import Any

import msgspec

from ingest.adapters.fields import MAX_URL, bounded_text, select_details
from ingest.events import EventContext
from ingest.feed.values import EventRow


class _Actor(msgspec.Struct):
    id: Any = None
    type: Any = None


class _Edata(msgspec.Struct):
    uri: Any = None
    device: Any = msgspec.field(name="dspec", default=None)
    browser: Any = msgspec.field(name="uaspec", default=None)
    error_type: Any = msgspec.field(name="errtype", default=None)


class _Payload(msgspec.Struct):
    actor: _Actor | None = None
    edata: _Edata | None = None


_decode = msgspec.json.Decoder(_Payload).decode


def read_context(row: EventRow) -> EventContext:
    payload = _decode(row.payload)
    url = bounded_text(payload.edata.uri, MAX_URL) if payload.edata else ""
    actor = payload.actor
    details = _read_details(payload.edata) if payload.edata else {}
    if actor is None or str(actor.type or "User").lower() != "user":
        return EventContext("", url, details=details)
    user_id = bounded_text(actor.id)
    # senders without a sign-in repeat the device
    return EventContext("" if user_id == row.device_id else user_id, url, details=details)


def _read_details(edata: _Edata) -> dict[str, Any]:
    """Returns what a START event says of the device, and an ERROR event of a crash."""
    device = edata.device if isinstance(edata.device, dict) else {}
    browser = edata.browser if isinstance(edata.browser, dict) else {}
    return select_details(
        {
            "osFamilyName": device.get("os") or browser.get("system"),
            "manufacturer": device.get("make"),
            "browserFamily": browser.get("agent"),
            "browserMajorVersion": browser.get("ver"),
            "hasCrash": "crash" in bounded_text(edata.error_type).lower() or None,
        }
    )
