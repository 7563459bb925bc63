"""Users: who an event names, or the device where it names nobody.

Every attribute keeps the value that was set last by its own time, whichever arrived last; of two
set at one moment the greater text stays, so that no order of arrival matters.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from django.db import models
from django.db.models.functions import Cast
from django.utils import timezone

from ingest.adapters.fields import MAX_TEXT
from ingest.db.upsert import upsert
from ingest.events import Traits
from ingest.feed.values import Arrived
from ingest.models import AppUser
from ingest.times import moment

MAX_ATTRIBUTES = 500  # of a user; further names are not kept

Identity = tuple[str, bool]  # the identifier, and whether it is a device's


class Attribute(msgspec.Struct):
    value: Any
    set_at: int  # microseconds since 1970


_attributes = msgspec.json.Decoder(dict[str, Attribute]).decode
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Seen:
    """What a step of the feed tells of a user."""

    first: int
    last: int
    device: tuple[int, str] | None = None  # the first one
    attributes: dict[str, tuple[Any, int]] = field(default_factory=dict)


@dataclass(slots=True)
class Record:
    """A user's row while it is worked on."""

    identifier: str
    anonymous: bool
    version: int
    user_id: str
    device_id: str
    device_seen_at: datetime | None
    first_seen_at: datetime
    last_seen_at: datetime
    attributes: dict[str, Attribute]


_COLUMNS = {
    "identifier": "text",
    "anonymous": "bool",
    "version": "int4",
    "user_id": "text",
    "device_id": "text",
    "device_seen_at": "timestamptz",
    "first_seen_at": "timestamptz",
    "last_seen_at": "timestamptz",
    "attributes": "jsonb",
    "channel_id": "int4",
    "modified_at": "timestamptz",
}
_READ = [*list(_COLUMNS)[:8], "attributes_text"]


def derive(channel_id: int, rows: Sequence[tuple[Arrived, Traits]], position: int) -> int:
    """Brings a channel's users up to these events; how many were made or changed."""
    seen = _seen(rows)
    if not seen:
        return 0
    known = _known(channel_id, seen)
    changed: list[Record] = []
    for identity, what in seen.items():
        user = known.get(identity)
        if user is None:
            user = _made(identity, what)
            _changes(user, what)
            changed.append(user)
        elif _changes(user, what):
            changed.append(user)
    now = timezone.now()
    written = [
        (
            u.identifier, u.anonymous, u.version + 1, u.user_id, u.device_id, u.device_seen_at,
            u.first_seen_at, u.last_seen_at, _encode(u.attributes).decode(), channel_id, now,
        )
        for u in changed
    ]  # fmt: skip
    unique = ("channel_id", "identifier", "anonymous")
    upsert("ingest_appuser", _COLUMNS, unique, written, position)
    return len(changed)


def _known(channel_id: int, seen: Iterable[Identity]) -> dict[Identity, Record]:
    found = AppUser.objects.filter(
        channel_id=channel_id, identifier__in={identifier for identifier, _ in seen}
    ).annotate(attributes_text=Cast("attributes", models.TextField()))
    known: dict[Identity, Record] = {}
    for row in found.values_list(*_READ):
        user = known[row[0], row[1]] = Record(*row)
        user.attributes = _attributes(row[8])
    return known


def _seen(rows: Sequence[tuple[Arrived, Traits]]) -> dict[Identity, Seen]:
    seen: dict[Identity, Seen] = {}
    for row, traits in rows:
        if row.dialect == "desk" and row.type != "session":
            continue  # its session tells of the user
        device = row.device_id if len(row.device_id) <= MAX_TEXT else ""
        identity = (traits.user_id, False) if traits.user_id else (device, True)
        if not identity[0]:
            continue
        at = row.occurred
        what = seen.get(identity)
        if what is None:
            what = seen[identity] = Seen(at, at)
        elif at < what.first:
            what.first = at
        elif at > what.last:
            what.last = at
        if device and (what.device is None or (at, device) < what.device):
            what.device = (at, device)
        for name, told in traits.attributes.items():
            if name not in what.attributes or _wins(told, what.attributes[name]):
                what.attributes[name] = told
    return seen


_sorted = msgspec.json.Encoder(order="sorted").encode


def _wins(told: tuple[Any, int], known: tuple[Any, int]) -> bool:
    if told[1] != known[1]:
        return told[1] > known[1]
    return _sorted(told[0]) > _sorted(known[0])


def _made(identity: Identity, what: Seen) -> Record:
    identifier, anonymous = identity
    return Record(
        identifier=identifier,
        anonymous=anonymous,
        version=0,
        user_id="" if anonymous else identifier,
        device_id="",
        device_seen_at=None,
        first_seen_at=moment(what.first),
        last_seen_at=moment(what.last),
        attributes={},
    )


def _changes(user: Record, what: Seen) -> bool:
    changed = False
    if (first := moment(what.first)) < user.first_seen_at:
        user.first_seen_at, changed = first, True
    if (last := moment(what.last)) > user.last_seen_at:
        user.last_seen_at, changed = last, True
    if what.device is not None:
        seen_at, device = moment(what.device[0]), what.device[1]
        known_at = user.device_seen_at
        if known_at is None or (seen_at, device) < (known_at, user.device_id):
            user.device_seen_at, user.device_id, changed = seen_at, device, True
    for name, (value, at) in what.attributes.items():
        known = user.attributes.get(name)
        if known is None:
            if len(user.attributes) >= MAX_ATTRIBUTES or len(name) > MAX_TEXT:
                continue
        elif not _wins((value, at), (known.value, known.set_at)):
            continue
        user.attributes[name] = Attribute(value, at)
        changed = True
    return changed
