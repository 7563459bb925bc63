"""A channel's keys: listed, made and shown once, revoked."""

from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone

from exhaust.console.permissions import ChannelContext, clean_params, render_page, requires
from ingest.auth import keys as access
from ingest.auth import roles
from ingest.models import ApiKey, Channel

# what is offered; the others are made by `manage.py create_key`
_SCOPE_LABELS = {
    "ingest": "Send events and participants",
    "export:response": "Ask for answers",
    "export:private": "Ask for files of people",
    "pull": "Pull events and sessions, and keep destinations",
}
LIFETIMES = (("30", "30 days"), ("90", "90 days"), ("365", "a year"), ("", "endless"))


@requires("administer", methods=("GET", "POST"))
def list_or_create_keys(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """The keys; a POST makes one and shows its text, this once."""
    if request.method != "POST":
        return _render_keys(request, ctx, {"days": "90"}, {})
    params, errors = clean_params(request.POST), {}
    scopes = request.POST.getlist("scope")
    days = params.get("days", "")
    if not params.get("name", "").strip():
        errors["name"] = "Say who uses it."
    elif len(params["name"]) > 128:
        errors["name"] = "Up to 128 characters."
    if not scopes:
        errors["scope"] = "Choose what it may do."
    elif not set(scopes) <= set(_grantable_scopes(ctx)):
        errors["scope"] = "A key may do no more than you."
    if days not in dict(LIFETIMES):
        errors["days"] = "Choose how long it lives."
    if not errors:
        try:
            row, text = access.create_key(
                params["name"].strip(),
                scopes,
                [Channel.objects.get(pk=ctx.channel_id)],
                timezone.now() + timedelta(days=int(days)) if days else None,
            )
        except ValueError as error:
            errors["scope"] = str(error)
        else:
            return render_page(request, ctx, "key_made.html", {"key": row, "text": text})
    return _render_keys(request, ctx, {**params, "scopes": scopes}, errors, 400)


def _grantable_scopes(ctx: ChannelContext) -> dict[str, str]:
    """What the person may give a key, so that none may do more than they."""
    return {
        name: words
        for name, words in _SCOPE_LABELS.items()
        if roles.SCOPE_REQUIRES[name] in ctx.permissions
    }


def _visible_keys(request: HttpRequest, ctx: ChannelContext) -> QuerySet[ApiKey]:
    """The channel's; one that stands in others too only for who administers all of them."""
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
    now = timezone.now()
    keys = _visible_keys(request, ctx).order_by("revoked_at", "-pk")
    rows = [(key, _key_state(key, now)) for key in keys]
    return render_page(
        request,
        ctx,
        "keys.html",
        {
            "keys": rows,
            "scopes": _grantable_scopes(ctx),
            "lives": LIFETIMES,
            "params": params,
            "errors": errors,
        },
        status,
    )


def _key_state(key: ApiKey, now: Any) -> str:
    if key.revoked_at:
        return "revoked"
    return "expired" if key.expires_at and key.expires_at <= now else "works"


@requires("administer", methods=("POST",))
def revoke_key(request: HttpRequest, ctx: ChannelContext, public_id: str) -> HttpResponse:
    key = _visible_keys(request, ctx).filter(public_id=public_id).first()
    if key is None:
        raise Http404
    if access.revoke_key(key):
        messages.success(request, f"“{key.name}” is revoked; it opens nothing from now on.")
    else:
        messages.warning(request, "It was revoked already.")
    return redirect("console:keys", ctx.channel)
