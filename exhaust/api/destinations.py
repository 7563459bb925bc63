"""Sinks in the dataset API: what one must say, what it is told to do, how it is answered."""

from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from exhaust.api import envelope, validation
from exhaust.api.pull import Moment
from exhaust.api.views import DatasetView, NamedView, OrderView
from exhaust.delivery import destinations
from exhaust.feed import cursor
from exhaust.feed.documents import milliseconds
from exhaust.models import DeadLetter, Delivery, Sink
from ingest.auth import keys

# a sink's fields in the wire's names
WIRE = {
    "kind": "kind",
    "resource": "resource",
    "types": "types",
    "url": "url",
    "method": "method",
    "content_type": "contentType",
    "user": "user",
    "index": "index",
    "doc_type": "docType",
}
KNOWN = {**WIRE, "secret": "signingSecret"}


class Words(validation.Strict):
    """The `request` of a sink; what its words mean, `control.faults` judges."""

    kind = serializers.CharField(
        default=Sink.Kind.WEBHOOK.value, help_text="How the receiver is spoken to."
    )
    resource = serializers.CharField(
        default=Sink.Resource.SESSIONS.value, help_text="What is pushed."
    )
    types = serializers.ListField(
        child=serializers.CharField(),
        default=list,
        max_length=100,
        help_text="Of events: these types only; none means all.",
    )
    url = serializers.CharField(
        trim_whitespace=False,
        help_text="A public http:// or https:// address; Elasticsearch's ends in _bulk.",
    )
    method = serializers.CharField(
        required=False, help_text="PUT for a webhook, POST for Elasticsearch, if left out."
    )
    contentType = serializers.CharField(
        default=Sink.ContentType.NDJSON.value, help_text="What the body is called."
    )
    user = serializers.CharField(
        max_length=255, default="", allow_blank=True, help_text="For HTTP Basic; without ':'."
    )
    password = serializers.CharField(
        max_length=1024,
        required=False,
        allow_blank=True,
        trim_whitespace=False,
        help_text="For HTTP Basic. Left out, the kept one stays; empty, it is forgotten.",
    )
    signingSecret = serializers.CharField(
        max_length=128,
        required=False,
        allow_blank=True,
        help_text="whsec_ and base64 of 24 to 64 bytes: signs as Standard Webhooks says.",
    )
    index = serializers.CharField(
        max_length=255, default="", allow_blank=True, help_text="Elasticsearch's index."
    )
    docType = serializers.CharField(
        max_length=64, default="", allow_blank=True, help_text="_type, for versions before 8."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        elastic = attrs["kind"] == Sink.Kind.ELASTICSEARCH
        attrs.setdefault("method", "POST" if elastic else "PUT")
        return attrs


class Put(serializers.Serializer[dict[str, Any]]):
    """The body of a sink; its own envelope is not checked."""

    request = Words(help_text="Where to, what, and how.")


class Whither(serializers.Serializer[dict[str, Any]]):
    """Where a sink goes on: a cursor, or a moment."""

    cursor = serializers.CharField(
        required=False, help_text="A sink's cursor, or a pull's of the same resource and types."
    )
    time = Moment(
        required=False, help_text="Seconds or milliseconds since 1970: on from what came then."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if len(attrs) != 1:
            raise serializers.ValidationError({"cursor": "Name either this, or time."})
        return attrs


class Rewind(serializers.Serializer[dict[str, Any]]):
    """The body of a rewind; its own envelope is not checked."""

    request = Whither(help_text="Either cursor or time.")


class SinkView(NamedView):
    """What is about one sink: `/dataset/v1/sink/{name}`."""

    operation = "sink"

    def owner(self, request: Request) -> tuple[int, str]:
        keys.caller(request).require("pull")
        return self.channel(request)

    def one(self, request: Request, name: str) -> Sink:
        channel_id, _ = self.owner(request)
        sink = destinations.find(channel_id, name)
        if sink is None:
            raise NotFound("There is no sink of that name.")
        return sink

    def shown(self, one: Sink) -> dict[str, Any]:
        return presented(one)

    def put(self, request: Request, name: str) -> Response:
        asked = Put(data=request.data)
        asked.is_valid(raise_exception=True)
        said: dict[str, Any] = asked.validated_data["request"]
        channel_id, _ = self.owner(request)
        sink = Sink(channel_id=channel_id, name=name)
        for field, wire in WIRE.items():
            setattr(sink, field, said[wire])
        password, secret = said.get("password"), said.get("signingSecret")
        self.refuse(destinations.faults(sink, password, secret), KNOWN)
        destinations.save(sink, password, secret)
        return self.answer(request, name)

    def delete(self, request: Request, name: str) -> Response:
        destinations.delete(self.one(request, name))
        return envelope.wrapped(self.operation, {"name": name})


class PauseView(OrderView, SinkView):
    operation = "sink.pause"
    order = staticmethod(destinations.pause)


class ResumeView(OrderView, SinkView):
    operation = "sink.resume"
    order = staticmethod(destinations.resume)


class RewindView(SinkView):
    """`POST /dataset/v1/sink/{name}/rewind`"""

    operation = "sink.rewind"
    http_method_names = ["post"]

    def post(self, request: Request, name: str) -> Response:
        asked = Rewind(data=request.data)
        asked.is_valid(raise_exception=True)
        said: dict[str, Any] = asked.validated_data["request"]
        sink = self.one(request, name)
        if "cursor" in said:
            place = destinations.place_of_cursor(sink, said["cursor"])
        else:
            place = destinations.place_of_time(sink, said["time"])
        destinations.rewind(sink, place)
        return self.answer(request, name)


class TestView(SinkView):
    """`POST /dataset/v1/sink/{name}/test`"""

    operation = "sink.test"
    http_method_names = ["post"]

    def post(self, request: Request, name: str) -> Response:
        delivery = destinations.test(self.one(request, name))
        return envelope.wrapped(self.operation, _delivery(delivery))


class AgainView(SinkView):
    """`POST /dataset/v1/sink/{name}/again`: all of its dead letters."""

    operation = "sink.again"
    http_method_names = ["post"]

    def post(self, request: Request, name: str) -> Response:
        sink = self.one(request, name)
        count = destinations.send_again(sink.dead_letters.all())
        return envelope.wrapped(self.operation, {"count": count})


class DeadLettersView(SinkView):
    """`GET /dataset/v1/sink/{name}/deadletters?limit=&cursor=`"""

    operation = "sink.deadletters"
    http_method_names = ["get"]

    def get(self, request: Request, name: str) -> Response:
        asked = validation.Paging(data=request.query_params)
        asked.is_valid(raise_exception=True)
        said: dict[str, Any] = asked.validated_data
        sink = self.one(request, name)
        question = ["deadletters", sink.pk]
        rows = sink.dead_letters.filter(taken_at=None).order_by("id")
        if said["cursor"] is not None:
            rows = rows.filter(pk__gt=cursor.unseal(said["cursor"], question)[0])
        found = list(rows[: said["limit"] + 1])
        more = len(found) > said["limit"]
        found = found[: said["limit"]]
        return envelope.wrapped(
            self.operation,
            {
                "count": len(found),
                "deadLetters": [_letter(letter) for letter in found],
                "nextCursor": cursor.seal([found[-1].pk], question) if more else None,
            },
        )


class SinksView(DatasetView):
    """`GET /dataset/v1/sink`"""

    operation = "sink.list"

    def get(self, request: Request) -> Response:
        keys.caller(request).require("pull")
        channel_id, _ = self.channel(request)
        sinks = Sink.objects.filter(channel_id=channel_id).select_related("channel")
        found = [presented(sink) for sink in sinks.order_by("name")]
        return envelope.wrapped(self.operation, {"count": len(found), "sinks": found})


def presented(sink: Sink) -> dict[str, Any]:
    """A sink; of password and secret only that they are there."""
    behind = destinations.lag(sink)
    return {
        "name": sink.name,
        "requestedChannel": sink.channel.identifier,
        **{wire: getattr(sink, field) for field, wire in WIRE.items()},
        "hasPassword": sink.sealed_password is not None,
        "signed": sink.sealed_secret is not None,
        "state": destinations.state(sink),
        "reason": sink.switched_off,
        "failures": sink.failures,
        "nextAttempt": milliseconds(sink.next_at) if sink.failures else None,
        "cursor": destinations.cursor_of(sink),
        "lag": {"documents": behind.documents, "seconds": round(behind.seconds, 1)},
        "deadLetters": sink.dead_letters.filter(taken_at=None).count(),
        "deliveries": [_delivery(delivery) for delivery in sink.deliveries.order_by("-id")[:5]],
    }


def _delivery(delivery: Delivery) -> dict[str, Any]:
    return {
        "kind": delivery.kind,
        "status": delivery.status,
        "documents": delivery.documents,
        "bytes": delivery.byte_count,
        "attempts": delivery.attempt,
        "answer": delivery.answer,
        "error": delivery.error,
        "begun": milliseconds(delivery.created_at),
        "ended": milliseconds(delivery.ended_at) if delivery.ended_at else None,
    }


def _letter(letter: DeadLetter) -> dict[str, Any]:
    return {
        "documentId": letter.document_id,
        "position": f"{letter.xid}.{letter.row}",
        "answer": letter.answer,
        "reason": letter.reason,
        "time": milliseconds(letter.created_at),
        "again": letter.again_at is not None,
    }
