"""The sources. To add one, copy the package of its nearest neighbour and list it here."""

import re
from functools import cache, lru_cache
from typing import NamedTuple

import msgspec

from ingest.adapters import clickstream, desk, participants, skalin, telemetry
from ingest.adapters.base import Adapter, Endpoint
from ingest.events import NO_CONTEXT, EventContext
from ingest.feed.values import EventRow

ADAPTERS: dict[str, Adapter] = {
    package.ADAPTER.name: package.ADAPTER
    for package in (telemetry, clickstream, skalin, desk, participants)
}


class Match(NamedTuple):
    """The endpoint at an address, its route, and the variable parts of the path."""

    adapter: Adapter
    endpoint: Endpoint
    route: str = ""
    variables: dict[str, str] = {}


def find_endpoint(method: str, path: str, accept: str = "") -> Match | None:
    """Returns the endpoint at an address, or None where no source has it.

    An endpoint that shares its address with another view matches its own methods and `Accept`.
    """
    match = _find_endpoint(method, path)
    return match if match and match.endpoint.accept in accept else None


@lru_cache(maxsize=256)
def _find_endpoint(method: str, path: str) -> Match | None:
    for adapter in ADAPTERS.values():
        for endpoint in adapter.endpoints:
            own_methods = (*endpoint.methods, "OPTIONS") if adapter.cors else endpoint.methods
            if endpoint.is_shared and method not in own_methods:
                continue
            for route in endpoint.routes:
                if match := _compile_route(route).fullmatch(path):
                    return Match(adapter, endpoint, route, match.groupdict())
    return None


@cache
def _compile_route(route: str) -> re.Pattern[str]:
    """Returns the pattern of the paths of a Django route."""
    literal, *rest = re.split(r"<(?:\w+:)?(\w+)>", route)
    pattern = "/" + re.escape(literal)
    for name, literal in zip(rest[::2], rest[1::2], strict=True):
        pattern += f"(?P<{name}>[^/]+)" + re.escape(literal)
    return re.compile(pattern)


def read_context(row: EventRow) -> EventContext:
    """Returns the user and the page of an event. A payload of another shape has neither."""
    adapter = ADAPTERS.get(row.source)
    if adapter is None:
        return NO_CONTEXT
    try:
        return adapter.read_context(row)
    except (msgspec.MsgspecError, RecursionError):
        return NO_CONTEXT


def has_client_sessions(source: str) -> bool:
    """Whether the senders of the source make sessions themselves."""
    return source in ADAPTERS and ADAPTERS[source].has_client_sessions


def find_device_fields(source: str) -> frozenset[str]:
    """Returns the fields by which a source names a device or its person, at any depth."""
    return ADAPTERS[source].device_fields if source in ADAPTERS else frozenset()


@cache
def device_fields() -> frozenset[str]:
    """Returns those of all sources, without `id`, which names other things too."""
    return frozenset().union(*(adapter.device_fields for adapter in ADAPTERS.values())) - {"id"}


def client_session_sources() -> list[str]:
    return [name for name in ADAPTERS if has_client_sessions(name)]


@cache
def page_view_types() -> frozenset[str]:
    return frozenset().union(*(adapter.page_view_types for adapter in ADAPTERS.values()))


@cache
def error_types() -> frozenset[str]:
    return frozenset().union(*(adapter.error_types for adapter in ADAPTERS.values()))


@cache
def system_types() -> frozenset[str]:
    return frozenset().union(*(adapter.system_types for adapter in ADAPTERS.values()))


def clear_caches() -> None:
    """Forgets what is computed from `ADAPTERS`. Call it after a change of them."""
    for cached in (_find_endpoint, device_fields, page_view_types, error_types, system_types):
        cached.cache_clear()
