"""Derives users: the user that an event names, or the device of events without one.

An attribute keeps the value that was set last by its own time. Of two values set at one moment the
greater text stays, so the order of arrival does not matter.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from django.db import models
from django.db.models.functions import Cast

from ingest.adapters import has_client_sessions
from ingest.adapters.fields import MAX_TEXT
from ingest.db.clock import read_clock
from ingest.db.upsert import bulk_upsert
from ingest.events import EventContext
from ingest.feed.values import EventRow
from ingest.models import AppUser, StoredEvent
from ingest.times import from_microseconds

MAX_ATTRIBUTES = 500  # of a user; further ones are ignored

Identity = tuple[str, bool]  # the identifier, and whether it is a device


class Attribute(msgspec.Struct):
    value: Any
    set_at: int  # microseconds since 1970


_decode_attributes = msgspec.json.Decoder(dict[str, Attribute]).decode
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Observation:
    """The values of a user in a step of the feed."""

    first: int
    last: int
    device: tuple[int, str] | None = None  # the first one
    attributes: dict[str, tuple[Any, int]] = field(default_factory=dict)


@dataclass(slots=True)
class UserRecord:
    """A user's row in memory."""

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


def derive(channel_id: int, rows: Sequence[tuple[EventRow, EventContext]], position: int) -> int:
    """Adds events to a channel's users. Returns the number of new and changed users."""
    observations = _observe_users(rows)
    if not observations:
        return 0
    users = _load_users(channel_id, observations)
    changed: list[UserRecord] = []
    for identity, observation in observations.items():
        user = users.get(identity)
        if user is None:
            user = _new_user(identity, observation)
            _apply_observation(user, observation)
            changed.append(user)
        elif _apply_observation(user, observation):
            changed.append(user)
    now = read_clock()
    rows_written = [
        (
            u.identifier, u.anonymous, u.version + 1, u.user_id, u.device_id, u.device_seen_at,
            u.first_seen_at, u.last_seen_at, _encode(u.attributes).decode(), channel_id, now,
        )
        for u in changed
    ]  # fmt: skip
    unique = ("channel_id", "identifier", "anonymous")
    bulk_upsert("ingest_appuser", _COLUMNS, unique, rows_written, position)
    return len(changed)


def delete_moved(channel_id: int, rows: Iterable[EventRow], superseded: Sequence[EventRow]) -> None:
    """Deletes users of which no event is left, since all of them are another user's by now."""
    if not superseded:
        return
    devices = {row.identity: row.device_id for row in rows}
    for device_id in {
        old.device_id
        for old in superseded
        if old.device_id and devices.get(old.identity, old.device_id) not in {"", old.device_id}
    }:
        left = StoredEvent.objects.filter(
            channel_id=channel_id, device_id=device_id, superseded_xid=None
        )
        # these conditions are those of the index, which device_id alone would not use
        if not left.exclude(device_id="").exclude(source="desk").exists():
            AppUser.objects.filter(
                channel_id=channel_id, identifier=device_id, device_id=device_id
            ).delete()


def _load_users(channel_id: int, identities: Iterable[Identity]) -> dict[Identity, UserRecord]:
    rows = AppUser.objects.filter(
        channel_id=channel_id, identifier__in={identifier for identifier, _ in identities}
    ).annotate(attributes_text=Cast("attributes", models.TextField()))
    users: dict[Identity, UserRecord] = {}
    for row in rows.values_list(*_READ):
        user = users[row[0], row[1]] = UserRecord(*row)
        user.attributes = _decode_attributes(row[8])
    return users


def _observe_users(rows: Sequence[tuple[EventRow, EventContext]]) -> dict[Identity, Observation]:
    observations: dict[Identity, Observation] = {}
    for row, context in rows:
        if has_client_sessions(row.source) and row.type != "session":
            continue  # its session names the user
        device = row.device_id if len(row.device_id) <= MAX_TEXT else ""
        identity = (context.user_id, False) if context.user_id else (device, True)
        if not identity[0]:
            continue
        occurred = row.occurred_us
        observation = observations.get(identity)
        if observation is None:
            observation = observations[identity] = Observation(occurred, occurred)
        elif occurred < observation.first:
            observation.first = occurred
        elif occurred > observation.last:
            observation.last = occurred
        if device and (observation.device is None or (occurred, device) < observation.device):
            observation.device = (occurred, device)
        for name, attribute in context.attributes.items():
            if name not in observation.attributes or _is_newer(
                attribute, observation.attributes[name]
            ):
                observation.attributes[name] = attribute
    return observations


_encode_sorted = msgspec.json.Encoder(order="sorted").encode


def _is_newer(attribute: tuple[Any, int], known: tuple[Any, int]) -> bool:
    if attribute[1] != known[1]:
        return attribute[1] > known[1]
    return _encode_sorted(attribute[0]) > _encode_sorted(known[0])


def _new_user(identity: Identity, observation: Observation) -> UserRecord:
    identifier, anonymous = identity
    return UserRecord(
        identifier=identifier,
        anonymous=anonymous,
        version=0,
        user_id="" if anonymous else identifier,
        device_id="",
        device_seen_at=None,
        first_seen_at=from_microseconds(observation.first),
        last_seen_at=from_microseconds(observation.last),
        attributes={},
    )


def _apply_observation(user: UserRecord, observation: Observation) -> bool:
    changed = False
    if (first := from_microseconds(observation.first)) < user.first_seen_at:
        user.first_seen_at, changed = first, True
    if (last := from_microseconds(observation.last)) > user.last_seen_at:
        user.last_seen_at, changed = last, True
    if observation.device is not None:
        seen_at, device = from_microseconds(observation.device[0]), observation.device[1]
        known_at = user.device_seen_at
        if known_at is None or (seen_at, device) < (known_at, user.device_id):
            user.device_seen_at, user.device_id, changed = seen_at, device, True
    for name, (value, set_at) in observation.attributes.items():
        known = user.attributes.get(name)
        if known is None:
            if len(user.attributes) >= MAX_ATTRIBUTES or len(name) > MAX_TEXT:
                continue
        elif not _is_newer((value, set_at), (known.value, known.set_at)):
            continue
        user.attributes[name] = Attribute(value, set_at)
        changed = True
    return changed
