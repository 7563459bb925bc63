"""Samples of push: the last sessions in the format of a push, and their Elasticsearch mapping."""

from datetime import timedelta
from typing import Any

from django.http import HttpResponse
from rest_framework import serializers
from rest_framework.request import Request

from exhaust.api import envelope, validation
from exhaust.api.pull import PullView
from exhaust.delivery import elasticsearch, session_documents
from exhaust.feed.documents import encode
from ingest.audit import reads
from ingest.db.clock import read_clock
from ingest.feed import reader
from ingest.http.schema import LINES, NDJSON, extend_schema
from ingest.models import Session

MAPPING = {
    "type": "object",
    "description": "The mappings of an index.",
    "additionalProperties": True,
    "examples": [{"mappings": {"properties": {"startTime": {"type": "date"}}}}],
}
SAMPLE_SIZE = 50
STEP_SIZE = 10  # sessions that are read together
SAMPLE_WINDOW = timedelta(days=7)


class SampleQuery(serializers.Serializer[dict[str, Any]]):
    """The query of a sample."""

    format = validation.ChoiceField(
        ["ndjson", "bulk"], default="ndjson", help_text="bulk adds an action line to each."
    )
    index = serializers.CharField(
        max_length=255, default="sessions", help_text="_index of the action lines."
    )
    type = serializers.CharField(
        max_length=64, default="", allow_blank=True, help_text="_type of the action lines."
    )


class SampleView(PullView):
    resource = "sessions"
    openapi_tag = "Push"

    @extend_schema("exportSample", {(200, NDJSON): LINES}, parameters=[SampleQuery])
    def get(self, request: Request) -> HttpResponse:
        """Get up to 50 sessions of the last week as a destination receives them.

        Needs `pull`.
        """
        channel_id, channel = self.resolve_channel(request)
        params = validation.read_fields(SampleQuery, request.query_params)
        # by position, which has an index: the sessions changed last are those closed last
        rows, _ = reader.limit_to_newest(Session.objects.filter(channel_id=channel_id))
        rows = rows.filter(closed=True, ended_at__gte=read_clock() - SAMPLE_WINDOW)
        session_rows = session_documents.fetch_sessions(rows[:SAMPLE_SIZE])
        identified: list[tuple[str, bytes]] = []
        size = 0
        for start in range(0, len(session_rows), STEP_SIZE):
            step = session_documents.build_documents(
                channel, session_rows[start : start + STEP_SIZE]
            )
            identified += step
            size += sum(len(document) for _, document in step)
            if size > envelope.MAX_LIST_BYTES:
                break
        identified = list(envelope.cut_list(identified, lambda each: len(each[1])))
        if params["format"] == "bulk":
            lines = [
                elasticsearch.format_bulk_lines(
                    params["index"], params["type"], identifier, document
                )
                for identifier, document in identified
            ]
        else:
            lines = [document + b"\n" for _, document in identified]
        reads.count_read("feed.pulled", channel, self.resource, len(identified))
        return _build_attachment(b"".join(lines), "application/x-ndjson", "sample.ndjson")


class MappingView(PullView):
    resource = "sessions"
    openapi_tag = "Push"

    @extend_schema("exportMapping", {200: MAPPING})
    def get(self, request: Request) -> HttpResponse:
        """Get the Elasticsearch mapping of sessions.

        Create an index with it. Needs `pull`.
        """
        self.resolve_channel(request)
        return _build_attachment(
            encode(session_documents.ELASTICSEARCH_MAPPING), "application/json", "mapping.json"
        )


def _build_attachment(content: bytes, content_type: str, name: str) -> HttpResponse:
    response = HttpResponse(content, content_type=content_type)
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response
