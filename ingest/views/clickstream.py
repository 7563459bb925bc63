"""The AWS Clickstream door. Of the sender's address nothing is read or stored."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.utils.cache import patch_vary_headers
from django.views.decorators.csrf import csrf_exempt

from ingest.adapters import body
from ingest.adapters import clickstream as adapter
from ingest.auth import failures, keys
from ingest.auth.keys import RegisteredApplication
from ingest.events import Call, RequestError
from ingest.http import problems
from ingest.http.schema import JSON, extend_schema
from ingest.limits import rate_limits
from ingest.store import batches
from ingest.views.clickstream_bodies import ClickstreamEvent, CollectQuery, PingQuery, Pong

ALLOWED_HEADERS = (
    "DNT, X-CustomHeader, Keep-Alive, User-Agent, X-Requested-With, If-Modified-Since,"
    " Cache-Control, Content-Type"
)


@csrf_exempt
@extend_schema(
    "collectClicks",
    None,
    request={JSON: (ClickstreamEvent(many=True), ClickstreamEvent)},
    methods=["POST"],
    parameters=[CollectQuery],
    auth=[],
)
def collect(request: HttpRequest) -> HttpResponse:
    """Send AWS Clickstream events.

    200 without a body means that they are stored. The body may be gzip, or base64 of gzip.
    """
    return _respond(request, "POST")


@csrf_exempt
@extend_schema("pingClicks", Pong, methods=["GET"], parameters=[PingQuery], auth=[])
def ping(request: HttpRequest) -> HttpResponse:
    """Get the service's clock, as the AWS Clickstream SDKs do."""
    return _respond(request, "GET")


def _respond(request: HttpRequest, method: str) -> HttpResponse:
    """The answer to a known application, readable to the pages it is registered for."""
    application: RegisteredApplication | None = None
    try:
        application_id = request.GET.get("appId", "")
        with rate_limits.throttle_auth_failures(request, application_id):
            application = keys.fetch_application(application_id)
        keys.set_actor(request, application.identifier)
        if request.method == "OPTIONS":
            response = HttpResponse(status=204)
        elif request.method != method:
            raise RequestError("method_not_allowed", f"This address takes {method}.", 405)
        else:
            rate_limits.count_call(request, f"application:{application.id}")
            _require_cookie(request, application)
            response = _store_body(request, application) if method == "POST" else _clock_response()
    except RequestError as refused:
        response = problems.build_response(refused.status, refused.reason, refused.detail)
        if refused.status == 405:
            response["Allow"] = f"{method}, OPTIONS"
    patch_vary_headers(response, ["Origin"])
    origin = request.headers.get("Origin", "")
    # on errors too: without it a page is told of a broken network, not of the error
    if application is not None and origin in application.allowed_origins.split():
        response["Access-Control-Allow-Origin"] = origin
        response["Access-Control-Allow-Credentials"] = "true"
        if request.method == "OPTIONS":
            response["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
            response["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
    return response


def _require_cookie(request: HttpRequest, application: RegisteredApplication) -> None:
    """Raises `Denied` (403) without the application's cookie, where it has one, and `Limited`."""
    if not application.cookie_digest:
        return
    cookie = request.headers.get("Cookie", "")
    # with the id, which alone has passed already: knowing it lets no guess through
    with rate_limits.throttle_auth_failures(request, f"{application.identifier} {cookie}"):
        if not keys.verify_secret(application.cookie_digest, cookie):
            failures.count_failure("application.rejected", request)
            raise keys.AccessDenied("forbidden", "The cookie is not this application's.", 403)


def _store_body(request: HttpRequest, application: RegisteredApplication) -> HttpResponse:
    call = Call(
        channel=application.channel,
        received_at=timezone.now(),
        content_type=request.content_type or "",
        application=application.identifier,
        application_id=application.id,
        parameters=request.GET.dict(),
    )
    sent = body.read_raw(request, adapter.MAX_BYTES)
    if application.strict_hash and not adapter.has_valid_hash(sent, call):
        raise RequestError("hash", "hashCode is not the first 8 hex digits of the body's SHA-256.")
    batches.append_batch(application.channel_id, adapter.parse(sent, call))
    return HttpResponse(content_type="text/plain")


def _clock_response() -> HttpResponse:
    answer = JsonResponse({"timestamp": round(timezone.now().timestamp(), 3)})
    answer["Cache-Control"] = "no-store"
    return answer
