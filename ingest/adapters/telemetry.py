"""Sunbird telemetry v3: the batch envelope, bare events, or one event a line.

https://github.com/sunbird-specs/Telemetry
"""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import msgspec

from ingest.adapters import body as text
from ingest.adapters.fields import MAX_URL, bounded_text, identifier
from ingest.events import Batch, Call, Event, Refused, Rejection, Traits, identity, instant
from ingest.feed.values import Arrived


class _Actor(msgspec.Struct):
    id: Any = None
    type: Any = None


class _Edata(msgspec.Struct):
    uri: Any = None


class _Telemetry(msgspec.Struct):
    actor: _Actor | None = None
    edata: _Edata | None = None


_telemetry_of = msgspec.json.Decoder(_Telemetry).decode


def _telemetry(row: Arrived) -> Traits:
    said = _telemetry_of(row.payload)
    url = bounded_text(said.edata.uri, MAX_URL) if said.edata else ""
    actor = said.actor
    if actor is None or str(actor.type or "User").lower() != "user":
        return Traits("", url)
    user_id = bounded_text(actor.id)
    # senders without a sign-in repeat the device
    return Traits("" if user_id == row.device_id else user_id, url)


DIALECT = "telemetry"


class _Envelope(msgspec.Struct):
    events: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET
    eid: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_envelope = msgspec.json.Decoder(_Envelope).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def parse(body: bytes, call: Call) -> Batch:
    """Reads a body. Raises `Refused` when it holds no batch at all."""
    raws = _raws(body, call.content_type)
    events: list[Event] = []
    rejections: list[Rejection] = []
    latest = call.received_at + timedelta(days=1)
    for position, (raw, mended) in enumerate(raws):
        try:
            event = _event(raw, call.channel, latest, position, mended=mended)
        except Refused as refused:
            rejections.append(Rejection(position, refused.reason, refused.detail, raw))
        else:
            events.append(event)
    return Batch(DIALECT, call.received_at, events, rejections)


def _raws(body: bytes, content_type: str) -> list[tuple[bytes, bool]]:
    """The texts that should each be an event, and whether each was mended to be taken out."""
    if content_type != text.NDJSON and len(body) <= text.MAX_PARTS:
        with suppress(Refused):  # whole as it is, which spares a look through all of it
            return [(raw, False) for raw in _events(body.strip())]
    texts = text.documents(body, content_type)
    raws: list[tuple[bytes, bool]] = []
    for line in texts:
        try:
            found, mended = text.mending(_events, line)
            raws.extend((raw, mended) for raw in found)
        except Refused:
            if len(texts) == 1:
                raise
            raws.append((line, False))  # told as one bad event
    return raws


def _events(document: bytes) -> list[bytes]:
    try:
        if document.startswith(b"["):
            return [bytes(raw) for raw in _list(document)]
        envelope = _envelope(document)
    except msgspec.ValidationError as error:
        raise Refused("not_a_batch", f"{error}; send {{'events': [...]}} or an event.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise text.not_json(error, document) from None
    if isinstance(envelope.events, list):
        return [bytes(raw) for raw in envelope.events]
    if envelope.eid is not msgspec.UNSET:
        return [document]
    raise Refused("not_a_batch", "Neither 'events' (a batch) nor 'eid' (an event) is there.")


def _event(raw: bytes, channel: str, latest: datetime, position: int, *, mended: bool) -> Event:
    event, payload, note = text.value(raw)
    if mended and b"\\ufffd" in raw:
        note = text.MENDED
    if not isinstance(event, dict):
        raise Refused("not_an_object", "An event is a JSON object.")
    eid = identifier(event, "eid", required=True)
    ets = event.get("ets")
    if isinstance(ets, bool) or not isinstance(ets, int | float):
        raise Refused("ets", "ets must be the event's time, a number of milliseconds since 1970.")
    occurred_at = instant(ets, "ets")
    if occurred_at > latest:
        raise Refused("time_out_of_range", "ets lies more than a day in the future.")
    context = _object(event, "context", required=True)
    edata = _object(event, "edata", required=True)
    item = edata.get("item")
    item_id = identifier(item, "id", "edata.item.") if isinstance(item, dict) else ""
    device_id = identifier(context, "did", "context.")
    if not device_id:
        device_id = identifier(_object(event, "actor"), "id", "actor.")
    session_id = identifier(context, "sid", "context.")
    mid = identifier(event, "mid")
    conversation = _conversation(context)
    # without a mid the bytes themselves tell a resend from another event
    parts = (mid, device_id, session_id, item_id) if mid else (payload.decode(),)
    return Event(
        identity=identity(occurred_at, channel, *parts),
        type=eid,
        occurred_at=occurred_at,
        device_id=device_id,
        session_id=session_id,
        conversation=conversation,
        is_answer=eid == "ASSESS" and conversation != "" and isinstance(item, dict),
        payload=payload,
        note=note,
        position=position,
    )


def _conversation(context: dict[str, Any]) -> str:
    cdata = context.get("cdata")
    if cdata is None:
        return ""
    if not isinstance(cdata, list):
        raise Refused("context.cdata", "context.cdata must be a list of {type, id}.")
    for entry in cdata:
        if isinstance(entry, dict) and entry.get("type") == "Conversation":
            return identifier(entry, "id", "context.cdata[Conversation].")
    return ""


def _object(source: dict[str, Any], field: str, *, required: bool = False) -> dict[str, Any]:
    found = source.get(field)
    if found is None and not required:
        return {}
    if not isinstance(found, dict):
        raise Refused(field, f"{field} must be an object.")
    return found
