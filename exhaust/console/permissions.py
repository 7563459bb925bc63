"""Checks what a user may do in a channel, and renders pages; every console view passes here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any

from allauth.account.internal.flows import reauthentication
from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.cache import never_cache

from exhaust.archive import objects
from exhaust.console.sentences import translate_sentence
from exhaust.datasets import DATASETS, is_private
from exhaust.datasets.base import Dataset
from exhaust.datasets.own import OWN_SCOPES, list_datasets
from ingest.auth import roles
from ingest.auth.roles import Permission

SUBMIT_PERMISSIONS: tuple[Permission, ...] = ("submit_response", "submit_private")
VIEW_PERMISSIONS: tuple[Permission, ...] = (*SUBMIT_PERMISSIONS, "administer")
PERMISSION_NAMES: dict[Permission, Promise] = {
    "submit_response": _("Export data"),
    "submit_private": _("Export personal data"),
    "administer": _("Administer channel"),
    "audit": _("Read audit log"),
}
# URL name, title, permissions of which one is enough
_Page = tuple[str, Promise, tuple[Permission, ...]]
# in groups of the navigation, with their title
_PAGES: tuple[tuple[Promise | str, tuple[_Page, ...]], ...] = (
    (
        "",
        (
            ("start", _("Home"), (*VIEW_PERMISSIONS, "audit")),
            ("exports", _("Exports"), SUBMIT_PERMISSIONS),
            ("new-export", _("New export"), SUBMIT_PERMISSIONS),
            ("schedules", _("Schedules"), ("administer",)),
            ("datasets", _("Datasets"), SUBMIT_PERMISSIONS),
        ),
    ),
    (
        _("Data"),
        (
            ("charts", _("Insights"), VIEW_PERMISSIONS),
            ("events", _("Events"), VIEW_PERMISSIONS),
            ("conversations", _("Conversations"), VIEW_PERMISSIONS),
            ("participants", _("Participants"), ("submit_private",)),
            ("rejected-events", _("Rejected events"), VIEW_PERMISSIONS),
        ),
    ),
    (
        _("Manage"),
        (
            ("destinations", _("Destinations"), ("administer",)),
            ("keys", _("API keys"), ("administer",)),
            ("team", _("Team"), ("administer",)),
            ("archive", _("Archive"), ("administer",)),
            ("audit", _("Audit log"), ("audit",)),
        ),
    ),
)


@dataclass(frozen=True)
class ChannelContext:
    """A channel and what the signed-in user may do in it."""

    channel_id: int
    channel: str
    permissions: frozenset[Permission]
    username: str

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """The channel's datasets that the user may export, by name."""
        return {
            dataset.name: dataset
            for dataset in list_datasets(self.channel_id)
            if self.may_export(dataset.is_private)
        }

    @property
    def readable(self) -> list[str]:
        """The built-in datasets whose exports the user may see, and the scopes of own ones."""
        scopes = [scope for scope in OWN_SCOPES if self.may_export(is_private("", scope))]
        return [*(name for name in DATASETS if self.may_export(is_private(name))), *scopes]

    def may_export(self, has_personal_data: bool) -> bool:
        return ("submit_private" if has_personal_data else "submit_response") in self.permissions

    def has_any(self, *permissions: Permission) -> bool:
        """Returns whether the user has at least one of these permissions."""
        return not self.permissions.isdisjoint(permissions)

    @property
    def is_administrator(self) -> bool:
        return "administer" in self.permissions

    @property
    def can_submit(self) -> bool:
        return self.has_any(*SUBMIT_PERMISSIONS)

    def pages(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """URL and title of each page that the user may open, in titled groups."""
        groups = [
            (
                str(group),
                [
                    (reverse(f"console:{name}", args=[self.channel]), str(title))
                    for name, title, permissions in pages
                    if self.has_any(*permissions) and (name != "archive" or objects.is_enabled())
                ],
            )
            for group, pages in _PAGES
        ]
        return [group for group in groups if group[1]]


def requires(
    *permissions: Permission,
    and_also: Permission | None = None,
    methods: tuple[str, ...] = ("GET",),
    is_sensitive: bool = False,
    form_query: Callable[[QueryDict], str] | None = None,
) -> Callable[[Callable[..., HttpResponse]], Callable[..., HttpResponse]]:
    """Decorates a view of a channel: requires one of `permissions`, and `and_also` where given.

    A channel in which the user has no permission gets the same 404 as one that does not exist. A
    change by a sensitive view needs a sign-in, a password or a second factor of the last minutes.
    `form_query` makes the query that fills the view's form again after a sign-in.
    """

    def decorate(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        @never_cache
        @wraps(view)
        def checked_view(request: HttpRequest, channel: str, **kwargs: Any) -> HttpResponse:
            if not request.user.is_authenticated:
                return _redirect_to_sign_in(request, form_query)
            if any("\0" in str(part) for part in (channel, *kwargs.values())):
                return render_not_found(request)
            channel_id, user_permissions = roles.fetch_permissions(request.user, channel)
            if not user_permissions:
                if channel in roles.list_closed_channels(request.user):
                    sentence = gettext("%(channel)s opens once you have a second factor.")
                    messages.warning(request, sentence % {"channel": channel})
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


def _redirect_to_sign_in(
    request: HttpRequest, form_query: Callable[[QueryDict], str] | None
) -> HttpResponse:
    if "HX-Request" in request.headers:  # a fragment
        if form_query:  # a reload would lose what was typed
            response = render(request, "console/session_ended.html")
            response["HX-Retarget"], response["HX-Reswap"] = "#preview", "innerHTML"
            response["HX-Reselect"] = "#session-ended"
            return response
        response = HttpResponse(status=204)
        response["HX-Refresh"] = "true"
        return response
    if request.method == "GET":
        return redirect_to_login(request.get_full_path())
    if form_query:
        return redirect_to_login(f"{request.path}?{form_query(request.POST)}")
    return redirect_to_login(reverse("console:home"))


def render_page(
    request: HttpRequest,
    ctx: ChannelContext | None,
    template: str,
    context: dict[str, Any] | None = None,
    status: int = 200,
) -> HttpResponse:
    """Renders a template of the console with its navigation."""
    groups = ctx.pages() if ctx else []
    context = {**(context or {})}
    if errors := context.get("errors"):  # of the API's rules, in English
        context["errors"] = {name: translate_sentence(str(each)) for name, each in errors.items()}
    urls = [url for __, pages in groups for url, __ in pages]
    opened = [url for url in urls if f"{request.path}/".startswith(f"{url}/")]
    opened += [url for url in urls if url == request.path]  # home, whose address ends in /
    return render(
        request,
        f"console/{template}",
        {
            "ctx": ctx,
            "page_groups": groups,
            "current_page": max(opened, key=len, default=""),
            **context,
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
    labels = [f"“{PERMISSION_NAMES[each]}”" for each in permissions]
    needed = gettext(" or ").join(labels)
    return render_page(request, ctx, "forbidden.html", {"needed": needed}, 403)
