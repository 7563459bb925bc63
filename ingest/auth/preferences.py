"""A user's own time zone and language, which the pages of people follow."""

from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.http import HttpRequest, HttpResponse
from django.utils import translation

from ingest.http import pages
from ingest.models import UserSettings

_PAGES = ("/account/", "/admin/", "/console/")
# not Django's current zone: queries by day stay in UTC
_zone: ContextVar[tzinfo] = ContextVar("own_zone", default=UTC)


def fetch_settings(user: AbstractBaseUser | AnonymousUser) -> UserSettings:
    """Returns the user's settings; empty ones for a user who chose none."""
    found = UserSettings.objects.filter(user=user.pk).first() if user.is_authenticated else None
    return found or UserSettings()


def get_zone() -> tzinfo:
    """Returns the zone of times on the page: the user's own, else UTC."""
    return _zone.get()


def load_zone(name: str) -> ZoneInfo | None:
    """Returns the zone; None for the empty name and for one that the machine does not know."""
    with suppress(ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo(name) if name else None
    return None


def apply_settings(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Shows the pages of people in the user's language and zone. The API stays English and UTC.

    The language is the user's own, else the first of the browser's that we have. `request.zone` is
    the name of the user's own zone, empty for the browser's.
    """

    def respond(request: HttpRequest) -> HttpResponse:
        if not request.path_info.startswith(_PAGES):
            return get_response(request)
        chosen = fetch_settings(request.user)
        zone = load_zone(chosen.zone)
        request.zone = zone.key if zone else ""  # type: ignore[attr-defined]
        language = chosen.language or pages.choose_language(request)
        token = _zone.set(zone or UTC)
        try:
            with translation.override(language):
                response = get_response(request)
        finally:
            _zone.reset(token)
        response.setdefault("Content-Language", language)
        return response

    return respond
