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
from ingest.events import Rejection, RequestError
from ingest.http import problems
from ingest.http.schema import JSON, extend_schema
from ingest.models import Erasure
from ingest.privacy import erasure
from ingest.store.participants import store_participants
from ingest.views.participants_bodies import ErasureCertificate, Participant, ParticipantsAnswer

ERASURE_SECONDS = 5.0  # of an erasure, within a request


@csrf_exempt
@extend_schema(
    "sendParticipants",
    ParticipantsAnswer,
    request={JSON: (Participant(many=True), Participant)},
    methods=["POST"],
)
def receive_participants(request: HttpRequest) -> HttpResponse:
    """Send profiles and consents.

    An array, or one a line. Needs `ingest`.
    """
    received_at = timezone.now()
    try:
        if request.method != "POST":
            raise RequestError("method_not_allowed", "Participants come by POST.", 405)
        caller = keys.authenticate(request)
        caller.require("ingest")
        channel_id, _ = caller.resolve_channel(request.headers.get("X-Channel-ID"))
        body.require_json(request.content_type or "")
        sent = body.read_body(request)
        profiles, rejections = adapter.parse(sent, request.content_type or "", received_at)
        erased = store_participants(channel_id, received_at, profiles, rejections)
        metrics.count_batch(adapter.SOURCE, len(profiles), 0, len(rejections))
    except RequestError as refused:
        return problems.build_response(refused.status, refused.reason, refused.detail)
    return JsonResponse(
        {
            "accepted": len(profiles) - len(erased),
            "rejected": len(rejections) + len(erased),
            "rejections": problems.list_rejections([*rejections, *map(_erased_rejection, erased)]),
        }
    )


def _erased_rejection(profile: Profile) -> Rejection:
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

    @extend_schema("eraseParticipant", {200: ErasureCertificate, 202: ErasureCertificate})
    def delete(self, request: Request, identifier: str) -> Response:
        """Erase a person.

        `identifier` is the device id. Needs `erase`. 202 means that there is more to do: send it
        again.
        """
        channel_id, _ = keys.get_caller(request).resolve_channel(
            request.headers.get("X-Channel-ID")
        )
        if len(identifier) > MAX_TEXT or "\0" in identifier:
            raise RequestError("deviceId", f"A device's id has up to {MAX_TEXT} characters.")
        erasure_row = erasure.erase(channel_id, identifier, ERASURE_SECONDS)
        return Response(
            erasure_certificate(erasure_row), 202 if erasure_row.finished_at is None else 200
        )


def erasure_certificate(row: Erasure) -> dict[str, Any]:
    """What was done, without a word of whom: `subject` is a hash under the channel's secret."""
    return {
        "subject": row.subject,
        "askedAt": int(row.requested_at.timestamp() * 1000),
        "finishedAt": row.finished_at and int(row.finished_at.timestamp() * 1000),
        "erased": row.counts,
    }
