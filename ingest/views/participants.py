"""Erases a participant."""

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from ingest.adapters.fields import MAX_TEXT
from ingest.auth import keys
from ingest.events import RequestError
from ingest.http.response_fields import Body, epoch_ms, free_object, text
from ingest.http.schema import extend_schema
from ingest.models import Erasure
from ingest.privacy import erasure

ERASURE_SECONDS = 5.0  # of an erasure, within a request


class ErasureCertificate(Body):
    """What was erased, without a word of the person."""

    subject = text("A hash of the device under the channel's secret.")
    askedAt = epoch_ms("When the last request came")
    finishedAt = epoch_ms("When all was erased; null before", allow_null=True)
    erased = free_object("The number of rows of each kind.")
    searched = free_object(
        "How many rejected events were searched, `decrypted` for it, and `unreadable` because"
        " their key is lost. All else is found by its device id."
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
        "searched": row.searched,
    }
