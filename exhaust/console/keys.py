"""The API keys of a channel: list, create, revoke."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect

from exhaust.console.permissions import ChannelContext, clean_params, render_page, requires
from ingest.auth import keys as access
from ingest.auth import roles
from ingest.db.clock import read_clock
from ingest.models import ApiKey, Channel

# scopes that the form offers; `manage.py create_key` creates the others
_SCOPE_LABELS = {
    "ingest": "Send events and participants",
    "export:response": "Export data",
    "export:private": "Export personal data",
    "pull": "Pull events and sessions, and manage destinations",
}
LIFETIMES = (("30", "30 days"), ("90", "90 days"), ("365", "1 year"), ("", "Never"))


@requires("administer", methods=("GET", "POST"), is_sensitive=True)
def list_or_create_keys(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Lists the keys. A POST creates a key and shows its text once."""
    if request.method != "POST":
        return _render_keys(request, ctx, {"days": "90"}, {})
    params, errors = clean_params(request.POST), {}
    scopes = request.POST.getlist("scope")
    days = params.get("days", "")
    if not params.get("name", "").strip():
        errors["name"] = "Enter a name for the key."
    elif len(params["name"]) > 128:
        errors["name"] = "Up to 128 characters."
    if not scopes:
        errors["scope"] = "Choose at least one permission."
    elif not set(scopes) <= set(_grantable_scopes(ctx)):
        errors["scope"] = "You cannot grant a permission that you do not have."
    if days not in dict(_list_lifetimes()):
        errors["days"] = "Choose when the key expires."
    if not errors:
        try:
            row, text = access.create_key(
                params["name"].strip(),
                scopes,
                [Channel.objects.get(pk=ctx.channel_id)],
                read_clock() + timedelta(days=int(days)) if days else None,
            )
        except ValueError as error:
            errors["scope"] = str(error)
        else:
            return render_page(request, ctx, "key_created.html", {"key": row, "text": text})
    return _render_keys(request, ctx, {**params, "scopes": scopes}, errors, 400)


def _list_lifetimes() -> list[tuple[str, str]]:
    """Returns the lifetimes that the form offers, up to the longest that a key may have."""
    limit = settings.EXHAUST_KEY_MAX_DAYS
    offered = [
        (days, label) for days, label in LIFETIMES if not limit or int(days or limit) <= limit
    ]
    return [(days, label if days or not limit else f"{limit} days") for days, label in offered]


def _grantable_scopes(ctx: ChannelContext) -> dict[str, str]:
    """Returns the scopes that the user may grant, by name: those the user has."""
    return {
        name: label
        for name, label in _SCOPE_LABELS.items()
        if roles.SCOPE_REQUIRES[name] in ctx.permissions
    }


def _visible_keys(request: HttpRequest, ctx: ChannelContext) -> QuerySet[ApiKey]:
    """Returns the channel's keys whose channels the user administers all."""
    keys = ApiKey.objects.filter(channels=ctx.channel_id)
    if request.user.is_superuser:
        return keys
    return roles.filter_keys(keys, roles.permitted_channels(request.user, "administer").values())


def _render_keys(
    request: HttpRequest,
    ctx: ChannelContext,
    params: dict[str, Any],
    errors: dict[str, str],
    status: int = 200,
) -> HttpResponse:
    now = read_clock()
    keys = _visible_keys(request, ctx).order_by("revoked_at", "-pk")
    rows = [(key, _key_state(key, now)) for key in keys]
    return render_page(
        request,
        ctx,
        "keys.html",
        {
            "keys": rows,
            "scopes": _grantable_scopes(ctx),
            "lifetimes": _list_lifetimes(),
            "params": params,
            "errors": errors,
        },
        status,
    )


def _key_state(key: ApiKey, now: Any) -> str:
    if key.revoked_at:
        return "revoked"
    if key.expires_at is None or key.expires_at > now + access.ENDING_SOON:
        return "active"
    return "ending" if key.expires_at > now else "expired"


@requires("administer", methods=("POST",), is_sensitive=True)
def revoke_key(request: HttpRequest, ctx: ChannelContext, public_id: str) -> HttpResponse:
    key = _visible_keys(request, ctx).filter(public_id=public_id).first()
    if key is None:
        raise Http404
    if access.revoke_key(key):
        messages.success(request, f"“{key.name}” is revoked.")
    else:
        messages.warning(request, "This key was revoked already.")
    return redirect("console:keys", ctx.channel)
