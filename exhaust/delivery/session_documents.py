"""Sessions as Dynatrace exports them: one document each, with what lies in it.

A session that a DESK sender gave goes out as it came. One that was derived is told in the same
field names, from its events; what people wrote or answered is not in it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from django.db import connection, models
from django.db.models.functions import Cast

from exhaust.feed.documents import encode, milliseconds
from ingest.adapters.fields import MAX_URL, bounded_text
from ingest.db import binary_arrays
from ingest.feed import reader
from ingest.models import Application, Session, StoredEvent

MAX_EVENTS = 1_000  # told of one session; the counts tell of all
ERRORS = {"ERROR", "_app_exception", "_clickstream_error", "error", "crash"}
EVENTS = {  # what an app tells of itself; all else is somebody's action
    "START", "END", "LOG", "HEARTBEAT", "AUDIT", "METRICS", "SUMMARY", "EXDATA",
    "_first_open", "_session_start", "_app_start", "_app_end", "_app_update", "_os_update",
    "_user_engagement", "_profile_set", "_page_load", "_user_login", "identity",
}  # fmt: skip


class _Named(msgspec.Struct, rename="camel"):
    tenant_id: Any = ""
    user_session_id: Any = ""
    start_time: Any = 0


_named = msgspec.json.Decoder(_Named).decode


class Told(NamedTuple):
    """A session's row as far as it is told."""

    xid: int
    id: int
    key: str
    channel_id: int
    application_id: int | None
    given: bool
    device_id: str
    user_id: str
    landing_url: str
    started_at: datetime
    ended_at: datetime
    modified_at: datetime
    version: int
    types: bytes
    parent: str | None


_FIELDS = [
    "said_xid" if name == "xid" else f"said_{name}" if name in ("key", "types", "parent") else name
    for name in Told._fields
]


def told(rows: "models.QuerySet[Session]") -> list[Told]:
    """The sessions of a query made with `feed.after`, or in any other order."""
    said = rows.annotate(
        said_xid=reader.number("xid"),
        said_key=Cast("key", models.TextField()),
        said_types=reader.Bytes("types"),
        said_parent=Cast("parent__key", models.TextField()),
    )
    return list(map(Told._make, reader.tuples(said.values_list(*_FIELDS))))


_types = msgspec.json.Decoder(dict[str, int]).decode


def documents(channel: str, sessions: Sequence[Told]) -> list[tuple[str, bytes]]:
    """(id, document) of each session of a channel, in their order.

    The id tells a document from all others and stays when the session is told again:
    `<tenant>-<session>-<start>` as Dynatrace writes it; of a derived one, whose start a late event
    may move, `<channel>-<session>`.
    """
    given = _given([session for session in sessions if session.given])
    names = dict(
        Application.objects.filter(
            pk__in={session.application_id for session in sessions}
        ).values_list("pk", "identifier")
    )
    events = _events([session for session in sessions if not session.given])
    found = []
    for session in sessions:
        payload = given.get(session.key)
        if payload is not None:
            said = _named(payload)
            name = f"{said.tenant_id}-{said.user_session_id}-{said.start_time}"
            found.append((name, payload))
        else:
            application = names.get(session.application_id or 0, channel)
            key = str(UUID(session.key))
            inside = events.get(session.id, _NOTHING)
            document = _derived(channel, application, key, session, inside)
            found.append((f"{channel}-{key}", document))
    return found


def _given(sessions: Sequence[Told]) -> dict[str, bytes]:
    """The senders' documents by their sessions' keys, each on one line."""
    if not sessions:
        return {}
    keys = {UUID(session.key): session.key for session in sessions}
    rows = StoredEvent.objects.filter(
        identity__in=list(keys), superseded_xid=None, channel_id=sessions[0].channel_id
    ).annotate(text=Cast("payload", models.TextField()))
    return {
        keys[identity]: msgspec.json.format(text, indent=-1).encode()
        for identity, text in rows.values_list("identity", "text")
    }


_Inside = tuple[list[str], list[int], list[Any]]  # types, moments in milliseconds, pages
_inside = msgspec.json.Decoder(_Inside).decode
_NOTHING: _Inside = ([], [], [])


class _Inner(msgspec.Struct, rename="camel", omit_defaults=True):
    type: str
    name: str
    start_time: int
    application: str
    end_time: int | None = None
    duration: int | None = None
    target_url: str | None = None


class _Session(msgspec.Struct, rename="camel"):
    tenant_id: str
    user_session_id: str
    start_time: int
    end_time: int
    duration: int
    internal_user_id: str
    user_id: str | msgspec.UnsetType
    user_type: str
    bounce: bool
    user_action_count: int
    total_error_count: int
    landing_page_url: str | msgspec.UnsetType
    parent_id: str | msgspec.UnsetType
    version: int
    string_tags: dict[str, str]
    num_tags: dict[str, float]
    date_tags: dict[str, int]
    user_actions: list[_Inner]
    events: list[_Inner]
    errors: list[_Inner]


def _derived(channel: str, application: str, key: str, session: Told, inside: _Inside) -> bytes:
    lists: dict[str, list[_Inner]] = {"userActions": [], "events": [], "errors": []}
    for type_, at, url in zip(*inside, strict=True):
        among = _list_of(type_)
        if among != "userActions":
            lists[among].append(_Inner(type_, type_, at, application))
        elif url is not None and (said := bounded_text(url, MAX_URL)):
            lists[among].append(_Inner(type_, type_, at, application, at, 0, said))
        else:
            lists[among].append(_Inner(type_, type_, at, application, at, 0))
    counts = dict.fromkeys(lists, 0)
    for type_, count in _types(session.types).items():
        counts[_list_of(type_)] += count
    start, end = milliseconds(session.started_at), milliseconds(session.ended_at)
    return encode(
        _Session(
            channel,
            key,
            start,
            end,
            end - start,
            session.device_id,
            session.user_id or msgspec.UNSET,
            "REAL_USER",
            counts["userActions"] <= 1,
            counts["userActions"],
            counts["errors"],
            session.landing_url or msgspec.UNSET,
            str(UUID(session.parent)) if session.parent else msgspec.UNSET,
            session.version,
            {},
            {},
            {},
            lists["userActions"],
            lists["events"],
            lists["errors"],
        )
    )


def _list_of(type_: str) -> str:
    if type_ in ERRORS:
        return "errors"
    return "events" if type_ in EVENTS else "userActions"


# where a page stands in a payload
PAGES = {
    "telemetry": ("edata", "uri"),
    "clickstream": ("attributes", "_page_url"),
    "skalin": ("url",),
}
# One look into the index for each session, and one row: what an event holds beside its page is not
# read.
_OF_SESSIONS = f"""
SELECT s.id, e.told
FROM unnest(%(ids)s::bigint[], %(applications)s::int[], %(devices)b, %(starts)b, %(ends)b)
     AS s(id, application, device, a, z)
CROSS JOIN LATERAL (
    SELECT textsend('[' || json_agg(type)::text || ',' || json_agg(at)::text || ','
                    || json_agg(url)::text || ']') AS told
    FROM (
        SELECT type, CAST(floor(EXTRACT(EPOCH FROM occurred_at) * 1000) AS bigint) AS at,
               CASE dialect {
    " ".join(
        f"WHEN '{name}' THEN payload #> '{{{','.join(path)}}}'" for name, path in PAGES.items()
    )
} END AS url
        FROM ingest_storedevent
        WHERE channel_id = %(channel)s AND device_id = s.device AND occurred_at BETWEEN s.a AND s.z
          AND application_id IS NOT DISTINCT FROM s.application AND superseded_xid IS NULL
          AND device_id <> '' AND dialect <> 'desk'
        ORDER BY occurred_at, id LIMIT {MAX_EVENTS}
    ) AS inside
) e
WHERE e.told IS NOT NULL
"""  # noqa: S608


def _events(sessions: Sequence[Told]) -> dict[int, _Inside]:
    """By a session's row, what lies in it, in the order of time."""
    if not sessions:
        return {}
    if connection.vendor != "postgresql":
        return {session.id: _portable(session) for session in sessions}
    columns = {
        "channel": sessions[0].channel_id,
        "ids": [session.id for session in sessions],
        "applications": [session.application_id for session in sessions],
        "devices": binary_arrays.texts([session.device_id for session in sessions]),
        "starts": binary_arrays.moments([session.started_at for session in sessions]),
        "ends": binary_arrays.moments([session.ended_at for session in sessions]),
    }
    return {of: _inside(told) for of, told in reader.streamed(_OF_SESSIONS, columns)}


def _portable(session: Told) -> _Inside:
    rows = StoredEvent.objects.filter(
        channel_id=session.channel_id,
        device_id=session.device_id,
        occurred_at__range=(session.started_at, session.ended_at),
        application=session.application_id,
        superseded_xid=None,
    )
    # as the index has it, which a bare device_id would leave unused
    rows = rows.exclude(device_id="").exclude(dialect="desk").order_by("occurred_at", "id")
    types: list[str] = []
    moments: list[int] = []
    pages: list[Any] = []
    for row in reader.told(rows[:MAX_EVENTS]):
        page = msgspec.json.decode(row.payload)
        for name in PAGES.get(row.dialect, ("",)):
            page = page.get(name) if isinstance(page, dict) else None
        types.append(row.type)
        moments.append(row.occurred // 1000)
        pages.append(page)
    return types, moments, pages


# What Elasticsearch should know of them --------------------------------------------------------

_MOMENT = {"type": "date", "format": "epoch_millis"}
_WORD = {"type": "keyword", "ignore_above": 1024}
_COUNT = {"type": "long"}
_INNER = {
    "type": _WORD, "name": _WORD, "application": _WORD, "targetUrl": _WORD,
    "startTime": _MOMENT, "endTime": _MOMENT, "duration": _COUNT,
}  # fmt: skip
MAPPING: dict[str, Any] = {
    "mappings": {
        "dynamic_templates": [
            {"string_tags": {"path_match": "stringTags.*", "mapping": _WORD}},
            {"num_tags": {"path_match": "numTags.*", "mapping": {"type": "double"}}},
            {"date_tags": {"path_match": "dateTags.*", "mapping": _MOMENT}},
            {"words": {"match_mapping_type": "string", "mapping": _WORD}},
        ],
        "properties": {
            "tenantId": _WORD,
            "userSessionId": _WORD,
            "startTime": _MOMENT,
            "endTime": _MOMENT,
            "duration": _COUNT,
            "internalUserId": _WORD,
            "userId": _WORD,
            "userType": _WORD,
            "applicationType": _WORD,
            "bounce": {"type": "boolean"},
            "newUser": {"type": "boolean"},
            "hasCrash": {"type": "boolean"},
            "userActionCount": _COUNT,
            "totalErrorCount": _COUNT,
            "landingPageUrl": _WORD,
            "parentId": _WORD,
            "version": _COUNT,
            "ip": {"type": "ip", "ignore_malformed": True},
            "screenHeight": _COUNT,
            "screenWidth": _COUNT,
            "userActions": {"properties": _INNER},
            "events": {"properties": _INNER},
            "errors": {"properties": _INNER},
        },
    }
}
