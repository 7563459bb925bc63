"""Checks what a user may do in a channel, and renders pages; every console view passes here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from allauth.account.internal.flows import reauthentication
from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache

from exhaust.datasets import DATASETS, is_private
from ingest.auth import roles
from ingest.auth.roles import Permission

SUBMIT_PERMISSIONS: tuple[Permission, ...] = ("submit_response", "submit_private")
VIEW_PERMISSIONS: tuple[Permission, ...] = (*SUBMIT_PERMISSIONS, "administer")
_PERMISSION_LABELS: dict[Permission, str] = {
    "submit_response": "“Export data”",
    "submit_private": "“Export personal data”",
    "administer": "“Administer channel”",
    "audit": "“Read audit log”",
}
# URL name, title, permissions of which one is enough
_PAGES: tuple[tuple[str, str, tuple[Permission, ...]], ...] = (
    ("exports", "Exports", SUBMIT_PERMISSIONS),
    ("new-export", "New export", SUBMIT_PERMISSIONS),
    ("schedules", "Schedules", ("administer",)),
    ("charts", "Insights", VIEW_PERMISSIONS),
    ("conversations", "Conversations", VIEW_PERMISSIONS),
    ("participants", "Participants", ("submit_private",)),
    ("rejected-events", "Rejected events", VIEW_PERMISSIONS),
    ("destinations", "Destinations", ("administer",)),
    ("keys", "API keys", ("administer",)),
    ("audit", "Audit log", ("audit",)),
)


@dataclass(frozen=True)
class ChannelContext:
    """A channel and what the signed-in user may do in it."""

    channel_id: int
    channel: str
    permissions: frozenset[Permission]
    username: str

    @property
    def datasets(self) -> list[str]:
        """Datasets that the user may export."""
        return [name for name in DATASETS if permission_for(name) in self.permissions]

    def has_any(self, *permissions: Permission) -> bool:
        """Returns whether the user has at least one of these permissions."""
        return not self.permissions.isdisjoint(permissions)

    @property
    def is_administrator(self) -> bool:
        return "administer" in self.permissions

    @property
    def can_submit(self) -> bool:
        return self.has_any(*SUBMIT_PERMISSIONS)

    def pages(self) -> list[tuple[str, str]]:
        """URL and title of each page that the user may open."""
        return [
            (reverse(f"console:{name}", args=[self.channel]), title)
            for name, title, permissions in _PAGES
            if self.has_any(*permissions)
        ]


def permission_for(dataset: str) -> Permission:
    return "submit_private" if is_private(dataset) else "submit_response"


def requires(
    *permissions: Permission,
    and_also: Permission | None = None,
    methods: tuple[str, ...] = ("GET",),
    is_sensitive: bool = False,
) -> Callable[[Callable[..., HttpResponse]], Callable[..., HttpResponse]]:
    """Decorates a view of a channel: requires one of `permissions`, and `and_also` where given.

    A channel in which the user has no permission gets the same 404 as one that does not exist. A
    change by a sensitive view needs a sign-in, a password or a second factor of the last minutes.
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
                if channel in roles.list_closed_channels(request.user):
                    messages.warning(request, f"{channel} opens once you have a second factor.")
                    return redirect("mfa_index")
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
            if is_sensitive and request.method == "POST":
                reauthentication.raise_if_reauthentication_required(request, app="exhaust")
            try:
                return view(request, ctx, **kwargs)
            except Http404:
                return render_not_found(request, ctx)

        return checked_view

    return decorate


def _redirect_to_sign_in(request: HttpRequest) -> HttpResponse:
    if "HX-Request" in request.headers:  # a fragment: reload the whole page
        response = HttpResponse(status=204)
        response["HX-Refresh"] = "true"
        return response
    address = request.get_full_path() if request.method == "GET" else reverse("console:home")
    return redirect_to_login(address)


def render_page(
    request: HttpRequest,
    ctx: ChannelContext | None,
    template: str,
    context: dict[str, Any] | None = None,
    status: int = 200,
) -> HttpResponse:
    """Renders a template of the console with its navigation."""
    pages = ctx.pages() if ctx else []
    opened = [url for url, _ in pages if f"{request.path}/".startswith(f"{url}/")]
    return render(
        request,
        f"console/{template}",
        {
            "ctx": ctx,
            "pages": pages,
            "current_page": max(opened, key=len, default=""),
            **(context or {}),
        },
        status=status,
    )


def clean_params(query: QueryDict) -> dict[str, str]:
    """Returns the last value of each parameter, without NUL, which PostgreSQL rejects."""
    return {name: str(text).replace("\0", "\ufffd") for name, text in query.items()}


def render_not_found(
    request: HttpRequest, ctx: ChannelContext | None = None, status: int = 404
) -> HttpResponse:
    return render_page(request, ctx, "not_found.html", status=status)


def render_forbidden(
    request: HttpRequest, ctx: ChannelContext, permissions: tuple[Permission, ...]
) -> HttpResponse:
    needed = " or ".join(_PERMISSION_LABELS[each] for each in permissions)
    return render_page(request, ctx, "forbidden.html", {"needed": needed}, 403)
