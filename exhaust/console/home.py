"""The console's start: choosing a channel."""

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.cache import never_cache

from exhaust.console.permissions import (
    VIEW_PERMISSIONS,
    ChannelContext,
    render_not_found,
    render_page,
    requires,
)
from ingest.auth import roles

MAX_LISTED = 200


@never_cache
def choose_channel(request: HttpRequest) -> HttpResponse:
    """Lists the user's channels, or redirects to the only one."""
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path())
    names = list(roles.permitted_channels(request.user))
    if len(names) == 1:
        return redirect("console:start", names[0])
    query = request.GET.get("q", "").strip()
    matches = [name for name in names if query.lower() in name.lower()]
    return render_page(
        request,
        None,
        "home.html",
        {
            "channels": [
                (name, reverse("console:start", args=[name])) for name in matches[:MAX_LISTED]
            ],
            "count": len(names),
            "more": max(0, len(matches) - MAX_LISTED),
            "q": query,
            "closed_channels": roles.list_closed_channels(request.user),
        },
    )


@requires(*VIEW_PERMISSIONS, "audit")
def redirect_to_first_page(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Redirects to the first page of the channel that the user may open."""
    return redirect(ctx.pages()[0][0])


def not_found(request: HttpRequest, path: str) -> HttpResponse:
    return render_not_found(request)
