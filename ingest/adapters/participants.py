"""Participants: a JSON array, one object, or one object a line."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from ingest.adapters import body as text
from ingest.adapters.fields import MAX_TEXT
from ingest.events import Refused, Rejection

DIALECT = "participants"
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Profile(msgspec.Struct, frozen=True):
    """What is known of a person; None is "not said", which changes nothing already known."""

    device_id: str
    user_name: str | None
    phone: str | None  # E.164, "" takes a known one away
    consent: bool | None
    consent_at: datetime
    position: int = 0  # in its batch


def parse(
    body: bytes, content_type: str, received_at: datetime
) -> tuple[list[Profile], list[Rejection]]:
    """Reads a body. Raises `Refused` when it is no JSON."""
    raws: list[bytes] = []
    for line in text.documents(body, content_type):
        raws.extend(text.mending(_people, line)[0] if line.startswith(b"[") else [line])
    profiles: list[Profile] = []
    rejections: list[Rejection] = []
    for position, raw in enumerate(raws):
        try:
            profiles.append(_profile(raw, received_at, position))
        except Refused as refused:
            rejections.append(Rejection(position, refused.reason, refused.detail, raw))
    return profiles, rejections


def _people(document: bytes) -> list[bytes]:
    try:
        return [bytes(raw) for raw in _list(document)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise text.not_json(error, document) from None


def _profile(raw: bytes, received_at: datetime, position: int) -> Profile:
    said, _, _ = text.value(raw)
    if not isinstance(said, dict):
        raise Refused("not_an_object", "A participant is a JSON object.")
    device_id = _text(said, "deviceId")
    if not device_id:
        raise Refused("deviceId", "deviceId is required.")
    phone = _text(said, "phone")
    if phone and not _E164.fullmatch(phone):
        raise Refused("phone", "phone must be E.164: '+', country code, number, digits only.")
    consent = said.get("consent")
    if consent is not None and not isinstance(consent, bool):
        raise Refused("consent", "consent must be true or false.")
    consent_at = _consent_at(said, received_at)
    return Profile(device_id, _text(said, "userName"), phone, consent, consent_at, position)


def _text(said: dict[str, Any], field: str) -> str | None:
    found = said.get(field)
    if found is None:
        return None
    if not isinstance(found, str) or len(found) > MAX_TEXT:
        raise Refused(field, f"{field} must be a text of up to {MAX_TEXT} characters.")
    return found


def _consent_at(said: dict[str, Any], received_at: datetime) -> datetime:
    found = said.get("consentAt")
    if found is None:
        return received_at
    try:
        moment = datetime.fromisoformat(found)
    except (TypeError, ValueError):
        raise Refused("consentAt", "consentAt must be a time like 2026-01-31T10:00:00Z.") from None
    if moment.tzinfo is None:
        raise Refused("consentAt", "consentAt needs its zone, as in 2026-01-31T10:00:00Z.")
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        raise Refused("consentAt", "consentAt lies beyond the calendar.") from None
    if moment > received_at + timedelta(days=1):
        raise Refused("consentAt", "consentAt lies more than a day in the future.")
    return moment
