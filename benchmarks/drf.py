"""Doors as many would write them: a serializer for each event, then `bulk_create`.

A WSGI application beside ours, on the same database and into the same table: no key, hardly any
middleware, an identity by a digest, duplicates left to the unique index. `model_of` is also what
the ORM alone is given.
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
    context = Context()
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


def model_of(door: str, sent: dict[str, Any], channel: int) -> list[StoredEvent]:
    """The rows of one thing that was sent."""
    match door:
        case "telemetry":
            context = sent["context"]
            parts = (sent["mid"], context["did"], str(sent["edata"].get("item")), str(sent["ets"]))
            found = [(sent["ets"], sent["eid"], context["did"], context.get("sid", ""), sent)]
        case "clickstream":
            parts = (sent["app_id"], sent["event_id"])
            session = sent["attributes"].get("_session_id", "")
            found = [(sent["timestamp"], sent["event_type"], sent["device_id"], session, sent)]
        case "skalin":
            parts = (sent["eventId"],)
            at = sent["ts"]
            at = datetime.fromisoformat(at).replace(tzinfo=UTC) if isinstance(at, str) else at
            plain = {**sent, "ts": at.isoformat()}
            milliseconds = at.timestamp() * 1000
            found = [(milliseconds, sent["name"], sent["visitorId"], sent["visitId"], plain)]
        case _:
            session, person = sent["userSessionId"], sent["internalUserId"]
            parts = (sent["tenantId"], session, str(sent["startTime"]))
            head = {**sent, "userActions": [], "events": []}
            inner = [*sent["userActions"], *sent["events"]]
            found = [(sent["startTime"], "session", person, session, head)]
            found += [
                (each["startTime"], each.get("type", ""), person, session, each) for each in inner
            ]
    now = datetime.now(UTC)
    return [
        StoredEvent(
            occurred_at=datetime.fromtimestamp(at / 1000, UTC), received_at=now,
            channel_id=channel, is_answer=kind == "ASSESS", dialect=door, type=kind,
            identity=UUID(bytes=md5("/".join((*parts, str(n))).encode()).digest()),  # noqa: S324
            device_id=device, session_id=session, payload=payload,
        )
        for n, (at, kind, device, session, payload) in enumerate(found)
    ]  # fmt: skip


class Lines(BaseParser):
    """A JSON text a line."""

    media_type = "application/x-ndjson"

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        import json

        return [json.loads(line) for line in stream.read().splitlines()]


class Door(APIView):
    authentication_classes = ()
    permission_classes = ()
    parser_classes = (JSONParser, Lines)

    def post(self, request: Any, door: str, channel: int) -> Response:
        sent = request.data
        if isinstance(sent, dict):
            sent = sent["events" if door == "telemetry" else "features"]
        serializer = SERIALIZERS[door](data=sent, many=True)
        serializer.is_valid(raise_exception=True)
        # what was sent is kept, and not only what the serializer knows
        rows = [row for each in sent for row in model_of(door, each, channel)]
        StoredEvent.objects.bulk_create(rows, ignore_conflicts=True)
        return Response({"stored": len(rows)})


urlpatterns = [
    path("readyz", lambda request: HttpResponse()),
    path("<str:door>/<int:channel>", Door.as_view()),
]
settings.ROOT_URLCONF = "benchmarks.drf"
settings.MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]  # Content-Length
application = get_wsgi_application()
