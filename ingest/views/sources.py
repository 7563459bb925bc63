"""The view of every source's endpoint.

The adapter decides what is read and responded. This view does what is not pure: it authenticates,
limits, reads the body and stores.
"""

import math
from base64 import b64decode
from collections.abc import Callable
from importlib import import_module
from time import monotonic
from typing import NamedTuple

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.utils.cache import patch_vary_headers
from django.views.decorators.csrf import csrf_exempt
from msgspec import structs

from ingest.adapters import ADAPTERS
from ingest.adapters.base import Adapter, Cors, Credential, Endpoint, Operation, Receipt, Response
from ingest.auth import failures, keys
from ingest.auth.keys import AccessDenied, RegisteredApplication
from ingest.events import Batch, Call, RequestError, StoreResult
from ingest.http import problems, request_body
from ingest.http.schema import BASIC, extend_schema
from ingest.limits import rate_limits, token_bucket
from ingest.store import batches

View = Callable[..., HttpResponse]
_SECURITY = {Credential.KEY: None, Credential.APPLICATION_ID: [], Credential.PASSWORD: BASIC}


class Sender(NamedTuple):
    """The authenticated sender of a call."""

    channel_id: int
    channel: str
    application: RegisteredApplication | None = None


def make_view(adapter: Adapter, endpoint: Endpoint) -> View:
    """The view of an endpoint."""

    @csrf_exempt
    def receive(request: HttpRequest, **route: str) -> HttpResponse:
        return _receive(request, adapter, endpoint, route)

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
        for method in endpoint.methods
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


def _receive(
    request: HttpRequest, adapter: Adapter, endpoint: Endpoint, route: dict[str, str]
) -> HttpResponse:
    started = monotonic()
    call = Call(
        channel="",
        received_at=timezone.now(),
        content_type=request.content_type or "",
        content_encoding=request.headers.get("Content-Encoding", "identity"),
        method=request.method or "",
        query=request.META.get("QUERY_STRING", "").encode("latin-1", "replace"),
        route=route,
    )
    sender: Sender | None = None
    wait_seconds = 0.0
    try:
        if wait_seconds := _address_wait(request, adapter):
            detail = "Too many calls from this address; wait."
            raise RequestError("too_many_requests", detail, 429)
        if adapter.cors is None:
            _require_method(call, endpoint)
        if endpoint.read_parameters:
            call = structs.replace(call, parameters=endpoint.read_parameters(call.query))
        sender = _authenticate(request, adapter, call)
        if adapter.cors and call.method == "OPTIONS":
            response = Response(status=204, content_type=None)
        else:
            if adapter.cors:  # only now, so that the page can read the error
                _require_method(call, endpoint)
            _admit(request, adapter, sender)
            response = _store(request, endpoint, _complete(call, sender), sender, started)
    except RequestError as error:
        response = endpoint.refuse(error, call)
        if error.status == 405:
            response = _with_header(response, "Allow", _allow(adapter, endpoint))
        if wait_seconds:
            response = _with_header(response, "Retry-After", str(math.ceil(wait_seconds)))
    answer = _to_http(response)
    if adapter.cors:
        _add_cors_headers(answer, request, adapter.cors, sender)
    return answer


def _address_wait(request: HttpRequest, adapter: Adapter) -> float:
    """Seconds that the caller's address has to wait; 0 to go on."""
    if adapter.address_limit is None:
        return 0.0
    rate, burst = adapter.address_limit
    address = token_bucket.get_client_address(request)
    return token_bucket.take(f"{adapter.name}:{address}", rate, burst)


def _require_method(call: Call, endpoint: Endpoint) -> None:
    """Raises `RequestError` (405) for another method."""
    if call.method not in endpoint.methods:
        detail = endpoint.method_detail or f"This address takes {endpoint.allow}."
        raise RequestError("method_not_allowed", detail, 405)


def _authenticate(request: HttpRequest, adapter: Adapter, call: Call) -> Sender:
    """Raises `AccessDenied` (401, 403) and `RateLimited` (429)."""
    if adapter.credential is Credential.KEY:
        caller = keys.authenticate(request)
        caller.require("ingest")
        return Sender(*caller.resolve_channel(request.headers.get("X-Channel-ID")))
    if adapter.credential is Credential.PASSWORD:
        authorization = request.headers.get("Authorization", "")
        with rate_limits.throttle_auth_failures(request, authorization):
            application = _verify_password(request, authorization)
    else:
        named = (call.parameters.get(name) for name in adapter.application_parameters)
        identifier = next(filter(None, named), "")
        with rate_limits.throttle_auth_failures(request, identifier):
            application = keys.fetch_application(identifier)
    keys.set_actor(request, application.identifier)
    return Sender(application.channel_id, application.channel, application)


def _verify_password(request: HttpRequest, authorization: str) -> RegisteredApplication:
    """The application that HTTP Basic names. Raises `AccessDenied` (401)."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        detail = "Send the application's id and password by HTTP Basic."
        raise AccessDenied("unauthorized", detail, 401)
    try:
        identifier, _, password = b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        detail = "The HTTP Basic credentials cannot be read."
        raise AccessDenied("unauthorized", detail, 401) from None
    application: RegisteredApplication | None
    try:
        # PostgreSQL accepts no NUL, and no id has one
        application = keys.fetch_application(identifier.replace("\0", "\ufffd"))
    except AccessDenied:
        application = None
    # always compared, so that an unknown id takes no less time
    digest = application.secret_digest if application else ""
    if not keys.verify_secret(digest, password) or not application:
        failures.count_failure("application.rejected", request)
        detail = "The application or its password is not known here."
        raise AccessDenied("unauthorized", detail, 401)
    return application


def _admit(request: HttpRequest, adapter: Adapter, sender: Sender) -> None:
    """Counts a call of an application and checks its cookie.

    Raises `RateLimited` (429) and `AccessDenied` (403).
    """
    application = sender.application
    if application is None:
        return  # a key's calls are counted where it is authenticated
    rate_limits.count_call(request, f"application:{application.id}")
    if not adapter.checks_cookie or not application.cookie_digest:
        return
    cookie = request.headers.get("Cookie", "")
    # with the id, which has passed by itself already: it must not vouch for a guessed cookie
    with rate_limits.throttle_auth_failures(request, f"{application.identifier} {cookie}"):
        if not keys.verify_secret(application.cookie_digest, cookie):
            failures.count_failure("application.rejected", request)
            raise AccessDenied("forbidden", "The cookie is not this application's.", 403)


def _complete(call: Call, sender: Sender) -> Call:
    """The call with its sender."""
    application = sender.application
    if application is None:
        return structs.replace(call, channel=sender.channel)
    return structs.replace(
        call,
        channel=sender.channel,
        application=application.identifier,
        application_id=application.id,
        is_hash_required=application.strict_hash,
    )


def _store(
    request: HttpRequest, endpoint: Endpoint, call: Call, sender: Sender, started: float
) -> Response:
    """Reads, parses and stores the body; the response after the commit."""
    if endpoint.parse is None:
        batch, result = Batch("", call.received_at, [], []), StoreResult(0, 0, [])
    else:
        endpoint.check(call)
        sent = b""
        if endpoint.reads_body(call):
            sent = request_body.read_raw(request, endpoint.max_bytes)
        batch = endpoint.parse(endpoint.decode(sent, call), call)
        result = batches.append_batch(sender.channel_id, batch)
    elapsed_ms = int((monotonic() - started) * 1000)
    return endpoint.respond(Receipt(call, batch, result, elapsed_ms))


def _allow(adapter: Adapter, endpoint: Endpoint) -> str:
    return f"{endpoint.allow}, OPTIONS" if adapter.cors else endpoint.allow


def _with_header(response: Response, name: str, value: str) -> Response:
    return response._replace(headers={**response.headers, name: value})


def _to_http(response: Response) -> HttpResponse:
    http: HttpResponse
    if response.content is None:
        http = HttpResponse(status=response.status, content_type=response.content_type)
    else:
        http = JsonResponse(
            response.content, status=response.status, content_type=response.content_type
        )
    for name, value in response.headers.items():
        http[name] = value
    return http


def _add_cors_headers(
    answer: HttpResponse, request: HttpRequest, cors: Cors, sender: Sender | None
) -> None:
    """Lets pages of the application's origins read the response, errors included."""
    patch_vary_headers(answer, ["Origin"])
    origin = request.headers.get("Origin", "")
    application = sender.application if sender else None
    if application is None or origin not in application.allowed_origins.split():
        return
    answer["Access-Control-Allow-Origin"] = origin
    answer["Access-Control-Allow-Credentials"] = "true"
    if request.method == "OPTIONS":
        answer["Access-Control-Allow-Methods"] = cors.methods
        answer["Access-Control-Allow-Headers"] = cors.headers
