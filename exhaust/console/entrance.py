"""The first address: it leads people to the console, and names programs the other addresses."""

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponsePermanentRedirect,
    JsonResponse,
)
from django.shortcuts import redirect

from ingest.http import pages
from ingest.views.sources import dispatch_by_method


def show_entrance(request: HttpRequest) -> HttpResponse:
    """Redirects a browser to the console. Answers programs with a linkset (RFC 9264)."""
    if request.method not in {"GET", "HEAD"}:
        raise Http404
    if pages.wants_page(request):
        return redirect("console:home")
    address = settings.EXHAUST_PUBLIC_URL
    links = {
        "anchor": f"{address}/",
        "service-desc": [{"href": f"{address}/docs/openapi.json", "type": "application/json"}],
        "service-doc": [{"href": f"{address}/docs/", "type": "text/html"}],
        "status": [{"href": f"{address}/readyz", "type": "application/json"}],
        "alternate": [{"href": f"{address}/console/", "type": "text/html"}],
    }
    return JsonResponse({"linkset": [links]}, content_type="application/linkset+json")


def add_slash(name: str) -> Callable[..., HttpResponse]:
    """Returns the view of an address without its last slash, which redirects GET and HEAD."""

    def redirect_to_slash(request: HttpRequest, **_: Any) -> HttpResponse:
        query = request.META.get("QUERY_STRING", "")
        return HttpResponsePermanentRedirect(f"/{name}/?{query}" if query else f"/{name}/")

    redirect_to_slash.methods = ()  # type: ignore[attr-defined] # it is no operation of the API
    return dispatch_by_method(GET=redirect_to_slash, HEAD=redirect_to_slash)
