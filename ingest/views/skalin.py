"""The Skalin door, for bulks and for single hits."""

import math

from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from ingest.adapters import body
from ingest.adapters import skalin as adapter
from ingest.auth import keys
from ingest.events import Call, RequestError
from ingest.http import problems
from ingest.http.schema import JSON, extend_schema
from ingest.limits import rate_limits, token_bucket
from ingest.store import batches
from ingest.views.skalin_bodies import BulkQuery, HitQuery, SkalinAnswer, SkalinBulk, SkalinError

CALLS_PER_SECOND = 100  # calls a second from one address
BURST = 500


@csrf_exempt
@extend_schema(
    "sendHits",
    SkalinAnswer,
    rejection=SkalinError,
    request={JSON: SkalinBulk},
    methods=["POST"],
    parameters=[BulkQuery],
    auth=[],
)
def receive_bulk(request: HttpRequest) -> JsonResponse:
    """Send identities and features as Skalin's clients do.

    Any content type will do: curl calls a body a form by default.
    """
    return _respond(request, is_bulk=True)


@csrf_exempt
@extend_schema(
    "sendHit",
    SkalinAnswer,
    rejection=SkalinError,
    methods=["GET", "POST"],
    parameters=[HitQuery],
    auth=[],
)
def receive_hit(request: HttpRequest) -> JsonResponse:
    """Send one identity or feature in the query."""
    return _respond(request, is_bulk=False)


def _respond(request: HttpRequest, *, is_bulk: bool) -> JsonResponse:
    received_at = timezone.now()
    methods = "POST" if is_bulk else "GET, POST"
    if wait := token_bucket.take(
        f"skalin:{token_bucket.get_client_address(request)}", CALLS_PER_SECOND, BURST
    ):
        answer = _error_response(
            RequestError("too_many_requests", "Too many calls from this address; wait.", 429)
        )
        answer["Retry-After"] = str(math.ceil(wait))
        return answer
    try:
        if request.method not in {"GET", "POST"}:
            raise RequestError("method_not_allowed", f"This address takes {methods}.", 405)
        query, residue = request.META.get("QUERY_STRING", "").encode("latin-1", "replace"), b""
        if is_bulk:
            query, residue = adapter.split_query(query)
        parameters = adapter.parse_query(query)
        client_id = parameters.get("client_id") or parameters.get("clientId") or ""
        with rate_limits.throttle_auth_failures(request, client_id):
            application = keys.fetch_application(client_id)
        rate_limits.count_call(request, f"application:{application.id}")
        keys.set_actor(request, application.identifier)
        sent = _read_bulk(request, residue) if is_bulk else adapter.bulk_from_hit(parameters)
        call = Call(
            channel=application.channel,
            received_at=received_at,
            content_type=request.content_type or "",
            application=application.identifier,
            application_id=application.id,
            parameters=parameters,
        )
        batch = adapter.parse(sent, call)
        outcome = batches.append_batch(application.channel_id, batch, adapter.read_profiles(batch))
    except RequestError as refused:
        answer = _error_response(refused)
        if refused.status == 405:
            answer["Allow"] = methods
        return answer
    answer = JsonResponse(
        {
            "status": "success",
            "stored": outcome.stored,
            "duplicate": outcome.duplicate,
            "rejected": len(outcome.rejections),
            "rejections": problems.list_rejections(outcome.rejections),
        }
    )
    answer["Cache-Control"] = "no-store"  # a hit answered from a cache is lost
    return answer


def _read_bulk(request: HttpRequest, residue: bytes) -> bytes:
    """The body, or what curl's `-G` made of it; without `-X POST` that comes by GET."""
    if request.method == "POST":
        try:
            return body.read_body(request, adapter.MAX_BYTES)
        except RequestError as refused:
            if refused.reason != "empty" or not residue:
                raise
    if residue:
        return adapter.bulk_from_query(residue)
    raise RequestError("method_not_allowed", "Bulks come by POST.", 405)


def _error_response(refused: RequestError) -> JsonResponse:
    # `code` is a number: the Go client reads the sentence only then
    content = {
        "status": "error",
        "message": refused.detail,
        "code": refused.status,
        "reason": refused.reason,
    }
    return JsonResponse(content, status=refused.status)
