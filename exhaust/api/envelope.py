"""The envelope of every answer of the dataset API."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar
from uuid import uuid4

from rest_framework.renderers import JSONRenderer
from rest_framework.response import Response

from ingest.db.clock import read_clock
from ingest.http import problems
from ingest.ids import make_uuid

Row = TypeVar("Row")
MAX_LIST_BYTES = 4 * 1024 * 1024
_renderer = JSONRenderer()
ERROR_HEADERS = ("WWW-Authenticate", "Retry-After")  # that `build_error` sets
_RESPONSE_CODES = {
    400: "CLIENT_ERROR", 401: "UNAUTHORIZED", 403: "FORBIDDEN", 404: "RESOURCE_NOT_FOUND",
    408: "REQUEST_TIMEOUT", 409: "CONFLICT", 410: "GONE", 429: "TOO_MANY_REQUESTS",
    500: "SERVER_ERROR", 503: "SERVER_ERROR",
}  # fmt: skip


def build_success(operation: str, result: dict[str, Any], status: int = 200) -> Response:
    """Returns a result in the envelope."""
    return Response(_build_envelope(operation, "OK", {"status": "successful"}, result), status)


def cut_list(rows: Sequence[Row], measure: Callable[[Row], int]) -> Sequence[Row]:
    """Returns the first rows with `MAX_LIST_BYTES` together, and one at least."""
    size = 0
    for count, row in enumerate(rows):
        size += measure(row)
        if count and size > MAX_LIST_BYTES:
            return rows[:count]
    return rows


def render(value: Any) -> bytes:
    """Returns a value as JSON, as every answer is written."""
    text: bytes = _renderer.render(value)
    return text


def wrap_success(operation: str, result: bytes) -> bytes:
    """Returns a result that is JSON already in the envelope, as `build_success` is written."""
    before, between, behind = _split_success(operation)
    now = read_clock(may_ask=False).isoformat(timespec="milliseconds").encode()
    return b"".join((before, now, between, make_uuid().encode(), behind, result, b"}"))


@cache
def _split_success(operation: str) -> tuple[bytes, bytes, bytes]:
    """Returns what stands around time, id and result."""
    text = _build_envelope(operation, "OK", {"status": "successful"}, {})
    before, rest = render(text).split(text["ts"].encode())
    between, rest = rest.split(text["params"]["resmsgid"].encode())
    return before, between, rest.removesuffix(b"{}}")


def build_error(error: Exception, context: dict[str, Any]) -> Response:
    """Returns an error in the envelope; REST framework calls it with each exception."""
    status, _, detail = problems.explain(error)
    code = _RESPONSE_CODES.get(status, "CLIENT_ERROR")
    operation = getattr(context.get("view"), "operation", "request")
    params = {"status": "failed", "err": code, "errmsg": detail}
    response = Response(_build_envelope(operation, code, params, {}), status)
    problems.add_headers(response, status)
    if status == 429:
        response["Retry-After"] = "30"
    return response


def _build_envelope(
    operation: str, code: str, params: dict[str, Any], result: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": f"ekstep.analytics.dataset.{operation}",
        "ver": "1.0",
        "ts": read_clock(may_ask=False).isoformat(timespec="milliseconds"),
        "params": {"resmsgid": str(uuid4()), **params, "client_key": None},
        "responseCode": code,
        "result": result,
    }
