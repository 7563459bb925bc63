"""A user's own account: language, zone, sign-in and sessions; and allauth's addresses."""

from typing import Any, cast

from allauth.account import views
from allauth.socialaccount.views import login_cancelled
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import include, path, re_path, reverse
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from exhaust.console.permissions import clean_params, render_not_found, render_page
from exhaust.datasets.zones import find_zone_name, list_zone_names
from exhaust.delivery import notices
from exhaust.models import NoticeChoice
from ingest import audit
from ingest.auth import preferences, roles, sessions
from ingest.db.clock import read_clock
from ingest.http import pages
from ingest.models import BrowserSession, UserSettings

MAX_CHANNELS = 200  # on the page


@never_cache
@login_required
def show_account(request: HttpRequest) -> HttpResponse:
    """Shows the user's settings, how they sign in, and where they are signed in."""
    return _render_account(request, preferences.fetch_settings(request.user), {})


def _render_account(
    request: HttpRequest, chosen: UserSettings, errors: dict[str, str], status: int = 200
) -> HttpResponse:
    rows = BrowserSession.objects.filter(user=request.user.pk, expire_date__gt=read_clock())
    context: dict[str, Any] = {
        "params": {"zone": chosen.zone, "language": chosen.language},
        "errors": errors,
        "zones": [("", _("The browser's")), *((name, name) for name in list_zone_names())],
        "languages": [("", _("The browser's")), *settings.LANGUAGES],
        "channels": list(roles.permitted_channels(request.user))[:MAX_CHANNELS],
        "second_factors": roles.find_second_factors(request.user),
        "closed_channels": roles.list_closed_channels(request.user),
        "sessions": rows.order_by("-used_at"),
        "current_session": sessions.hash_key(request.session.session_key),
    }
    return render_page(request, None, "account.html", context, status)


@require_POST
@login_required
def save_settings(request: HttpRequest) -> HttpResponse:
    """Stores the user's own time zone and language."""
    params = clean_params(request.POST)
    chosen = UserSettings(zone=params.get("zone", "")[:64], language=params.get("language", "")[:8])
    errors = {}
    if chosen.zone:
        try:
            chosen.zone = find_zone_name(chosen.zone)
        except ValueError as error:
            errors["zone"] = str(error)
    if chosen.language and chosen.language not in dict(settings.LANGUAGES):
        errors["language"] = _("Choose one of the languages.")
    if errors:
        return _render_account(request, chosen, errors, 400)
    UserSettings.objects.update_or_create(
        user_id=cast(int, request.user.pk),
        defaults={"zone": chosen.zone, "language": chosen.language},
    )
    with translation.override(chosen.language or pages.choose_language(request)):
        messages.success(request, _("Your settings are saved."))
    return redirect("account")


@never_cache
@login_required
def choose_notices(request: HttpRequest, channel: str) -> HttpResponse:
    """Shows and stores of which occurrences in a channel the user is told by e-mail."""
    channel_id, permissions = roles.fetch_permissions(request.user, channel.replace("\0", ""))
    if not permissions:
        return render_not_found(request)
    kinds = {
        kind: label
        for kind, label in notices.KIND_LABELS.items()
        if kind not in notices.ADMINISTRATOR_KINDS or "administer" in permissions
    }
    row = NoticeChoice.objects.filter(user=request.user.pk, channel=channel_id).first()
    if request.method == "POST":
        chosen = {kind: kind in request.POST.getlist("kind") for kind in kinds}
        NoticeChoice.objects.update_or_create(
            user_id=cast(int, request.user.pk), channel_id=channel_id, defaults=chosen
        )
        messages.success(request, _("Your choice is saved."))
        return redirect("account")
    choice = row or NoticeChoice()
    context = {
        "channel": channel,
        "kinds": [(kind, label, getattr(choice, kind)) for kind, label in kinds.items()],
        "sends_mail": settings.EXHAUST_SENDS_MAIL,
    }
    return render_page(request, None, "notices.html", context)


@require_POST
@login_required
def end_sessions(request: HttpRequest) -> HttpResponse:
    """Ends one other session of the user, or all of them."""
    rows = BrowserSession.objects.filter(user=request.user.pk)
    rows = rows.exclude(session_key=sessions.hash_key(request.session.session_key))
    if request.POST.get("which") != "others":
        rows = rows.filter(session_key=request.POST.get("which", "").replace("\0", ""))
    count, _ = rows.delete()
    if count:
        audit.record("session.ended", sessions=count)
    sentence = ngettext("%(count)d session ended.", "%(count)d sessions ended.", count)
    messages.success(request, sentence % {"count": count})
    return redirect("account")


@never_cache
@login_required
def confirm_by_sign_in(request: HttpRequest) -> HttpResponse:
    """Asks a user who has neither password nor second factor to sign in again."""
    return render_page(request, None, "confirm.html")


def sign_in_to_admin(request: HttpRequest) -> HttpResponse:
    """Redirects to the one sign-in page, or to the console a user whom the admin does not admit."""
    if request.user.is_authenticated:
        if not request.user.is_staff:
            messages.warning(request, _("Your account does not open the administration."))
        return redirect("admin:index" if request.user.is_staff else "console:home")
    return redirect_to_login(request.GET.get("next") or reverse("admin:index"))


def reset_password(request: HttpRequest) -> HttpResponse:
    """Sends a link by e-mail, or names the administrator where the service sends none."""
    if not settings.EXHAUST_SENDS_MAIL:
        return render_page(request, None, "lost_password.html")
    response: HttpResponse = views.password_reset(request)
    return response


urlpatterns = [
    path("", show_account, name="account"),
    path("settings", save_settings, name="account-settings"),
    path("notices/<str:channel>", choose_notices, name="account-notices"),
    path("sessions", end_sessions, name="end-sessions"),
    path("confirm", confirm_by_sign_in, name="account_confirm"),
    path("logout", views.logout, name="account_logout"),
    path("inactive", views.account_inactive, name="account_inactive"),
    path("reauthenticate", views.reauthenticate, name="account_reauthenticate"),
    path("password/change", views.password_change, name="account_change_password"),
    path("password/set", views.password_set, name="account_set_password"),
    path("password/reset", reset_password, name="account_reset_password"),
    path("password/sent", views.password_reset_done, name="account_reset_password_done"),
    path(
        "password/done",
        views.password_reset_from_key_done,
        name="account_reset_password_from_key_done",
    ),
    re_path(
        r"^password/(?P<uidb36>[0-9A-Za-z]+)-(?P<key>[^/]+)$",
        views.password_reset_from_key,
        name="account_reset_password_from_key",
    ),
    path("2fa/", include("allauth.mfa.urls")),
    path("cancelled", login_cancelled, name="socialaccount_login_cancelled"),
    path("", include("allauth.socialaccount.providers.openid_connect.urls")),
]
