"""Error pages for browsers, and Django's error handlers; programs get problem documents."""

import sys
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation.trans_real import parse_accept_lang_header

from ingest import logs
from ingest.http import problems
from ingest.http.security_headers import PAGE_POLICY
from ingest.limits.token_bucket import HttpMessage

log = logs.get_logger(__name__)


def wants_page(request: HttpMessage) -> bool:
    """Returns whether the caller is a browser: its `Accept` names HTML."""
    return "text/html" in (request.headers.get("Accept") or "")


def choose_language(request: HttpMessage) -> str:
    """Returns the first language of `Accept-Language` that the pages have, else English."""
    for name, _quality in parse_accept_lang_header(request.headers.get("Accept-Language") or ""):
        with suppress(LookupError):
            return translation.get_supported_language_variant(name)
    return settings.LANGUAGE_CODE


def build_page(request: HttpMessage, status: int, title: str, detail: str) -> HttpResponse:
    """Returns a page about an error, in the browser's language. It reads no database.

    `title` and `detail` are texts of the catalogue. The page says whom to ask.
    """
    with translation.override(choose_language(request)):
        text = render_to_string("console/problem.html", {"title": _(title), "detail": _(detail)})
    response = HttpResponse(text, status=status)
    response["Content-Security-Policy"] = PAGE_POLICY  # the event loop has no middleware
    return response


def build_error(
    request: HttpMessage, status: int, reason: str, title: str, detail: str
) -> HttpResponse:
    """Returns the page for a browser, and a problem document for a program."""
    if not wants_page(request):
        return problems.build_response(status, reason, detail)
    response = build_page(request, status, title, detail)
    problems.add_headers(response, status)
    return response


# Django's handlers --------------------------------------------------------------------------------

NOT_FOUND = translation.gettext_noop("Page not found")
NO_ACCESS = translation.gettext_noop("You do not have access to this page")
BAD_REQUEST = translation.gettext_noop("This request cannot be read")
UNKNOWN_HOST = translation.gettext_noop("Unknown host")
TRY_AGAIN = translation.gettext_noop("Try again soon")
TOO_MANY = translation.gettext_noop("Your account sends too many requests. Wait a few seconds.")
FAILED = translation.gettext_noop("Something went wrong on our side")
_OLD_FORM = translation.gettext_noop("This form is out of date")
_REMOVED = translation.gettext_noop("It may have been removed, or you do not have access.")
_RELOAD = translation.gettext_noop(
    "Nothing was changed. Allow cookies, go back, load the page again and send the form once more."
)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    title, reason, detail = BAD_REQUEST, "bad_request", problems.UNREADABLE
    if isinstance(exception, DisallowedHost):
        log.warning("host.refused", setting="ALLOWED_HOSTS")
        title, reason, detail = UNKNOWN_HOST, "host", problems.UNKNOWN_HOST
    elif problem := problems.classify(exception):
        _status, reason, detail = problem
    return build_error(request, 400, reason, title, detail)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    return build_error(request, 403, "forbidden", NO_ACCESS, "This is not allowed.")


def reject_old_form(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answers a form whose CSRF token is missing or of another session."""
    return build_error(request, 403, "forbidden", _OLD_FORM, _RELOAD)


def not_found(request: HttpRequest, exception: Any = None) -> HttpResponse:
    if wants_page(request):
        return build_page(request, 404, NOT_FOUND, _REMOVED)
    return problems.build_response(404, "not_found", "There is nothing at this address.")


def server_error(request: HttpRequest) -> HttpResponse:
    error = sys.exception()  # Django calls this while it handles it
    code, reason, detail = problems.explain(error if isinstance(error, Exception) else Exception())
    title = TRY_AGAIN if code == 503 else FAILED
    return build_error(request, code, reason, title, detail)
