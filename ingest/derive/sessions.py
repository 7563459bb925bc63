"""Derives sessions: those that senders name, and chains of a device's other events.

The rule does not depend on the order of arrival:

1. Events of one application and device that name a session are that session, however long.
2. Its other events, each within `MAX_GAP` of the next, are a chain.
3. A chain of up to `MAX_SPAN` from first to last is one session.
4. A longer chain splits at 00:00, 06:00, 12:00 and 18:00 UTC, so that each part is a session of up
   to `MAX_SPAN`, whichever events arrived first.

A session keeps its sums by quarter of the day (`Bucket`), or one sum where it is named. A late
event then needs no other event: chains merge or split by regrouping their buckets. A session that
its sender made (DESK) is stored as it is.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
from django.db import models
from django.db.models.functions import Cast

from ingest.adapters import has_client_sessions
from ingest.adapters.fields import MAX_TEXT, bounded_text
from ingest.db.clock import read_clock
from ingest.db.upsert import bulk_upsert
from ingest.events import EventContext, event_identity
from ingest.feed.values import EventRow
from ingest.models import Session
from ingest.times import EPOCH, from_microseconds

HOUR_MICROSECONDS = 3_600_000_000  # all times here are microseconds since 1970
MAX_GAP = HOUR_MICROSECONDS // 2
MAX_SPAN = 6 * HOUR_MICROSECONDS
SEARCH_MARGIN = MAX_SPAN + MAX_GAP  # no event further away can be of the same session
MAX_TYPES = 100  # counted by type in a session; further types are counted together
OTHER_TYPES = ""

TimedText = tuple[int, str]  # the time and the text
Owner = tuple[int | None, str, str]  # the application, the device, the session that events name


def make_session_key(application_id: int | None, device_id: str, sender_session_id: str) -> UUID:
    """Returns the key of a session that its sender names."""
    parts = ("session", str(application_id or ""), device_id, sender_session_id)
    return UUID(bytes=event_identity(None, *parts))


class Bucket(msgspec.Struct, array_like=True, eq=False):
    """Sums over a session's events within one quarter of a day, or over all of a named one."""

    first_occurred: int
    last_occurred: int
    event_count: int
    answer_count: int
    types: dict[str, int]
    sender_session: TimedText | None  # the first session id
    landing_url: TimedText | None  # the first page
    last_user: TimedText | None  # the last user
    details: dict[str, tuple[int, Any]] = {}  # by name: the time and the first value

    @property
    def quarter(self) -> int:
        return self.first_occurred // MAX_SPAN

    def add(self, other: "Bucket") -> None:
        self.first_occurred = min(self.first_occurred, other.first_occurred)
        self.last_occurred = max(self.last_occurred, other.last_occurred)
        self.event_count += other.event_count
        self.answer_count += other.answer_count
        for type_, count in other.types.items():
            self._count(type_, count)
        self.sender_session = _pick_earlier(self.sender_session, other.sender_session)
        self.landing_url = _pick_earlier(self.landing_url, other.landing_url)
        self.last_user = _pick_later(self.last_user, other.last_user)
        for name, timed in other.details.items():
            self.details[name] = min(self.details.get(name, timed), timed)

    def remove_event(self, row: EventRow) -> None:
        """Counts one event less. The span stays, since the earlier version did happen."""
        self.event_count -= 1
        self.answer_count -= row.is_answer
        self._count(row.type if row.type in self.types else OTHER_TYPES, -1)

    def _count(self, type_: str, count: int) -> None:
        if type_ not in self.types and len(self.types) >= MAX_TYPES:
            type_ = OTHER_TYPES
        self.types[type_] = self.types.get(type_, 0) + count
        if self.types[type_] <= 0:
            del self.types[type_]


def _pick_earlier(one: TimedText | None, other: TimedText | None) -> TimedText | None:
    return min(one, other) if one and other else one or other


def _pick_later(one: TimedText | None, other: TimedText | None) -> TimedText | None:
    return max(one, other) if one and other else one or other


@dataclass(slots=True, eq=False)
class SessionRecord:
    """A session's row in memory."""

    key: UUID
    version: int
    application_id: int | None
    device_id: str
    is_client_session: bool = False
    user_id: str = ""
    sender_session_id: str = ""
    landing_url: str = ""
    started_at: datetime = EPOCH
    ended_at: datetime = EPOCH
    closes_at: datetime = EPOCH
    event_count: int = 0
    answer_count: int = 0
    types: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    buckets: list[Bucket] = field(default_factory=list)
    parent_id: int | None = None
    id: int | None = None


@dataclass(slots=True, eq=False)
class BucketRef:
    """A bucket and its session, None for new events."""

    bucket: Bucket
    session: SessionRecord | None


def derive(
    channel_id: int,
    rows: Sequence[tuple[EventRow, EventContext]],
    superseded: Iterable[EventRow],
    position: int,
    closes_by: datetime,
) -> int:
    """Adds events to a channel's sessions. Returns the number of new and changed sessions.

    A session that closes at `closes_by`, the arrival of the last event, or before is closed.
    """
    new_events: dict[Owner, list[tuple[int, EventRow, EventContext]]] = defaultdict(list)
    superseded_events: dict[Owner, list[tuple[int, EventRow]]] = defaultdict(list)
    client_sessions: dict[UUID, SessionRecord] = {}
    for row, context in rows:
        if has_client_sessions(row.source):
            if row.type == "session":
                client_sessions[UUID(row.identity)] = _read_client_session(row, context)
        elif 0 < len(row.device_id) <= MAX_TEXT:
            owner = (row.application_id, row.device_id, row.session_id)
            new_events[owner].append((row.occurred_us, row, context))
    for row in superseded:
        if row.device_id and not has_client_sessions(row.source):
            owner = (row.application_id, row.device_id, row.session_id)
            superseded_events[owner].append((row.occurred_us, row))

    sessions_by_owner = _load_sessions(channel_id, new_events, superseded_events)
    changed: dict[UUID, SessionRecord] = {}
    for owner in new_events.keys() | superseded_events.keys():
        refs = [
            BucketRef(bucket, session)
            for session in sessions_by_owner.get(owner, ())
            for bucket in session.buckets
        ]
        refs += [BucketRef(bucket, None) for bucket in _build_buckets(new_events.get(owner, ()))]
        changed_sessions = _assign_buckets(owner, refs, sessions_by_owner.get(owner, ()))
        for occurred, row in superseded_events.get(owner, ()):
            _remove_superseded(refs, occurred, row, changed_sessions)
        for session, parent in changed_sessions.values():
            _update_session(session, [ref.bucket for ref in refs if ref.session is session], parent)
            if session.buckets or session.version:  # else each of its events moved away already
                changed[session.key] = session
    _merge_client_sessions(channel_id, client_sessions, changed)
    _upsert_sessions(channel_id, changed.values(), position, closes_by)
    return len(changed)


def _build_buckets(events: Iterable[tuple[int, EventRow, EventContext]]) -> list[Bucket]:
    """Returns the sums of new events of an owner."""
    buckets: list[Bucket] = []
    for occurred, row, context in sorted(events, key=lambda event: event[0]):
        bucket = Bucket(
            occurred,
            occurred,
            1,
            int(row.is_answer),
            {row.type: 1},
            (occurred, row.session_id) if row.session_id else None,
            (occurred, context.url) if context.url else None,
            (occurred, context.user_id) if context.user_id else None,
            {name: (occurred, value) for name, value in context.details.items()},
        )
        if (
            buckets
            and occurred - buckets[-1].last_occurred <= MAX_GAP
            and buckets[-1].quarter == bucket.quarter
        ):
            buckets[-1].add(bucket)
        else:
            buckets.append(bucket)
    return buckets


# by id(): a session and its parent
ChangedSessions = dict[int, tuple[SessionRecord, SessionRecord | None]]


def _assign_buckets(
    owner: Owner, refs: list[BucketRef], sessions: Sequence[SessionRecord]
) -> ChangedSessions:
    """Merges and splits sessions with new events: gives every bucket its session.

    `refs` is replaced by the buckets that remain.
    """
    changed: ChangedSessions = {}
    remaining: list[BucketRef] = []
    is_named = owner[2] != ""
    for chain in [refs] if is_named and refs else _split_chains(refs):
        if all(ref.session for ref in chain):
            remaining += chain  # no new event; the chain may continue outside of the loaded span
            continue
        is_long = not is_named and (
            max(ref.bucket.last_occurred for ref in chain) - chain[0].bucket.first_occurred
            > MAX_SPAN
        )
        groups: dict[int, list[BucketRef]] = defaultdict(list)
        for ref in chain:
            groups[ref.bucket.quarter if is_long else 0].append(ref)
        first_groups: dict[int, tuple[SessionRecord, int]] = {}  # a session and its first group
        session_by_group: dict[int, SessionRecord] = {}
        for key, group in sorted(groups.items()):
            present = {id(ref.session): ref.session for ref in group if ref.session}
            old = sorted(
                present.values(), key=lambda session: (session.started_at, session.id or 0)
            )
            for candidate in old:
                first_groups.setdefault(id(candidate), (candidate, key))
                if first_groups[id(candidate)][1] != key:
                    changed[id(candidate)] = (candidate, None)  # it loses a bucket
            unassigned = (
                candidate for candidate in old if candidate not in session_by_group.values()
            )
            session = next(unassigned, None) or _make_session(owner, sessions)
            session_by_group[key] = session
            if any(ref.session is not session for ref in group):
                changed[id(session)] = (session, None)
            buckets: dict[int, BucketRef] = {}
            for ref in group:
                quarter = 0 if is_named else ref.bucket.quarter
                if merged := buckets.get(quarter):
                    merged.bucket.add(ref.bucket)
                else:
                    buckets[quarter] = ref
            remaining += [BucketRef(ref.bucket, session) for ref in buckets.values()]
        owners = {id(session) for session in session_by_group.values()}
        for identity, (candidate, key) in first_groups.items():
            if identity not in owners:
                changed[identity] = (candidate, session_by_group[key])
    refs[:] = remaining
    return changed


def _make_session(owner: Owner, sessions: Sequence[SessionRecord]) -> SessionRecord:
    """Returns a new session, or the named one that lost its events to an erasure or a resend."""
    application_id, device_id, sender_session_id = owner
    if not sender_session_id:
        return SessionRecord(uuid4(), 0, application_id, device_id)
    return (
        sessions[0]
        if sessions
        else SessionRecord(make_session_key(*owner), 0, application_id, device_id)
    )


def _split_chains(refs: list[BucketRef]) -> list[list[BucketRef]]:
    chains: list[list[BucketRef]] = []
    last = 0
    for ref in sorted(refs, key=lambda h: (h.bucket.first_occurred, h.bucket.last_occurred)):
        if chains and ref.bucket.first_occurred - last <= MAX_GAP:
            chains[-1].append(ref)
        else:
            chains.append([ref])
            last = ref.bucket.last_occurred
        last = max(last, ref.bucket.last_occurred)
    return chains


def _remove_superseded(
    refs: list[BucketRef], occurred: int, row: EventRow, changed: ChangedSessions
) -> None:
    """Removes a superseded version from the session that counts it."""
    for ref in refs:
        if (
            ref.bucket.first_occurred <= occurred <= ref.bucket.last_occurred
            and ref.session is not None
        ):
            ref.bucket.remove_event(row)
            changed.setdefault(id(ref.session), (ref.session, None))
            if ref.bucket.event_count <= 0:
                refs.remove(ref)
            return


def _update_session(
    session: SessionRecord, buckets: list[Bucket], parent: SessionRecord | None
) -> None:
    """Sets a session's columns. A session that was merged into another keeps its last ones."""
    session.buckets = buckets
    if parent is not None:
        session.parent_id = parent.id
        return
    total = Bucket(0, 0, 0, 0, {}, None, None, None)
    for bucket in buckets:
        total.add(bucket)
    session.event_count = total.event_count
    session.answer_count = total.answer_count
    session.types = total.types
    if not buckets:
        return  # all its events were resent with another time
    first, last = min(p.first_occurred for p in buckets), max(p.last_occurred for p in buckets)
    session.started_at = from_microseconds(first)
    session.ended_at = from_microseconds(last)
    session.closes_at = from_microseconds(last + MAX_GAP)
    session.sender_session_id = total.sender_session[1] if total.sender_session else ""
    session.landing_url = total.landing_url[1] if total.landing_url else ""
    session.user_id = total.last_user[1] if total.last_user else ""
    session.details = {name: value for name, (_, value) in total.details.items()}


# Client sessions ---------------------------------------------------------------------------------


class _Document(msgspec.Struct, rename="camel"):
    user_session_id: Any = None
    internal_user_id: Any = None
    start_time: Any = None
    end_time: Any = None
    user_action_count: Any = None
    user_actions: Any = None
    events: Any = None
    errors: Any = None


_decode_document = msgspec.json.Decoder(_Document).decode


def _read_client_session(row: EventRow, context: EventContext) -> SessionRecord:
    try:
        document = _decode_document(row.payload)
    except (msgspec.MsgspecError, RecursionError):
        document = _Document()
    start = _from_milliseconds(document.start_time) or from_microseconds(row.occurred_us)
    end = max(start, _from_milliseconds(document.end_time) or start)
    nested = {
        "userAction": document.user_actions,
        "event": document.events,
        "error": document.errors,
    }
    types = {name: len(items) for name, items in nested.items() if isinstance(items, list)}
    if "userAction" not in types and isinstance(document.user_action_count, int):
        types["userAction"] = min(max(document.user_action_count, 0), 1_000_000)
    types = {name: count for name, count in types.items() if count}
    return SessionRecord(
        key=UUID(row.identity),
        version=0,
        application_id=row.application_id,
        device_id=row.device_id or bounded_text(document.internal_user_id),
        user_id=context.user_id,
        is_client_session=True,
        sender_session_id=row.session_id or bounded_text(document.user_session_id),
        landing_url=context.url,
        started_at=start,
        ended_at=end,
        closes_at=end,
        event_count=sum(types.values()),
        types=types,
        details=context.details,
    )


def _from_milliseconds(value: Any) -> datetime | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return from_microseconds(int(value) * 1000) if 0 < value < 253_402_300_800_000 else None


# Rows -------------------------------------------------------------------------------------------

_COLUMNS = {
    "key": "uuid",
    "version": "int4",
    "application_id": "int4",
    "device_id": "text",
    "is_client_session": "bool",
    "user_id": "text",
    "sender_session_id": "text",
    "landing_url": "text",
    "started_at": "timestamptz",
    "ended_at": "timestamptz",
    "closes_at": "timestamptz",
    "closed": "bool",
    "event_count": "int4",
    "answer_count": "int4",
    "types": "jsonb",
    "details": "jsonb",
    "buckets": "jsonb",
    "parent_id": "int8",
    "channel_id": "int4",
    "modified_at": "timestamptz",
}
_READ = [
    *list(_COLUMNS)[:11], "event_count", "answer_count", "types_text", "details_text",
    "buckets_text", "parent_id", "id",
]  # fmt: skip
_DAY = 24 * HOUR_MICROSECONDS

_decode_types = msgspec.json.Decoder(dict[str, int]).decode
_decode_details = msgspec.json.Decoder(dict[str, Any]).decode
_decode_buckets = msgspec.json.Decoder(list[Bucket]).decode
_encode = msgspec.json.Encoder().encode


def _load_sessions(channel_id: int, *times: dict[Owner, Any]) -> dict[Owner, list[SessionRecord]]:
    """Returns the sessions that events of these times may belong to, by owner."""
    spans: dict[Owner, tuple[int, int]] = {}
    named: dict[UUID, Owner] = {}
    for events_by_owner in times:
        for owner, events in events_by_owner.items():
            if owner[2]:
                named[make_session_key(*owner)] = owner
                continue
            first, last = min(e[0] for e in events), max(e[0] for e in events)
            if owner in spans:
                first, last = min(first, spans[owner][0]), max(last, spans[owner][1])
            spans[owner] = first, last
    sessions: dict[Owner, list[SessionRecord]] = defaultdict(list)
    for record in _read_records(Session.objects.filter(channel_id=channel_id, key__in=named)):
        owner = named[record.key]
        record.application_id, record.device_id, _ = owner  # an erasure emptied the device
        sessions[owner].append(record)
    # by day, so that the old events of one device widen the search for few others
    days: dict[tuple[int, int], list[Owner]] = defaultdict(list)
    for owner, (first, last) in spans.items():
        days[first // _DAY, last // _DAY].append(owner)
    for owners in days.values():
        rows = Session.objects.filter(
            channel_id=channel_id,
            parent=None,
            is_client_session=False,
            sender_session_id="",
            device_id__in={device_id for _, device_id, _ in owners},
            ended_at__gte=from_microseconds(
                min(spans[owner][0] for owner in owners) - SEARCH_MARGIN
            ),
            started_at__lte=from_microseconds(
                max(spans[owner][1] for owner in owners) + SEARCH_MARGIN
            ),
        )
        for record in _read_records(rows):
            sessions[record.application_id, record.device_id, ""].append(record)
    return sessions


def _read_records(rows: "models.QuerySet[Session]") -> Iterator[SessionRecord]:
    texts = rows.annotate(
        types_text=Cast("types", models.TextField()),
        details_text=Cast("details", models.TextField()),
        buckets_text=Cast("buckets", models.TextField()),
    )
    for row in texts.values_list(*_READ):
        record = SessionRecord(*row)
        record.types = _decode_types(row[13])
        record.details = _decode_details(row[14])
        record.buckets = _decode_buckets(row[15])
        yield record


def _merge_client_sessions(
    channel_id: int, client_sessions: dict[UUID, SessionRecord], changed: dict[UUID, SessionRecord]
) -> None:
    """Adds client sessions; a resent one replaces its former version."""
    if not client_sessions:
        return
    current = Session.objects.filter(channel_id=channel_id, key__in=client_sessions)
    for key, version in current.values_list("key", "version"):
        client_sessions[key].version = version
    changed |= client_sessions


def _upsert_sessions(
    channel_id: int, records: Collection[SessionRecord], position: int, closes_by: datetime
) -> None:
    now = read_clock()
    rows = [
        (
            r.key, r.version + 1, r.application_id, r.device_id, r.is_client_session, r.user_id,
            r.sender_session_id, r.landing_url, r.started_at, r.ended_at, r.closes_at,
            r.closes_at <= closes_by, r.event_count, r.answer_count, _encode(r.types).decode(),
            _encode(r.details).decode(), _encode(r.buckets).decode(), r.parent_id, channel_id, now,
        )
        for r in records
    ]  # fmt: skip
    bulk_upsert("ingest_session", _COLUMNS, ("channel_id", "key"), rows, position)
