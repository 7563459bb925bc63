"""Who acts, and which channels are seen, for as long as a request lasts."""

from collections.abc import Callable
from typing import cast

from django.http import HttpRequest, HttpResponse
from django.utils.functional import SimpleLazyObject

from ingest import audit
from ingest.audit import Actor
from ingest.auth import roles
from ingest.limits import token_bucket
from ingest.tenancy import session


class ActorMiddleware:
    """Stands around all others: whom a request names in `ledger.acting`, the thread's next one
    never meets. A door that lets a key or an application in names it there; until then it is the
    person who signed in, looked up only where something is recorded."""

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

    def process_view(self, request: HttpRequest, *_: object) -> None:
        """On a page of staff only the channels of who signed in are seen."""
        if request.path_info.startswith(("/admin/", "/console/")):
            user = request.user
            if not getattr(user, "is_superuser", False):
                session.restrict_to_channels(roles.permitted_channels(user).values())


def _get_session_actor(request: HttpRequest) -> Actor:
    user = getattr(request, "user", None)
    name = user.get_username() if user is not None and user.is_authenticated else "anonymous"
    return Actor(name, address=audit.truncate_address(token_bucket.get_client_address(request)))
