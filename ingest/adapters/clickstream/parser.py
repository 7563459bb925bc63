"""Parses the batches of AWS Clickstream's Web, Android and Swift SDKs.

https://github.com/awslabs/clickstream-analytics-on-aws
"""

import binascii
import hashlib
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from ingest.adapters import answer_attributes as answers
from ingest.adapters import body_limits, json_body
from ingest.adapters.base import MAX_LISTED_REJECTIONS
from ingest.adapters.clickstream.limits import MAX_NAME, drop_beyond_limits, is_name
from ingest.adapters.fields import MAX_TEXT, identifier
from ingest.events import (
    EARLIEST_TIME,
    Batch,
    Call,
    Event,
    Rejection,
    RequestError,
    event_identity,
)

SOURCE = "clickstream"
MAX_COMMAS = 1_000_000  # of a body: each element costs memory
SKEW_MS = 600_000
DAY_MS = 86_400_000

HASH_MISMATCH = "hashCode differs from the body's"
APPLICATION_MISMATCH = "app_id differs from the query's"

_GZIP = b"\x1f\x8b"
_EARLIEST_MS = EARLIEST_TIME.timestamp() * 1000
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def parse(body: bytes, call: Call) -> Batch:
    """Returns the events of a body as it was sent.

    An unreadable body is one rejection: the SDKs resend a refused batch for ever. Raises
    `RequestError`: 413 for too large a body, 400 for a wrong hash where the application is strict.
    """
    if call.is_hash_required and not has_valid_hash(body, call):
        detail = "hashCode is not the first 8 hex digits of the body's SHA-256."
        raise RequestError("hash", detail)
    events: list[Event] = []
    rejections: list[Rejection] = []
    try:
        raws, is_repaired = json_body.split_repaired(_split_events, decompress(body))
    except RequestError as error:
        if error.status == 413:
            raise
        raws, is_repaired = [], False
        rejections.append(Rejection(0, error.reason, error.detail, body))
    note = "" if has_valid_hash(body, call, absent=True) else HASH_MISMATCH
    context = _BatchContext(
        call.application, _sender_clock(call), note, is_repaired, set(), _platform_member(call)
    )
    for position, raw in enumerate(raws):
        if raw[0] != json_body.OBJECT_START and len(rejections) >= MAX_LISTED_REJECTIONS:
            # not parsed: a batch may have thousands
            rejections.append(Rejection(position, "not_an_object", "", raw))
            continue
        try:
            event = _parse_event(raw, position, context)
        except RequestError as error:
            replayable = raw if raw.startswith(b"{") else b"[" + raw + b"]"
            rejections.append(Rejection(position, error.reason, error.detail, replayable))
        else:
            events.append(event)
    return Batch(SOURCE, call.received_at, events, rejections, call.application_id)


def has_valid_hash(body: bytes, call: Call, *, absent: bool = False) -> bool:
    """Whether hashCode is that of the body as sent; `absent` where the call has none."""
    sent_hash = call.parameters.get("hashCode")
    return absent if sent_hash is None else sent_hash == hashlib.sha256(body).hexdigest()[:8]


def decompress(body: bytes) -> bytes:
    """Returns the JSON of a body that is plain, gzip, or base64 of gzip, by its first byte.

    Raises `RequestError`.
    """
    if body.startswith(_GZIP):
        body = json_body.gunzip(body, body_limits.MAX_UNPACKED_BYTES)
    document = body.removeprefix(b"\xef\xbb\xbf").strip()
    if not document:
        raise RequestError("empty", "The body is empty.")
    if document[0] in b"[{":
        return document
    try:
        # Android wraps its lines
        compressed = binascii.a2b_base64(document.translate(None, b" \t\r\n"), strict_mode=True)
    except binascii.Error:
        compressed = b""
    if not compressed.startswith(_GZIP):
        raise RequestError(
            "not_a_batch", "Send an array of events, an event, or base64 of its gzip."
        )
    document = json_body.gunzip(compressed, body_limits.MAX_UNPACKED_BYTES)
    document = document.removeprefix(b"\xef\xbb\xbf").strip()
    if document[:1] not in {b"[", b"{"}:
        raise RequestError("not_a_batch", "In the gzip is neither an array of events nor an event.")
    return document


def _split_events(document: bytes) -> list[bytes]:
    if document.startswith(b"{"):
        return [document]
    # an element is a byte and a comma at least, so most bodies need no count
    if len(document) > 2 * MAX_COMMAS and document.count(b",") > MAX_COMMAS:
        raise json_body.too_many_events()
    try:
        elements = _decode_list(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise json_body.json_error(error, document) from None
    json_body.require_few_events(len(elements))
    return [bytes(raw) for raw in elements]


class _BatchContext(NamedTuple):
    """The values that all events of a batch share."""

    application: str
    clock: "_SenderClock"
    note: str
    mended: bool
    names: set[str]  # valid ones so far: most events repeat them
    platform: bytes  # the query's, as the last member of an event without its own


def _platform_member(call: Call) -> bytes:
    platform = call.parameters.get("platform", "")
    if not platform.isprintable() or not 0 < len(platform) <= MAX_TEXT:
        return b""
    return b',"platform":' + msgspec.json.encode(platform) + b"}"


def _parse_event(raw: bytes, position: int, context: _BatchContext) -> Event:
    application, clock, note, is_repaired, names, platform = context
    event, payload, repaired = json_body.parse_value(raw)
    if not isinstance(event, dict):
        raise RequestError("not_an_object", "An event is a JSON object.")
    if is_repaired and b"\\ufffd" in raw:
        repaired = json_body.REPAIRED_NOTE
    event_type = event.get("event_type")
    if not isinstance(event_type, str):
        raise RequestError("event_type", "event_type must be the event's name.")
    if event_type not in names:
        if not is_name(event_type):
            raise RequestError(
                "1001", "event_type: a name has letters, digits and '_', and no digit first."
            )
        if len(event_type) > MAX_NAME:
            raise RequestError("1002", f"event_type is longer than {MAX_NAME} characters.")
        names.add(event_type)
    event_id = identifier(event, "event_id", required=True)
    occurred_at, shifted = _event_time(event.get("timestamp"), clock)
    if dropped := drop_beyond_limits(event, len(raw), names):
        payload = json_body.rewrite_json(
            payload, lambda exact: drop_beyond_limits(exact, len(raw), names)
        )
    attributes = event.get("attributes") or {}
    device_id = identifier(event, "device_id") or identifier(event, "unique_id")
    conversation, answer = answers.read_answer(attributes, event_id)
    mismatch = APPLICATION_MISMATCH if event.get("app_id", application) != application else ""
    if repaired or shifted or dropped or mismatch:
        broken = (f"{code}: {first} dropped" for code, first in dropped.items())
        note = "; ".join(filter(None, (note, repaired, shifted, *broken, mismatch)))
    if platform and event.get("platform") is None:
        payload = payload[:-1] + platform
    return Event(
        identity=event_identity(None, SOURCE, application, event_id),
        type=event_type,
        occurred_at=occurred_at,
        device_id=device_id,
        session_id=identifier(attributes, "_session_id", "attributes."),
        conversation=conversation,
        is_answer=bool(answer),
        payload=answers.add_answer(payload, event, answer) if answer else payload,
        note=note,
        position=position,
    )


# Clocks -----------------------------------------------------------------------------------------


class _SenderClock(NamedTuple):
    """The sender's clock, in milliseconds since 1970."""

    received_at: int
    ahead: int | None  # of our clock before the sender's when it sent; None if unknown
    reset: bool  # the sender's clock started in 1970, so its numbers are no seconds


def _sender_clock(call: Call) -> _SenderClock:
    received_at = int(call.received_at.timestamp() * 1000)
    upload_timestamp = call.parameters.get("upload_timestamp", "")
    uploaded = (
        int(upload_timestamp)
        if upload_timestamp.isascii()
        and upload_timestamp.isdecimal()
        and len(upload_timestamp) < 20
        else 0
    )
    if not uploaded:
        return _SenderClock(received_at, None, reset=False)
    reset = uploaded * 1000 < _EARLIEST_MS
    return _SenderClock(
        received_at, received_at - int(_to_milliseconds(uploaded, reset=reset)), reset
    )


def _to_milliseconds(value: float, *, reset: bool) -> float:
    """Returns milliseconds. Some senders write seconds or microseconds; the size decides."""
    if reset or 1e11 <= abs(value) < 1e14:
        return value
    return value * 1000 if abs(value) < 1e11 else value / 1000


def _event_time(timestamp: Any, clock: _SenderClock) -> tuple[datetime, str]:
    """Returns the event's time by our clock, and a note if it was repaired."""
    if not isinstance(timestamp, int | float) or isinstance(timestamp, bool):
        raise RequestError("timestamp", "timestamp must be a number of milliseconds since 1970.")
    moment, note = _to_milliseconds(timestamp, reset=clock.reset), ""
    latest = clock.received_at
    if clock.ahead is None:
        latest += DAY_MS
    elif moment > latest or abs(clock.ahead) > SKEW_MS:
        moment += clock.ahead
        note = f"clock: shifted by {clock.ahead} ms"
    if moment > latest:
        moment, note = clock.received_at, "clock: set to arrival"
    elif moment < _EARLIEST_MS:
        raise RequestError("time_out_of_range", "timestamp lies before 2000.")
    return datetime.fromtimestamp(moment / 1000, UTC), note
