"""Ingest endpoints as commonly written: a serializer per event, then `bulk_create`.

A WSGI application beside ours, with the same database and table. It has no keys, hardly any
middleware, and an identity by a digest; the unique index finds duplicates. `build_rows` also feeds
the benchmark of the ORM alone.
"""

import os
from datetime import UTC, datetime
from hashlib import md5
from typing import Any
from uuid import UUID

import django
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402
from rest_framework import serializers  # noqa: E402
from rest_framework.parsers import BaseParser, JSONParser  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402

from ingest.models import StoredEvent  # noqa: E402


class Item(serializers.Serializer[Any]):
    id = serializers.CharField(required=False, allow_blank=True)
    type = serializers.CharField(required=False, allow_blank=True)
    title = serializers.CharField(required=False, allow_blank=True)
    desc = serializers.CharField(required=False, allow_blank=True)
    maxscore = serializers.FloatField(required=False)
    params = serializers.ListField(child=serializers.DictField(), required=False)


class Edata(serializers.Serializer[Any]):
    item = Item(required=False)
    resvalues = serializers.ListField(child=serializers.DictField(), required=False)
    score = serializers.FloatField(required=False)
    duration = serializers.FloatField(required=False)


class Related(serializers.Serializer[Any]):
    type = serializers.CharField()
    id = serializers.CharField()


class Context(serializers.Serializer[Any]):
    channel = serializers.CharField(allow_blank=True)
    env = serializers.CharField(required=False)
    did = serializers.CharField()
    sid = serializers.CharField(required=False)
    cdata = Related(many=True, required=False)
    rollup = serializers.DictField(required=False)


class Telemetry(serializers.Serializer[Any]):
    eid = serializers.CharField()
    ets = serializers.FloatField()
    ver = serializers.CharField()
    mid = serializers.CharField()
    actor = serializers.DictField()
    context = Context()  # type: ignore[assignment] # the field hides what DRF calls so
    edata = Edata()


class Clickstream(serializers.Serializer[Any]):
    event_type = serializers.CharField()
    event_id = serializers.CharField()
    app_id = serializers.CharField()
    device_id = serializers.CharField()
    timestamp = serializers.IntegerField()
    platform = serializers.CharField()
    attributes = serializers.DictField()


class Skalin(serializers.Serializer[Any]):
    name = serializers.CharField()
    eventId = serializers.CharField()
    identity = serializers.DictField(child=serializers.CharField())
    customerId = serializers.CharField()
    visitorId = serializers.CharField()
    visitId = serializers.CharField()
    ts = serializers.DateTimeField(default_timezone=UTC)
    event = serializers.DictField()


class Action(serializers.Serializer[Any]):
    name = serializers.CharField()
    type = serializers.CharField(required=False)
    startTime = serializers.IntegerField()


class Desk(serializers.Serializer[Any]):
    tenantId = serializers.CharField()
    userSessionId = serializers.CharField()
    startTime = serializers.IntegerField()
    endTime = serializers.IntegerField()
    internalUserId = serializers.CharField()
    userActions = Action(many=True)
    events = Action(many=True)


SERIALIZERS = {
    "telemetry": Telemetry,
    "clickstream": Clickstream,
    "skalin": Skalin,
    "desk": Desk,
}


def build_rows(source: str, event: dict[str, Any], channel: int) -> list[StoredEvent]:
    """Returns the rows of one event."""
    match source:
        case "telemetry":
            context = event["context"]
            parts: tuple[Any, ...] = (
                event["mid"],
                context["did"],
                str(event["edata"].get("item")),
                str(event["ets"]),
            )
            fields = [(event["ets"], event["eid"], context["did"], context.get("sid", ""), event)]
        case "clickstream":
            parts = (event["app_id"], event["event_id"])
            session = event["attributes"].get("_session_id", "")
            fields = [(event["timestamp"], event["event_type"], event["device_id"], session, event)]
        case "skalin":
            parts = (event["eventId"],)
            occurred_at = event["ts"]
            occurred_at = (
                datetime.fromisoformat(occurred_at).replace(tzinfo=UTC)
                if isinstance(occurred_at, str)
                else occurred_at
            )
            plain = {**event, "ts": occurred_at.isoformat()}
            milliseconds = occurred_at.timestamp() * 1000
            fields = [(milliseconds, event["name"], event["visitorId"], event["visitId"], plain)]
        case _:
            session, user = event["userSessionId"], event["internalUserId"]
            parts = (event["tenantId"], session, str(event["startTime"]))
            head = {**event, "userActions": [], "events": []}
            inner = [*event["userActions"], *event["events"]]
            fields = [(event["startTime"], "session", user, session, head)]
            fields += [
                (each["startTime"], each.get("type", ""), user, session, each) for each in inner
            ]
    now = datetime.now(UTC)
    return [
        StoredEvent(
            occurred_at=datetime.fromtimestamp(at / 1000, UTC), received_at=now,
            channel_id=channel, is_answer=kind == "ASSESS", source=source, type=kind,
            identity=UUID(bytes=md5("/".join((*parts, str(n))).encode()).digest()),  # noqa: S324
            device_id=device, session_id=session, payload=payload,
        )
        for n, (at, kind, device, session, payload) in enumerate(fields)
    ]  # fmt: skip


class JsonLinesParser(BaseParser):
    """Parses one JSON text per line."""

    media_type = "application/x-ndjson"

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        import json

        return [json.loads(line) for line in stream.read().splitlines()]


class IngestView(APIView):
    authentication_classes = ()
    permission_classes = ()
    parser_classes = (JSONParser, JsonLinesParser)

    def post(self, request: Any, source: str, channel: int) -> Response:
        events = request.data
        if isinstance(events, dict):
            events = events["events" if source == "telemetry" else "features"]
        serializer = SERIALIZERS[source](data=events, many=True)
        serializer.is_valid(raise_exception=True)
        # store the whole event, not only the fields of the serializer
        rows = [row for each in events for row in build_rows(source, each, channel)]
        StoredEvent.objects.bulk_create(rows, ignore_conflicts=True)
        return Response({"stored": len(rows)})


urlpatterns = [
    path("readyz", lambda request: HttpResponse()),
    path("<str:source>/<int:channel>", IngestView.as_view()),
]
settings.ROOT_URLCONF = "benchmarks.drf"
settings.MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]  # Content-Length
application = get_wsgi_application()
