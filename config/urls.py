from django.contrib import admin
from django.urls import include, path

from exhaust import openapi
from exhaust.api.pull import EventsView
from exhaust.monitoring import health, metrics
from ingest.views import sources

urlpatterns = [
    path(  # GET is the pull API, PUT and POST an ingest endpoint
        "export/events",
        sources.dispatch_by_method(
            GET=EventsView.as_view(), **sources.shared_views("export/events")
        ),
    ),
    path("", sources.dispatch_by_accept("")),
    path("", include("ingest.urls")),
    path("", include("exhaust.urls")),
    path("api/", include("exhaust.urls")),  # the same API under both prefixes
    path("console/", include("exhaust.console.urls")),
    path("admin/", admin.site.urls),
    path("docs/", openapi.page),
    path("docs/openapi.json", openapi.as_json),
    path("docs/openapi.yaml", openapi.as_yaml),
    path("healthz", health.report_liveness),
    path("readyz", health.report_readiness),
    path("metrics", metrics.serve_metrics),
]
handler400 = health.bad_request
handler404 = health.not_found
handler500 = health.server_error
