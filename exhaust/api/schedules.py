"""Schedules in the dataset API: their fields, actions and answers."""

from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from exhaust.api import channel_bodies, envelope, list_fields, responses, validation
from exhaust.api.base import DatasetView, NamedView, required_scope
from exhaust.api.field_names import EnvelopeSerializer, StrictSerializer
from exhaust.datasets.layout import COLUMN_FIELDS
from exhaust.datasets.own import find_dataset, list_datasets
from exhaust.jobs import schedules
from exhaust.models import Schedule
from ingest.auth import keys
from ingest.http.schema import Text, extend_schema

# the field of the model: its name in the API
WIRE_NAMES = {
    "cron": "cron",
    "zone": "timezone",
    "dataset": "dataset",
    "conversation": "conversationId",
    "window": "window",
    "tag": "tag",
    "output_format": "outputFormat",
    "requested_by": "requestedBy",
    "callback_url": "callbackUrl",
    "deliver_to": "deliverTo",
    "encryption": "encryption",
    "priority": "priority",
} | {name: name for name in (*schedules.FILTERS, *COLUMN_FIELDS)}


class ScheduleFields(validation.ContentFields, StrictSerializer):
    """The `request` of a schedule; `schedules.validate` checks the values."""

    cron = serializers.CharField(
        max_length=128, help_text="Five cron fields in the time zone: 0 6 * * *."
    )
    timezone = serializers.CharField(
        max_length=64, default="UTC", trim_whitespace=False, help_text="An IANA name."
    )
    dataset = Text(validation.DATASET, max_length=64, help_text="The dataset.")
    conversationId = serializers.CharField(
        max_length=255,
        default="",
        allow_blank=True,
        trim_whitespace=False,
        help_text="The conversation, if the dataset needs one.",
    )
    window = serializers.CharField(
        max_length=32,
        help_text="today, yesterday, last N days, last week, this month or last month,"
        " relative to the time of the request.",
    )
    tag = serializers.CharField(
        max_length=128,
        help_text="The tag of the requests; may contain {name}, {start} and {end}.",
    )
    outputFormat = validation.FormatField(default="csv", help_text="The file format.")
    requestedBy = serializers.CharField(
        max_length=255, required=False, help_text="The requester; by default the name of the key."
    )
    callbackUrl = serializers.CharField(
        default="",
        allow_blank=True,
        trim_whitespace=False,
        help_text="Receives a signed POST when an export ends.",
    )
    deliverTo = serializers.CharField(
        max_length=128, default="", allow_blank=True, help_text="A destination for the files."
    )
    encryption = serializers.CharField(
        max_length=16, default="", allow_blank=True, help_text="publickey, or empty."
    )

    priority = validation.ChoiceField(
        ["low", "interactive"], default="low", help_text="low runs after all others."
    )

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and "encryptionKey" in data:
            raise serializers.ValidationError(
                {"encryptionKey": "No password is kept for later; say encryption: publickey."}
            )
        return super().to_internal_value(data)


class ScheduleBody(EnvelopeSerializer):
    """The body of a schedule; the other fields of the envelope are ignored."""

    example = {
        "request": {
            "cron": "0 6 * * *",
            "timezone": "Asia/Kolkata",
            "dataset": "uci-response-exhaust",
            "conversationId": "bot-1",
            "window": "yesterday",
            "tag": "daily-{start}",
        }
    }
    request = ScheduleFields(help_text="The schedule.")


def find_scope(schedule: Schedule) -> str:
    """Returns the scope of its dataset."""
    dataset = find_dataset(schedule.channel_id, schedule.dataset)
    return dataset.scope if dataset else required_scope(schedule.dataset)


class ScheduleView(NamedView):
    """One schedule: `/dataset/v1/schedule/{name}`."""

    operation = "schedule"

    def fetch_object(self, request: Request, name: str) -> Schedule:
        caller = keys.get_caller(request)
        channel_id, _ = self.resolve_channel(request)
        schedule = schedules.fetch_schedule(channel_id, name)
        if schedule is None:
            raise NotFound("There is no schedule of that name.")
        caller.require(find_scope(schedule))
        return schedule

    def present(self, instance: Schedule) -> dict[str, Any]:
        return channel_bodies.present_schedule(instance)

    @extend_schema("saveSchedule", channel_bodies.Schedule, request=ScheduleBody)
    def put(self, request: Request, name: str) -> Response:
        """Create or replace a schedule.

        Needs the scope of the dataset.
        """
        params = validation.read_fields(ScheduleBody, request.data)["request"]
        caller = keys.get_caller(request)
        channel_id, _ = self.resolve_channel(request)
        fields = {field: params[wire] for field, wire in WIRE_NAMES.items() if wire in params}
        fields.setdefault("requested_by", caller.name)
        schedule = Schedule(channel_id=channel_id, name=name, **fields)
        self.raise_first_fault(schedules.find_errors(schedule), WIRE_NAMES)
        caller.require(find_scope(schedule))
        replaced = schedules.fetch_schedule(channel_id, name)
        if replaced is not None:
            caller.require(find_scope(replaced))
        schedules.save(schedule)
        return self.respond(request, name)

    @extend_schema("readSchedule", channel_bodies.Schedule, 404)
    def get(self, request: Request, name: str) -> Response:
        """Get a schedule.

        Needs the scope of the dataset.
        """
        return self.respond(request, name)

    @extend_schema("deleteSchedule", responses.Deleted, 404)
    def delete(self, request: Request, name: str) -> Response:
        """Delete a schedule.

        Its exports stay. Needs the scope of the dataset.
        """
        schedules.delete(self.fetch_object(request, name))
        return envelope.build_success(self.operation, {"name": name})


class PauseView(ScheduleView):
    operation = "schedule.pause"
    http_method_names = ["post"]

    @extend_schema("pauseSchedule", channel_bodies.Schedule, 404)
    def post(self, request: Request, name: str) -> Response:
        """Pause a schedule.

        Needs the scope of the dataset.
        """
        schedules.pause(self.fetch_object(request, name))
        return self.respond(request, name)


class ResumeView(ScheduleView):
    operation = "schedule.resume"
    http_method_names = ["post"]

    @extend_schema("resumeSchedule", channel_bodies.Schedule, 404, 409)
    def post(self, request: Request, name: str) -> Response:
        """Resume a schedule.

        Needs the scope of the dataset.
        """
        schedules.resume(self.fetch_object(request, name))
        return self.respond(request, name)


class ScheduleListView(DatasetView):
    operation = "schedule.list"

    @extend_schema("listSchedules", responses.ScheduleList, parameters=[list_fields.Paging])
    def get(self, request: Request) -> Response:
        """List the channel's schedules.

        Those of datasets whose scope the key has.
        """
        params = validation.read_fields(list_fields.Paging, request.query_params)
        caller = keys.get_caller(request)
        channel_id, _ = self.resolve_channel(request)
        names = [each.name for each in list_datasets(channel_id) if each.scope in caller.scopes]
        page = schedules.fetch_page(channel_id, names, params["limit"], params["cursor"])
        return envelope.build_success(
            self.operation,
            {
                "count": len(page.schedules),
                "schedules": [
                    channel_bodies.present_schedule(schedule) for schedule in page.schedules
                ],
                "nextCursor": page.cursor,
            },
        )
