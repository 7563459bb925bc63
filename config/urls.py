from django.contrib import admin
from django.urls import include, path

from config import health

urlpatterns = [
    path("", include("ingest.urls")),
    path("", include("exhaust.urls")),
    path("api/", include("exhaust.urls")),  # the dataset API is seen under both
    path("admin/", admin.site.urls),
    path("healthz", health.alive),
    path("readyz", health.ready),
]
handler404 = health.not_found
handler500 = health.failed
