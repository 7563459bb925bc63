"""The details of a session in the shape that Croct's clients read."""

from collections.abc import Mapping
from typing import Any

_CONTINENTS = {
    "Africa": "AF", "Antarctica": "AN", "Asia": "AS", "Europe": "EU", "North America": "NA",
    "Oceania": "OC", "South America": "SA",
}  # fmt: skip
_CATEGORIES = {"MOBILE_APPLICATION": "MOBILE"}
_BROWSER_TYPES = {"Robot": "CRAWLER"}
_CAMPAIGN_FIELDS = ("name", "source", "medium", "content", "term")


def describe_session(details: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `referrer`, `campaign`, `location` and `client`, each only where it has a value."""
    campaign = {f: f"campaign{f.title()}" for f in _CAMPAIGN_FIELDS}
    described = {
        "referrer": details.get("referrer"),
        "campaign": _pick(details, campaign),
        "location": _describe_location(details),
        "client": _describe_client(details),
    }
    return {field: value for field, value in described.items() if value}


def _pick(details: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {field: details[name] for field, name in names.items() if details.get(name)}


def _describe_location(details: Mapping[str, Any]) -> dict[str, Any]:
    country = details.get("geolocationCountryName", "")
    location = {
        "continent": _CONTINENTS.get(details.get("geolocationContinentName", "")),
        "country": country.upper() if len(country) == 2 else None,  # codes alone have a field
        "region": _pick(details, {"name": "geolocationRegionName"}),
        "city": details.get("geolocationCityName"),
    }
    return {field: value for field, value in location.items() if value}


def _describe_client(details: Mapping[str, Any]) -> dict[str, Any]:
    client: dict[str, Any] = {}
    if browser := _pick(details, {"name": "browserFamily", "version": "browserMajorVersion"}):
        browser["type"] = _BROWSER_TYPES.get(details.get("browserType", ""), "WEB")
        client["browser"] = browser
    device = _pick(details, {"name": "device", "vendor": "manufacturer"})
    if system := _pick(details, {"name": "osFamilyName", "version": "osVersionName"}):
        device["operatingSystem"] = system
    if device:
        device["category"] = _CATEGORIES.get(details.get("applicationType", ""), "UNKNOWN")
        client["device"] = device
    return client
