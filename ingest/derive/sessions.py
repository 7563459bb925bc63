"""Sessions: what belongs together of a device's events.

The rule, which knows nothing of the order of arrival:

1. Events of one application and device, each within `GAP` of its neighbours, are a chain.
2. A chain of up to `CAP` from first to last is one session.
3. A longer chain is cut at 00:00, 06:00, 12:00 and 18:00 UTC: wherever it is cut, a session of
   up to `CAP` comes out, and which events arrived first does not matter.

So that a late event needs no other event read again, a session keeps its sums by quarter of the
day (`Piece`): sessions are joined and cut by dealing pieces out anew. A session that its sender
made (DESK) is taken as it is.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
from django.db import models
from django.db.models.functions import Cast
from django.utils import timezone

from ingest.adapters.fields import MAX_TEXT, bounded_text
from ingest.db.upsert import upsert
from ingest.events import Traits
from ingest.feed.values import Arrived
from ingest.models import Session
from ingest.times import EPOCH, moment

HOUR = 3_600_000_000  # all times here are microseconds since 1970
GAP = HOUR // 2
CAP = 6 * HOUR
REACH = CAP + GAP  # no event further away can be of the same session
MAX_TYPES = 100  # told apart in a session; the rest is counted together
OTHER = ""

Said = tuple[int, str]  # when, what
Device = tuple[int | None, str]  # the application, the device's id


class Piece(msgspec.Struct, array_like=True, eq=False):
    """Sums over a session's events within one quarter of a day."""

    first: int
    last: int
    events: int
    answers: int
    types: dict[str, int]
    sender: Said | None  # the first session id said
    url: Said | None  # the first page
    user: Said | None  # the last user

    @property
    def quarter(self) -> int:
        return self.first // CAP

    def add(self, other: "Piece") -> None:
        self.first = min(self.first, other.first)
        self.last = max(self.last, other.last)
        self.events += other.events
        self.answers += other.answers
        for type_, count in other.types.items():
            self._count(type_, count)
        self.sender = _earlier(self.sender, other.sender)
        self.url = _earlier(self.url, other.url)
        self.user = _later(self.user, other.user)

    def take_away(self, row: Arrived) -> None:
        """One event less. The span stays: what an earlier version told did happen."""
        self.events -= 1
        self.answers -= row.is_answer
        self._count(row.type if row.type in self.types else OTHER, -1)

    def _count(self, type_: str, count: int) -> None:
        if type_ not in self.types and len(self.types) >= MAX_TYPES:
            type_ = OTHER
        self.types[type_] = self.types.get(type_, 0) + count
        if self.types[type_] <= 0:
            del self.types[type_]


def _earlier(one: Said | None, other: Said | None) -> Said | None:
    return min(one, other) if one and other else one or other


def _later(one: Said | None, other: Said | None) -> Said | None:
    return max(one, other) if one and other else one or other


@dataclass(slots=True, eq=False)
class Record:
    """A session's row while it is worked on."""

    key: UUID
    version: int
    application_id: int | None
    device_id: str
    given: bool = False
    user_id: str = ""
    sender_session_id: str = ""
    landing_url: str = ""
    started_at: datetime = EPOCH
    ended_at: datetime = EPOCH
    closes_at: datetime = EPOCH
    event_count: int = 0
    answer_count: int = 0
    types: dict[str, int] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    parent_id: int | None = None
    id: int | None = None


@dataclass(slots=True, eq=False)
class Held:
    """A piece and the session that has it, None for what has just arrived."""

    piece: Piece
    session: Record | None


def derive(
    channel_id: int,
    rows: Sequence[tuple[Arrived, Traits]],
    superseded: Iterable[Arrived],
    position: int,
    until: datetime,
) -> int:
    """Brings a channel's sessions up to these events; how many were made or changed.

    What closes at `until`, the arrival of the last of them, or before is closed.
    """
    arrived: dict[Device, list[tuple[int, Arrived, Traits]]] = defaultdict(list)
    withdrawn: dict[Device, list[tuple[int, Arrived]]] = defaultdict(list)
    given: dict[UUID, Record] = {}
    for row, traits in rows:
        if row.dialect == "desk":
            if row.type == "session":
                given[UUID(row.identity)] = _given(row, traits)
        elif 0 < len(row.device_id) <= MAX_TEXT:
            of = (row.application_id, row.device_id)
            arrived[of].append((row.occurred, row, traits))
    for row in superseded:
        if row.dialect != "desk" and row.device_id:
            withdrawn[row.application_id, row.device_id].append((row.occurred, row))

    known = _known(channel_id, arrived, withdrawn)
    changed: dict[UUID, Record] = {}
    for device in arrived.keys() | withdrawn.keys():
        holds = [
            Held(piece, session) for session in known.get(device, ()) for piece in session.pieces
        ]
        holds += [Held(piece, None) for piece in _pieces(arrived.get(device, ()))]
        touched = _deal(device, holds)
        for at, row in withdrawn.get(device, ()):
            _withdraw(holds, at, row, touched)
        for session, parent in touched.values():
            _sum(session, [held.piece for held in holds if held.session is session], parent)
            changed[session.key] = session
    _replace(channel_id, given, changed)
    _write(channel_id, changed.values(), position, until)
    return len(changed)


def _pieces(events: Iterable[tuple[int, Arrived, Traits]]) -> list[Piece]:
    """What has arrived of a device, summed."""
    pieces: list[Piece] = []
    for at, row, traits in sorted(events, key=lambda event: event[0]):
        one = Piece(
            at,
            at,
            1,
            int(row.is_answer),
            {row.type: 1},
            (at, row.session_id) if row.session_id else None,
            (at, traits.url) if traits.url else None,
            (at, traits.user_id) if traits.user_id else None,
        )
        if pieces and at - pieces[-1].last <= GAP and pieces[-1].quarter == one.quarter:
            pieces[-1].add(one)
        else:
            pieces.append(one)
    return pieces


Touched = dict[int, tuple[Record, Record | None]]  # by id(): a session and its parent


def _deal(device: Device, holds: list[Held]) -> Touched:
    """Joins and cuts where something arrived: gives every piece its session.

    `holds` keeps the pieces that remain of it.
    """
    touched: Touched = {}
    remaining: list[Held] = []
    for chain in _chains(holds):
        if all(held.session for held in chain):
            remaining += chain  # nothing new, and the chain may go on where nobody looked
            continue
        long = max(held.piece.last for held in chain) - chain[0].piece.first > CAP
        groups: dict[int, list[Held]] = defaultdict(list)
        for held in chain:
            groups[held.piece.quarter if long else 0].append(held)
        before: dict[int, tuple[Record, int]] = {}  # who was there, and its first group
        taken: dict[int, Record] = {}  # by group
        for key, group in sorted(groups.items()):
            there = {id(held.session): held.session for held in group if held.session}
            old = sorted(there.values(), key=lambda session: (session.started_at, session.id or 0))
            for each in old:
                before.setdefault(id(each), (each, key))
                if before[id(each)][1] != key:
                    touched[id(each)] = (each, None)  # it loses a part
            free = (each for each in old if each not in taken.values())
            session = taken[key] = next(free, None) or _made(device)
            if any(held.session is not session for held in group):
                touched[id(session)] = (session, None)
            pieces: dict[int, Held] = {}
            for held in group:
                if kept := pieces.get(held.piece.quarter):
                    kept.piece.add(held.piece)
                else:
                    pieces[held.piece.quarter] = held
            remaining += [Held(held.piece, session) for held in pieces.values()]
        owners = {id(session) for session in taken.values()}
        for identity, (each, key) in before.items():
            if identity not in owners:
                touched[identity] = (each, taken[key])
    holds[:] = remaining
    return touched


def _made(device: Device) -> Record:
    return Record(uuid4(), 0, *device)


def _chains(holds: list[Held]) -> list[list[Held]]:
    chains: list[list[Held]] = []
    last = 0
    for held in sorted(holds, key=lambda h: (h.piece.first, h.piece.last)):
        if chains and held.piece.first - last <= GAP:
            chains[-1].append(held)
        else:
            chains.append([held])
            last = held.piece.last
        last = max(last, held.piece.last)
    return chains


def _withdraw(holds: list[Held], at: int, row: Arrived, touched: Touched) -> None:
    """Takes a superseded version out of the session that counts it."""
    for held in holds:
        if held.piece.first <= at <= held.piece.last and held.session is not None:
            held.piece.take_away(row)
            touched.setdefault(id(held.session), (held.session, None))
            if held.piece.events <= 0:
                holds.remove(held)
            return


def _sum(session: Record, pieces: list[Piece], parent: Record | None) -> None:
    """Sets a session's columns; one that became a part of another keeps what it last said."""
    session.pieces = pieces
    if parent is not None:
        session.parent_id = parent.id
        return
    total = Piece(0, 0, 0, 0, {}, None, None, None)
    for piece in pieces:
        total.add(piece)
    session.event_count = total.events
    session.answer_count = total.answers
    session.types = total.types
    if not pieces:
        return  # its events were all sent again with another time
    first, last = min(p.first for p in pieces), max(p.last for p in pieces)
    session.started_at = moment(first)
    session.ended_at = moment(last)
    session.closes_at = moment(last + GAP)
    session.sender_session_id = total.sender[1] if total.sender else ""
    session.landing_url = total.url[1] if total.url else ""
    session.user_id = total.user[1] if total.user else ""


# sessions made by their sender ------------------------------------------------------------------


class _Document(msgspec.Struct, rename="camel"):
    user_session_id: Any = None
    internal_user_id: Any = None
    start_time: Any = None
    end_time: Any = None
    user_action_count: Any = None
    user_actions: Any = None
    events: Any = None
    errors: Any = None


_document = msgspec.json.Decoder(_Document).decode


def _given(row: Arrived, traits: Traits) -> Record:
    try:
        said = _document(row.payload)
    except (msgspec.MsgspecError, RecursionError):
        said = _Document()
    start = _milliseconds(said.start_time) or moment(row.occurred)
    end = max(start, _milliseconds(said.end_time) or start)
    nested = {"userAction": said.user_actions, "event": said.events, "error": said.errors}
    types = {name: len(found) for name, found in nested.items() if isinstance(found, list)}
    if "userAction" not in types and isinstance(said.user_action_count, int):
        types["userAction"] = min(max(said.user_action_count, 0), 1_000_000)
    types = {name: count for name, count in types.items() if count}
    return Record(
        key=UUID(row.identity),
        version=0,
        application_id=row.application_id,
        device_id=row.device_id or bounded_text(said.internal_user_id),
        user_id=traits.user_id,
        given=True,
        sender_session_id=row.session_id or bounded_text(said.user_session_id),
        landing_url=traits.url,
        started_at=start,
        ended_at=end,
        closes_at=end,
        event_count=sum(types.values()),
        types=types,
    )


def _milliseconds(found: Any) -> datetime | None:
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return moment(int(found) * 1000) if 0 < found < 253_402_300_800_000 else None


# rows -------------------------------------------------------------------------------------------

_COLUMNS = {
    "key": "uuid",
    "version": "int4",
    "application_id": "int4",
    "device_id": "text",
    "given": "bool",
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
    "pieces": "jsonb",
    "parent_id": "int8",
    "channel_id": "int4",
    "modified_at": "timestamptz",
}
_READ = [
    *list(_COLUMNS)[:11], "event_count", "answer_count", "types_text", "pieces_text", "parent_id",
    "id",
]  # fmt: skip
_DAY = 24 * HOUR

_types = msgspec.json.Decoder(dict[str, int]).decode
_pieces_of = msgspec.json.Decoder(list[Piece]).decode
_encode = msgspec.json.Encoder().encode


def _known(channel_id: int, *times: dict[Device, Any]) -> dict[Device, list[Record]]:
    """The sessions that could have something to do with events of these times."""
    spans: dict[Device, tuple[int, int]] = {}
    for of in times:
        for device, events in of.items():
            first, last = min(e[0] for e in events), max(e[0] for e in events)
            if device in spans:
                first, last = min(first, spans[device][0]), max(last, spans[device][1])
            spans[device] = first, last
    # by day, so that what one device held back for weeks widens the search for few others
    days: dict[tuple[int, int], list[Device]] = defaultdict(list)
    for device, (first, last) in spans.items():
        days[first // _DAY, last // _DAY].append(device)
    known: dict[Device, list[Record]] = defaultdict(list)
    for devices in days.values():
        found = Session.objects.filter(
            channel_id=channel_id,
            parent=None,
            given=False,
            device_id__in={device_id for _, device_id in devices},
            ended_at__gte=moment(min(spans[device][0] for device in devices) - REACH),
            started_at__lte=moment(max(spans[device][1] for device in devices) + REACH),
        ).annotate(
            types_text=Cast("types", models.TextField()),
            pieces_text=Cast("pieces", models.TextField()),
        )
        for row in found.values_list(*_READ):
            record = Record(*row)
            record.types = _types(row[13])
            record.pieces = _pieces_of(row[14])
            known[record.application_id, record.device_id].append(record)
    return known


def _replace(channel_id: int, given: dict[UUID, Record], changed: dict[UUID, Record]) -> None:
    """A session sent again takes the place of its former version."""
    if not given:
        return
    former = Session.objects.filter(channel_id=channel_id, key__in=given)
    for key, version in former.values_list("key", "version"):
        given[key].version = version
    changed |= given


def _write(channel_id: int, records: Collection[Record], position: int, until: datetime) -> None:
    now = timezone.now()
    rows = [
        (
            r.key, r.version + 1, r.application_id, r.device_id, r.given, r.user_id,
            r.sender_session_id, r.landing_url, r.started_at, r.ended_at, r.closes_at,
            r.closes_at <= until, r.event_count, r.answer_count, _encode(r.types).decode(),
            _encode(r.pieces).decode(), r.parent_id, channel_id, now,
        )
        for r in records
    ]  # fmt: skip
    upsert("ingest_session", _COLUMNS, ("channel_id", "key"), rows, position)
