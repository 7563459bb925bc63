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


class _Skalin(msgspec.Struct):
    identity: Any = None
    url: Any = None
    customer_id: Any = None
    customer: Any = msgspec.field(name="customerId", default=None)


_skalin_of = msgspec.json.Decoder(_Skalin).decode


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


DIALECT = "skalin"
MAX_BYTES = 1024 * 1024  # of a body: five kilobytes a row
MAX_ROWS = 100  # of each list
MAX_PARAMETERS = 100
_KINDS = {"identities": "identity", "features": "feature"}


class _Bulk(msgspec.Struct):
    identities: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET
    features: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET


_bulk = msgspec.json.Decoder(_Bulk).decode
_any = msgspec.json.Decoder(msgspec.Raw).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def parse(body: bytes, call: Call) -> Batch:
    """Reads a bulk body; a position counts the identities first.

    Raises `Refused` when it is none, or when a list is longer than a hundred.
    """
    mended = False
    try:
        rows = _rows(body)
    except Refused:
        if (clean := text.mend(body)) == body:
            raise
        rows, mended = _rows(clean), True
    events: list[Event] = []
    rejections: list[Rejection] = []
    # from nothing of the body, so that a row sent through again later joins the visit of its call
    made = f"{call.application} {call.received_at.isoformat()}"
    visit = blake2b(made.encode(), digest_size=8).hexdigest()
    for position, (kind, index, raw) in enumerate(rows):
        try:
            event = _event(raw, _KINDS[kind], visit, position, call, mended=mended)
        except Refused as refused:
            alone = b'{"%b":[%b]}' % (kind.encode(), raw)
            detail = f"{kind}[{index}]: {refused.detail}"
            rejections.append(Rejection(position, refused.reason, detail, alone))
        else:
            events.append(event)
    return Batch(DIALECT, call.received_at, events, rejections, call.application_id, last_wins=True)


def _rows(body: bytes) -> list[tuple[str, int, bytes]]:
    try:
        bulk = _bulk(body)
    except msgspec.ValidationError as error:
        raise Refused(
            "not_a_batch", f"{error}; send {{'identities': [...], 'features': [...]}}."
        ) from None
    except _UNREADABLE as error:
        raise text.not_json(error, body) from None
    if bulk.identities is msgspec.UNSET and bulk.features is msgspec.UNSET:
        raise Refused("not_a_batch", "Neither 'identities' nor 'features' is there.")
    rows: list[tuple[str, int, bytes]] = []
    for kind in _KINDS:
        found = getattr(bulk, kind) or []  # null is how Go writes an empty list
        if len(found) > MAX_ROWS:
            raise Refused(
                "too_many",
                f"{kind} holds {len(found)} rows; send at most {MAX_ROWS} of each list at once.",
            )
        rows.extend((kind, index, bytes(raw)) for index, raw in enumerate(found))
    return rows


def _event(raw: bytes, kind: str, visit: str, position: int, call: Call, *, mended: bool) -> Event:
    row, payload, note = text.value(raw)
    if mended and b"\\ufffd" in raw:
        note = text.MENDED
    if not isinstance(row, dict):
        raise Refused("not_an_object", f"Each {kind} is a JSON object.")
    device_id, _ = _person(row)
    if kind == "feature" and not identifier(row, "name"):
        raise Refused("name", "name must say which feature; in a single hit, event={'name': ...}.")
    event_id = identifier(row, "eventId")
    ts = identifier(row, "ts")
    content = text.canonical(payload).decode()  # refuses what only one of the databases would
    if event_id:
        parts = [event_id]
    else:
        # The content tells a resend from another event, so that a retry adds nothing. Without a
        # time of its own the same feature used tomorrow would be that resend too: the minute of
        # arrival stands in for it.
        minute = "" if ts else call.received_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M")
        parts = ["", kind, content, minute]
    return Event(
        identity=identity(None, DIALECT, call.application, *parts),
        type=kind,
        occurred_at=_moment(ts, call.received_at) if ts else call.received_at,
        device_id=device_id,
        session_id=identifier(row, "visitId") or visit,
        conversation="",
        is_answer=False,
        payload=payload,
        note=note,
        position=position,
    )


def _person(row: dict[str, Any]) -> tuple[str, str]:
    """(device id, email) of a row: the id where there is one, for an address may change."""
    said = row.get("identity")
    if not isinstance(said, dict):
        raise Refused("identity", "identity must be {'email': ...} or {'id': ...}.")
    email = identifier(said, "email", "identity.")
    device_id = identifier(said, "id", "identity.") or email
    if not device_id:
        raise Refused("identity", "identity must be {'email': ...} or {'id': ...}.")
    return device_id, email


def people(batch: Batch) -> list[Profile]:
    """What a batch's identities say of persons: an email, never a phone or a consent."""
    profiles: list[Profile] = []
    for event in batch.events:
        if event.type == _KINDS["identities"]:
            device_id, email = _person(text.value(event.payload)[0])
            profiles.append(Profile(device_id, email or None, None, None, batch.received_at))
    return profiles


_DOCUMENTED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?", re.ASCII)


def _moment(ts: str, received_at: datetime) -> datetime:
    """The time a ts names: UTC in the documented spelling, by its zone in any other."""
    try:
        moment = datetime.fromisoformat(ts + "Z" if _DOCUMENTED.fullmatch(ts) else ts)
        if moment.tzinfo is None:
            raise ValueError
    except ValueError:
        raise Refused(
            "ts", "ts must be a time like 2026-01-31T10:00:00 in UTC, or name its zone."
        ) from None
    # compared before it is moved to UTC: at the ends of the calendar that overflows
    if not EARLIEST <= moment <= received_at + timedelta(days=1):
        raise Refused("time_out_of_range", "ts lies before 2000 or over a day in the future.")
    return moment if moment.tzinfo is UTC else moment.astimezone(UTC)


# a parameter that begins as JSON does
_residue = re.compile(rb"(?:^|(?<=&))(?:\{|%7[Bb])")


def cut(query: bytes) -> tuple[bytes, bytes]:
    """A bulk's raw query up to what begins as JSON does, and that.

    curl's `-G` moves a body there, as in the published example. Its `&` are no parameters' ends.
    """
    found = _residue.search(query)
    return (query[: found.start()], query[found.start() :]) if found else (query, b"")


def parameters(query: bytes) -> dict[str, str]:
    """What a raw query says; bytes that are no UTF-8 come back as surrogates."""
    try:
        pairs = parse_qsl(
            query.decode(errors="surrogateescape"),
            keep_blank_values=True,
            errors="surrogateescape",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError:
        raise Refused(
            "too_many", f"The query holds more than {MAX_PARAMETERS} parameters."
        ) from None
    return dict(pairs)


def from_query(residue: bytes) -> bytes:
    """The bulk body that was sent in the query: as it stands, or percent-encoded.

    Raises `Refused` for a residue that is no JSON, or is encoded and holds a '+', which may be a
    plus or a blank.
    """
    if _is_json(text.mend(residue)):
        return residue
    if b"+" not in residue and _is_json(text.mend(decoded := unquote_to_bytes(residue))):
        return decoded
    raise Refused(
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


def from_hit(said: dict[str, str]) -> bytes:
    """The bulk body that says what a single hit's query says.

    Raises `Refused` for an action that is neither `ui` nor `ev`.
    """
    kind = _ACTIONS.get(said.get("action", ""))
    if kind is None:
        raise Refused("action", "action must be 'ui' (an identity) or 'ev' (an event).")
    row = {
        _RENAMED.get(name, name): _quoted(value)
        for name, value in said.items()
        if name not in {"rec", "action", "client_id", "clientId"}
    }
    if "identity" in said:
        row["identity"] = _as_json(said["identity"])
    if kind == "features" and "event" in said:
        row["event"] = _as_json(said["event"])
        try:
            event = _members(text.mend(row["event"]))
        except _UNREADABLE:
            event = {}
        if "name" in event:
            del row["event"]
            row["name"] = bytes(event.pop("name"))
            if bytes(event.get("event_name", b"")) == b'"feature"':
                del event["event_name"]
            if event:
                row["event"] = _object({name: bytes(raw) for name, raw in event.items()})
    return _object({kind: b"[%b]" % _object(row)})


def _object(members: dict[str, bytes]) -> bytes:
    return b"{%b}" % b",".join(b"%b:%b" % (_quoted(name), raw) for name, raw in members.items())


def _quoted(said: str) -> bytes:
    return json.dumps(said, ensure_ascii=False).encode(errors="surrogateescape")


def _as_json(said: str) -> bytes:
    raw = said.encode(errors="surrogateescape")
    return raw if _is_json(text.mend(raw)) else _quoted(said)


def _is_json(raw: bytes) -> bool:
    try:
        _any(raw)
    except _UNREADABLE:
        return False
    return True
