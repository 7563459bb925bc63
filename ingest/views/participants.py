"""The participants' door, and the way out for one of them."""

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from ingest import metrics
from ingest.adapters import body
from ingest.adapters import participants as adapter
from ingest.adapters.fields import MAX_TEXT
from ingest.adapters.participants import Profile
from ingest.auth import keys
from ingest.events import Refused, Rejection
from ingest.http import problems
from ingest.models import Erasure
from ingest.privacy import erasure
from ingest.store.participants import keep_participants

SECONDS = 5.0  # of an erasure, within a request


@csrf_exempt
def participants(request: HttpRequest) -> HttpResponse:
    """`POST /v1/participants`: profiles and consents, as an array or one a line."""
    received_at = timezone.now()
    try:
        if request.method != "POST":
            raise Refused("method_not_allowed", "Participants come by POST.", 405)
        caller = keys.identify(request)
        caller.require("ingest")
        channel_id, _ = caller.channel(request.headers.get("X-Channel-ID"))
        body.require_json(request.content_type or "")
        sent = body.read(request)
        profiles, rejections = adapter.parse(sent, request.content_type or "", received_at)
        erased = keep_participants(channel_id, received_at, profiles, rejections)
        metrics.count(adapter.DIALECT, len(profiles), 0, len(rejections))
    except Refused as refused:
        return problems.response(refused.status, refused.reason, refused.detail)
    return JsonResponse(
        {
            "accepted": len(profiles) - len(erased),
            "rejected": len(rejections) + len(erased),
            "rejections": problems.told([*rejections, *map(_erased, erased)]),
        }
    )


def _erased(profile: Profile) -> Rejection:
    """Told, but kept nowhere: it is what was to be erased."""
    return Rejection(
        profile.position,
        "erased",
        "This person was erased; send a consent that was given afterwards, with its consentAt.",
        b"",
    )


class ParticipantView(APIView):
    """`DELETE /v1/participants/{deviceId}`: erases a person; 202 while there is more to do."""

    permission_classes = [keys.HasScope]
    scope = "erase"

    def delete(self, request: Request, identifier: str) -> Response:
        channel_id, _ = keys.caller(request).channel(request.headers.get("X-Channel-ID"))
        if len(identifier) > MAX_TEXT or "\0" in identifier:
            raise Refused("deviceId", f"A device's id has up to {MAX_TEXT} characters.")
        found = erasure.erase(channel_id, identifier, SECONDS)
        return Response(certificate(found), 202 if found.finished_at is None else 200)


def certificate(row: Erasure) -> dict[str, Any]:
    """What was done, without a word of whom: `subject` is a hash under the channel's secret."""
    return {
        "subject": row.subject,
        "askedAt": int(row.asked_at.timestamp() * 1000),
        "finishedAt": row.finished_at and int(row.finished_at.timestamp() * 1000),
        "erased": row.counts,
    }
