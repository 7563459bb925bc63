"""The door of user sessions: lines of documents, or Elasticsearch's bulk protocol."""

from base64 import b64decode
from collections.abc import Callable
from datetime import datetime
from time import monotonic
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from ingest.adapters import body
from ingest.adapters import desk as adapter
from ingest.adapters.fields import MAX_TEXT
from ingest.auth import failures as refusals
from ingest.auth import keys
from ingest.auth.keys import AccessDenied, RegisteredApplication
from ingest.events import Call, Rejection, RequestError
from ingest.http import problems
from ingest.http.schema import BASIC, JSON, LINES, NDJSON, extend_schema
from ingest.limits import rate_limits
from ingest.store import batches
from ingest.store.batches import StoreResult
from ingest.views.desk_bodies import BULK_LINES, BulkAnswer, BulkError, DeskAnswer, DeskSession

BASIC_CHALLENGE = 'Basic realm="exhaust", charset="UTF-8"'
# what Elasticsearch's own clients name JSON and lines of it
BULK_TYPES = {"application/vnd.elasticsearch+json", "application/vnd.elasticsearch+x-ndjson"}


def dispatch_by_method(**views: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """One address for views of different methods and callers."""

    @csrf_exempt
    def dispatch(request: HttpRequest) -> HttpResponse:
        view = views.get(request.method or "")
        if view is not None:
            return view(request)
        allowed = ", ".join(views)
        answer = problems.build_response(
            405, "method_not_allowed", f"This address takes {allowed}."
        )
        answer["Allow"] = allowed
        return answer

    dispatch.views = views  # type: ignore[attr-defined] # for the OpenAPI document
    return dispatch


@csrf_exempt
@extend_schema(
    "sendSessions",
    DeskAnswer,
    request={NDJSON: LINES, JSON: DeskSession},
    methods=["PUT", "POST"],
    auth=BASIC,
)
def receive_sessions(request: HttpRequest) -> HttpResponse:
    """Send Dynatrace sessions, one a line."""
    received_at = timezone.now()
    try:
        application = _admit_application(request)
        content_type = request.content_type or ""
        body.require_json(content_type)
        sent = body.read_body(request)
        call = _build_call(application, received_at, content_type)
        batch = adapter.parse(sent, call)
        outcome = batches.append_batch(application.channel_id, batch)
    except RequestError as refused:
        answer = problems.build_response(refused.status, refused.reason, refused.detail)
        if refused.status == 401:
            answer["WWW-Authenticate"] = BASIC_CHALLENGE
        return answer
    return JsonResponse(
        {
            "sessions": sum(event.type == "session" for event in batch.events),
            "stored": outcome.stored,
            "duplicate": outcome.duplicate,
            "rejected": len(outcome.rejections),
            "rejections": problems.list_rejections(outcome.rejections),
        }
    )


@csrf_exempt
@extend_schema(
    "sendBulk",
    BulkAnswer,
    rejection=BulkError,
    request=dict.fromkeys((NDJSON, "application/vnd.elasticsearch+x-ndjson"), BULK_LINES),
    methods=["POST", "PUT"],
    auth=BASIC,
)
def receive_bulk(request: HttpRequest, index: str = "") -> HttpResponse:
    """Send sessions by Elasticsearch's bulk protocol."""
    received_at, started = timezone.now(), monotonic()
    try:
        if request.method not in {"POST", "PUT"}:
            raise RequestError("method_not_allowed", "Bulks come by POST or PUT.", 405)
        application = _admit_application(request)
        content_type = request.content_type or ""
        if content_type not in BULK_TYPES:
            body.require_json(content_type)
        if len(index) > MAX_TEXT:
            raise RequestError("index", f"An index's name has up to {MAX_TEXT} characters.")
        sent = body.read_body(request)
        batch, items = adapter.parse_bulk(sent, _build_call(application, received_at), index)
        outcome = batches.append_batch(application.channel_id, batch)
    except RequestError as refused:
        return _error_response(refused)
    failures = {each.position: _failed_result(each) for each in outcome.rejections}
    accepted = _accepted_result(outcome)
    return _elasticsearch_response(
        {
            "took": int((monotonic() - started) * 1000),
            "errors": len(failures) > 0,
            "items": [
                {
                    item.operation: {
                        "_index": item.index,
                        "_id": item.id or None,
                        **failures.get(position, accepted),
                    }
                }
                for position, item in enumerate(items)
            ],
        }
    )


def _admit_application(request: HttpRequest) -> RegisteredApplication:
    """Who HTTP Basic names, if the password is right. Raises `Denied` (401) and `Limited`."""
    with rate_limits.throttle_auth_failures(request, request.headers.get("Authorization", "")):
        application = _authenticate(request)
    rate_limits.count_call(request, f"application:{application.id}")
    return application


def _authenticate(request: HttpRequest) -> RegisteredApplication:
    scheme, _, coded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        raise AccessDenied(
            "unauthorized", "Send the application's id and password by HTTP Basic.", 401
        )
    try:
        identifier, _, password = b64decode(coded.strip(), validate=True).decode().partition(":")
    except ValueError:
        raise AccessDenied(
            "unauthorized", "The HTTP Basic credentials cannot be read.", 401
        ) from None
    try:
        # PostgreSQL takes no NUL, and no id has one
        application = keys.fetch_application(identifier.replace("\0", "\ufffd"))
    except AccessDenied:
        application = None
    # always one comparison, so that an unknown id takes no less time
    if (
        not keys.verify_secret(application.secret_digest if application else "", password)
        or not application
    ):
        refusals.count_failure("application.rejected", request)
        raise AccessDenied(
            "unauthorized", "The application or its password is not known here.", 401
        )
    keys.set_actor(request, application.identifier)
    return application


def _build_call(
    application: RegisteredApplication, received_at: datetime, content_type: str = ""
) -> Call:
    return Call(
        channel=application.channel,
        received_at=received_at,
        content_type=content_type,
        application=application.identifier,
        application_id=application.id,
    )


def _accepted_result(outcome: StoreResult) -> dict[str, Any]:
    """What is known of each session that was taken. The store counts a batch as a whole: created
    says that all of it became rows, noop that all of it was there, updated that some of it was."""
    if outcome.stored == 0:
        return {"status": 200, "result": "noop"}
    if outcome.duplicate == 0:
        return {"status": 201, "result": "created"}
    return {"status": 200, "result": "updated"}


def _failed_result(rejection: Rejection) -> dict[str, Any]:
    kind = (
        "illegal_argument_exception"
        if rejection.reason == "action"
        else "document_parsing_exception"
    )
    reason = f"{rejection.reason}: {rejection.detail}"
    return {"status": 400, "error": {"type": kind, "reason": reason}}


_ERROR_TYPES = {401: "security_exception", 429: "es_rejected_execution_exception"}


def _error_response(refused: RequestError) -> HttpResponse:
    kind = _ERROR_TYPES.get(refused.status, "illegal_argument_exception")
    cause = {"type": kind, "reason": f"{refused.reason}: {refused.detail}"}
    answer = _elasticsearch_response(
        {"error": {"root_cause": [cause], **cause}, "status": refused.status}, refused.status
    )
    if refused.status == 401:
        answer["WWW-Authenticate"] = BASIC_CHALLENGE
    if refused.status == 405:
        answer["Allow"] = "POST, PUT"
    return answer


def _elasticsearch_response(content: dict[str, Any], status: int = 200) -> HttpResponse:
    # Elasticsearch's clients refuse an answer without the header
    return JsonResponse(content, status=status, headers={"X-Elastic-Product": "Elasticsearch"})
