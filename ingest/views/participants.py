"""Erases a participant."""

from typing import Any

from django.http import Http404
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

RETRY_SECONDS = 5  # a sweep finds an erasure in this time


class ErasureCertificate(Body):
    """What was erased, without a word of the person."""

    subject = text("A hash of the device under the channel's secret.")
    askedAt = epoch_ms("When the last request came")
    finishedAt = epoch_ms("When all was erased; null before", allow_null=True)
    erased = free_object("The number of rows of each kind.")
    searched = free_object(
        "How many exports' `files`, files of the `archive` and rejected events were searched,"
        " `decrypted` for it, and `unreadable` because their key is lost. All else is found by its"
        " device id."
    )


class ParticipantView(APIView):
    """`DELETE|GET /v1/participants/{deviceId}`: erases a person, and tells how far that is."""

    permission_classes = [keys.HasScope]
    scope = "erase"

    @extend_schema("eraseParticipant", {200: ErasureCertificate, 202: ErasureCertificate})
    def delete(self, request: Request, identifier: str) -> Response:
        """Erase a person.

        `identifier` is the device id. A worker erases; poll the same address with GET until
        `finishedAt` is set. 200 means that there is nothing of the person, and no certificate is
        kept. Needs `erase`.
        """
        row = erasure.start_erasures(self._resolve_channel(request, identifier), identifier)[0]
        return _respond(row, 202 if row.finished_at is None else 200)

    @extend_schema("readErasure", ErasureCertificate, 404)
    def get(self, request: Request, identifier: str) -> Response:
        """Get the certificate of an erasure.

        404 means that there was none, or that it found nothing. Needs `erase`.
        """
        row = erasure.find_erasure(self._resolve_channel(request, identifier), identifier)
        if row is None:
            raise Http404
        return _respond(row, 200)

    def _resolve_channel(self, request: Request, identifier: str) -> int:
        if len(identifier) > MAX_TEXT or "\0" in identifier:
            raise RequestError("deviceId", f"A device's id has up to {MAX_TEXT} characters.")
        channel_id, _ = keys.get_caller(request).resolve_channel(
            request.headers.get("X-Channel-ID")
        )
        return channel_id


def _respond(row: Erasure, status: int) -> Response:
    response = Response(erasure_certificate(row), status)
    if row.finished_at is None:
        response["Retry-After"] = str(RETRY_SECONDS)
    return response


def erasure_certificate(row: Erasure) -> dict[str, Any]:
    """What was done, without a word of whom: `subject` is a hash under the channel's secret."""
    return {
        "subject": row.subject,
        "askedAt": int(row.requested_at.timestamp() * 1000),
        "finishedAt": row.finished_at and int(row.finished_at.timestamp() * 1000),
        "erased": row.counts,
        "searched": row.searched,
    }
