"""The Skalin door, for bulks and for single hits."""

import math

from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from ingest.adapters import body
from ingest.adapters import skalin as adapter
from ingest.auth import keys
from ingest.events import Call, Refused
from ingest.http import problems
from ingest.limits import rate_limits, token_bucket
from ingest.store import batches

RATE = 100  # calls a second from one address
BURST = 500


@csrf_exempt
def bulk(request: HttpRequest) -> JsonResponse:
    """`POST /hit/bulk`: up to a hundred identities and a hundred features.

    Any content type will do: curl calls a body a form unless told otherwise.
    """
    return _answer(request, is_bulk=True)


@csrf_exempt
def hit(request: HttpRequest) -> JsonResponse:
    """`POST|GET /hit`: one identity or feature, all of it in the query."""
    return _answer(request, is_bulk=False)


def _answer(request: HttpRequest, *, is_bulk: bool) -> JsonResponse:
    received_at = timezone.now()
    methods = "POST" if is_bulk else "GET, POST"
    if wait := token_bucket.take(f"skalin:{token_bucket.address(request)}", RATE, BURST):
        answer = _refusal(
            Refused("too_many_requests", "Too many calls from this address; wait.", 429)
        )
        answer["Retry-After"] = str(math.ceil(wait))
        return answer
    try:
        if request.method not in {"GET", "POST"}:
            raise Refused("method_not_allowed", f"This address takes {methods}.", 405)
        query, residue = request.META.get("QUERY_STRING", "").encode("latin-1", "replace"), b""
        if is_bulk:
            query, residue = adapter.cut(query)
        parameters = adapter.parameters(query)
        client_id = parameters.get("client_id") or parameters.get("clientId") or ""
        with rate_limits.guessing(request, client_id):
            application = keys.application(client_id)
        rate_limits.count(request, f"application:{application.id}")
        keys.acts(request, application.identifier)
        sent = _bulk(request, residue) if is_bulk else adapter.from_hit(parameters)
        call = Call(
            channel=application.channel,
            received_at=received_at,
            content_type=request.content_type or "",
            application=application.identifier,
            application_id=application.id,
            parameters=parameters,
        )
        batch = adapter.parse(sent, call)
        outcome = batches.append(application.channel_id, batch, adapter.people(batch))
    except Refused as refused:
        answer = _refusal(refused)
        if refused.status == 405:
            answer["Allow"] = methods
        return answer
    answer = JsonResponse(
        {
            "status": "success",
            "stored": outcome.stored,
            "duplicate": outcome.duplicate,
            "rejected": len(outcome.rejections),
            "rejections": problems.told(outcome.rejections),
        }
    )
    answer["Cache-Control"] = "no-store"  # a hit answered from a cache is lost
    return answer


def _bulk(request: HttpRequest, residue: bytes) -> bytes:
    """The body, or what curl's `-G` made of it; without `-X POST` that comes by GET."""
    if request.method == "POST":
        try:
            return body.read(request, adapter.MAX_BYTES)
        except Refused as refused:
            if refused.reason != "empty" or not residue:
                raise
    if residue:
        return adapter.from_query(residue)
    raise Refused("method_not_allowed", "Bulks come by POST.", 405)


def _refusal(refused: Refused) -> JsonResponse:
    # `code` is a number: the Go client reads the sentence only then
    said = {
        "status": "error",
        "message": refused.detail,
        "code": refused.status,
        "reason": refused.reason,
    }
    return JsonResponse(said, status=refused.status)
