"""The addresses of the sources, and of the other writes by keys with `ingest` or `erase`."""

from django.urls import URLPattern, path

from ingest.adapters import ADAPTERS
from ingest.views.conversations import ConversationView
from ingest.views.participants import ParticipantView
from ingest.views.sources import make_view


def source_urls() -> list[URLPattern]:
    """The sources' addresses, but those that they share with another view."""
    urls = []
    for adapter in ADAPTERS.values():
        for endpoint in adapter.endpoints:
            if not endpoint.is_shared:
                view = make_view(adapter, endpoint)
                urls += [path(route, view) for route in endpoint.routes]
    return urls


urlpatterns = [
    *source_urls(),
    path("v1/participants/<text:identifier>", ParticipantView.as_view()),
    path("v1/conversations/<str:identifier>", ConversationView.as_view()),
]
