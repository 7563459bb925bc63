"""The telemetry door."""

from datetime import datetime
from typing import Any
from uuid import uuid4

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from ingest.adapters import body
from ingest.adapters import telemetry as adapter
from ingest.auth import keys
from ingest.events import Call, RequestError
from ingest.http import problems
from ingest.http.schema import JSON, LINES, NDJSON, extend_schema
from ingest.store import batches
from ingest.views.telemetry_bodies import (
    TelemetryAnswer,
    TelemetryBatch,
    TelemetryError,
    TelemetryEvent,
)


@csrf_exempt
@extend_schema(
    "sendTelemetry",
    TelemetryAnswer,
    rejection=TelemetryError,
    request={JSON: (TelemetryBatch, TelemetryEvent(many=True), TelemetryEvent), NDJSON: LINES},
    methods=["POST"],
)
def receive_telemetry(request: HttpRequest) -> HttpResponse:
    """Send Sunbird telemetry.

    A batch, events or one event. Needs `ingest`. Events that cannot be read are kept aside; the
    others are stored.
    """
    received_at = timezone.now()
    try:
        if request.method != "POST":
            raise RequestError("method_not_allowed", "Telemetry comes by POST.", 405)
        caller = keys.authenticate(request)
        caller.require("ingest")
        channel_id, channel = caller.resolve_channel(request.headers.get("X-Channel-ID"))
        body.require_json(request.content_type or "")
        sent = body.read_body(request)
        batch = adapter.parse(sent, Call(channel, received_at, request.content_type or ""))
        outcome = batches.append_batch(channel_id, batch)
    except RequestError as refused:
        answer = JsonResponse(
            _envelope(
                received_at,
                {403: "FORBIDDEN", 429: "TOO_MANY_REQUESTS"}.get(refused.status, "CLIENT_ERROR"),
                {"status": "failed", "err": refused.reason, "errmsg": refused.detail},
                {},
            ),
            status=refused.status,
        )
        if refused.status == 401:
            answer["WWW-Authenticate"] = "Bearer"
        if refused.status == 405:
            answer["Allow"] = "POST"
        return answer
    return JsonResponse(
        _envelope(
            received_at,
            "SUCCESS",
            {"status": "successful"},
            {
                "stored": outcome.stored,
                "duplicate": outcome.duplicate,
                "rejected": len(outcome.rejections),
                "rejections": problems.list_rejections(outcome.rejections),
            },
        )
    )


def _envelope(
    received_at: datetime, code: str, params: dict[str, Any], result: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": "api.telemetry",
        "ver": "1.0",
        "ets": int(received_at.timestamp() * 1000),
        "params": {"resmsgid": str(uuid4()), **params},
        "responseCode": code,
        "result": result,
    }
