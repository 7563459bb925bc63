"""Parses Sunbird telemetry v3: the batch envelope, bare events, or one event a line.

https://github.com/sunbird-specs/Telemetry
"""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import msgspec

from ingest.adapters import json_body
from ingest.adapters.base import MAX_LISTED_REJECTIONS
from ingest.adapters.fields import bounded_text, identifier
from ingest.events import (
    Batch,
    Call,
    Event,
    Rejection,
    RequestError,
    event_identity,
    parse_timestamp,
)

SOURCE = "telemetry"
MAX_OTHERS = 9  # further conversations of an event; each costs a row its place in a file


class _Envelope(msgspec.Struct):
    events: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET
    eid: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def parse(body: bytes, call: Call) -> Batch:
    """Returns the events of a body. Raises `RequestError` for no batch, and 413 for a large one."""
    raws = _split_body(body, call.content_type)
    json_body.require_few_events(len(raws))
    events: list[Event] = []
    rejections: list[Rejection] = []
    latest = call.received_at + timedelta(days=1)
    for position, (raw, is_repaired) in enumerate(raws):
        if raw[0] != json_body.OBJECT_START and len(rejections) >= MAX_LISTED_REJECTIONS:
            # not parsed: a batch may have thousands
            rejections.append(Rejection(position, "not_an_object", "", raw))
            continue
        try:
            event = _parse_event(raw, call, latest, position, is_repaired=is_repaired)
        except RequestError as error:
            rejections.append(Rejection(position, error.reason, error.detail, raw))
        else:
            events.append(event)
    is_shared = any(event.other_conversations for event in events)
    return Batch(SOURCE, call.received_at, events, rejections, is_shared=is_shared)


def _split_body(body: bytes, content_type: str) -> list[tuple[bytes, bool]]:
    """Returns the texts of the events, and whether each was repaired for the split."""
    json_body.require_few_parts(body)
    if content_type != json_body.NDJSON:
        with suppress(RequestError):  # the usual body
            return [(raw, False) for raw in _unwrap_events(body.strip())]
    texts = json_body.split_documents(body, content_type)
    json_body.require_few_events(len(texts))
    raws: list[tuple[bytes, bool]] = []
    for line in texts:
        json_body.require_few_events(len(raws))
        try:
            events, is_repaired = json_body.split_repaired(_unwrap_events, line)
            raws.extend((raw, is_repaired) for raw in events)
        except RequestError:
            if len(texts) == 1:
                raise
            raws.append((line, False))  # one rejected event
    return raws


def _unwrap_events(document: bytes) -> list[bytes]:
    try:
        if document.startswith(b"["):
            return [bytes(raw) for raw in _decode_list(document)]
        envelope = _decode_envelope(document)
    except msgspec.ValidationError as error:
        raise RequestError(
            "not_a_batch", f"{error}; send {{'events': [...]}} or an event."
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise json_body.json_error(error, document) from None
    if isinstance(envelope.events, list):
        return [bytes(raw) for raw in envelope.events]
    if envelope.eid is not msgspec.UNSET:
        return [document]
    raise RequestError("not_a_batch", "Neither 'events' (a batch) nor 'eid' (an event) is there.")


def _parse_event(
    raw: bytes, call: Call, latest: datetime, position: int, *, is_repaired: bool
) -> Event:
    event, payload, note = json_body.parse_value(raw)
    if is_repaired and b"\\ufffd" in raw:
        note = json_body.REPAIRED_NOTE
    if not isinstance(event, dict):
        raise RequestError("not_an_object", "An event is a JSON object.")
    eid = identifier(event, "eid", required=True)
    ets = event.get("ets")
    if isinstance(ets, bool) or not isinstance(ets, int | float):
        raise RequestError(
            "ets", "ets must be the event's time, a number of milliseconds since 1970."
        )
    occurred_at = parse_timestamp(ets, "ets")
    if occurred_at > latest:
        raise RequestError("time_out_of_range", "ets lies more than a day in the future.")
    context = _read_object(event, "context", required=True)
    edata = _read_object(event, "edata", required=True)
    item = edata.get("item")
    item_id = identifier(item, "id", "edata.item.") if isinstance(item, dict) else ""
    device_id = named_device = identifier(context, "did", "context.")
    if not device_id:
        named_device = identifier(_read_object(event, "actor"), "id", "actor.")
        device_id = call.device_id or named_device
    session_id = identifier(context, "sid", "context.")
    mid = identifier(event, "mid")
    conversation, others = _read_conversations(context)
    # without a mid, equal bytes are a resend, whatever device a header names
    parts = (mid, named_device, session_id, item_id) if mid else (payload.decode(),)
    return Event(
        identity=event_identity(occurred_at, call.channel, *parts),
        type=eid,
        occurred_at=occurred_at,
        device_id=device_id,
        session_id=session_id,
        conversation=conversation,
        is_answer=eid == "ASSESS" and conversation != "" and isinstance(item, dict),
        payload=payload,
        note=note,
        position=position,
        other_conversations=others,
    )


def _read_conversations(context: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Returns the conversation of an event, "" for none, and up to `MAX_OTHERS` further ones."""
    cdata = context.get("cdata")
    if cdata is None:
        return "", ()
    if not isinstance(cdata, list):
        raise RequestError("context.cdata", "context.cdata must be a list of {type, id}.")
    first = ""
    others: tuple[str, ...] = ()
    for entry in cdata:
        if isinstance(entry, dict) and entry.get("type") == "Conversation":
            if not first:
                first = identifier(entry, "id", "context.cdata[Conversation].")
            elif (other := bounded_text(entry.get("id"))) and other not in (first, *others):
                others = (*others, other)[:MAX_OTHERS]
    return first, others


def _read_object(source: dict[str, Any], field: str, *, required: bool = False) -> dict[str, Any]:
    value = source.get(field)
    if value is None and not required:
        return {}
    if not isinstance(value, dict):
        raise RequestError(field, f"{field} must be an object.")
    return value
