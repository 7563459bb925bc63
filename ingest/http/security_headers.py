"""Security headers of every response, and the lifetime of a session."""

from collections.abc import Callable
from typing import Any

from django.contrib.auth.signals import user_logged_in
from django.http import HttpRequest, HttpResponse

from ingest.auth import sessions
from ingest.db.clock import read_clock

# a response of the API runs no script and is shown in no frame
_API_POLICY = "default-src 'none'; frame-ancestors 'none'"
# our pages and Django's admin load their scripts and styles from this host
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)
_DISABLED_FEATURES = ("camera", "display-capture", "geolocation", "microphone", "payment", "usb")
_PERMISSIONS_POLICY = ", ".join(f"{name}=()" for name in _DISABLED_FEATURES)


# Django sets some of these only for requests that reach its own middleware
API_HEADERS = {
    # answers hold links, keys and people's data; only a public document says otherwise
    "Cache-Control": "no-store",
    "Content-Security-Policy": _API_POLICY,
    "Permissions-Policy": _PERMISSIONS_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class SecurityHeadersMiddleware:
    """Adds security headers to each response. A view with another policy sets it itself."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if response.get("Content-Type", "").startswith("text/html"):
            response.setdefault("Content-Security-Policy", PAGE_POLICY)
        for name, value in API_HEADERS.items():
            response.setdefault(name, value)
        return response


SESSION_IDLE_SECONDS = 30 * 60
MAX_SESSION_SECONDS = 12 * 60 * 60
_REFRESH_SECONDS = 60  # at most one renewal in this time


def read_seconds() -> int:
    return int(read_clock().timestamp())


class SessionLifetimeMiddleware:
    """Ends a session 30 minutes after its last use, and 12 hours after its start.

    A request that does not read its session, such as one of the API, does not renew it. Neither
    does a request with `X-Poll`, which a page sends by itself.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        user_logged_in.connect(_start_session, dispatch_uid="session_lifetime")

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        session: Any = request.session
        if session.accessed and "begun" in session:
            remaining_seconds = session["begun"] + MAX_SESSION_SECONDS - read_seconds()
            if remaining_seconds <= 0:
                session.flush()
            elif (
                "X-Poll" not in request.headers
                and session.get("used", 0) <= read_seconds() - _REFRESH_SECONDS
            ):
                session["used"] = read_seconds()
                session.set_expiry(min(SESSION_IDLE_SECONDS, remaining_seconds))
        return response


def _start_session(request: HttpRequest | None = None, **_: Any) -> None:
    if request is not None and hasattr(request, "session"):
        sessions.describe_browser(request)
        request.session["begun"] = read_seconds()
        request.session.set_expiry(SESSION_IDLE_SECONDS)
