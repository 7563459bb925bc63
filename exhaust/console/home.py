"""The way in: which channel."""

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.cache import never_cache

from exhaust.console.permissions import VIEW, Here, missing, show, within
from ingest.auth import roles

SHOWN = 200


@never_cache
def home(request: HttpRequest) -> HttpResponse:
    """The channels of who signed in, by name; straight into the only one."""
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path(), reverse("console:sign-in"))
    names = list(roles.channels(request.user))
    if len(names) == 1:
        return redirect("console:start", names[0])
    wanted = request.GET.get("q", "").strip()
    found = [name for name in names if wanted.lower() in name.lower()]
    return show(
        request,
        None,
        "home.html",
        {
            "channels": [(name, reverse("console:start", args=[name])) for name in found[:SHOWN]],
            "count": len(names),
            "more": max(0, len(found) - SHOWN),
            "q": wanted,
        },
    )


@within(*VIEW, "audit")
def start(request: HttpRequest, here: Here) -> HttpResponse:
    """To the first of a channel's pages that the person may see."""
    return redirect(here.pages()[0][0])


def nowhere(request: HttpRequest, rest: str) -> HttpResponse:
    return missing(request)
