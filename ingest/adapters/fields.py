"""Reads a field the same way for every source."""

from typing import Any, TypedDict

from ingest.events import RequestError

MAX_TEXT = 255  # characters of an id or a name
MAX_URL = 2048


class SessionDetails(TypedDict, total=False):
    """The device, the system, the place and the origin of a session, by Dynatrace's names.

    Dynatrace has no names for a referrer and a campaign.
    """

    applicationType: str
    ip: str
    geolocationContinentName: str
    geolocationCountryName: str
    geolocationRegionName: str
    geolocationCityName: str
    osFamilyName: str
    osVersionName: str
    manufacturer: str
    device: str
    isp: str
    screenHeight: int
    screenWidth: int
    screenOrientation: str
    displayResolution: str
    newUser: bool
    hasCrash: bool
    browserFamily: str
    browserMajorVersion: str
    browserType: str
    referrer: str
    campaignName: str
    campaignSource: str
    campaignMedium: str
    campaignContent: str
    campaignTerm: str


_DETAIL_TYPES = SessionDetails.__annotations__


def select_details(values: dict[str, Any]) -> dict[str, Any]:
    """Returns those of the values that are details of a session, each of its type and bounded."""
    details: dict[str, Any] = {}
    for name, value in values.items():
        wanted_type = _DETAIL_TYPES.get(name)
        if wanted_type is str:
            if text := bounded_text(value, MAX_URL if name == "referrer" else MAX_TEXT):
                details[name] = text
        elif type(value) is wanted_type and value < 2**31:
            details[name] = value
    return details


def bounded_text(value: Any, limit: int = MAX_TEXT) -> str:
    """Returns a text or a number as text, "" for anything else or a longer one."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and len(value) <= limit else ""


def identifier(
    source: dict[str, Any],
    field: str,
    where: str = "",
    *,
    required: bool = False,
    longest: int = MAX_TEXT,
) -> str:
    """Returns an id or a name as text, "" if it is missing.

    Raises `RequestError` with the name of the field.
    """
    value = source.get(field)
    if isinstance(value, str) and 0 < len(value) <= longest:  # nearly always
        return value
    if value is None:
        value = ""
    elif isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # some senders write numeric ids
    if not isinstance(value, str) or len(value) > longest or (required and not value):
        raise RequestError(
            where + field, f"{where}{field} must be a text of up to {longest} characters."
        )
    return value
