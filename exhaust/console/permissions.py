"""Who looks, in which channel, and what they may do there; every view goes through here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache

from exhaust.datasets import DATASETS, is_private
from ingest.auth import roles
from ingest.auth.roles import Right

ASK: tuple[Right, ...] = ("submit_response", "submit_private")
VIEW: tuple[Right, ...] = (*ASK, "administer")
_WORDS: dict[Right, str] = {
    "submit_response": "ask for files",
    "submit_private": "ask for files of people",
    "administer": "administer this channel",
    "audit": "read its ledger",
}
# name of the address, what it is called, who sees it
_PAGES: tuple[tuple[str, str, tuple[Right, ...]], ...] = (
    ("jobs", "Jobs", ASK),
    ("ask", "New request", ASK),
    ("recurring", "Recurring", ("administer",)),
    ("pictures", "Pictures", VIEW),
    ("conversations", "Conversations", VIEW),
    ("participants", "Participants", ("submit_private",)),
    ("rejected", "Rejected events", VIEW),
    ("sinks", "Sinks", ("administer",)),
    ("keys", "Keys", ("administer",)),
    ("ledger", "Ledger", ("audit",)),
)


@dataclass(frozen=True)
class Here:
    """A channel, and what the person who looks may do in it."""

    channel_id: int
    channel: str
    rights: frozenset[Right]
    person: str

    @property
    def datasets(self) -> list[str]:
        """What they may ask for, and see the jobs of."""
        return [name for name in DATASETS if right_for(name) in self.rights]

    def may(self, *rights: Right) -> bool:
        """Whether they have one of these rights."""
        return not self.rights.isdisjoint(rights)

    @property
    def administers(self) -> bool:
        return "administer" in self.rights

    @property
    def asks(self) -> bool:
        return self.may(*ASK)

    def pages(self) -> list[tuple[str, str]]:
        """(address, name) of the pages there are for them."""
        return [
            (reverse(f"console:{name}", args=[self.channel]), title)
            for name, title, rights in _PAGES
            if self.may(*rights)
        ]


def right_for(dataset: str) -> Right:
    return "submit_private" if is_private(dataset) else "submit_response"


def within(
    *rights: Right, also: Right | None = None, methods: tuple[str, ...] = ("GET",)
) -> Callable[[Callable[..., HttpResponse]], Callable[..., HttpResponse]]:
    """A view of a channel, for people with one of these rights in it, and `also` that one.

    A channel where the person has no right at all is as unknown as one that is none (404).
    """

    def decorate(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        @never_cache
        @wraps(view)
        def guarded(request: HttpRequest, channel: str, **kwargs: Any) -> HttpResponse:
            if not request.user.is_authenticated:
                return _sign_in(request)
            if any("\0" in str(part) for part in (channel, *kwargs.values())):
                return missing(request)
            channel_id, held = roles.rights(request.user, channel)
            if not held:
                return missing(request)
            here = Here(channel_id, channel, held, request.user.get_username())
            if not here.may(*rights):
                return refused(request, here, rights)
            if also is not None and not here.may(also):
                return refused(request, here, (also,))
            if request.method not in methods and not (
                request.method == "HEAD" and "GET" in methods
            ):
                answer = missing(request, here, 405)
                answer["Allow"] = ", ".join(methods)
                return answer
            try:
                return view(request, here, **kwargs)
            except Http404:
                return missing(request, here)

        return guarded

    return decorate


def _sign_in(request: HttpRequest) -> HttpResponse:
    if "HX-Request" in request.headers:  # a part of a page: the whole page must go there
        answer = HttpResponse(status=204)
        answer["HX-Refresh"] = "true"
        return answer
    to: HttpResponseRedirect = redirect_to_login(
        request.get_full_path() if request.method == "GET" else reverse("console:home"),
        reverse("console:sign-in"),
    )
    return to


def show(
    request: HttpRequest,
    here: Here | None,
    template: str,
    context: dict[str, Any] | None = None,
    status: int = 200,
) -> HttpResponse:
    """A page in its frame."""
    pages = here.pages() if here else []
    return render(
        request,
        f"console/{template}",
        {"here": here, "pages": pages, **(context or {})},
        status=status,
    )


def typed(said: QueryDict) -> dict[str, str]:
    """What a form or an address says, as text that a database takes; of several values the last."""
    return {name: str(text).replace("\0", "\ufffd") for name, text in said.items()}


def missing(request: HttpRequest, here: Here | None = None, status: int = 404) -> HttpResponse:
    return show(request, here, "missing.html", status=status)


def refused(request: HttpRequest, here: Here, rights: tuple[Right, ...]) -> HttpResponse:
    lacks = " or to ".join(_WORDS[right] for right in rights)
    return show(request, here, "refused.html", {"lacks": lacks}, 403)
