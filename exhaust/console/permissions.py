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
from ingest.auth.roles import Permission

SUBMIT_PERMISSIONS: tuple[Permission, ...] = ("submit_response", "submit_private")
VIEW_PERMISSIONS: tuple[Permission, ...] = (*SUBMIT_PERMISSIONS, "administer")
_PERMISSION_LABELS: dict[Permission, str] = {
    "submit_response": "ask for files",
    "submit_private": "ask for files of people",
    "administer": "administer this channel",
    "audit": "read its ledger",
}
# name of the address, what it is called, who sees it
_PAGES: tuple[tuple[str, str, tuple[Permission, ...]], ...] = (
    ("jobs", "Jobs", SUBMIT_PERMISSIONS),
    ("ask", "New request", SUBMIT_PERMISSIONS),
    ("recurring", "Recurring", ("administer",)),
    ("pictures", "Pictures", VIEW_PERMISSIONS),
    ("conversations", "Conversations", VIEW_PERMISSIONS),
    ("participants", "Participants", ("submit_private",)),
    ("rejected", "Rejected events", VIEW_PERMISSIONS),
    ("destinations", "Destinations", ("administer",)),
    ("keys", "Keys", ("administer",)),
    ("ledger", "Ledger", ("audit",)),
)


@dataclass(frozen=True)
class ChannelContext:
    """A channel, and what the person who looks may do in it."""

    channel_id: int
    channel: str
    permissions: frozenset[Permission]
    username: str

    @property
    def datasets(self) -> list[str]:
        """What they may ask for, and see the jobs of."""
        return [name for name in DATASETS if permission_for(name) in self.permissions]

    def has_any(self, *rights: Permission) -> bool:
        """Whether they have one of these rights."""
        return not self.permissions.isdisjoint(rights)

    @property
    def is_administrator(self) -> bool:
        return "administer" in self.permissions

    @property
    def can_submit(self) -> bool:
        return self.has_any(*SUBMIT_PERMISSIONS)

    def pages(self) -> list[tuple[str, str]]:
        """(address, name) of the pages there are for them."""
        return [
            (reverse(f"console:{name}", args=[self.channel]), title)
            for name, title, rights in _PAGES
            if self.has_any(*rights)
        ]


def permission_for(dataset: str) -> Permission:
    return "submit_private" if is_private(dataset) else "submit_response"


def requires(
    *permissions: Permission,
    and_also: Permission | None = None,
    methods: tuple[str, ...] = ("GET",),
) -> Callable[[Callable[..., HttpResponse]], Callable[..., HttpResponse]]:
    """A view of a channel, for people with one of these rights in it, and `also` that one.

    A channel where the person has no right at all is as unknown as one that is none (404).
    """

    def decorate(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        @never_cache
        @wraps(view)
        def checked_view(request: HttpRequest, channel: str, **kwargs: Any) -> HttpResponse:
            if not request.user.is_authenticated:
                return _redirect_to_sign_in(request)
            if any("\0" in str(part) for part in (channel, *kwargs.values())):
                return render_not_found(request)
            channel_id, user_permissions = roles.fetch_permissions(request.user, channel)
            if not user_permissions:
                return render_not_found(request)
            ctx = ChannelContext(channel_id, channel, user_permissions, request.user.get_username())
            if not ctx.has_any(*permissions):
                return render_forbidden(request, ctx, permissions)
            if and_also is not None and not ctx.has_any(and_also):
                return render_forbidden(request, ctx, (and_also,))
            if request.method not in methods and not (
                request.method == "HEAD" and "GET" in methods
            ):
                response = render_not_found(request, ctx, 405)
                response["Allow"] = ", ".join(methods)
                return response
            try:
                return view(request, ctx, **kwargs)
            except Http404:
                return render_not_found(request, ctx)

        return checked_view

    return decorate


def _redirect_to_sign_in(request: HttpRequest) -> HttpResponse:
    if "HX-Request" in request.headers:  # a part of a page: the whole page must go there
        response = HttpResponse(status=204)
        response["HX-Refresh"] = "true"
        return response
    redirect: HttpResponseRedirect = redirect_to_login(
        request.get_full_path() if request.method == "GET" else reverse("console:home"),
        reverse("console:sign-in"),
    )
    return redirect


def render_page(
    request: HttpRequest,
    ctx: ChannelContext | None,
    template: str,
    context: dict[str, Any] | None = None,
    status: int = 200,
) -> HttpResponse:
    """A page in its frame."""
    pages = ctx.pages() if ctx else []
    return render(
        request,
        f"console/{template}",
        {"ctx": ctx, "pages": pages, **(context or {})},
        status=status,
    )


def clean_params(query: QueryDict) -> dict[str, str]:
    """What a form or an address says, as text that a database takes; of several values the last."""
    return {name: str(text).replace("\0", "\ufffd") for name, text in query.items()}


def render_not_found(
    request: HttpRequest, ctx: ChannelContext | None = None, status: int = 404
) -> HttpResponse:
    return render_page(request, ctx, "missing.html", status=status)


def render_forbidden(
    request: HttpRequest, ctx: ChannelContext, permissions: tuple[Permission, ...]
) -> HttpResponse:
    needed = " or to ".join(_PERMISSION_LABELS[right] for right in permissions)
    return render_page(request, ctx, "refused.html", {"needed": needed}, 403)
