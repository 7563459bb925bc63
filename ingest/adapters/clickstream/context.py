"""The user, their attributes, the page and the device of a Clickstream event."""

import math
from typing import Any

import msgspec

from ingest.adapters.fields import MAX_URL, bounded_text, select_details
from ingest.events import EventContext
from ingest.feed.values import EventRow


class _Attributes(msgspec.Struct):
    url: Any = msgspec.field(name="_page_url", default=None)
    session_number: Any = msgspec.field(name="_session_number", default=None)
    page_referrer: Any = msgspec.field(name="_page_referrer", default=None)
    latest_referrer: Any = msgspec.field(name="_latest_referrer", default=None)
    campaign: Any = msgspec.field(name="_traffic_source_campaign", default=None)
    source: Any = msgspec.field(name="_traffic_source_source", default=None)
    medium: Any = msgspec.field(name="_traffic_source_medium", default=None)
    content: Any = msgspec.field(name="_traffic_source_content", default=None)
    term: Any = msgspec.field(name="_traffic_source_term", default=None)


_NO_ATTRIBUTES = _Attributes()


class _Payload(msgspec.Struct):
    user: dict[str, Any] | None = None
    user_id: Any = None
    attributes: _Attributes | None = None
    platform: Any = None
    os_version: Any = None
    make: Any = None
    model: Any = None
    carrier: Any = None
    country_code: Any = None
    screen_height: Any = None
    screen_width: Any = None


_APPLICATION_TYPES = {
    "Web": "WEB_APPLICATION",
    "Android": "MOBILE_APPLICATION",
    "iOS": "MOBILE_APPLICATION",
}


_decode = msgspec.json.Decoder(_Payload).decode


def read_context(row: EventRow) -> EventContext:
    payload = _decode(row.payload)
    url = bounded_text(payload.attributes.url, MAX_URL) if payload.attributes else ""
    occurred, latest = row.occurred_us, row.received_us
    attributes: dict[str, tuple[Any, int]] = {}
    for name, attribute in (payload.user or {}).items():
        if isinstance(attribute, dict) and "value" in attribute:
            attributes[name] = (
                attribute["value"],
                _attribute_set_at(attribute.get("set_timestamp"), occurred, latest),
            )
        else:
            attributes[name] = (attribute, occurred)
    signed_in, _ = attributes.pop("_user_id", (payload.user_id, occurred))
    return EventContext(
        bounded_text(signed_in),
        url,
        attributes,
        _read_details(row.type, payload),
        bounded_text(payload.platform),
    )


def _read_details(type_: str, payload: _Payload) -> dict[str, Any]:
    attributes = payload.attributes or _NO_ATTRIBUTES
    number = attributes.session_number
    platform = bounded_text(payload.platform)
    application_type = _APPLICATION_TYPES.get(platform)
    return select_details(
        {
            "applicationType": application_type,
            "osFamilyName": platform if application_type == "MOBILE_APPLICATION" else None,
            "osVersionName": payload.os_version,
            "manufacturer": payload.make,
            "device": payload.model,
            "isp": payload.carrier,
            "geolocationCountryName": payload.country_code,
            "screenHeight": payload.screen_height,
            "screenWidth": payload.screen_width,
            "newUser": type_ == "_first_open" or (number == 1 if number is not None else None),
            "hasCrash": type_ == "_app_exception" or None,
            "referrer": attributes.page_referrer or attributes.latest_referrer,
            "campaignName": attributes.campaign,
            "campaignSource": attributes.source,
            "campaignMedium": attributes.medium,
            "campaignContent": attributes.content,
            "campaignTerm": attributes.term,
        }
    )


def _attribute_set_at(milliseconds: Any, occurred: int, latest: int) -> int:
    """Returns when an attribute was set, at most its arrival: a later time would win for ever."""
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return occurred
    if not math.isfinite(milliseconds) or milliseconds <= 0:
        return occurred
    return min(int(milliseconds * 1000), max(occurred, latest))
