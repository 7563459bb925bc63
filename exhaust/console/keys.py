"""A channel's keys: listed, made and shown once, revoked."""

from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone

from exhaust.console.permissions import Here, show, typed, within
from ingest.auth import keys as access
from ingest.auth import roles
from ingest.models import ApiKey, Channel

# what is offered; the others are made by `manage.py create_key`
_WORDS = {
    "ingest": "Send events and participants",
    "export:response": "Ask for answers",
    "export:private": "Ask for files of people",
    "pull": "Pull events and sessions, and keep sinks",
}
LIVES = (("30", "30 days"), ("90", "90 days"), ("365", "a year"), ("", "endless"))


@within("administer", methods=("GET", "POST"))
def listing(request: HttpRequest, here: Here) -> HttpResponse:
    """The keys; a POST makes one and shows its text, this once."""
    if request.method != "POST":
        return _listed(request, here, {"days": "90"}, {})
    said, errors = typed(request.POST), {}
    scopes = request.POST.getlist("scope")
    days = said.get("days", "")
    if not said.get("name", "").strip():
        errors["name"] = "Say who uses it."
    elif len(said["name"]) > 128:
        errors["name"] = "Up to 128 characters."
    if not scopes:
        errors["scope"] = "Choose what it may do."
    elif not set(scopes) <= set(_scopes(here)):
        errors["scope"] = "A key may do no more than you."
    if days not in dict(LIVES):
        errors["days"] = "Choose how long it lives."
    if not errors:
        try:
            row, text = access.create_key(
                said["name"].strip(),
                scopes,
                [Channel.objects.get(pk=here.channel_id)],
                timezone.now() + timedelta(days=int(days)) if days else None,
            )
        except ValueError as error:
            errors["scope"] = str(error)
        else:
            return show(request, here, "key_made.html", {"key": row, "text": text})
    return _listed(request, here, {**said, "scopes": scopes}, errors, 400)


def _scopes(here: Here) -> dict[str, str]:
    """What the person may give a key, so that none may do more than they."""
    return {name: words for name, words in _WORDS.items() if roles.TAKES[name] in here.rights}


def _keys(request: HttpRequest, here: Here) -> QuerySet[ApiKey]:
    """The channel's; one that stands in others too only for who administers all of them."""
    keys = ApiKey.objects.filter(channels=here.channel_id)
    if request.user.is_superuser:
        return keys
    return roles.keys(keys, roles.channels(request.user, "administer").values())


def _listed(
    request: HttpRequest,
    here: Here,
    said: dict[str, Any],
    errors: dict[str, str],
    status: int = 200,
) -> HttpResponse:
    now = timezone.now()
    keys = _keys(request, here).order_by("revoked_at", "-pk")
    rows = [(key, _state(key, now)) for key in keys]
    return show(
        request,
        here,
        "keys.html",
        {"keys": rows, "scopes": _scopes(here), "lives": LIVES, "said": said, "errors": errors},
        status,
    )


def _state(key: ApiKey, now: Any) -> str:
    if key.revoked_at:
        return "revoked"
    return "expired" if key.expires_at and key.expires_at <= now else "works"


@within("administer", methods=("POST",))
def revoke(request: HttpRequest, here: Here, public_id: str) -> HttpResponse:
    key = _keys(request, here).filter(public_id=public_id).first()
    if key is None:
        raise Http404
    if access.revoke_key(key):
        messages.success(request, f"“{key.name}” is revoked; it opens nothing from now on.")
    else:
        messages.warning(request, "It was revoked already.")
    return redirect("console:keys", here.channel)
