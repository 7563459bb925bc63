"""Events, sessions and users as documents, in the field names that Croct's clients read.

Moments are milliseconds since 1970. `position` is where a record stands in the feed: it is the same
in a page, a push and a file.
"""

from datetime import datetime

import msgspec

from ingest.derive.payloads import traits
from ingest.feed.values import Arrived
from ingest.models import AppUser, Session

encode = msgspec.json.Encoder().encode


def milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


class _Page(msgspec.Struct):
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
    context: _Page | None
    payload: msgspec.Raw


def event(row: Arrived) -> bytes:
    """One event; `payload` is what its sender wrote, under its type.

    Who refuses consent: their answer is left out, as it is in a file.
    """
    said = traits(row)
    payload = _without_answer(row.payload) if row.refused else row.payload
    if b"@type" in payload or b"\\u00" in payload:  # a sender's own would be read for ours
        payload = encode({name: part for name, part in _parts(payload).items() if name != "@type"})
    rest = payload[1:].lstrip()
    comma = b"" if rest.startswith(b"}") else b","
    return encode(
        _Event(
            row.identity,
            row.session_id,
            said.user_id or row.device_id,
            row.occurred // 1000,
            row.type,
            row.dialect,
            row.device_id,
            row.received // 1000,
            f"{row.xid}.{row.id}",
            _Page(said.url) if said.url else None,
            msgspec.Raw(b'{"@type":%b%b%b' % (encode(row.type), comma, rest)),
        )
    )


_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _without_answer(payload: bytes) -> bytes:
    said = _parts(payload)
    try:
        said["edata"] = msgspec.Raw(
            encode({**_parts(said["edata"]), "resvalues": msgspec.Raw(b"[]")})
        )
    except (KeyError, msgspec.ValidationError):
        return payload  # no object there, so no answer either
    return encode(said)


def session(row: Session) -> bytes:
    """One session. `parentId` names the one that it became a part of."""
    types: dict[str, int] = row.types
    return encode(
        {
            "sessionId": str(row.key),
            "userId": row.user_id or row.device_id,
            "externalUserId": row.user_id or None,
            "parentId": str(row.parent.key) if row.parent is not None else None,
            "window": {
                "start": milliseconds(row.started_at),
                "end": milliseconds(row.ended_at),
            },
            "closeTime": milliseconds(row.closes_at),
            "closed": row.closed,
            "landingPageUrl": row.landing_url or None,
            "deviceId": row.device_id,
            "senderSessionId": row.sender_session_id or None,
            "statistics": {
                "pageViews": sum(types.get(name, 0) for name in PAGE_VIEWS),
                "events": row.event_count,
                "answers": row.answer_count,
            },
            "eventTypes": types,
            "version": row.version,
            "lastModifiedTime": milliseconds(row.modified_at),
            "position": f"{row.xid}.{row.id}",
        }
    )


# what the dialects call the sight of a page
PAGE_VIEWS = ("IMPRESSION", "_page_view", "_screen_view", "view", "userAction")


def user(row: AppUser) -> bytes:
    """One user, as far as the senders told."""
    attributes = {name: held["value"] for name, held in row.attributes.items()}
    return encode(
        {
            "userId": row.identifier,
            "externalUserId": row.user_id or None,
            "anonymous": row.anonymous,
            "deviceId": row.device_id or None,
            **{field: attributes.get(name) for field, name in _KNOWN.items() if name in attributes},
            "customAttributes": attributes,
            "firstSeenTime": milliseconds(row.first_seen_at),
            "lastSeenTime": milliseconds(row.last_seen_at),
            "lastModifiedTime": milliseconds(row.modified_at),
            "version": row.version,
            "position": f"{row.xid}.{row.id}",
        }
    )


_KNOWN = {
    "email": "email", "phone": "phone", "firstName": "firstName", "lastName": "lastName",
    "gender": "gender", "company": "company", "jobTitle": "jobTitle",
}  # fmt: skip
