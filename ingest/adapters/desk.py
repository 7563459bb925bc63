"""User sessions as Dynatrace exports them: one document per ended session, plain or for `_bulk`.

A session becomes an event of type "session" whose payload is the document as sent, and each of its
user actions, events and errors becomes an event of its own.

A session is told from others by its start, its tenant and its id, and what lies in it by the
session, its kind and its index. So a session that comes again adds nothing, and a newer version of
it supersedes session, actions and all, index by index. Where the newer version has fewer, those
beyond its end stay: whoever must not see them compares `userSession.index` with the session's list.
"""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec

from ingest.adapters import body as text
from ingest.adapters.fields import bounded_text, identifier
from ingest.events import (
    NOTHING,
    Batch,
    Call,
    Event,
    Refused,
    Rejection,
    Traits,
    identity,
    instant,
    measured,
)
from ingest.feed.values import Arrived


class _Desk(msgspec.Struct):
    user_id: Any = msgspec.field(name="userId", default=None)
    user_type: Any = msgspec.field(name="userType", default=None)


_desk_of = msgspec.json.Decoder(_Desk).decode


def _desk(row: Arrived) -> Traits:
    if row.type != "session":
        return NOTHING
    said = _desk_of(row.payload)
    at = row.occurred
    return Traits(
        bounded_text(said.user_id), "", {"userType": (said.user_type, at)} if said.user_type else {}
    )


DIALECT = "desk"
MAX_DOCUMENTS = 1000  # of a batch; the sender closes one at a thousand
MAX_EVENTS = 20_000  # of a batch; the sender's largest ones hold about nine thousand
KINDS = {  # a list in the document, and the type of its events
    "userActions": "userAction",
    "events": "event",
    "errors": "error",
    "syntheticEvents": "syntheticEvent",
}


class Item(msgspec.Struct):
    """One action of a `_bulk` body, as its answer has to tell it."""

    operation: str
    index: str
    id: str
    raw: bytes  # what goes aside if it is no session
    refused: Refused | None = None


class _Lists(msgspec.Struct):
    userActions: msgspec.Raw = msgspec.Raw(b"null")
    events: msgspec.Raw = msgspec.Raw(b"null")
    errors: msgspec.Raw = msgspec.Raw(b"null")
    syntheticEvents: msgspec.Raw = msgspec.Raw(b"null")


_lists = msgspec.json.Decoder(_Lists).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_small = (
    re.compile(rb"e-[0-9]{3}"),
    re.compile(rb"E-[0-9]{3}"),
)  # what they begin with is quick to find


def parse(body: bytes, call: Call) -> Batch:
    """Reads a document, or one a line. Raises `Refused`: 413 for too many, 400 for gzip."""
    _require_text(body)
    try:
        sources = text.documents(body, call.content_type)
    except Refused:
        sources = text.lines(body)  # each is told by itself, so that a bad first costs no other
    _require_few(len(sources))
    events: list[Event] = []
    rejections: list[Rejection] = []
    for position, raw in enumerate(sources):
        try:
            events += _events(raw, position, call, MAX_EVENTS - len(events))
        except Refused as refused:
            rejections.append(Rejection(position, refused.reason, refused.detail, raw))
    return _batch(call, events, rejections)


def parse_bulk(body: bytes, call: Call, index: str = "") -> tuple[Batch, list[Item]]:
    """Reads action and source lines in turn. Raises `Refused` as `parse` does."""
    _require_text(body)
    items: list[Item] = []
    events: list[Event] = []
    rejections: list[Rejection] = []
    for position, item in enumerate(_items(text.lines(body), index or DIALECT)):
        _require_few(position + 1)
        items.append(item)
        try:
            if item.refused is not None:
                raise item.refused
            found = _events(item.raw, position, call, MAX_EVENTS - len(events))
        except Refused as refused:
            rejections.append(Rejection(position, refused.reason, refused.detail, item.raw))
        else:
            item.id = item.id or _document_id(found[0])
            events += found
    return _batch(call, events, rejections), items


def _batch(call: Call, events: list[Event], rejections: list[Rejection]) -> Batch:
    return Batch(DIALECT, call.received_at, events, rejections, call.application_id, last_wins=True)


def _require_text(body: bytes) -> None:
    if body.startswith(b"\x1f\x8b"):
        # taken apart at its line feeds it would be worth nothing to anybody
        raise Refused("gzip", "This is gzip; fold once and send Content-Encoding: gzip.")


def _require_few(count: int) -> None:
    if count > MAX_DOCUMENTS:
        raise Refused(
            "too_many", f"A batch has at most {MAX_DOCUMENTS} documents; send less at once.", 413
        )


def _items(lines: list[bytes], index: str) -> Iterator[Item]:
    """The actions in the order sent. A line that is none is an item of its own, and the next line
    is looked at anew: what follows a bad line is not lost."""
    rest = iter(lines)
    for line in rest:
        try:
            action, _, _ = text.value(line)
        except Refused as refused:
            yield Item("index", index, "", line, refused)
            continue
        operation = next(iter(action), "") if isinstance(action, dict) and len(action) == 1 else ""
        if operation not in {"index", "create", "update", "delete"}:
            strange = Refused("action", 'An action line is {"index": {…}} or {"create": {…}}.')
            yield Item("index", index, "", line, strange)
            continue
        source = next(rest, None) if operation != "delete" else None
        item = Item(operation, index, "", line if source is None else source)
        try:
            said = action[operation]
            if not isinstance(said, dict):
                raise Refused("action", f"What '{operation}' holds must be an object.")
            item.index = identifier(said, "_index") or index
            item.id = identifier(said, "_id", longest=512)
            if operation in {"update", "delete"}:
                raise Refused("action", f"Sessions are sent by index or create, not {operation}.")
            if source is None:
                raise Refused("action", f"No source line follows '{operation}'.")
        except Refused as refused:
            item.refused = refused
        yield item


def _document_id(session: Event) -> str:
    """As the sender would have written it."""
    said, _, _ = text.value(session.payload)
    started = round(session.occurred_at.timestamp() * 1000)
    return f"{identifier(said, 'tenantId')}-{session.session_id}-{started}"


def _events(raw: bytes, position: int, call: Call, room: int) -> list[Event]:
    """The session, then what lies in it."""
    said, payload, note = text.value(raw)
    if not isinstance(said, dict):
        raise Refused("not_an_object", "A session is a JSON object.")
    # what a number of more decimal places than a database holds cannot do without
    if any(small.search(payload) for small in _small) or text.digits(payload, 9999):
        text.canonical(payload)
    tenant_id = identifier(said, "tenantId")
    session_id = identifier(said, "userSessionId")
    if not session_id:
        raise Refused("userSessionId", "userSessionId must be there: it tells sessions apart.")
    latest = call.received_at + timedelta(days=1)
    started_at = _moment(said.get("startTime"), latest)
    device_id = identifier(said, "internalUserId") or identifier(said, "userId")
    tags = said.get("stringTags")
    conversation = (
        identifier(tags, "conversation_id", "stringTags.") if isinstance(tags, dict) else ""
    )
    if 1 + sum(len(said[n]) for n in KINDS if isinstance(said.get(n), list)) > room:
        raise Refused(
            "too_many", f"With it the batch would have more than {MAX_EVENTS} events; send less."
        )
    parts = measured(DIALECT, call.application, tenant_id, session_id)
    notes = [note] if note else []
    inner: list[Event] = []
    lists = _lists(payload)
    key = {"tenantId": tenant_id, "userSessionId": session_id, "startTime": said["startTime"]}
    session = b'"userSession":' + _encode(key)[:-1]
    for name, kind in KINDS.items():
        if said.get(name) is None:
            continue
        if not isinstance(said[name], list):
            notes.append(f"{name} is no list")
            continue
        strange = 0
        pairs = zip(said[name], _list(getattr(lists, name)), strict=True)
        for index, (thing, thing_raw) in enumerate(pairs):
            if not isinstance(thing, dict):
                strange += 1
                continue
            thing_payload = bytes(thing_raw)
            mended = [note] if note and b"\\ufffd" in thing_payload else []
            try:
                occurred_at = _moment(thing.get("startTime"), latest)
            except Refused as refused:
                occurred_at = started_at
                mended.append(f"{refused.detail} The session's start stands in.")
            inner.append(
                Event(
                    identity=identity(started_at, kind, str(index), begun=parts),
                    type=kind,
                    occurred_at=occurred_at,
                    device_id=device_id,
                    session_id=session_id,
                    conversation=conversation,
                    is_answer=False,
                    payload=_with(thing_payload, b'%b,"index":%d}' % (session, index), bool(thing)),
                    note="; ".join(mended),
                    position=position,
                )
            )
        if strange:
            notes.append(f"{strange} of {name} are no objects")
    whole = Event(
        identity=identity(started_at, begun=parts),
        type="session",
        occurred_at=started_at,
        device_id=device_id,
        session_id=session_id,
        conversation=conversation,
        is_answer=False,
        payload=payload,
        note="; ".join(notes),
        position=position,
    )
    return [whole, *inner]


def _with(payload: bytes, member: bytes, has_members: bool) -> bytes:
    """An object's text with one more member at its end, where it wins over one of that name."""
    return payload[:-1] + (b"," if has_members else b"") + member + b"}"


def _moment(value: Any, latest: datetime) -> datetime:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("startTime", "startTime must be a number of milliseconds since 1970.")
    moment = instant(value, "startTime")
    if moment > latest:
        raise Refused("time_out_of_range", "startTime lies more than a day in the future.")
    return moment
