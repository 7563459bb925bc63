"""Events, sessions and users as documents, in the field names that Croct's clients read.

Moments are milliseconds since 1970. `position` is the position in the feed: it is the same
in a page, a push and a file.
"""

from datetime import datetime

import msgspec

from ingest.adapters import page_view_types, read_context
from ingest.feed.values import EventRow
from ingest.models import AppUser, Session

encode = msgspec.json.Encoder().encode


def to_epoch_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


class _PageContext(msgspec.Struct):
    url: str
    type: str = "web"
    metadata: dict[str, str] = {}


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
    context: _PageContext | None
    payload: msgspec.Raw


def encode_event(row: EventRow) -> bytes:
    """Returns an event as JSON; `payload` is the text of its sender, under its type.

    Who refuses consent: their answer is left out, as it is in a file.
    """
    context = read_context(row)
    payload = _remove_answer(row.payload) if row.is_consent_refused else row.payload
    if b"@type" in payload or b"\\u00" in payload:  # a sender's own @type would hide ours
        payload = encode(
            {name: part for name, part in _decode_fields(payload).items() if name != "@type"}
        )
    payload_rest = payload[1:].lstrip()
    comma = b"" if payload_rest.startswith(b"}") else b","
    return encode(
        _Event(
            row.identity,
            row.session_id,
            context.user_id or row.device_id,
            row.occurred_us // 1000,
            row.type,
            row.source,
            row.device_id,
            row.received_us // 1000,
            f"{row.xid}.{row.id}",
            _PageContext(context.url) if context.url else None,
            msgspec.Raw(b'{"@type":%b%b%b' % (encode(row.type), comma, payload_rest)),
        )
    )


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
            "deviceId": row.device_id,
            "senderSessionId": row.sender_session_id or None,
            "statistics": {
                "pageViews": sum(types.get(name, 0) for name in page_view_types()),
                "events": row.event_count,
                "answers": row.answer_count,
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
            **{
                field: attributes.get(name)
                for field, name in _STANDARD_ATTRIBUTES.items()
                if name in attributes
            },
            "customAttributes": attributes,
            "firstSeenTime": to_epoch_ms(row.first_seen_at),
            "lastSeenTime": to_epoch_ms(row.last_seen_at),
            "lastModifiedTime": to_epoch_ms(row.modified_at),
            "version": row.version,
            "position": f"{row.xid}.{row.id}",
        }
    )


_STANDARD_ATTRIBUTES = {
    "email": "email", "phone": "phone", "firstName": "firstName", "lastName": "lastName",
    "gender": "gender", "company": "company", "jobTitle": "jobTitle",
}  # fmt: skip
