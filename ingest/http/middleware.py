"""The audit actor of a request, and the channels that its database session may see."""

from collections.abc import Callable
from typing import Any, cast

from django.contrib import messages
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.middleware.common import CommonMiddleware
from django.middleware.security import SecurityMiddleware
from django.shortcuts import redirect
from django.utils.functional import SimpleLazyObject

from ingest import audit
from ingest.audit import Actor
from ingest.auth import roles
from ingest.http import pages, problems
from ingest.limits import rate_limits, token_bucket
from ingest.limits.admission import PROBE_PATHS, note_caller
from ingest.tenancy import session


class HttpsMiddleware(SecurityMiddleware):
    """Refuses a program's call by http. Django's own, behind it, leads a browser to https.

    A program that followed would show its key to the network each time.
    """

    def process_request(self, request: HttpRequest) -> Any:
        if super().process_request(request) is None or pages.wants_page(request):
            return None
        return problems.build_response(403, "https_only", problems.HTTPS_ONLY)

    def process_response(self, request: HttpRequest, response: Any) -> Any:
        return response  # headers are set by Django's own


class HostMiddleware(CommonMiddleware):
    """Django's `CommonMiddleware`, but a probe may name the process by any address."""

    def process_request(self, request: HttpRequest) -> Any:
        if request.path_info in PROBE_PATHS:
            request.META["HTTP_HOST"] = "localhost"
        return super().process_request(request)


def repeat_lost_reads(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Answers a GET again, on a new connection, where the database's was lost on the way."""

    def respond(request: HttpRequest) -> HttpResponse:
        losses = getattr(connection, "loss_count", 0)
        response = get_response(request)
        is_lost = response.status_code == 503 and getattr(connection, "loss_count", 0) > losses
        if is_lost and request.method in {"GET", "HEAD"}:
            connection.close()
            response = get_response(request)
        return response

    return respond


class ActorMiddleware:
    """Resets the audit actor and the restriction of the database session after each request.

    The actor is the signed-in user, looked up only when an event is recorded. The authentication of
    a key or an application replaces it.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        token = audit.current_actor.set(
            cast(Actor, SimpleLazyObject(lambda: _get_session_actor(request)))
        )
        try:
            return self.get_response(request)
        finally:
            session.lift_restriction()
            audit.current_actor.reset(token)

    def process_view(
        self, request: HttpRequest, view: object, args: object, kwargs: dict[str, Any]
    ) -> HttpResponse | None:
        """Counts a call of the signed-in user, and restricts a page of staff to their channels.

        A superuser's session counts for no channel. A superuser who lacks a second factor is sent
        to the page that adds one.
        """
        # a page under /account/ may go on with a request to one of the others
        if not request.path_info.startswith(("/admin/", "/console/", "/account/")):
            return None
        user = request.user
        if user.is_authenticated:
            try:
                rate_limits.count_timed_call(request, f"user:{user.pk}")
            except rate_limits.RateLimited as error:
                return pages.build_error(
                    request, error.status, error.reason, pages.TRY_AGAIN, pages.TOO_MANY
                )
        if getattr(user, "is_superuser", False):
            note_caller(request.META)
            if not self._is_always_open(request) and roles.lacks_second_factor(user):
                messages.warning(request, "Add a second factor first: this account needs one.")
                return redirect("mfa_index")
            return None
        channels = roles.permitted_channels(user)
        session.restrict_to_channels(channels.values())
        opened = channels.get(kwargs.get("channel", ""))
        if user.is_authenticated:
            note_caller(request.META, channels.values() if opened is None else [opened])
        return None

    @staticmethod
    def _is_always_open(request: HttpRequest) -> bool:
        url_name = request.resolver_match.url_name if request.resolver_match else ""
        is_exit = url_name in {"account_login", "sign-out", "logout"}
        return is_exit or request.path_info.startswith("/account/")


def _get_session_actor(request: HttpRequest) -> Actor:
    user = getattr(request, "user", None)
    name = user.get_username() if user is not None and user.is_authenticated else "anonymous"
    return Actor(name, address=audit.truncate_address(token_bucket.get_client_address(request)))
