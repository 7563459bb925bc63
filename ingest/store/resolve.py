"""Completes events from stored ones: the identity of a version, the device of an alias.

An alias is a further name of a device in its application: Skalin's e-mail beside an id. An event
that names the alias alone gets the device. Stored ones get it as soon as both are sent together.
"""

import json
from collections.abc import Sequence
from typing import Any

from django.db import connection, models
from django.db.models.functions import Cast
from msgspec import structs

from ingest.events import Batch, Event
from ingest.models import StoredEvent

MAX_MOVED = 1_000  # stored events that one batch moves to their device; the next one moves more


def needs_stored_events(batch: Batch) -> bool:
    return batch.last_wins and any(event.alias or event.other_identity for event in batch.events)


def resolve_events(application_id: int | None, events: Sequence[Event]) -> list[Event]:
    """Returns the events with their stored identities and devices, in their order."""
    identities, aliases = list_names(events)
    types = _find_types({identity.hex() for identity in identities})
    return complete_events(events, types, _find_devices(application_id, aliases))


def list_names(events: Sequence[Event]) -> tuple[set[bytes], set[str]]:
    """Returns the identities and the aliases that have to be looked up."""
    identities = {each for e in events if e.other_identity for each in _list_identities(e)}
    linked = {event.alias for event in events if _is_linked(event)}
    return identities, {event.alias for event in events} - linked - {""}


def complete_events(
    events: Sequence[Event], types: dict[str, str], stored_devices: dict[str, str]
) -> list[Event]:
    """Returns the events with what was found of their identities, in hexadecimal, and aliases."""
    devices = {event.alias: event.device_id for event in events if _is_linked(event)}
    devices |= stored_devices
    return [
        structs.replace(
            event,
            identity=_choose_identity(event, types) if event.other_identity else event.identity,
            device_id=(
                devices.get(event.alias, event.device_id)
                if event.device_id == event.alias
                else event.device_id
            ),
        )
        for event in events
    ]


def _list_identities(event: Event) -> tuple[bytes, bytes]:
    return event.identity, event.other_identity


def _choose_identity(event: Event, types: dict[str, str]) -> bytes:
    """Returns the identity of a stored version, or the first one that no other type has."""
    for identity in _list_identities(event):
        if types.get(identity.hex()) == event.type:
            return identity
    return event.other_identity if event.identity.hex() in types else event.identity


def find_misplaced(channel_id: int, batch: Batch) -> Batch | None:
    """Returns stored events under an alias, as versions of the device that the batch names."""
    devices = {event.alias: event.device_id for event in batch.events if _is_linked(event)}
    if not devices:
        return None
    rows = (
        StoredEvent.objects.filter(
            channel_id=channel_id,
            application=batch.application_id,
            source=batch.source,
            device_id__in=devices,
            superseded_xid=None,
        )
        # as the index has them, or SQLite does not use it
        .exclude(device_id="")
        .exclude(source="desk")
        .annotate(text=Cast("payload", models.TextField()))
    )
    events = [
        Event(
            identity=identity.bytes,
            type=type_,
            occurred_at=occurred_at,
            device_id=devices[alias],
            session_id=session_id,
            conversation="",
            is_answer=False,
            payload=text.encode(),
            note=note,
        )
        for identity, type_, occurred_at, alias, session_id, note, text in rows.values_list(
            "identity", "type", "occurred_at", "device_id", "session_id", "note", "text"
        )[:MAX_MOVED]
    ]
    return structs.replace(batch, events=events, rejections=[], profiles=()) if events else None


def find_names(channel_id: int, device_id: str) -> set[str]:
    """Returns a device id or an alias, and what stored events of the channel link to it."""
    email = _EMAIL[connection.vendor]
    # as the index of devices has them, or SQLite does not use it
    linked = f"{_IDENTITIES} AND e.device_id <> '' AND e.source <> 'desk' AND e.channel_id = %s"
    names = {device_id}
    with connection.cursor() as cursor:
        for column, key in (("e.device_id", email), (email, "e.device_id")):
            cursor.execute(
                f"SELECT DISTINCT {column} FROM ingest_storedevent e"  # noqa: S608
                f" WHERE {linked} AND {key} = %s LIMIT {MAX_MOVED}",
                [channel_id, device_id],
            )
            names |= {name for (name,) in cursor.fetchall() if name}
    return names


def _is_linked(event: Event) -> bool:
    return event.alias not in {"", event.device_id}


# the conditions of the index `storedevent_alias`
_IDENTITIES = "e.source = 'skalin' AND e.type = 'identity' AND e.superseded_xid IS NULL"
_EMAIL = {
    "postgresql": "(e.payload #>> '{identity,email}')",
    "sqlite": "(e.payload ->> '$.identity.email')",
}


_TYPE_OF = "SELECT e.type FROM ingest_storedevent e WHERE e.superseded_xid IS NULL"
_DEVICE_OF = f"SELECT e.device_id FROM ingest_storedevent e WHERE {_IDENTITIES}"  # noqa: S608
_LAST = "ORDER BY e.id DESC LIMIT 1"
# on the event loop, whose connection always looks up an index
TYPES_STATEMENT = f"""
SELECT name.i, ({_TYPE_OF} AND e.identity = name.i) FROM unnest(%(i)b) AS name(i)
"""  # noqa: S608
DEVICES_STATEMENT = f"""
SELECT name.c, (
    {_DEVICE_OF} AND e.application_id = %(application)s
    AND {_EMAIL["postgresql"]} = name.c AND e.device_id <> name.c {_LAST}
) FROM unnest(%(c)b) AS name(c)
"""  # noqa: S608


def _find_types(identities: set[str]) -> dict[str, str]:
    """Returns the types of current events by their identities, in hexadecimal."""
    cast = "::uuid" if connection.vendor == "postgresql" else ""
    return _look_up(identities, f"{_TYPE_OF} AND e.identity = name.value{cast}")


def _find_devices(application_id: int | None, aliases: set[str]) -> dict[str, str]:
    """Returns the device that was last sent together with each alias."""
    return _look_up(
        aliases,
        f"{_DEVICE_OF} AND e.application_id = %s AND {_EMAIL[connection.vendor]} = name.value"
        f" AND e.device_id <> name.value {_LAST}",
        application_id,
    )


def _look_up(names: set[str], subquery: str, *parameters: Any) -> dict[str, str]:
    """Returns what a subquery finds for each name.

    Each call is planned anew: a connection would keep a plan made while the table was small.
    """
    if not names:
        return {}
    each_name = (
        "jsonb_array_elements_text(%s) AS name(value)"
        if connection.vendor == "postgresql"
        else "json_each(%s) AS name"
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT name.value, ({subquery}) FROM {each_name}",  # noqa: S608
            [*parameters, json.dumps(sorted(names))],
        )
        return {name: found for name, found in cursor.fetchall() if found}
