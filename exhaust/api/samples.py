"""What a receiver is going to get: the last sessions as they are pushed, and their mapping."""

from datetime import timedelta
from typing import Any

from django.http import HttpResponse
from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request

from exhaust.api.pull import PullView
from exhaust.api.validation import OneOf
from exhaust.delivery import elasticsearch, session_documents
from exhaust.feed.documents import encode
from ingest.models import Session

COUNT = 50
WINDOW = timedelta(days=7)


class Query(serializers.Serializer[dict[str, Any]]):
    """What a sample is asked with."""

    format = OneOf(
        ["ndjson", "bulk"], default="ndjson", help_text="bulk puts an action line before each."
    )
    index = serializers.CharField(
        max_length=255, default="sessions", help_text="_index of the action lines."
    )
    type = serializers.CharField(
        max_length=64, default="", allow_blank=True, help_text="_type of the action lines."
    )


class SampleView(PullView):
    """`GET /export/sample?format=&index=&type=`: up to 50 sessions that ended within a week."""

    resource = "sessions"

    def get(self, request: Request) -> HttpResponse:
        channel_id, channel = self.channel(request)
        asked = Query(data=request.query_params)
        asked.is_valid(raise_exception=True)
        said: dict[str, Any] = asked.validated_data
        rows = Session.objects.filter(
            channel_id=channel_id, closed=True, ended_at__gte=timezone.now() - WINDOW
        )
        # by place: the index that there is; the last changed are the last closed
        told = session_documents.told(rows.order_by("-xid", "-id")[:COUNT])
        found = session_documents.documents(channel, told)
        if said["format"] == "bulk":
            lines = [
                elasticsearch.lines(said["index"], said["type"], identifier, document)
                for identifier, document in found
            ]
        else:
            lines = [document + b"\n" for _, document in found]
        return _file(b"".join(lines), "application/x-ndjson", "sample.ndjson")


class MappingView(PullView):
    """`GET /export/mapping`: what an index of sessions is created with."""

    resource = "sessions"

    def get(self, request: Request) -> HttpResponse:
        self.channel(request)
        return _file(encode(session_documents.MAPPING), "application/json", "mapping.json")


def _file(content: bytes, content_type: str, name: str) -> HttpResponse:
    answer = HttpResponse(content, content_type=content_type)
    answer["Content-Disposition"] = f'attachment; filename="{name}"'
    answer["Cache-Control"] = "no-store"
    return answer
