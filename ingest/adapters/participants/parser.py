"""Parses profiles: a JSON array, one object, or one object a line."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from ingest.adapters import json_body
from ingest.adapters.base import MAX_LISTED_REJECTIONS
from ingest.adapters.fields import MAX_TEXT, bounded_text
from ingest.events import Batch, Call, Profile, Rejection, RequestError

SOURCE = "participants"
E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def parse(body: bytes, call: Call) -> Batch:
    """Returns the profiles of a body. Raises `RequestError` for no JSON, and 413 for too many."""
    lines = json_body.split_documents(body, call.content_type)
    json_body.require_few_events(len(lines))
    raws: list[bytes] = []
    for line in lines:
        raws.extend(
            json_body.split_repaired(_split_array, line)[0] if line.startswith(b"[") else [line]
        )
        json_body.require_few_events(len(raws))
    profiles: list[Profile] = []
    rejections: list[Rejection] = []
    for position, raw in enumerate(raws):
        if raw[0] != json_body.OBJECT_START and len(rejections) >= MAX_LISTED_REJECTIONS:
            # not parsed: a batch may have thousands
            rejections.append(Rejection(position, "not_an_object", "", raw))
            continue
        try:
            profiles.append(_parse_profile(raw, call.received_at, position))
        except RequestError as error:
            detail = error.detail
            if refusal := _read_refusal(raw, call.received_at, position):
                profiles.append(refusal)
                detail += " What it withdraws is taken, as of its arrival."
            rejections.append(Rejection(position, error.reason, detail, raw))
    return Batch(SOURCE, call.received_at, [], rejections, profiles=profiles)


def _split_array(document: bytes) -> list[bytes]:
    try:
        return [bytes(raw) for raw in _decode_list(document)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise json_body.json_error(error, document) from None


def _parse_profile(raw: bytes, received_at: datetime, position: int) -> Profile:
    document, _, _ = json_body.parse_value(raw)
    if not isinstance(document, dict):
        raise RequestError("not_an_object", "A participant is a JSON object.")
    device_id = _optional_text(document, "deviceId")
    if not device_id:
        raise RequestError("deviceId", "deviceId is required.")
    phone = _optional_text(document, "phone")
    if phone and not E164.fullmatch(phone):
        raise RequestError("phone", "phone must be E.164: '+', country code, number, digits only.")
    consent = document.get("consent")
    if consent is not None and not isinstance(consent, bool):
        raise RequestError("consent", "consent must be true or false.")
    consent_at = _parse_consent_at(document, received_at)
    return Profile(
        device_id, _optional_text(document, "userName"), phone, consent, consent_at, position
    )


class _Refusal(msgspec.Struct):
    """The fields that count whatever stands beside them, each read by itself."""

    device_id: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"null"), name="deviceId")
    consent: msgspec.Raw = msgspec.Raw(b"null")
    phone: msgspec.Raw = msgspec.Raw(b"null")


_decode_refusal = msgspec.json.Decoder(_Refusal).decode
_REFUSALS = ("false", "no", "0")


def _read_refusal(raw: bytes, received_at: datetime, position: int) -> Profile | None:
    """Returns what an otherwise unreadable profile withdraws; None where it withdraws nothing."""
    try:
        fields = _decode_refusal(json_body.repair(raw))
        device_id = bounded_text(json_body.parse_value(bytes(fields.device_id))[0])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, RequestError):
        return None
    is_refusal = _read_value(fields.consent).strip().lower() in _REFUSALS
    phone = "" if bytes(fields.phone) == b'""' else None
    if not device_id or not (is_refusal or phone is not None):
        return None
    return Profile(device_id, None, phone, False if is_refusal else None, received_at, position)


def _read_value(raw: msgspec.Raw) -> str:
    """Returns a text, or a bare value as it is written; "" for any other."""
    try:
        value = json_body.parse_value(bytes(raw))[0]
    except RequestError:
        return ""
    return value if isinstance(value, str) else bytes(raw).decode()


def _optional_text(document: dict[str, Any], field: str) -> str | None:
    value = document.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise RequestError(field, f"{field} must be a text of up to {MAX_TEXT} characters.")
    return value


def _parse_consent_at(document: dict[str, Any], received_at: datetime) -> datetime:
    value = document.get("consentAt")
    if value is None:
        return received_at
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise RequestError(
            "consentAt", "consentAt must be a time like 2026-01-31T10:00:00Z."
        ) from None
    if moment.tzinfo is None:
        raise RequestError("consentAt", "consentAt needs its zone, as in 2026-01-31T10:00:00Z.")
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        raise RequestError("consentAt", "consentAt lies beyond the calendar.") from None
    if moment > received_at + timedelta(days=1):
        raise RequestError("consentAt", "consentAt lies more than a day in the future.")
    return moment
