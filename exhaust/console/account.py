"""A user's own account: password, second factors and sessions; and allauth's addresses."""

from allauth.account import views
from allauth.socialaccount.views import login_cancelled
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import include, path, re_path, reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from exhaust.console.permissions import render_page
from ingest import audit
from ingest.auth import roles, sessions
from ingest.db.clock import read_clock
from ingest.models import BrowserSession


@never_cache
@login_required
def show_account(request: HttpRequest) -> HttpResponse:
    """Shows how the user signs in, and where they are signed in."""
    rows = BrowserSession.objects.filter(user=request.user.pk, expire_date__gt=read_clock())
    context = {
        "second_factors": roles.find_second_factors(request.user),
        "closed_channels": roles.list_closed_channels(request.user),
        "sessions": rows.order_by("-used_at"),
        "current_session": sessions.hash_key(request.session.session_key),
    }
    return render_page(request, None, "account.html", context)


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
    messages.success(request, f"{count} session{'' if count == 1 else 's'} ended.")
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
            messages.warning(request, "Your account does not open the administration.")
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
