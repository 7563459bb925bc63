"""Parses user sessions as Dynatrace exports them: a document per ended session.

A session becomes an event of type "session" whose payload is the document as sent, and each of its
user actions, events and errors becomes an event of its own.

A session's identity is its start, its tenant and its id; an item's is the session, its kind and its
index. A resent session therefore adds nothing, and a newer version supersedes the session and its
items, index by index. Where the newer version has fewer items, the old ones after its end stay: a
reader compares `userSession.index` with the session's list.
"""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import structs

from ingest.adapters import body_limits, json_body
from ingest.adapters.fields import identifier
from ingest.events import (
    Batch,
    Call,
    Event,
    Rejection,
    RequestError,
    event_identity,
    length_prefixed,
    parse_timestamp,
)

SOURCE = "desk"
MAX_DOCUMENTS = 1000  # of a batch; the sender closes one at a thousand
OLDER_NAMES = {  # that Dynatrace gave the fields before, and its guide's test call still has
    "userSessionId": "visitId",
    "internalUserId": "visitorId",
    "userType": "visitType",
}
KINDS = {  # a list in the document, and the type of its events
    "userActions": "userAction",
    "events": "event",
    "errors": "error",
    "syntheticEvents": "syntheticEvent",
}


class BulkItem(msgspec.Struct):
    """An action of a `_bulk` body, as the response lists it."""

    operation: str
    index: str
    id: str
    raw: bytes  # stored as rejected if it is no session
    error: RequestError | None = None


class _Lists(msgspec.Struct):
    userActions: msgspec.Raw = msgspec.Raw(b"null")
    events: msgspec.Raw = msgspec.Raw(b"null")
    errors: msgspec.Raw = msgspec.Raw(b"null")
    syntheticEvents: msgspec.Raw = msgspec.Raw(b"null")


_decode_lists = msgspec.json.Decoder(_Lists).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_TINY_EXPONENTS = (
    re.compile(rb"e-[0-9]{3}"),
    re.compile(rb"E-[0-9]{3}"),
)  # a fixed prefix is quick to find


def parse(body: bytes, call: Call) -> Batch:
    """Returns the events of a document, or of one a line.

    Raises `RequestError`: 413 for too many, 400 for gzip.
    """
    _reject_gzip(body)
    try:
        sources = json_body.split_documents(body, call.content_type)
    except RequestError:
        sources = json_body.split_lines(body)  # so that a bad first line rejects itself only
    _require_batch_limit(len(sources))
    events: list[Event] = []
    rejections: list[Rejection] = []
    for position, raw in enumerate(sources):
        try:
            events += parse_session(raw, position, call, body_limits.MAX_EVENTS - len(events))
        except RequestError as error:
            rejections.append(Rejection(position, error.reason, error.detail, raw))
    return _build_batch(call, events, rejections)


def parse_bulk(body: bytes, call: Call) -> Batch:
    """Returns the events of action and source lines in turn, and the items as `details`.

    Raises `RequestError` as `parse` does.
    """
    _reject_gzip(body)
    items: list[BulkItem] = []
    events: list[Event] = []
    rejections: list[Rejection] = []
    for position, item in enumerate(
        _bulk_items(json_body.split_lines(body), call.route.get("index", SOURCE))
    ):
        _require_batch_limit(position + 1)
        items.append(item)
        try:
            if item.error is not None:
                raise item.error
            found = parse_session(item.raw, position, call, body_limits.MAX_EVENTS - len(events))
        except RequestError as error:
            rejections.append(Rejection(position, error.reason, error.detail, item.raw))
        else:
            item.id = item.id or _document_id(found[0])
            events += found
    return structs.replace(_build_batch(call, events, rejections), details=items)


def _build_batch(call: Call, events: list[Event], rejections: list[Rejection]) -> Batch:
    return Batch(SOURCE, call.received_at, events, rejections, call.application_id, last_wins=True)


def _reject_gzip(body: bytes) -> None:
    if body.startswith(b"\x1f\x8b"):
        # split at its line feeds it would be useless
        raise RequestError("gzip", "This is gzip; fold once and send Content-Encoding: gzip.")


def _require_batch_limit(count: int) -> None:
    if count > MAX_DOCUMENTS:
        raise RequestError(
            "too_many", f"A batch has at most {MAX_DOCUMENTS} documents; send less at once.", 413
        )


def _bulk_items(lines: list[bytes], index: str) -> Iterator[BulkItem]:
    """Yields the actions in the order sent.

    An invalid line is an item of its own, and the next line may start an action: an error loses
    no line after it.
    """
    rest = iter(lines)
    for line in rest:
        try:
            action, _, _ = json_body.parse_value(line)
        except RequestError as error:
            yield BulkItem("index", index, "", line, error)
            continue
        operation = next(iter(action), "") if isinstance(action, dict) and len(action) == 1 else ""
        if operation not in {"index", "create", "update", "delete"}:
            invalid = RequestError("action", 'An action line is {"index": {…}} or {"create": {…}}.')
            yield BulkItem("index", index, "", line, invalid)
            continue
        source = next(rest, None) if operation != "delete" else None
        item = BulkItem(operation, index, "", line if source is None else source)
        try:
            parameters = action[operation]
            if not isinstance(parameters, dict):
                raise RequestError("action", f"What '{operation}' holds must be an object.")
            item.index = identifier(parameters, "_index") or index
            item.id = identifier(parameters, "_id", longest=512)
            if operation in {"update", "delete"}:
                raise RequestError(
                    "action", f"Sessions are sent by index or create, not {operation}."
                )
            if source is None:
                raise RequestError("action", f"No source line follows '{operation}'.")
        except RequestError as error:
            item.error = error
        yield item


def _document_id(session: Event) -> str:
    """Returns the id that the sender would write."""
    document, _, _ = json_body.parse_value(session.payload)
    started = round(session.occurred_at.timestamp() * 1000)
    return f"{identifier(document, 'tenantId')}-{session.session_id}-{started}"


def parse_session(raw: bytes, position: int, call: Call, room: int) -> list[Event]:
    """Returns the session's event, then those of its items."""
    document, payload, note = json_body.parse_value(raw)
    if not isinstance(document, dict):
        raise RequestError("not_an_object", "A session is a JSON object.")
    # only such numbers can have more decimal places than a database stores
    if any(small.search(payload) for small in _TINY_EXPONENTS) or json_body.has_digit_run(
        payload, 9999
    ):
        json_body.normalize_json(payload)
    tenant_id = identifier(document, "tenantId")
    session_id = read_id(document, "userSessionId")
    if not session_id:
        raise RequestError("userSessionId", "userSessionId must be there: it tells sessions apart.")
    latest = call.received_at + timedelta(days=1)
    started_at = _event_time(document.get("startTime"), latest)
    device_id = read_id(document, "internalUserId") or identifier(document, "userId")
    tags = document.get("stringTags")
    conversation = (
        identifier(tags, "conversation_id", "stringTags.") if isinstance(tags, dict) else ""
    )
    if 1 + sum(len(document[n]) for n in KINDS if isinstance(document.get(n), list)) > room:
        raise RequestError(
            "too_many",
            f"With it the batch would have more than {body_limits.MAX_EVENTS} events; send less.",
        )
    parts = length_prefixed(SOURCE, call.application, tenant_id, session_id)
    notes = [note] if note else []
    inner: list[Event] = []
    lists = _decode_lists(payload)
    key = {"tenantId": tenant_id, "userSessionId": session_id, "startTime": document["startTime"]}
    session = b'"userSession":' + _encode(key)[:-1]
    for name, kind in KINDS.items():
        if document.get(name) is None:
            continue
        if not isinstance(document[name], list):
            notes.append(f"{name} is no list")
            continue
        invalid_count = 0
        pairs = zip(document[name], _decode_list(getattr(lists, name)), strict=True)
        for index, (item, item_raw) in enumerate(pairs):
            if not isinstance(item, dict):
                invalid_count += 1
                continue
            item_payload = bytes(item_raw)
            item_notes = [note] if note and b"\\ufffd" in item_payload else []
            try:
                occurred_at = _event_time(item.get("startTime"), latest)
            except RequestError as error:
                occurred_at = started_at
                item_notes.append(f"{error.detail} The session's start stands in.")
            inner.append(
                Event(
                    identity=event_identity(started_at, kind, str(index), prefix=parts),
                    type=kind,
                    occurred_at=occurred_at,
                    device_id=device_id,
                    session_id=session_id,
                    conversation=conversation,
                    is_answer=False,
                    payload=_append_member(
                        item_payload, b'%b,"index":%d}' % (session, index), bool(item)
                    ),
                    note="; ".join(item_notes),
                    position=position,
                )
            )
        if invalid_count:
            notes.append(f"{invalid_count} of {name} are no objects")
    whole = Event(
        identity=event_identity(started_at, prefix=parts),
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


def read_id(document: dict[str, Any], field: str) -> str:
    """Returns a field by its present or its older name. Raises `RequestError` as `identifier`."""
    return identifier(document, field) or identifier(document, OLDER_NAMES[field])


def _append_member(payload: bytes, member: bytes, has_members: bool) -> bytes:
    """Returns an object's text with a member at its end, where it wins over one of that name."""
    return payload[:-1] + (b"," if has_members else b"") + member + b"}"


def _event_time(value: Any, latest: datetime) -> datetime:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError("startTime", "startTime must be a number of milliseconds since 1970.")
    moment = parse_timestamp(value, "startTime")
    if moment > latest:
        raise RequestError("time_out_of_range", "startTime lies more than a day in the future.")
    return moment
