"""Skalin: identities and features, up to a hundred of each at once, or one hit in a query.

Both become events whose payload is the row as sent: an identity of type `identity`, a feature of
type `feature`, with its name in the payload, for names are the sender's free text.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from ingest.adapters import body as text
from ingest.adapters.fields import MAX_URL, bounded_text, identifier
from ingest.adapters.participants import Profile
from ingest.events import (
    EARLIEST_TIME,
    Batch,
    Call,
    Event,
    EventContext,
    Rejection,
    RequestError,
    event_identity,
)
from ingest.feed.values import EventRow


class _SkalinPayload(msgspec.Struct):
    identity: Any = None
    url: Any = None
    customer_id: Any = None
    customer: Any = msgspec.field(name="customerId", default=None)


_decode_skalin = msgspec.json.Decoder(_SkalinPayload).decode


def _read_skalin(row: EventRow) -> EventContext:
    payload = _decode_skalin(row.payload)
    identity = (
        msgspec.json.decode(payload.identity)
        if isinstance(payload.identity, str)
        else payload.identity
    )
    if not isinstance(identity, dict):
        return EventContext("", bounded_text(payload.url, MAX_URL))
    occurred = row.occurred_us
    attributes = {name: (value, occurred) for name, value in identity.items()}
    if customer := payload.customer or payload.customer_id:
        attributes["customerId"] = (customer, occurred)
    user_id = bounded_text(identity.get("id")) or bounded_text(identity.get("email"))
    return EventContext(user_id, bounded_text(payload.url, MAX_URL), attributes)


SOURCE = "skalin"
MAX_BYTES = 1024 * 1024  # of a body: five kilobytes a row
MAX_ROWS = 100  # of each list
MAX_PARAMETERS = 100
_KINDS = {"identities": "identity", "features": "feature"}


class _Bulk(msgspec.Struct):
    identities: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET
    features: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET


_decode_bulk = msgspec.json.Decoder(_Bulk).decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def parse(body: bytes, call: Call) -> Batch:
    """Reads a bulk body; a position counts the identities first.

    Raises `Refused` when it is none, or when a list is longer than a hundred.
    """
    is_repaired = False
    try:
        rows = _split_rows(body)
    except RequestError:
        if (clean := text.repair(body)) == body:
            raise
        rows, is_repaired = _split_rows(clean), True
    events: list[Event] = []
    rejections: list[Rejection] = []
    # from nothing of the body, so that a row sent through again later joins the visit of its call
    seed = f"{call.application} {call.received_at.isoformat()}"
    visit = blake2b(seed.encode(), digest_size=8).hexdigest()
    for position, (kind, index, raw) in enumerate(rows):
        try:
            event = _parse_event(raw, _KINDS[kind], visit, position, call, is_repaired=is_repaired)
        except RequestError as refused:
            replayable = b'{"%b":[%b]}' % (kind.encode(), raw)
            detail = f"{kind}[{index}]: {refused.detail}"
            rejections.append(Rejection(position, refused.reason, detail, replayable))
        else:
            events.append(event)
    return Batch(SOURCE, call.received_at, events, rejections, call.application_id, last_wins=True)


def _split_rows(body: bytes) -> list[tuple[str, int, bytes]]:
    try:
        bulk = _decode_bulk(body)
    except msgspec.ValidationError as error:
        raise RequestError(
            "not_a_batch", f"{error}; send {{'identities': [...], 'features': [...]}}."
        ) from None
    except _UNREADABLE as error:
        raise text.json_error(error, body) from None
    if bulk.identities is msgspec.UNSET and bulk.features is msgspec.UNSET:
        raise RequestError("not_a_batch", "Neither 'identities' nor 'features' is there.")
    rows: list[tuple[str, int, bytes]] = []
    for kind in _KINDS:
        elements = getattr(bulk, kind) or []  # null is how Go writes an empty list
        if len(elements) > MAX_ROWS:
            raise RequestError(
                "too_many",
                f"{kind} holds {len(elements)} rows; send at most {MAX_ROWS} of each list at once.",
            )
        rows.extend((kind, index, bytes(raw)) for index, raw in enumerate(elements))
    return rows


def _parse_event(
    raw: bytes, kind: str, visit: str, position: int, call: Call, *, is_repaired: bool
) -> Event:
    row, payload, note = text.parse_value(raw)
    if is_repaired and b"\\ufffd" in raw:
        note = text.REPAIRED_NOTE
    if not isinstance(row, dict):
        raise RequestError("not_an_object", f"Each {kind} is a JSON object.")
    device_id, _ = _read_identity(row)
    if kind == "feature" and not identifier(row, "name"):
        raise RequestError(
            "name", "name must say which feature; in a single hit, event={'name': ...}."
        )
    event_id = identifier(row, "eventId")
    ts = identifier(row, "ts")
    content = text.normalize_json(payload).decode()  # refuses what only one of the databases would
    if event_id:
        parts = [event_id]
    else:
        # The content tells a resend from another event, so that a retry adds nothing. Without a
        # time of its own the same feature used tomorrow would be that resend too: the minute of
        # arrival stands in for it.
        minute = "" if ts else call.received_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M")
        parts = ["", kind, content, minute]
    return Event(
        identity=event_identity(None, SOURCE, call.application, *parts),
        type=kind,
        occurred_at=_event_time(ts, call.received_at) if ts else call.received_at,
        device_id=device_id,
        session_id=identifier(row, "visitId") or visit,
        conversation="",
        is_answer=False,
        payload=payload,
        note=note,
        position=position,
    )


def _read_identity(row: dict[str, Any]) -> tuple[str, str]:
    """(device id, email) of a row: the id where there is one, for an address may change."""
    identity = row.get("identity")
    if not isinstance(identity, dict):
        raise RequestError("identity", "identity must be {'email': ...} or {'id': ...}.")
    email = identifier(identity, "email", "identity.")
    device_id = identifier(identity, "id", "identity.") or email
    if not device_id:
        raise RequestError("identity", "identity must be {'email': ...} or {'id': ...}.")
    return device_id, email


def read_profiles(batch: Batch) -> list[Profile]:
    """What a batch's identities say of persons: an email, never a phone or a consent."""
    profiles: list[Profile] = []
    for event in batch.events:
        if event.type == _KINDS["identities"]:
            device_id, email = _read_identity(text.parse_value(event.payload)[0])
            profiles.append(Profile(device_id, email or None, None, None, batch.received_at))
    return profiles


_DOCUMENTED_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?", re.ASCII)


def _event_time(ts: str, received_at: datetime) -> datetime:
    """The time a ts names: UTC in the documented spelling, by its zone in any other."""
    try:
        moment = datetime.fromisoformat(ts + "Z" if _DOCUMENTED_TIME.fullmatch(ts) else ts)
        if moment.tzinfo is None:
            raise ValueError
    except ValueError:
        raise RequestError(
            "ts", "ts must be a time like 2026-01-31T10:00:00 in UTC, or name its zone."
        ) from None
    # compared before it is moved to UTC: at the ends of the calendar that overflows
    if not EARLIEST_TIME <= moment <= received_at + timedelta(days=1):
        raise RequestError("time_out_of_range", "ts lies before 2000 or over a day in the future.")
    return moment if moment.tzinfo is UTC else moment.astimezone(UTC)


# a parameter that begins as JSON does
_JSON_START = re.compile(rb"(?:^|(?<=&))(?:\{|%7[Bb])")


def split_query(query: bytes) -> tuple[bytes, bytes]:
    """A bulk's raw query up to what begins as JSON does, and that.

    curl's `-G` moves a body there, as in the published example. Its `&` are no parameters' ends.
    """
    match = _JSON_START.search(query)
    return (query[: match.start()], query[match.start() :]) if match else (query, b"")


def parse_query(query: bytes) -> dict[str, str]:
    """What a raw query says; bytes that are no UTF-8 come back as surrogates."""
    try:
        pairs = parse_qsl(
            query.decode(errors="surrogateescape"),
            keep_blank_values=True,
            errors="surrogateescape",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError:
        raise RequestError(
            "too_many", f"The query holds more than {MAX_PARAMETERS} parameters."
        ) from None
    return dict(pairs)


def bulk_from_query(residue: bytes) -> bytes:
    """The bulk body that was sent in the query: as it stands, or percent-encoded.

    Raises `Refused` for a residue that is no JSON, or is encoded and holds a '+', which may be a
    plus or a blank.
    """
    if _is_json(text.repair(residue)):
        return residue
    if b"+" not in residue and _is_json(text.repair(decoded := unquote_to_bytes(residue))):
        return decoded
    raise RequestError(
        "json_in_query",
        "The body is empty and the JSON is in the query, where it cannot be read for certain:"
        " drop -G, so that it becomes the body.",
    )


_ACTIONS = {"ui": "identities", "ev": "features"}
_RENAMED = {
    "customer_id": "customerId",
    "event_id": "eventId",
    "visitor_id": "visitorId",
    "visit_id": "visitId",
}


def bulk_from_hit(parameters: dict[str, str]) -> bytes:
    """The bulk body that says what a single hit's query says.

    Raises `Refused` for an action that is neither `ui` nor `ev`.
    """
    kind = _ACTIONS.get(parameters.get("action", ""))
    if kind is None:
        raise RequestError("action", "action must be 'ui' (an identity) or 'ev' (an event).")
    row = {
        _RENAMED.get(name, name): _quote(value)
        for name, value in parameters.items()
        if name not in {"rec", "action", "client_id", "clientId"}
    }
    if "identity" in parameters:
        row["identity"] = _json_or_quoted(parameters["identity"])
    if kind == "features" and "event" in parameters:
        row["event"] = _json_or_quoted(parameters["event"])
        try:
            event = _decode_members(text.repair(row["event"]))
        except _UNREADABLE:
            event = {}
        if "name" in event:
            del row["event"]
            row["name"] = bytes(event.pop("name"))
            if bytes(event.get("event_name", b"")) == b'"feature"':
                del event["event_name"]
            if event:
                row["event"] = _build_object({name: bytes(raw) for name, raw in event.items()})
    return _build_object({kind: b"[%b]" % _build_object(row)})


def _build_object(members: dict[str, bytes]) -> bytes:
    return b"{%b}" % b",".join(b"%b:%b" % (_quote(name), raw) for name, raw in members.items())


def _quote(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode(errors="surrogateescape")


def _json_or_quoted(said: str) -> bytes:
    raw = said.encode(errors="surrogateescape")
    return raw if _is_json(text.repair(raw)) else _quote(said)


def _is_json(raw: bytes) -> bool:
    try:
        _decode_raw(raw)
    except _UNREADABLE:
        return False
    return True
