"""Parses Skalin's identities and features, up to a hundred of each at once.

Both become events whose payload is the row as sent: an identity of type `identity`, a feature of
type `feature`, with its name in the payload, since names are the sender's free text.
"""

import re
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import msgspec

from ingest.adapters import json_body
from ingest.adapters.fields import identifier
from ingest.events import (
    EARLIEST_TIME,
    Batch,
    Call,
    Event,
    Profile,
    Rejection,
    RequestError,
    event_identity,
)

SOURCE = "skalin"
MAX_ROWS = 100  # of each list
_KINDS = {"identities": "identity", "features": "feature"}


class _Bulk(msgspec.Struct):
    identities: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET
    features: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET


_decode_bulk = msgspec.json.Decoder(_Bulk).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def parse(body: bytes, call: Call) -> Batch:
    """Returns the events of a bulk body, and a profile with the email of each identity.

    A position counts the identities first. Raises `RequestError` when the body is no bulk, or when
    a list is longer than a hundred.
    """
    is_repaired = False
    try:
        rows = _split_rows(body)
    except RequestError:
        if (clean := json_body.repair(body)) == body:
            raise
        rows, is_repaired = _split_rows(clean), True
    events: list[Event] = []
    rejections: list[Rejection] = []
    profiles: list[Profile] = []
    # independent of the body, so that a replayed row joins the visit of its call
    seed = f"{call.application} {call.received_at.isoformat()}"
    visit = blake2b(seed.encode(), digest_size=8).hexdigest()
    for position, (kind, index, raw) in enumerate(rows):
        try:
            event, email = _parse_event(
                raw, _KINDS[kind], visit, position, call, is_repaired=is_repaired
            )
        except RequestError as error:
            replayable = b'{"%b":[%b]}' % (kind.encode(), raw)
            detail = f"{kind}[{index}]: {error.detail}"
            rejections.append(Rejection(position, error.reason, detail, replayable))
        else:
            events.append(event)
            if kind == "identities":
                profiles.append(
                    Profile(event.device_id, email or None, None, None, call.received_at)
                )
    return Batch(
        SOURCE,
        call.received_at,
        events,
        rejections,
        call.application_id,
        last_wins=True,
        profiles=profiles,
    )


def _split_rows(body: bytes) -> list[tuple[str, int, bytes]]:
    try:
        bulk = _decode_bulk(body)
    except msgspec.ValidationError as error:
        raise RequestError(
            "not_a_batch", f"{error}; send {{'identities': [...], 'features': [...]}}."
        ) from None
    except _UNREADABLE as error:
        raise json_body.json_error(error, body) from None
    if bulk.identities is msgspec.UNSET and bulk.features is msgspec.UNSET:
        raise RequestError("not_a_batch", "Neither 'identities' nor 'features' is there.")
    rows: list[tuple[str, int, bytes]] = []
    for kind in _KINDS:
        elements = getattr(bulk, kind) or []  # Go writes an empty list as null
        if len(elements) > MAX_ROWS:
            raise RequestError(
                "too_many",
                f"{kind} holds {len(elements)} rows; send at most {MAX_ROWS} of each list at once.",
            )
        rows.extend((kind, index, bytes(raw)) for index, raw in enumerate(elements))
    return rows


def _parse_event(
    raw: bytes, kind: str, visit: str, position: int, call: Call, *, is_repaired: bool
) -> tuple[Event, str]:
    """Returns the event and the email of its identity."""
    row, payload, note = json_body.parse_value(raw)
    if is_repaired and b"\\ufffd" in raw:
        note = json_body.REPAIRED_NOTE
    if not isinstance(row, dict):
        raise RequestError("not_an_object", f"Each {kind} is a JSON object.")
    device_id, email = _read_identity(row)
    if kind == "feature" and not identifier(row, "name"):
        raise RequestError(
            "name", "name must say which feature; in a single hit, event={'name': ...}."
        )
    event_id = identifier(row, "eventId")
    ts = identifier(row, "ts")
    content = json_body.normalize_json(
        payload
    ).decode()  # refuses numbers that only one of the databases stores
    other_identity = b""
    if event_id:
        # once both lists shared their ids; a feature keeps that identity, as stored ones have it
        of_list = event_identity(None, SOURCE, call.application, kind, event_id)
        shared = event_identity(None, SOURCE, call.application, event_id)
        identity, other_identity = (shared, of_list) if kind == "feature" else (of_list, shared)
    else:
        # Equal content is a resend. Without a ts, using a feature again tomorrow would look like
        # one too: so the minute of arrival counts.
        minute = "" if ts else call.received_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M")
        identity = event_identity(None, SOURCE, call.application, "", kind, content, minute)
    event = Event(
        identity=identity,
        type=kind,
        occurred_at=_event_time(ts, call.received_at) if ts else call.received_at,
        device_id=device_id,
        session_id=identifier(row, "visitId") or visit,
        conversation="",
        is_answer=False,
        payload=payload,
        note=note,
        position=position,
        alias=email,
        other_identity=other_identity,
    )
    return event, email


def _read_identity(row: dict[str, Any]) -> tuple[str, str]:
    """Returns the device id and the email of a row. The id is preferred: an address may change."""
    identity = row.get("identity")
    if not isinstance(identity, dict):
        raise RequestError("identity", "identity must be {'email': ...} or {'id': ...}.")
    email = identifier(identity, "email", "identity.")
    device_id = identifier(identity, "id", "identity.") or email
    if not device_id:
        raise RequestError("identity", "identity must be {'email': ...} or {'id': ...}.")
    return device_id, email


_DOCUMENTED_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?", re.ASCII)


def _event_time(ts: str, received_at: datetime) -> datetime:
    """Returns the time of a ts: UTC in the documented spelling, by its zone in any other."""
    try:
        moment = datetime.fromisoformat(ts + "Z" if _DOCUMENTED_TIME.fullmatch(ts) else ts)
        if moment.tzinfo is None:
            raise ValueError
    except ValueError:
        raise RequestError(
            "ts", "ts must be a time like 2026-01-31T10:00:00 in UTC, or name its zone."
        ) from None
    # compared before the conversion to UTC, which overflows at the ends of the calendar
    if not EARLIEST_TIME <= moment <= received_at + timedelta(days=1):
        raise RequestError("time_out_of_range", "ts lies before 2000 or over a day in the future.")
    return moment if moment.tzinfo is UTC else moment.astimezone(UTC)
