"""What an event's payload tells of who was there and on which page, by dialect.

Payloads are as their senders wrote them: what has another shape than expected tells nothing.
"""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from ingest.feed.values import Arrived

MAX_TEXT = 255  # characters of an id or a name
MAX_URL = 2048
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // _MICROSECOND


def moment(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)


class Traits(NamedTuple):
    user_id: str = ""
    url: str = ""
    attributes: dict[str, tuple[Any, int]] = {}  # by name: the value and when it was set


NOTHING = Traits()


class _Actor(msgspec.Struct):
    id: Any = None
    type: Any = None


class _Edata(msgspec.Struct):
    uri: Any = None


class _Telemetry(msgspec.Struct):
    actor: _Actor | None = None
    edata: _Edata | None = None


class _Page(msgspec.Struct):
    url: Any = msgspec.field(name="_page_url", default=None)


class _Clickstream(msgspec.Struct):
    user: dict[str, Any] | None = None
    user_id: Any = None
    attributes: _Page | None = None


class _Skalin(msgspec.Struct):
    identity: Any = None
    url: Any = None
    customer_id: Any = None
    customer: Any = msgspec.field(name="customerId", default=None)


class _Desk(msgspec.Struct):
    user_id: Any = msgspec.field(name="userId", default=None)
    user_type: Any = msgspec.field(name="userType", default=None)


_telemetry_of = msgspec.json.Decoder(_Telemetry).decode
_clickstream_of = msgspec.json.Decoder(_Clickstream).decode
_skalin_of = msgspec.json.Decoder(_Skalin).decode
_desk_of = msgspec.json.Decoder(_Desk).decode


def bounded_text(found: Any, limit: int = MAX_TEXT) -> str:
    if isinstance(found, int) and not isinstance(found, bool):
        found = str(found)
    return found if isinstance(found, str) and len(found) <= limit else ""


def _telemetry(row: Arrived) -> Traits:
    said = _telemetry_of(row.payload)
    url = bounded_text(said.edata.uri, MAX_URL) if said.edata else ""
    actor = said.actor
    if actor is None or str(actor.type or "User").lower() != "user":
        return Traits("", url)
    user_id = bounded_text(actor.id)
    # senders without a sign-in repeat the device
    return Traits("" if user_id == row.device_id else user_id, url)


def _clickstream(row: Arrived) -> Traits:
    said = _clickstream_of(row.payload)
    url = bounded_text(said.attributes.url, MAX_URL) if said.attributes else ""
    at, latest = row.occurred, row.received
    attributes: dict[str, tuple[Any, int]] = {}
    for name, found in (said.user or {}).items():
        if isinstance(found, dict) and "value" in found:
            attributes[name] = (found["value"], _set_at(found.get("set_timestamp"), at, latest))
        else:
            attributes[name] = (found, at)
    signed_in, _ = attributes.pop("_user_id", (said.user_id, at))
    return Traits(bounded_text(signed_in), url, attributes)


def _set_at(milliseconds: Any, at: int, latest: int) -> int:
    """When an attribute was set: never after its arrival, or it could never be replaced."""
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return at
    if not math.isfinite(milliseconds) or milliseconds <= 0:
        return at
    return min(int(milliseconds * 1000), max(at, latest))


def _skalin(row: Arrived) -> Traits:
    said = _skalin_of(row.payload)
    who = msgspec.json.decode(said.identity) if isinstance(said.identity, str) else said.identity
    if not isinstance(who, dict):
        return Traits("", bounded_text(said.url, MAX_URL))
    at = row.occurred
    attributes = {name: (value, at) for name, value in who.items()}
    if customer := said.customer or said.customer_id:
        attributes["customerId"] = (customer, at)
    user_id = bounded_text(who.get("id")) or bounded_text(who.get("email"))
    return Traits(user_id, bounded_text(said.url, MAX_URL), attributes)


def _desk(row: Arrived) -> Traits:
    if row.type != "session":
        return NOTHING
    said = _desk_of(row.payload)
    at = row.occurred
    return Traits(
        bounded_text(said.user_id), "", {"userType": (said.user_type, at)} if said.user_type else {}
    )


_READERS: dict[str, Callable[[Arrived], Traits]] = {
    "telemetry": _telemetry,
    "clickstream": _clickstream,
    "skalin": _skalin,
    "desk": _desk,
}


def traits(row: Arrived) -> Traits:
    reader = _READERS.get(row.dialect)
    if reader is None:
        return NOTHING
    try:
        return reader(row)
    except (msgspec.MsgspecError, RecursionError):
        return NOTHING
