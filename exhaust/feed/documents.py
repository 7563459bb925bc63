"""Events, sessions and users as documents, in the field names that Croct's clients read.

Moments are milliseconds since 1970. `position` is the position in the feed: it is the same
in a page, a push and a file.
"""

import re
from datetime import datetime
from typing import Any

import msgspec

from exhaust.feed import vocabulary
from exhaust.feed.session_details import describe_session
from ingest.adapters import page_view_types, read_context
from ingest.events import EventContext
from ingest.feed.values import EventRow
from ingest.models import AppUser, Session

encode = msgspec.json.Encoder().encode


def to_epoch_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


class _Context(msgspec.Struct):
    url: str | msgspec.UnsetType
    type: str
    metadata: dict[str, str]


class _Event(msgspec.Struct, rename="camel"):
    id: str
    session_id: str
    user_id: str
    timestamp: int
    type: str
    dialect: str
    device_id: str
    received_time: int
    position: str
    context: _Context | None
    payload: Any


def encode_event(row: EventRow, *names: str) -> bytes:
    """Returns an event as JSON; `payload` is the text of its sender, under its type.

    Where the requested `names` have the vocabulary's of the type, it is as the vocabulary has it.
    Who refuses consent: their answer is left out, as it is in a file.
    """
    context = read_context(row)
    payload = _remove_answer(row.payload) if row.is_consent_refused else row.payload
    occurred_ms = row.occurred_us // 1000
    name = vocabulary.find_name(row.type, names) if names else ""
    return encode(
        _Event(
            row.identity,
            row.session_id,
            context.user_id or row.device_id,
            occurred_ms,
            row.type,
            row.source,
            row.device_id,
            row.received_us // 1000,
            f"{row.xid}.{row.id}",
            _build_context(context),
            vocabulary.build_payload(name, row.type, payload, context, occurred_ms)
            if name
            else _add_type(row.type, payload),
        )
    )


def _build_context(context: EventContext) -> _Context | None:
    if not context.url and not context.platform:
        return None
    metadata = {"platform": context.platform} if context.platform else {}
    if context.url:
        return _Context(context.url, "web", metadata)
    return _Context(msgspec.UNSET, "app", metadata)


def _add_type(type_: str, payload: bytes) -> msgspec.Raw:
    if b"@type" in payload or b"\\u00" in payload:  # a sender's own @type would hide ours
        payload = encode(
            {name: part for name, part in _decode_fields(payload).items() if name != "@type"}
        )
    payload_rest = payload[1:].lstrip()
    comma = b"" if payload_rest.startswith(b"}") else b","
    return msgspec.Raw(b'{"@type":%b%b%b' % (encode(type_), comma, payload_rest))


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _remove_answer(payload: bytes) -> bytes:
    fields = _decode_fields(payload)
    try:
        fields["edata"] = msgspec.Raw(
            encode({**_decode_fields(fields["edata"]), "resvalues": msgspec.Raw(b"[]")})
        )
    except (KeyError, msgspec.ValidationError):
        return payload  # not an object, so it has no answer
    return encode(fields)


def encode_session(row: Session) -> bytes:
    """Returns a session as JSON. `parentId` is the session that it joined."""
    types: dict[str, int] = row.types
    orders = sum(types.get(name, 0) for name in vocabulary.ORDER_TYPES)
    return encode(
        {
            "sessionId": str(row.key),
            "userId": row.user_id or row.device_id,
            "externalUserId": row.user_id or None,
            "parentId": str(row.parent.key) if row.parent is not None else None,
            "window": {
                "start": to_epoch_ms(row.started_at),
                "end": to_epoch_ms(row.ended_at),
            },
            "closeTime": to_epoch_ms(row.closes_at),
            "closed": row.closed,
            "landingPageUrl": row.landing_url or None,
            **describe_session(row.details),
            "deviceId": row.device_id,
            "senderSessionId": row.sender_session_id or None,
            "statistics": {
                "pageViews": sum(types.get(name, 0) for name in page_view_types()),
                "events": row.event_count,
                "answers": row.answer_count,
                **({"orders": orders} if orders else {}),
            },
            "eventTypes": types,
            "version": row.version,
            "lastModifiedTime": to_epoch_ms(row.modified_at),
            "position": f"{row.xid}.{row.id}",
        }
    )


def encode_user(row: AppUser) -> bytes:
    """Returns a user as JSON, with the attributes that senders gave."""
    attributes = {name: attribute["value"] for name, attribute in row.attributes.items()}
    return encode(
        {
            "userId": row.identifier,
            "externalUserId": row.user_id or None,
            "anonymous": row.anonymous,
            "deviceId": row.device_id or None,
            **_pick_standard(attributes),
            "customAttributes": attributes,
            "firstSeenTime": to_epoch_ms(row.first_seen_at),
            "lastSeenTime": to_epoch_ms(row.last_seen_at),
            "lastModifiedTime": to_epoch_ms(row.modified_at),
            "version": row.version,
            "position": f"{row.xid}.{row.id}",
        }
    )


# as Croct names them; senders write `firstName` or `first_name`
STANDARD_ATTRIBUTES = (
    "email", "alternateEmail", "phone", "alternatePhone", "firstName", "lastName", "birthDate",
    "gender", "address", "avatar", "company", "companyUrl", "jobTitle", "activities", "interests",
)  # fmt: skip
_SENDERS_NAMES = {
    name: field
    for field in STANDARD_ATTRIBUTES
    for name in (re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", field), field)
}


def _pick_standard(attributes: dict[str, Any]) -> dict[str, Any]:
    return {field: attributes[name] for name, field in _SENDERS_NAMES.items() if name in attributes}
