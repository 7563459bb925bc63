"""AWS Clickstream Analytics: what its Web, Android and Swift SDKs send.

https://github.com/awslabs/clickstream-analytics-on-aws
"""

import binascii
import hashlib
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from ingest.adapters import answers
from ingest.adapters import body as text
from ingest.adapters.fields import MAX_URL, bounded_text, identifier
from ingest.events import (
    EARLIEST,
    Batch,
    Call,
    Event,
    Refused,
    Rejection,
    Traits,
    identity,
)
from ingest.feed.values import Arrived


class _Page(msgspec.Struct):
    url: Any = msgspec.field(name="_page_url", default=None)


class _Clickstream(msgspec.Struct):
    user: dict[str, Any] | None = None
    user_id: Any = None
    attributes: _Page | None = None


_clickstream_of = msgspec.json.Decoder(_Clickstream).decode


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


DIALECT = "clickstream"
MAX_BYTES = 1024 * 1024  # of a body as sent
MAX_EVENTS = 10_000  # of a batch; the SDKs stop at 512 KiB
MAX_COMMAS = 1_000_000  # before a body is taken apart: each element costs memory
MAX_NAME = 50
MAX_ATTRIBUTES, MAX_VALUE = 500, 1024
MAX_USER_ATTRIBUTES, MAX_USER_VALUE = 100, 256
MAX_ITEMS, MAX_ITEM_VALUE, MAX_CUSTOM_KEYS = 100, 256, 10
SKEW_MS = 600_000
DAY_MS = 86_400_000

OTHER_HASH = "hashCode differs from the body's"
OTHER_APPLICATION = "app_id differs from the query's"

_GZIP = b"\x1f\x8b"
_EARLIEST_MS = EARLIEST.timestamp() * 1000
_ITEM_KEYS = {
    "id", "name", "location_id", "brand", "currency", "price", "quantity", "creative_name",
    "creative_slot", "category", "category2", "category3", "category4", "category5",
}  # fmt: skip
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def parse(body: bytes, call: Call) -> Batch:
    """Reads a body as it was sent; one that cannot be read at all is one rejection, since no SDK
    drops a batch that is refused. Raises `Refused` (413) for too large a one.
    """
    events: list[Event] = []
    rejections: list[Rejection] = []
    try:
        raws, mended = text.mending(_events, unfold(body))
    except Refused as refused:
        if refused.status == 413:
            raise
        raws, mended = [], False
        rejections.append(Rejection(0, refused.reason, refused.detail, body))
    note = "" if is_hashed(body, call, absent=True) else OTHER_HASH
    reading = _Reading(call.application, _clock(call), note, mended, set())
    for position, raw in enumerate(raws):
        try:
            event = _event(raw, position, reading)
        except Refused as refused:
            alone = raw if raw.startswith(b"{") else b"[" + raw + b"]"
            rejections.append(Rejection(position, refused.reason, refused.detail, alone))
        else:
            events.append(event)
    return Batch(DIALECT, call.received_at, events, rejections, call.application_id)


def is_hashed(body: bytes, call: Call, *, absent: bool = False) -> bool:
    """Whether the call's hashCode is that of the body as sent; `absent` where it has none."""
    told = call.parameters.get("hashCode")
    return absent if told is None else told == hashlib.sha256(body).hexdigest()[:8]


def unfold(body: bytes) -> bytes:
    """The JSON in a body: plain, gzip, or gzip as base64 text, told apart by the first byte.

    Raises `Refused`.
    """
    if body.startswith(_GZIP):
        body = text.gunzip(body)
    document = body.removeprefix(b"\xef\xbb\xbf").strip()
    if not document:
        raise Refused("empty", "The body is empty.")
    if document[0] in b"[{":
        return document
    try:
        # Android breaks its lines
        folded = binascii.a2b_base64(document.translate(None, b" \t\r\n"), strict_mode=True)
    except binascii.Error:
        folded = b""
    if not folded.startswith(_GZIP):
        raise Refused("not_a_batch", "Send an array of events, an event, or base64 of its gzip.")
    document = text.gunzip(folded).removeprefix(b"\xef\xbb\xbf").strip()
    if document[:1] not in {b"[", b"{"}:
        raise Refused("not_a_batch", "In the gzip is neither an array of events nor an event.")
    return document


def _events(document: bytes) -> list[bytes]:
    if document.startswith(b"{"):
        return [document]
    if len(document) > MAX_COMMAS and document.count(b",") > MAX_COMMAS:
        raise _too_many()
    try:
        found = _list(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise text.not_json(error, document) from None
    if len(found) > MAX_EVENTS:
        raise _too_many()
    return [bytes(raw) for raw in found]


def _too_many() -> Refused:
    return Refused("too_many", f"A batch holds up to {MAX_EVENTS} events; send less at once.", 413)


class _Reading(NamedTuple):
    """What is the same for all events of a batch."""

    application: str
    clock: "_Clock"
    note: str
    mended: bool
    names: set[str]  # found good so far: most events repeat them


def _event(raw: bytes, position: int, reading: _Reading) -> Event:
    application, clock, note, mended, names = reading
    event, payload, repaired = text.value(raw)
    if not isinstance(event, dict):
        raise Refused("not_an_object", "An event is a JSON object.")
    if mended and b"\\ufffd" in raw:
        repaired = text.MENDED
    event_type = event.get("event_type")
    if not isinstance(event_type, str):
        raise Refused("event_type", "event_type must be the event's name.")
    if event_type not in names:
        if not _is_name(event_type):
            raise _no_name("1001", "event_type")
        _check_names([event_type], names, "1001", "1002", "event_type")
    event_id = identifier(event, "event_id", required=True)
    occurred_at, shifted = _moment(event.get("timestamp"), clock)
    attributes = event.get("attributes")
    if attributes is None:
        attributes = {}
    elif not isinstance(attributes, dict):
        raise Refused("attributes", "attributes must be an object.")
    _check_names(attributes, names, "2002", "2001", "attributes")
    _check_attributes(attributes, len(raw))
    if user := event.get("user"):
        _check_user(user, names)
    if items := event.get("items"):
        _check_items(items, names)
    device_id = identifier(event, "device_id") or identifier(event, "unique_id")
    conversation, answer = answers.read(attributes, event_id)
    other = OTHER_APPLICATION if event.get("app_id", application) != application else ""
    if repaired or shifted or other:
        note = "; ".join(filter(None, (note, repaired, shifted, other)))
    return Event(
        identity=identity(None, DIALECT, application, event_id),
        type=event_type,
        occurred_at=occurred_at,
        device_id=device_id,
        session_id=identifier(attributes, "_session_id", "attributes."),
        conversation=conversation,
        is_answer=bool(answer),
        payload=answers.add(payload, event, answer) if answer else payload,
        note=note,
        position=position,
    )


# Clocks -----------------------------------------------------------------------------------------


class _Clock(NamedTuple):
    """What a call tells of its sender's clock, in milliseconds since 1970."""

    received_at: int
    ahead: int | None  # how far ours was ahead of the sender's when it sent; None for unknown
    reset: bool  # the sender's ran from 1970, so its numbers are no seconds


def _clock(call: Call) -> _Clock:
    received_at = int(call.received_at.timestamp() * 1000)
    told = call.parameters.get("upload_timestamp", "")
    uploaded = int(told) if told.isascii() and told.isdecimal() and len(told) < 20 else 0
    if not uploaded:
        return _Clock(received_at, None, reset=False)
    reset = uploaded * 1000 < _EARLIEST_MS
    return _Clock(received_at, received_at - int(_milliseconds(uploaded, reset=reset)), reset)


def _milliseconds(value: float, *, reset: bool) -> float:
    """Senders write milliseconds, some seconds or microseconds: told apart by size."""
    if reset or 1e11 <= abs(value) < 1e14:
        return value
    return value * 1000 if abs(value) < 1e11 else value / 1000


def _moment(timestamp: Any, clock: _Clock) -> tuple[datetime, str]:
    """When an event happened by our clock, and what was repaired."""
    if not isinstance(timestamp, int | float) or isinstance(timestamp, bool):
        raise Refused("timestamp", "timestamp must be a number of milliseconds since 1970.")
    moment, note = _milliseconds(timestamp, reset=clock.reset), ""
    latest = clock.received_at
    if clock.ahead is None:
        latest += DAY_MS
    elif moment > latest or abs(clock.ahead) > SKEW_MS:
        moment += clock.ahead
        note = f"clock: shifted by {clock.ahead} ms"
    if moment > latest:
        moment, note = clock.received_at, "clock: set to arrival"
    elif moment < _EARLIEST_MS:
        raise Refused("time_out_of_range", "timestamp lies before 2000.")
    return datetime.fromtimestamp(moment / 1000, UTC), note


# Limits, by the SDKs' own numbers; what starts with "_" the SDKs write themselves, unmeasured ----


def _check_names(found: Iterable[str], good: set[str], invalid: str, long: str, where: str) -> None:
    if good.issuperset(found):
        return
    for name in found:
        if len(name) > MAX_NAME:
            raise Refused(long, f"{where}: a name is longer than {MAX_NAME} characters.")
        if not _is_name(name):
            raise _no_name(invalid, where)
        good.add(name)


def _is_name(text: str) -> bool:
    """Letters, digits and "_", no digit first: of ASCII, just what Python calls an identifier."""
    return text.isidentifier() and text.isascii()


def _no_name(code: str, where: str) -> Refused:
    return Refused(code, f"{where}: a name has letters, digits and '_', and no digit first.")


def _check_attributes(attributes: dict[str, Any], size: int) -> None:
    if _too_many_own(attributes, MAX_ATTRIBUTES):
        raise Refused("2004", f"attributes: more than {MAX_ATTRIBUTES}.")
    if size <= MAX_VALUE:
        return  # nor is any value in it
    for name, value in attributes.items():
        if isinstance(value, str) and len(value) > MAX_VALUE and name[0] != "_":
            raise Refused("2003", f"attributes.{name} is longer than {MAX_VALUE} characters.")


def _check_user(user: Any, names: set[str]) -> None:
    if not isinstance(user, dict):
        raise Refused("user", "user must be an object.")
    _check_names(user, names, "3003", "3002", "user")
    if _too_many_own(user, MAX_USER_ATTRIBUTES):
        raise Refused("3001", f"user: more than {MAX_USER_ATTRIBUTES} attributes.")
    for name, told in user.items():
        value = told.get("value") if isinstance(told, dict) else told
        if isinstance(value, str) and len(value) > MAX_USER_VALUE and name[0] != "_":
            raise Refused("3004", f"user.{name} is longer than {MAX_USER_VALUE} characters.")


def _too_many_own(named: dict[str, Any], limit: int) -> bool:
    return len(named) > limit and sum(name[0] != "_" for name in named) > limit


def _check_items(items: Any, names: set[str]) -> None:
    if not isinstance(items, list):
        raise Refused("items", "items must be a list of objects.")
    if len(items) > MAX_ITEMS:
        raise Refused("4001", f"items: more than {MAX_ITEMS}.")
    for item in items:
        if not isinstance(item, dict):
            raise Refused("items", "items must be a list of objects.")
        custom = item.keys() - _ITEM_KEYS
        if len(custom) > MAX_CUSTOM_KEYS:
            raise Refused("4003", f"items: more than {MAX_CUSTOM_KEYS} keys of your own in one.")
        _check_names(custom, names, "4005", "4004", "items")
        for name, value in item.items():
            if isinstance(value, str) and len(value) > MAX_ITEM_VALUE:
                raise Refused("4002", f"items: {name} is longer than {MAX_ITEM_VALUE} characters.")
