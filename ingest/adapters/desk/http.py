"""The responses to lines of sessions and to Elasticsearch's bulks."""

from typing import Any

from ingest.adapters.base import (
    OVERLOADED_DETAIL,
    Receipt,
    Response,
    list_rejections,
    problem_response,
)
from ingest.adapters.fields import MAX_TEXT
from ingest.adapters.json_body import require_json
from ingest.events import Call, Rejection, RequestError, StoreResult

BASIC_CHALLENGE = 'Basic realm="exhaust", charset="UTF-8"'
# Elasticsearch's clients send these types, and refuse a response without the header
BULK_NDJSON = "application/vnd.elasticsearch+x-ndjson"
BULK_TYPES = {"application/vnd.elasticsearch+json", BULK_NDJSON}
_PRODUCT = {"X-Elastic-Product": "Elasticsearch"}
PRODUCT_INFO = {
    "name": "exhaust",
    "cluster_name": "exhaust",
    "cluster_uuid": "ZXhoYXVzdC1zZXNzaW9ucw",
    "version": {
        "number": "8.19.0",  # whose bulks these are; newer clients send the same
        "build_flavor": "default",
        "build_type": "docker",
        "build_hash": "0" * 40,
        "build_date": "2025-07-01T00:00:00.000Z",
        "build_snapshot": False,
        "lucene_version": "9.12.2",
        "minimum_wire_compatibility_version": "7.17.0",
        "minimum_index_compatibility_version": "7.0.0",
    },
    "tagline": "You Know, for Search",
}
_ERROR_TYPES = {401: "security_exception", 429: "es_rejected_execution_exception"}
_OVERLOAD_CAUSE = {"type": "es_rejected_execution_exception", "reason": OVERLOADED_DETAIL}

BULK_OVERLOAD = Response(
    {"error": {"root_cause": [_OVERLOAD_CAUSE], **_OVERLOAD_CAUSE}, "status": 503}, 503, _PRODUCT
)


def respond(receipt: Receipt) -> Response:
    batch, result = receipt.batch, receipt.result
    return Response(
        {
            "sessions": sum(event.type == "session" for event in batch.events),
            "stored": result.stored,
            "duplicate": result.duplicate,
            "rejected": len(result.rejections),
            "rejections": list_rejections(result.rejections),
        }
    )


def refuse(error: RequestError, call: Call) -> Response:
    response = problem_response(error, call)
    if error.status == 401:
        return response._replace(headers={"WWW-Authenticate": BASIC_CHALLENGE})
    return response


def check_bulk(call: Call) -> None:
    """Raises `RequestError`: 415 for the content type, 400 for a too long index."""
    if call.content_type not in BULK_TYPES:
        require_json(call.content_type)
    if len(call.route.get("index", "")) > MAX_TEXT:
        raise RequestError("index", f"An index's name has up to {MAX_TEXT} characters.")


def respond_with_product(receipt: Receipt) -> Response:
    """Returns what Elasticsearch's clients ask for before they send. A HEAD has no body."""
    return Response(PRODUCT_INFO if receipt.call.method == "GET" else None, headers=_PRODUCT)


def respond_bulk(receipt: Receipt) -> Response:
    """Returns Elasticsearch's response: the outcome of each item, in the order sent."""
    failures = {each.position: _failed_result(each) for each in receipt.result.rejections}
    accepted = _accepted_result(receipt.result)
    content = {
        "took": receipt.elapsed_ms,
        "errors": len(failures) > 0,
        "items": [
            {
                item.operation: {
                    "_index": item.index,
                    "_id": item.id or None,
                    **failures.get(position, accepted),
                }
            }
            for position, item in enumerate(receipt.batch.details)
        ],
    }
    return Response(content, headers=_PRODUCT)


def refuse_bulk(error: RequestError, call: Call) -> Response:
    kind = _ERROR_TYPES.get(error.status, "illegal_argument_exception")
    cause = {"type": kind, "reason": f"{error.reason}: {error.detail}"}
    content = {"error": {"root_cause": [cause], **cause}, "status": error.status}
    headers = dict(_PRODUCT)
    if error.status == 401:
        headers["WWW-Authenticate"] = BASIC_CHALLENGE
    return Response(content, error.status, headers)


def _accepted_result(result: StoreResult) -> dict[str, Any]:
    """Returns the result of each accepted session.

    The store counts a whole batch: `created` means that all of it was new, `noop` that all of it
    was known, `updated` that some of it was.
    """
    if result.stored == 0:
        return {"status": 200, "result": "noop"}
    if result.duplicate == 0:
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
