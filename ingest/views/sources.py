"""The sources' endpoints as Django's views, for WSGI alone and for the OpenAPI document.

A view runs the collector's own code in the calling thread: one call, one commit.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import cast

from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt

from ingest import logs
from ingest.adapters import ADAPTERS, Match, find_endpoint
from ingest.adapters.base import Adapter, Credential, Endpoint, Operation
from ingest.collector.exchange import Headers, Reply, Request
from ingest.collector.groups import run_inline
from ingest.collector.intake import Collector, build_inline_collector
from ingest.http import problems, request_body
from ingest.http.schema import BASIC, extend_schema
from ingest.limits.admission import note_caller

View = Callable[..., HttpResponse]
_SECURITY = {Credential.KEY: None, Credential.APPLICATION_ID: [], Credential.PASSWORD: BASIC}


def make_view(adapter: Adapter, endpoint: Endpoint) -> View:
    """The view of an endpoint."""

    @csrf_exempt
    def receive(request: HttpRequest, **route: str) -> HttpResponse:
        return _collect(request, Match(adapter, endpoint, endpoint.routes[0], route))

    operation = _find_operation(adapter, endpoint)
    receive.__doc__ = operation.description
    return extend_schema(
        operation.id,
        operation.response,
        rejection=operation.rejection,
        request=operation.request,
        parameters=list(operation.parameters),
        methods=list(endpoint.documented_methods or endpoint.methods),
        auth=_SECURITY[adapter.credential],
    )(receive)


def _find_operation(adapter: Adapter, endpoint: Endpoint) -> Operation:
    operations: tuple[Operation, ...] = import_module(adapter.openapi).OPERATIONS
    return next(each for each in operations if each.id == endpoint.operation)


def shared_views(route: str) -> dict[str, View]:
    """The sources' views at an address that other views share, by method."""
    return {
        method: make_view(adapter, endpoint)
        for adapter in ADAPTERS.values()
        for endpoint in adapter.endpoints
        if endpoint.is_shared and route in endpoint.routes
        for method in (*endpoint.methods, *(("OPTIONS",) if adapter.cors else ()))
    }


def dispatch_by_method(**views: View) -> View:
    """One address for views of different methods."""

    @csrf_exempt
    def dispatch(request: HttpRequest) -> HttpResponse:
        view = views.get(request.method or "")
        if view is not None:
            return view(request)
        allowed = ", ".join(views)
        response = problems.build_response(
            405, "method_not_allowed", f"This address takes {allowed}."
        )
        response["Allow"] = allowed
        return response

    dispatch.views = views  # type: ignore[attr-defined] # for the OpenAPI document
    return dispatch


def dispatch_by_accept(route: str, other_view: View) -> View:
    """The sources' view at an address, and the other one for calls with another `Accept`."""
    views = shared_views(route)

    @csrf_exempt
    def dispatch(request: HttpRequest) -> HttpResponse:
        method = request.method or ""
        if find_endpoint(method, request.path, request.headers.get("Accept", "")) is None:
            return other_view(request)
        return views[method](request)

    dispatch.views = views  # type: ignore[attr-defined] # for the OpenAPI document
    return dispatch


class _DjangoRequest(Request):
    """A request of Django, for the collector."""

    __slots__ = ("_http",)

    def __init__(self, http: HttpRequest) -> None:
        query = http.META.get("QUERY_STRING", "").encode("latin-1", "replace")
        address = http.META.get("REMOTE_ADDR", "")
        super().__init__(http.method or "", http.path, query, cast(Headers, http.headers), address)
        self.META = http.META
        self._http = http

    async def read_body(
        self, max_bytes: int, reserve: Callable[[int], None] = lambda size: None
    ) -> bytes:
        return request_body.read_raw(self._http, max_bytes)


@cache
def _collector() -> Collector:
    return build_inline_collector()


def _collect(http: HttpRequest, match: Match) -> HttpResponse:
    request = _DjangoRequest(http)
    reply: Reply = run_inline(_collector().handle(match, request))
    if request.channel:
        note_caller(http.META)
        logs.bind(channel=request.channel, **({"caller": request.caller} if request.caller else {}))
    response = HttpResponse(reply.body, reply.content_type, reply.status, headers=reply.headers)
    if reply.content_type is None:
        del response["Content-Type"]  # Django's default
    return response
