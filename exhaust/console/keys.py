"""The API keys of a channel: list, create, rotate, revoke."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from exhaust.console.permissions import ChannelContext, clean_params, render_page, requires
from ingest.auth import keys as access
from ingest.auth import roles
from ingest.db.clock import read_clock
from ingest.models import ApiKey, Channel

SCOPE_LABELS: dict[str, Promise] = {
    "ingest": gettext_lazy("Send events and participants"),
    "export:response": gettext_lazy("Export data"),
    "export:private": gettext_lazy("Export personal data"),
    "pull": gettext_lazy("Pull events and sessions, and manage destinations"),
    "audit": gettext_lazy("Read the audit log"),
    "erase": gettext_lazy("Erase people"),
}
LIFETIMES: tuple[tuple[str, Promise], ...] = (
    ("30", gettext_lazy("30 days")),
    ("90", gettext_lazy("90 days")),
    ("365", gettext_lazy("1 year")),
    ("", gettext_lazy("Never")),
)
GRACE_HOURS: dict[str, Promise] = {
    "0": gettext_lazy("now"),
    "1": gettext_lazy("in 1 hour"),
    "24": gettext_lazy("in 24 hours"),
    "168": gettext_lazy("in 7 days"),
}


@requires("administer", methods=("GET", "POST"), is_sensitive=True)
def list_or_create_keys(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Lists the keys. A POST creates a key and shows its text once."""
    if request.method != "POST":
        return _render_keys(request, ctx, {"days": "90"}, {})
    params, errors = clean_params(request.POST), {}
    scopes = request.POST.getlist("scope")
    days = params.get("days", "")
    networks = ""
    if not params.get("name", "").strip():
        errors["name"] = _("Enter a name for the key.")
    elif len(params["name"]) > 128:
        errors["name"] = _("Up to 128 characters.")
    if not scopes:
        errors["scope"] = _("Choose at least one permission.")
    elif not set(scopes) <= set(_grantable_scopes(request, ctx)):
        errors["scope"] = _("You cannot grant a permission that you do not have.")
    if days not in dict(_list_lifetimes()):
        errors["days"] = _("Choose when the key expires.")
    try:
        networks = access.normalize_networks(params.get("networks", ""))
    except ValueError as error:
        errors["networks"] = str(error)
    if len(networks) > 1000:
        errors["networks"] = _("Up to 1,000 characters.")
    if not errors:
        try:
            row, text = access.create_key(
                params["name"].strip(),
                scopes,
                [Channel.objects.get(pk=ctx.channel_id)],
                read_clock() + timedelta(days=int(days)) if days else None,
                networks,
            )
        except ValueError as error:
            errors["scope"] = str(error)
        else:
            return render_page(request, ctx, "key_created.html", {"key": row, "text": text})
    return _render_keys(request, ctx, {**params, "scopes": scopes}, errors, 400)


def _list_lifetimes() -> list[tuple[str, Any]]:
    """Returns the lifetimes that the form offers, up to the longest that a key may have."""
    limit = settings.EXHAUST_KEY_MAX_DAYS
    offered = [
        (days, label) for days, label in LIFETIMES if not limit or int(days or limit) <= limit
    ]
    longest = ngettext("%(count)d day", "%(count)d days", limit) % {"count": limit}
    return [(days, label if days or not limit else longest) for days, label in offered]


def _grantable_scopes(request: HttpRequest, ctx: ChannelContext) -> dict[str, Promise]:
    """Returns the scopes that the user may grant, by name: those the user has."""
    return {
        name: label
        for name, label in SCOPE_LABELS.items()
        if getattr(request.user, "is_superuser", False)
        or roles.SCOPE_REQUIRES.get(name) in ctx.permissions
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
    rows = [
        {"key": key, "state": _key_state(key, now), "scopes": _list_scope_labels(key)}
        for key in keys
    ]
    return render_page(
        request,
        ctx,
        "keys.html",
        {
            "keys": rows,
            "scopes": _grantable_scopes(request, ctx),
            "lifetimes": _list_lifetimes(),
            "grace_hours": GRACE_HOURS,
            "params": params,
            "errors": errors,
        },
        status,
    )


def _list_scope_labels(key: ApiKey) -> list[Any]:
    return [SCOPE_LABELS.get(scope, scope) for scope in key.scopes.split()]


def _key_state(key: ApiKey, now: Any) -> str:
    if key.revoked_at:
        return "revoked"
    if key.expires_at is None or key.expires_at > now + access.ENDING_SOON:
        return "active"
    return "ending" if key.expires_at > now else "expired"


def _fetch_key(request: HttpRequest, ctx: ChannelContext, public_id: str) -> ApiKey:
    key = _visible_keys(request, ctx).filter(public_id=public_id).first()
    if key is None:
        raise Http404
    return key


@requires("administer", methods=("POST",), is_sensitive=True)
def rotate_key(request: HttpRequest, ctx: ChannelContext, public_id: str) -> HttpResponse:
    """Makes a successor of a key and shows its text once. The old key ends when the user chose."""
    key = _fetch_key(request, ctx, public_id)
    hours = request.POST.get("hours", "")
    if hours not in GRACE_HOURS:
        return _render_keys(request, ctx, {}, {"": _("Choose when the old key ends.")}, 400)
    if excess := roles.excess_scopes(request.user, key):
        sentence = _("You lack a permission of this key: %(excess)s.") % {"excess": excess}
        return _render_keys(request, ctx, {}, {"": sentence}, 400)
    try:
        row, text = access.rotate_key(key, timedelta(hours=int(hours)))
    except ValueError as error:
        return _render_keys(request, ctx, {}, {"": str(error)}, 400)
    key.refresh_from_db()
    context = {"key": row, "text": text, "old_key": key}
    return render_page(request, ctx, "key_created.html", context)


@requires("administer", methods=("POST",), is_sensitive=True)
def revoke_key(request: HttpRequest, ctx: ChannelContext, public_id: str) -> HttpResponse:
    key = _fetch_key(request, ctx, public_id)
    if access.revoke_key(key):
        messages.success(request, _("“%(name)s” is revoked.") % {"name": key.name})
    else:
        messages.warning(request, _("This key was revoked already."))
    return redirect("console:keys", ctx.channel)
