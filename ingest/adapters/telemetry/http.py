"""Telemetry's responses: the Sunbird envelope."""

from typing import Any

from ingest.adapters.base import (
    COMMON_HEADERS,
    OVERLOADED_DETAIL,
    Cors,
    Receipt,
    Response,
    list_rejections,
)
from ingest.events import Call, RequestError
from ingest.ids import make_uuid

CORS = Cors(
    "POST, OPTIONS",
    headers=(  # the second line: Sunbird's SDK; then its portals and service
        f"{COMMON_HEADERS},"
        " dataType, X-App-ID, X-Device-ID,"
        " X-App-Version, X-Authenticated-User-Token, X-Consumer-ID, X-Msgid, X-Org-Code,"
        " X-Session-ID, X-Source, X-Requested-With, Cache-Control, ts, cid, user-id, x-auth"
    ),
)
_CODES = {403: "FORBIDDEN", 429: "TOO_MANY_REQUESTS"}

OVERLOAD = Response(
    {
        "id": "api.telemetry",
        "ver": "1.0",
        "params": {"status": "failed", "err": "SERVER_ERROR", "errmsg": OVERLOADED_DETAIL},
        "responseCode": "SERVER_ERROR",
        "result": {},
    },
    503,
)


def respond(receipt: Receipt) -> Response:
    result = receipt.result
    counts = {
        "stored": result.stored,
        "duplicate": result.duplicate,
        "rejected": len(result.rejections),
        "rejections": list_rejections(result.rejections),
    }
    return Response(_envelope(receipt.call, "SUCCESS", {"status": "successful"}, counts))


def refuse(error: RequestError, call: Call) -> Response:
    params = {"status": "failed", "err": error.reason, "errmsg": error.detail}
    content = _envelope(call, _CODES.get(error.status, "CLIENT_ERROR"), params, {})
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    return Response(content, error.status, headers)


def _envelope(
    call: Call, code: str, params: dict[str, Any], result: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": "api.telemetry",
        "ver": "1.0",
        "ets": int(call.received_at.timestamp() * 1000),
        "params": {"resmsgid": make_uuid(), **params},
        "responseCode": code,
        "result": result,
    }
