"""Destinations in the dataset API: their fields, actions and answers."""

from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from exhaust.api import channel_bodies, envelope, responses, validation
from exhaust.api.base import DatasetView, NamedView
from exhaust.api.field_names import EnvelopeSerializer, StrictSerializer
from exhaust.api.list_fields import Paging
from exhaust.api.pull import TimestampField
from exhaust.delivery import destinations, paths, receiver_tests, states
from exhaust.delivery.kinds import KINDS
from exhaust.feed import cursor
from exhaust.jobs import wakeup
from exhaust.models import DeadLetter, Delivery, Destination
from ingest.auth import keys
from ingest.http.schema import Text, extend_schema

# the field of the model: its name in the API
WIRE_NAMES = {
    "kind": "kind",
    "resource": "resource",
    "types": "types",
    "application": "application",
    "url": "url",
    "method": "method",
    "content_type": "contentType",
    "user": "user",
    "index": "index",
    "doc_type": "docType",
    "bucket": "bucket",
    "region": "region",
    "path": "path",
    "host_key": "hostKey",
    "allows_private": "allowsPrivate",
}
FAULT_WIRE_NAMES = {**WIRE_NAMES, "secret": "signingSecret", "private_key": "privateKey"}


SECRET_FIELDS = ("password", "signingSecret", "privateKey")


class DestinationFields(StrictSerializer):
    """The `request` of a destination; `destinations.validate` checks the values."""

    kind = Text(
        {"enum": list(KINDS)},
        default=Destination.Kind.WEBHOOK.value,
        help_text="The protocol of the receiver.",
    )
    resource = Text(
        {"enum": Destination.Resource.values},
        required=False,
        help_text="By default sessions; files for s3 and sftp.",
    )
    types = serializers.ListField(
        child=serializers.CharField(max_length=255),
        default=list,
        max_length=validation.MAX_TYPES,
        help_text="Event types to push; empty means all.",
    )
    application = serializers.CharField(
        max_length=128,
        default="",
        allow_blank=True,
        help_text="Its documents only; empty means all.",
    )
    url = Text(
        validation.URL,
        trim_whitespace=False,
        help_text="A public http:// or https:// address; for Elasticsearch it ends in _bulk. For"
        " sftp: sftp://host or sftp://host:port.",
    )
    method = Text(
        {"enum": Destination.Method.values},
        required=False,
        help_text="By default PUT for a webhook, POST for Elasticsearch.",
    )
    contentType = Text(
        {"enum": Destination.ContentType.values},
        default=Destination.ContentType.NDJSON.value,
        help_text="The media type of the body.",
    )
    user = serializers.CharField(
        max_length=255,
        default="",
        allow_blank=True,
        help_text="For HTTP Basic, without a colon; for SFTP; the access key of a bucket.",
    )
    password = serializers.CharField(
        max_length=1024,
        required=False,
        allow_blank=True,
        trim_whitespace=False,
        help_text="Of the user; the secret key of a bucket. By default the stored one stays; empty"
        " deletes it.",
    )
    signingSecret = serializers.CharField(
        max_length=128,
        required=False,
        allow_blank=True,
        help_text="whsec_ and base64 of 24 to 64 bytes, to sign by Standard Webhooks.",
    )
    index = serializers.CharField(
        max_length=255, default="", allow_blank=True, help_text="The Elasticsearch index."
    )
    docType = serializers.CharField(
        max_length=64, default="", allow_blank=True, help_text="_type, for Elasticsearch before 8."
    )
    bucket = serializers.CharField(
        max_length=63, default="", allow_blank=True, help_text="The bucket, for s3."
    )
    region = serializers.CharField(
        max_length=63, default="us-east-1", help_text="The bucket's region, for s3."
    )
    path = serializers.CharField(
        max_length=paths.MAX_TEMPLATE_LENGTH,
        default=paths.DEFAULT_TEMPLATE,
        help_text=f"For s3 and sftp: the path of each file, from {paths.list_placeholders()}.",
    )
    privateKey = serializers.CharField(
        max_length=16_384,
        required=False,
        allow_blank=True,
        trim_whitespace=False,
        help_text="SFTP: the user's private key, without a passphrase. By default the stored one"
        " stays; empty deletes it.",
    )
    hostKey = serializers.CharField(
        max_length=64,
        default="",
        allow_blank=True,
        help_text="SFTP: the fingerprint of the server's key, SHA256:…. By default the stored one"
        " stays, and the first test pins one.",
    )
    allowsPrivate = serializers.BooleanField(
        default=False, help_text="Whether it may get files of private datasets, for s3 and sftp."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        kind = KINDS.get(attrs["kind"])
        attrs.setdefault("method", kind.default_method if kind else "PUT")
        attrs.setdefault("resource", kind.resources[0] if kind else "sessions")
        return attrs


class DestinationBody(EnvelopeSerializer):
    """The body of a destination; the other fields of the envelope are ignored."""

    example = {
        "request": {"url": "https://warehouse.example/sessions", "user": "exhaust", "password": "…"}
    }
    request = DestinationFields(help_text="The destination.")


class RewindRequest(StrictSerializer):
    """The new position of a destination: a cursor or a time."""

    cursor = serializers.CharField(
        required=False,
        help_text="A cursor of a destination, or of a pull of the same resource and types.",
    )
    time = TimestampField(
        required=False,
        help_text="Seconds or milliseconds since 1970: what arrived from then on is sent.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if len(attrs) != 1:
            raise serializers.ValidationError({"cursor": "Name either this, or time."})
        return attrs


class RewindBody(EnvelopeSerializer):
    """The body of a rewind; the other fields of the envelope are ignored."""

    example = {"request": {"time": 0}}
    request = RewindRequest(help_text="Either cursor or time.")


class DestinationView(NamedView):
    """One destination: `/dataset/v1/destination/{name}`."""

    operation = "destination"
    openapi_tag = "Push"

    def authorize(self, request: Request) -> tuple[int, str]:
        keys.get_caller(request).require("pull")
        return self.resolve_channel(request)

    def fetch_object(self, request: Request, name: str) -> Destination:
        channel_id, _ = self.authorize(request)
        destination = destinations.find(channel_id, name)
        if destination is None:
            raise NotFound("There is no destination of that name.")
        return destination

    def present(self, instance: Destination) -> dict[str, Any]:
        states.add_facts([instance])
        return channel_bodies.Destination.render(instance)

    @extend_schema("saveDestination", channel_bodies.Destination, request=DestinationBody)
    def put(self, request: Request, name: str) -> Response:
        """Create or replace a destination.

        One for files is tested next. Needs `pull`.
        """
        params = validation.read_fields(DestinationBody, request.data)["request"]
        channel_id, _ = self.authorize(request)
        destination = Destination(channel_id=channel_id, name=name)
        for field, wire in WIRE_NAMES.items():
            setattr(destination, field, params[wire])
        secrets = [params.get(field) for field in SECRET_FIELDS]
        self.raise_first_fault(destinations.validate(destination, *secrets), FAULT_WIRE_NAMES)
        if destinations.save(destination, *secrets).takes_files:
            wakeup.enqueue(receiver_tests.choose_task(destination))
        return self.respond(request, name)

    @extend_schema("readDestination", channel_bodies.Destination, 404)
    def get(self, request: Request, name: str) -> Response:
        """Get a destination.

        Needs `pull`.
        """
        return self.respond(request, name)

    @extend_schema("deleteDestination", responses.Deleted, 404)
    def delete(self, request: Request, name: str) -> Response:
        """Delete a destination.

        Needs `pull`.
        """
        destinations.delete(self.fetch_object(request, name))
        return envelope.build_success(self.operation, {"name": name})


class PauseView(DestinationView):
    operation = "destination.pause"
    http_method_names = ["post"]

    @extend_schema("pauseDestination", channel_bodies.Destination, 404)
    def post(self, request: Request, name: str) -> Response:
        """Pause a destination.

        Needs `pull`.
        """
        destinations.pause(self.fetch_object(request, name))
        return self.respond(request, name)


class ResumeView(DestinationView):
    operation = "destination.resume"
    http_method_names = ["post"]

    @extend_schema("resumeDestination", channel_bodies.Destination, 404)
    def post(self, request: Request, name: str) -> Response:
        """Resume a destination.

        Needs `pull`.
        """
        destinations.resume(self.fetch_object(request, name))
        return self.respond(request, name)


class RewindView(DestinationView):
    operation = "destination.rewind"
    http_method_names = ["post"]

    @extend_schema("rewindDestination", channel_bodies.Destination, 404, request=RewindBody)
    def post(self, request: Request, name: str) -> Response:
        """Reposition a destination.

        To a cursor or a time. Needs `pull`.
        """
        params = validation.read_fields(RewindBody, request.data)["request"]
        destination = self.fetch_object(request, name)
        if "cursor" in params:
            position = destinations.decode_cursor(destination, params["cursor"])
        else:
            position = destinations.find_position_at(destination, params["time"])
        destinations.rewind(destination, position)
        return self.respond(request, name)


class TestView(DestinationView):
    operation = "destination.test"
    http_method_names = ["get", "post"]

    @extend_schema("testDestination", {202: channel_bodies.Delivery}, 404, 409)
    def post(self, request: Request, name: str) -> Response:
        """Test a destination.

        A worker sends one made-up document, or writes, reads and deletes a file. Poll `Location`
        until the status is no longer `waiting`. While another destination of the channel is
        tested: 409. Needs `pull`.
        """
        destination = self.fetch_object(request, name)
        delivery = receiver_tests.request_test(destination)
        wakeup.enqueue(receiver_tests.choose_task(destination))
        response = self._respond_with(delivery, 202)
        response["Location"] = request.build_absolute_uri()
        return response

    @extend_schema("readDestinationTest", channel_bodies.Delivery, 404)
    def get(self, request: Request, name: str) -> Response:
        """Get the last test of a destination.

        Needs `pull`.
        """
        delivery = receiver_tests.find_tests(self.fetch_object(request, name)).first()
        if delivery is None:
            raise NotFound("The destination was not tested yet.")
        return self._respond_with(delivery, 200)

    def _respond_with(self, delivery: Delivery, status: int) -> Response:
        response = envelope.build_success(
            self.operation, channel_bodies.Delivery.render(delivery), status
        )
        if delivery.ended_at is None:
            response["Retry-After"] = "1"
        return response


class RequeueView(DestinationView):
    operation = "destination.requeue"
    http_method_names = ["post"]

    @extend_schema("requeueDeadLetters", responses.Requeued, 404)
    def post(self, request: Request, name: str) -> Response:
        """Send all dead letters again, or the files that failed.

        Needs `pull`.
        """
        destination = self.fetch_object(request, name)
        count = destinations.requeue(destination)
        if destination.takes_files:
            wakeup.enqueue("exhaust.deliver_files")
        return envelope.build_success(self.operation, {"count": count})


class DeadLettersView(DestinationView):
    operation = "destination.deadletters"
    http_method_names = ["get"]

    @extend_schema("listDeadLetters", responses.DeadLetterList, 404, parameters=[Paging])
    def get(self, request: Request, name: str) -> Response:
        """List the documents that the receiver rejected.

        Needs `pull`.
        """
        params = validation.read_fields(Paging, request.query_params)
        destination = self.fetch_object(request, name)
        query_fingerprint = ["deadletters", destination.pk]
        rows = destination.dead_letters.filter(delivered_at=None).order_by("id")
        if params["cursor"] is not None:
            rows = rows.filter(pk__gt=cursor.decode(params["cursor"], query_fingerprint)[0])
        page_rows = list(rows[: params["limit"] + 1])
        shown_rows = envelope.cut_list(page_rows[: params["limit"]], _measure)
        has_more = len(page_rows) > len(shown_rows)
        return envelope.build_success(
            self.operation,
            {
                "count": len(shown_rows),
                "deadLetters": [channel_bodies.DeadLetter.render(letter) for letter in shown_rows],
                "nextCursor": cursor.encode([shown_rows[-1].pk], query_fingerprint)
                if has_more
                else None,
            },
        )


def _measure(letter: DeadLetter) -> int:
    return len(letter.document_id.encode()) + len(letter.reason.encode())


class DestinationListView(DatasetView):
    operation = "destination.list"
    openapi_tag = "Push"

    @extend_schema("listDestinations", responses.DestinationList)
    def get(self, request: Request) -> Response:
        """List the channel's destinations.

        Needs `pull`.
        """
        keys.get_caller(request).require("pull")
        channel_id, _ = self.resolve_channel(request)
        rows = Destination.objects.filter(channel_id=channel_id).select_related("channel")
        found = list(rows.order_by("name"))
        states.add_facts(found)
        items = [channel_bodies.Destination.render(destination) for destination in found]
        return envelope.build_success(self.operation, {"count": len(items), "destinations": items})
