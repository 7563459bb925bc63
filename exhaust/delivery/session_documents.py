"""Sessions as Dynatrace exports them: a document each, with its actions, events and errors.

A session of a DESK sender is sent as it came, under today's names of its fields. A derived session
has the same field names, made from its events, without anything that people wrote or answered.
"""

from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from django.db import connection, models
from django.db.models.functions import Cast

from exhaust.feed.documents import encode, to_epoch_ms
from ingest.adapters import ADAPTERS, client_session_sources, error_types, system_types
from ingest.adapters.desk.parser import OLDER_NAMES
from ingest.adapters.fields import MAX_URL, bounded_text
from ingest.db import binary_arrays
from ingest.derive.sessions import make_session_key
from ingest.feed import reader
from ingest.models import Application, Session, StoredEvent

MAX_SESSION_EVENTS = 1_000  # listed of one session; its counts include all
MAX_DEVICE_EVENTS = 10_000  # read for it: a device may be in several sessions at once


class _ClientSessionId(msgspec.Struct, rename="camel"):
    tenant_id: Any = ""
    user_session_id: Any = ""
    start_time: Any = 0


_decode_client_id = msgspec.json.Decoder(_ClientSessionId).decode


class SessionRow(NamedTuple):
    """The columns of a session that its document needs."""

    xid: int
    id: int
    key: str
    channel_id: int
    application_id: int | None
    is_client_session: bool
    device_id: str
    user_id: str
    sender_session_id: str
    landing_url: str
    started_at: datetime
    ended_at: datetime
    modified_at: datetime
    version: int
    types: bytes
    details: bytes
    parent: str | None

    @property
    def event_session_id(self) -> str | None:
        """The session that its events name; None for events of any, which older sessions have."""
        key = make_session_key(self.application_id, self.device_id, self.sender_session_id)
        is_named = self.sender_session_id != "" and UUID(self.key) == key
        return self.sender_session_id if is_named or not self.sender_session_id else None


_COMPUTED_COLUMNS: dict[str, Any] = {
    "xid": reader.cast_xid("xid"),
    "key": Cast("key", models.TextField()),
    "types": reader.Utf8Bytes("types"),
    "details": reader.Utf8Bytes("details"),
    "parent": Cast("parent__key", models.TextField()),
}
_COLUMN_NAMES = [
    f"computed_{name}" if name in _COMPUTED_COLUMNS else name for name in SessionRow._fields
]


def fetch_sessions(rows: "models.QuerySet[Session]") -> list[SessionRow]:
    """Returns the sessions of a query, in its order."""
    annotated = rows.annotate(
        **{f"computed_{name}": sql for name, sql in _COMPUTED_COLUMNS.items()}
    )
    return list(map(SessionRow._make, reader.stream_tuples(annotated.values_list(*_COLUMN_NAMES))))


_decode_type_counts = msgspec.json.Decoder(dict[str, int]).decode
_decode_details = msgspec.json.Decoder(dict[str, Any]).decode


def build_documents(channel: str, sessions: Sequence[SessionRow]) -> list[tuple[str, bytes]]:
    """Returns (id, document) of each session of a channel, in their order.

    The id is unique and stays the same when the session is sent again:
    `<tenant>-<session>-<start>` as Dynatrace writes it; of a derived one, whose start a late event
    may move, `<channel>-<session>`.
    """
    client_documents = _fetch_client_documents(
        [session for session in sessions if session.is_client_session]
    )
    names = dict(
        Application.objects.filter(
            pk__in={session.application_id for session in sessions}
        ).values_list("pk", "identifier")
    )
    events = _fetch_session_events(
        [session for session in sessions if not session.is_client_session]
    )
    identified = []
    for session in sessions:
        payload = client_documents.get(session.key)
        if payload is not None:
            client_id = _decode_client_id(payload)
            name = f"{client_id.tenant_id}-{client_id.user_session_id}-{client_id.start_time}"
            identified.append((name, payload))
        else:
            application = names.get(session.application_id or 0, channel)
            key = str(UUID(session.key))
            contents = events.get(session.id, _NO_CONTENTS)
            document = _build_derived_document(channel, application, key, session, contents)
            identified.append((f"{channel}-{key}", document))
    return identified


def _fetch_client_documents(sessions: Sequence[SessionRow]) -> dict[str, bytes]:
    """Returns the senders' own documents by session key, each on one line and in today's names."""
    if not sessions:
        return {}
    keys = {UUID(session.key): session.key for session in sessions}
    rows = StoredEvent.objects.filter(
        identity__in=list(keys), superseded_xid=None, channel_id=sessions[0].channel_id
    ).annotate(text=Cast("payload", models.TextField()))
    return {
        keys[identity]: _replace_older_names(msgspec.json.format(text, indent=-1).encode())
        for identity, text in rows.values_list("identity", "text")
    }


def _replace_older_names(document: bytes) -> bytes:
    fields = _decode_fields(document)
    renamed = {older: name for name, older in OLDER_NAMES.items() if name not in fields}
    if not fields.keys() & renamed:
        return document
    return encode({renamed.get(name, name): value for name, value in fields.items()})


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# types, times in ms, pages, durations in the unit of their source
_SessionContents = tuple[list[str], list[int], list[Any], list[Any]]
_decode_contents = msgspec.json.Decoder(_SessionContents).decode
_NO_CONTENTS: _SessionContents = ([], [], [], [])


class _SessionItem(msgspec.Struct, rename="camel", omit_defaults=True):
    type: str
    name: str
    start_time: int
    application: str
    end_time: int | None = None
    duration: int | None = None
    target_url: str | None = None


_RESOLUTIONS = {(720, 1280): "HD", (1080, 1920): "FHD", (1440, 2560): "QHD", (2160, 3840): "UHD4K"}
_MAX_DURATION_MS = 7 * 24 * 3_600_000


def _build_derived_document(
    channel: str, application: str, key: str, session: SessionRow, contents: _SessionContents
) -> bytes:
    lists: dict[str, list[_SessionItem]] = {"userActions": [], "events": [], "errors": []}
    for type_, at, url, timing in zip(*contents, strict=True):
        list_name = _classify_type(type_)
        item = _SessionItem(type_, type_, at, application)
        if list_name == "userActions":
            item.duration = _read_duration_ms(timing)
            item.end_time = at + item.duration
            if url is not None:
                item.target_url = bounded_text(url, MAX_URL) or None
        lists[list_name].append(item)
    counts = dict.fromkeys(lists, 0)
    for type_, count in _decode_type_counts(session.types).items():
        counts[_classify_type(type_)] += count
    start, end = to_epoch_ms(session.started_at), to_epoch_ms(session.ended_at)
    document = {
        "tenantId": channel,
        "userSessionId": key,
        "startTime": start,
        "endTime": end,
        "duration": end - start,
        "internalUserId": session.device_id,
        "userId": session.user_id or None,
        "userType": "REAL_USER",
        "bounce": counts["userActions"] <= 1,
        "userActionCount": counts["userActions"],
        "totalErrorCount": counts["errors"],
        "landingPageUrl": session.landing_url or None,
        "parentId": str(UUID(session.parent)) if session.parent else None,
        "senderSessionId": session.sender_session_id or None,
        "version": session.version,
        "hasCrash": False,
        **_complete_details(_decode_details(session.details)),
        "stringTags": {},
        "numTags": {},
        "dateTags": {},
        **lists,
    }
    return encode({name: value for name, value in document.items() if value is not None})


def _read_duration_ms(timing: Any) -> int:
    """Returns a timing, a number and the milliseconds of its unit; 0 where it is no such number."""
    value, unit_ms = timing or (None, 0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return round(value * unit_ms) if 0 <= value * unit_ms <= _MAX_DURATION_MS else 0


def _complete_details(details: dict[str, Any]) -> dict[str, Any]:
    """Returns the details of a session with those that follow from the size of its screen."""
    height, width = details.get("screenHeight", 0), details.get("screenWidth", 0)
    if height > 0 and width > 0:
        details.setdefault("screenOrientation", "PORTRAIT" if height > width else "LANDSCAPE")
        resolution = _RESOLUTIONS.get((min(height, width), max(height, width)))
        details.setdefault("displayResolution", resolution)
    return details


def _classify_type(type_: str) -> str:
    if type_ in error_types():
        return "errors"
    return "events" if type_ in system_types() else "userActions"


def _events_sql() -> str:
    """One index lookup and one row a session. Of a payload it returns the page and the timing."""
    pages = " ".join(
        f"WHEN '{name}' THEN payload #> '{{{','.join(adapter.page_path)}}}'"
        for name, adapter in ADAPTERS.items()
        if adapter.page_path
    )
    timings = " ".join(
        f"WHEN '{name}' THEN jsonb_build_array("
        f"payload #> '{{{','.join(adapter.duration_path)}}}', {adapter.duration_unit_ms})"
        for name, adapter in ADAPTERS.items()
        if adapter.duration_path
    )
    client_sessions = ", ".join(f"'{name}'" for name in client_session_sources())
    return f"""
SELECT s.id, e.contents
FROM unnest(%(ids)s::bigint[], %(applications)s::int[], %(devices)b, %(names)s::text[],
            %(starts)b, %(ends)b) AS s(id, application, device, name, a, z)
CROSS JOIN LATERAL (
    SELECT textsend('[' || json_agg(type)::text || ',' || json_agg(at)::text || ','
                    || json_agg(url)::text || ',' || json_agg(timing)::text || ']') AS contents
    FROM (
        SELECT type, CAST(floor(EXTRACT(EPOCH FROM occurred_at) * 1000) AS bigint) AS at,
               CASE source {pages} END AS url, CASE source {timings} END AS timing
        FROM (
            SELECT *
            FROM ingest_storedevent
            WHERE channel_id = %(channel)s AND device_id = s.device
              AND occurred_at BETWEEN s.a AND s.z
              AND application_id IS NOT DISTINCT FROM s.application AND superseded_xid IS NULL
              AND device_id <> '' AND source NOT IN ({client_sessions})
            ORDER BY occurred_at, id LIMIT {MAX_DEVICE_EVENTS}
        ) AS of_device
        WHERE s.name IS NULL OR session_id = s.name
        ORDER BY occurred_at, id LIMIT {MAX_SESSION_EVENTS}
    ) AS inside
) e
WHERE e.contents IS NOT NULL
"""  # noqa: S608


def _fetch_session_events(sessions: Sequence[SessionRow]) -> dict[int, _SessionContents]:
    """Returns the events in each session by its row id, in the order of time."""
    if not sessions:
        return {}
    if connection.vendor != "postgresql":
        return {session.id: _fetch_session_events_portable(session) for session in sessions}
    columns = {
        "channel": sessions[0].channel_id,
        "ids": [session.id for session in sessions],
        "applications": [session.application_id for session in sessions],
        "devices": binary_arrays.texts([session.device_id for session in sessions]),
        "names": [session.event_session_id for session in sessions],
        "starts": binary_arrays.moments([session.started_at for session in sessions]),
        "ends": binary_arrays.moments([session.ended_at for session in sessions]),
    }
    with closing(reader.stream_query(_events_sql(), columns)) as rows:
        return {session_id: _decode_contents(contents) for session_id, contents in rows}


def _fetch_session_events_portable(session: SessionRow) -> _SessionContents:
    rows = StoredEvent.objects.filter(
        channel_id=session.channel_id,
        device_id=session.device_id,
        occurred_at__range=(session.started_at, session.ended_at),
        application=session.application_id,
        superseded_xid=None,
    )
    # these conditions are those of the index, which device_id alone would not use
    rows = rows.exclude(device_id="").exclude(source__in=client_session_sources())
    rows = rows.order_by("occurred_at", "id")
    if (name := session.event_session_id) is not None:
        of_device = rows[:MAX_DEVICE_EVENTS].values("pk")
        rows = StoredEvent.objects.filter(pk__in=of_device, session_id=name)
        rows = rows.order_by("occurred_at", "id")
    types: list[str] = []
    moments: list[int] = []
    pages: list[Any] = []
    timings: list[Any] = []
    for row in reader.fetch_events(rows[:MAX_SESSION_EVENTS]):
        payload = msgspec.json.decode(row.payload)
        adapter = ADAPTERS.get(row.source)
        timing = None
        if adapter and adapter.duration_path:
            timing = [_find_member(payload, adapter.duration_path), adapter.duration_unit_ms]
        page = _find_member(payload, adapter.page_path) if adapter and adapter.page_path else None
        types.append(row.type)
        moments.append(row.occurred_us // 1000)
        pages.append(page)
        timings.append(timing)
    return types, moments, pages, timings


def _find_member(payload: Any, path: Sequence[str]) -> Any:
    for name in path:
        payload = payload.get(name) if isinstance(payload, dict) else None
    return payload


# Elasticsearch mapping ------------------------------------------------------------------------

_DATE_FIELD = {"type": "date", "format": "epoch_millis"}
_KEYWORD_FIELD = {"type": "keyword", "ignore_above": 1024}
_LONG_FIELD = {"type": "long"}
_ITEM_FIELDS = {
    "type": _KEYWORD_FIELD, "name": _KEYWORD_FIELD, "application": _KEYWORD_FIELD,
    "targetUrl": _KEYWORD_FIELD,
    "startTime": _DATE_FIELD, "endTime": _DATE_FIELD, "duration": _LONG_FIELD,
}  # fmt: skip
ELASTICSEARCH_MAPPING: dict[str, Any] = {
    "mappings": {
        "dynamic_templates": [
            {"string_tags": {"path_match": "stringTags.*", "mapping": _KEYWORD_FIELD}},
            {"num_tags": {"path_match": "numTags.*", "mapping": {"type": "double"}}},
            {"date_tags": {"path_match": "dateTags.*", "mapping": _DATE_FIELD}},
            {"words": {"match_mapping_type": "string", "mapping": _KEYWORD_FIELD}},
        ],
        "properties": {
            "tenantId": _KEYWORD_FIELD,
            "userSessionId": _KEYWORD_FIELD,
            "startTime": _DATE_FIELD,
            "endTime": _DATE_FIELD,
            "duration": _LONG_FIELD,
            "internalUserId": _KEYWORD_FIELD,
            "userId": _KEYWORD_FIELD,
            "userType": _KEYWORD_FIELD,
            "applicationType": _KEYWORD_FIELD,
            "bounce": {"type": "boolean"},
            "newUser": {"type": "boolean"},
            "hasCrash": {"type": "boolean"},
            "userActionCount": _LONG_FIELD,
            "totalErrorCount": _LONG_FIELD,
            "landingPageUrl": _KEYWORD_FIELD,
            "parentId": _KEYWORD_FIELD,
            "version": _LONG_FIELD,
            "ip": {"type": "ip", "ignore_malformed": True},
            "senderSessionId": _KEYWORD_FIELD,
            "screenHeight": _LONG_FIELD,
            "screenWidth": _LONG_FIELD,
            "userActions": {"properties": _ITEM_FIELDS},
            "events": {"properties": _ITEM_FIELDS},
            "errors": {"properties": _ITEM_FIELDS},
        },
    }
}
