"""The doors: who is calling, what did they bring, what became of it."""

import logging
from datetime import datetime
from typing import Any
from uuid import uuid4

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from ingest import access, problems, store
from ingest.adapters import ADAPTERS, body, participants
from ingest.events import Refused, Rejection
from ingest.models import Conversation

log = logging.getLogger(__name__)
SHOWN_REJECTIONS = 100


@csrf_exempt
def telemetry(request: HttpRequest) -> HttpResponse:
    """`POST /v1/telemetry`: a batch, an event, or an event a line."""
    received_at = timezone.now()
    try:
        if request.method != "POST":
            raise Refused("method_not_allowed", "Telemetry comes by POST.", 405)
        caller = access.identify(request)
        caller.require("ingest")
        channel_id, channel = caller.channel(request.headers.get("X-Channel-ID"))
        body.require_json(request.content_type or "")
        sent = body.read(request)
        batch = ADAPTERS["telemetry"].parse(sent, request.content_type or "", channel, received_at)
        outcome = store.append(channel_id, batch)
    except Refused as refused:
        answer = JsonResponse(
            _telemetry_answer(
                received_at,
                "CLIENT_ERROR" if refused.status != 403 else "FORBIDDEN",
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
        _telemetry_answer(
            received_at,
            "SUCCESS",
            {"status": "successful"},
            {
                "stored": outcome.stored,
                "duplicate": outcome.duplicate,
                "rejected": len(outcome.rejections),
                "rejections": _shown(outcome.rejections),
            },
        )
    )


def _telemetry_answer(
    at: datetime, code: str, params: dict[str, Any], result: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": "api.telemetry",
        "ver": "1.0",
        "ets": int(at.timestamp() * 1000),
        "params": {"resmsgid": str(uuid4()), **params},
        "responseCode": code,
        "result": result,
    }


def _shown(rejections: Any) -> list[dict[str, Any]]:
    return [_rejection(rejection) for rejection in list(rejections)[:SHOWN_REJECTIONS]]


def _rejection(rejection: Rejection) -> dict[str, Any]:
    return {
        "position": rejection.position,
        "reason": rejection.reason,
        "detail": rejection.detail,
    }


@csrf_exempt
def people(request: HttpRequest) -> HttpResponse:
    """`POST /v1/participants`: profiles and consents, as an array or one a line."""
    received_at = timezone.now()
    try:
        if request.method != "POST":
            raise Refused("method_not_allowed", "Participants come by POST.", 405)
        caller = access.identify(request)
        caller.require("ingest")
        channel_id, _ = caller.channel(request.headers.get("X-Channel-ID"))
        body.require_json(request.content_type or "")
        sent = body.read(request)
        profiles, rejections = participants.parse(sent, request.content_type or "", received_at)
        store.keep_participants(channel_id, received_at, profiles, rejections)
    except Refused as refused:
        return problems.response(refused.status, refused.reason, refused.detail)
    return JsonResponse(
        {
            "accepted": len(profiles),
            "rejected": len(rejections),
            "rejections": _shown(rejections),
        }
    )


class ConversationName(serializers.Serializer[Conversation]):
    """What may be said of a conversation."""

    name = serializers.CharField(max_length=255, allow_blank=True)


class ConversationView(APIView):
    """`GET|PUT /v1/conversations/{id}`: a bot's name, which fills the exhaust's column."""

    permission_classes = [access.HasScope]
    scope = "ingest"

    def get(self, request: Request, identifier: str) -> Response:
        channel_id, _ = access.caller(request).channel(request.headers.get("X-Channel-ID"))
        found = get_object_or_404(Conversation, channel_id=channel_id, identifier=identifier)
        return Response({"id": found.identifier, "name": found.name})

    def put(self, request: Request, identifier: str) -> Response:
        channel_id, _ = access.caller(request).channel(request.headers.get("X-Channel-ID"))
        if len(identifier) > 255:
            raise Refused("id", "A conversation's id has up to 255 characters.")
        asked = ConversationName(data=request.data)
        asked.is_valid(raise_exception=True)
        found, _ = Conversation.objects.update_or_create(
            channel_id=channel_id, identifier=identifier, defaults=asked.validated_data
        )
        return Response({"id": found.identifier, "name": found.name})
