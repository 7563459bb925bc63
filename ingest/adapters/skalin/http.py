"""Skalin's requests and responses: bulks in a body or a query, single hits in a query."""

from ingest.adapters import json_body
from ingest.adapters.base import OVERLOADED_DETAIL, Receipt, Response, list_rejections
from ingest.adapters.skalin import query
from ingest.events import Call, RequestError

MAX_BODY_BYTES = 1024 * 1024  # of a body: five kilobytes a row


def read_bulk_parameters(raw_query: bytes) -> dict[str, str]:
    return query.parse_query(query.split_query(raw_query)[0])


def has_no_body(call: Call) -> bool:
    return False


def has_bulk_body(call: Call) -> bool:
    return call.method == "POST"


def decode_bulk(sent: bytes, call: Call) -> bytes:
    """Returns the body, or the JSON that curl's `-G` moved to the query, by GET or POST.

    Raises `RequestError`, 405 for a GET without it.
    """
    _, json_in_query = query.split_query(call.query)
    if call.method == "POST":
        try:
            return json_body.decode(sent, call.content_encoding, MAX_BODY_BYTES)
        except RequestError as error:
            if error.reason != "empty" or not json_in_query:
                raise
    if json_in_query:
        return query.bulk_from_query(json_in_query)
    raise RequestError("method_not_allowed", "Bulks come by POST.", 405)


def decode_hit(sent: bytes, call: Call) -> bytes:
    return query.bulk_from_hit(call.parameters)


def respond(receipt: Receipt) -> Response:
    result = receipt.result
    return Response(
        {
            "status": "success",
            "stored": result.stored,
            "duplicate": result.duplicate,
            "rejected": len(result.rejections),
            "rejections": list_rejections(result.rejections),
        },
        headers={"Cache-Control": "no-store"},  # a cached response would lose the hit
    )


def refuse(error: RequestError, call: Call) -> Response:
    return _error(error.detail, error.status, error.reason)


def _error(detail: str, status: int, reason: str) -> Response:
    # the Go client reads the message only where `code` is a number
    content = {"status": "error", "message": detail, "code": status, "reason": reason}
    return Response(content, status)


OVERLOAD = _error(OVERLOADED_DETAIL, 503, "overloaded")
