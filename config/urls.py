from typing import Any

from allauth.account.decorators import reauthentication_required
from allauth.account.views import login as account_login
from django.contrib import admin
from django.http import HttpRequest
from django.urls import include, path

from exhaust import openapi
from exhaust.api.pull import EventsView
from exhaust.console import entrance
from exhaust.console.account import sign_in_to_admin
from exhaust.docs import views as docs
from exhaust.monitoring import health, metrics
from ingest.http import pages
from ingest.views import sources

# a change in the admin needs a sign-in, a password or a second factor of the last minutes
show_admin_page = admin.site.admin_view


def confirm_and_show(view: Any, cacheable: bool = False) -> Any:
    return show_admin_page(reauthentication_required(view, enabled=is_change), cacheable)


def is_change(request: HttpRequest) -> bool:
    match = request.resolver_match
    return request.method == "POST" and (match is None or match.url_name != "logout")


admin.site.admin_view = confirm_and_show  # type: ignore[method-assign]
urlpatterns = [
    path(  # GET is the pull API, PUT and POST an ingest endpoint
        "export/events",
        sources.dispatch_by_method(
            GET=EventsView.as_view(), **sources.shared_views("export/events")
        ),
    ),
    path("", sources.dispatch_by_accept("", entrance.show_entrance)),
    *[path(name, entrance.add_slash(name)) for name in ("account", "admin", "console", "docs")],
    path("", include("ingest.urls")),
    path("", include("exhaust.urls")),
    path("api/", include("exhaust.urls")),  # the same API under both prefixes
    path("console/sign-in", account_login, name="account_login"),
    path("console/", include("exhaust.console.urls")),
    path("account/", include("exhaust.console.account")),
    path("admin/login/", sign_in_to_admin),
    path("admin/", admin.site.urls),
    path("docs/", docs.show_page),
    path("docs/try", docs.show_trial),
    path("docs/postman.json", docs.serve_collection),
    path("docs/openapi.json", openapi.as_json),
    path("docs/openapi.yaml", openapi.as_yaml),
    path("healthz", health.report_liveness),
    path("readyz", health.report_readiness),
    path("metrics", metrics.serve_metrics),
]
handler400 = pages.bad_request
handler403 = pages.forbidden
handler404 = pages.not_found
handler500 = pages.server_error
