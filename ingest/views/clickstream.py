"""The AWS Clickstream door. Of the sender's address nothing is read or stored."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.utils.cache import patch_vary_headers
from django.views.decorators.csrf import csrf_exempt

from ingest.adapters import body
from ingest.adapters import clickstream as adapter
from ingest.auth import failures, keys
from ingest.auth.keys import Sender
from ingest.events import Call, Refused
from ingest.http import problems
from ingest.limits import rate_limits
from ingest.store import batches

ALLOWED_HEADERS = (
    "DNT, X-CustomHeader, Keep-Alive, User-Agent, X-Requested-With, If-Modified-Since,"
    " Cache-Control, Content-Type"
)


@csrf_exempt
def collect(request: HttpRequest) -> HttpResponse:
    """`POST /collect?appId=…`: a batch or an event; 200 without a body says it is kept."""
    return _answered(request, "POST")


@csrf_exempt
def ping(request: HttpRequest) -> HttpResponse:
    """`GET /ping?appId=…`: our clock."""
    return _answered(request, "GET")


def _answered(request: HttpRequest, method: str) -> HttpResponse:
    """The answer to a known application, readable to the pages it is registered for."""
    application: Sender | None = None
    try:
        named = request.GET.get("appId", "")
        with rate_limits.guessing(request, named):
            application = keys.application(named)
        keys.acts(request, application.identifier)
        if request.method == "OPTIONS":
            answer = HttpResponse(status=204)
        elif request.method != method:
            raise Refused("method_not_allowed", f"This address takes {method}.", 405)
        else:
            rate_limits.count(request, f"application:{application.id}")
            _has_cookie(request, application)
            answer = _collect(request, application) if method == "POST" else _ping()
    except Refused as refused:
        answer = problems.response(refused.status, refused.reason, refused.detail)
        if refused.status == 405:
            answer["Allow"] = f"{method}, OPTIONS"
    patch_vary_headers(answer, ["Origin"])
    origin = request.headers.get("Origin", "")
    # on errors too: without it a page is told of a broken network, not of the error
    if application is not None and origin in application.allowed_origins.split():
        answer["Access-Control-Allow-Origin"] = origin
        answer["Access-Control-Allow-Credentials"] = "true"
        if request.method == "OPTIONS":
            answer["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
            answer["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
    return answer


def _has_cookie(request: HttpRequest, application: Sender) -> None:
    """Raises `Denied` (403) without the application's cookie, where it has one, and `Limited`."""
    if not application.cookie_digest:
        return
    cookie = request.headers.get("Cookie", "")
    # with the id, which alone has passed already: knowing it lets no guess through
    with rate_limits.guessing(request, f"{application.identifier} {cookie}"):
        if not keys.is_secret(application.cookie_digest, cookie):
            failures.count("application.refused", request)
            raise keys.Denied("forbidden", "The cookie is not this application's.", 403)


def _collect(request: HttpRequest, application: Sender) -> HttpResponse:
    call = Call(
        channel=application.channel,
        received_at=timezone.now(),
        content_type=request.content_type or "",
        application=application.identifier,
        application_id=application.id,
        parameters=request.GET.dict(),
    )
    sent = body.as_sent(request, adapter.MAX_BYTES)
    if application.strict_hash and not adapter.is_hashed(sent, call):
        raise Refused("hash", "hashCode is not the first 8 hex digits of the body's SHA-256.")
    batches.append(application.channel_id, adapter.parse(sent, call))
    return HttpResponse(content_type="text/plain")


def _ping() -> HttpResponse:
    answer = JsonResponse({"timestamp": round(timezone.now().timestamp(), 3)})
    answer["Cache-Control"] = "no-store"
    return answer
