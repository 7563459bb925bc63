"""Recurring requests in the dataset API: what a schedule must say, and how it is answered."""

from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from exhaust.api import envelope, validation
from exhaust.api.views import DatasetView, NamedView, OrderView, readable, scope
from exhaust.jobs import schedules
from exhaust.models import Schedule
from ingest.auth import keys

# a schedule's fields in the wire's names
WIRE = {
    "cron": "cron",
    "zone": "timezone",
    "dataset": "dataset",
    "conversation": "conversationId",
    "window": "window",
    "tag": "tag",
    "output_format": "outputFormat",
    "requested_by": "requestedBy",
    "callback_url": "callbackUrl",
    "sealing": "sealing",
}


class Words(validation.Strict):
    """The `request` of a schedule; what its words mean, `schedules.faults` judges."""

    cron = serializers.CharField(
        max_length=128, help_text="Five cron words, on the clock of timezone: 0 6 * * *."
    )
    timezone = serializers.CharField(
        max_length=64, default="UTC", trim_whitespace=False, help_text="An IANA name."
    )
    dataset = serializers.CharField(max_length=64, help_text="Which dataset is asked for.")
    conversationId = serializers.CharField(
        max_length=255,
        default="",
        allow_blank=True,
        trim_whitespace=False,
        help_text="The bot, where the dataset is one bot's.",
    )
    window = serializers.CharField(
        max_length=32,
        help_text="today, yesterday, last N days, last week, this month or last month,"
        " as seen from the slot.",
    )
    tag = serializers.CharField(
        max_length=128,
        help_text="The requests' tag; may hold {name}, {start} and {end}.",
    )
    outputFormat = serializers.CharField(default="csv", help_text="What the file is written in.")
    requestedBy = serializers.CharField(
        max_length=255, required=False, help_text="Who asks; the key's name where it is left out."
    )
    callbackUrl = serializers.CharField(
        default="",
        allow_blank=True,
        trim_whitespace=False,
        help_text="Is told by a signed POST when each job has ended.",
    )
    sealing = serializers.CharField(
        max_length=16, default="", allow_blank=True, help_text="publickey, or none."
    )

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and "encryptionKey" in data:
            raise serializers.ValidationError(
                {"encryptionKey": "No password is kept for later; say sealing: publickey instead."}
            )
        return super().to_internal_value(data)

    def validate_outputFormat(self, value: str) -> str:
        return validation.output_format(value)


class Put(serializers.Serializer[dict[str, Any]]):
    """The body of a schedule; its own envelope is not checked."""

    request = Words(help_text="What is asked for, and when.")


class ScheduleView(NamedView):
    """What is about one schedule: `/dataset/v1/schedule/{name}`."""

    operation = "schedule"

    def one(self, request: Request, name: str) -> Schedule:
        caller = keys.caller(request)
        channel_id, _ = self.channel(request)
        schedule = schedules.find(channel_id, name)
        if schedule is None:
            raise NotFound("There is no schedule of that name.")
        caller.require(scope(schedule.dataset))
        return schedule

    def shown(self, one: Schedule) -> dict[str, Any]:
        return presented(one)

    def put(self, request: Request, name: str) -> Response:
        asked = Put(data=request.data)
        asked.is_valid(raise_exception=True)
        said: dict[str, Any] = asked.validated_data["request"]
        caller = keys.caller(request)
        channel_id, _ = self.channel(request)
        words = {field: said[wire] for field, wire in WIRE.items() if wire in said}
        words.setdefault("requested_by", caller.name)
        schedule = Schedule(channel_id=channel_id, name=name, **words)
        self.refuse(schedules.faults(schedule), WIRE)
        caller.require(scope(schedule.dataset))
        replaced = schedules.find(channel_id, name)
        if replaced is not None:
            caller.require(scope(replaced.dataset))
        schedules.save(schedule)
        return self.answer(request, name)

    def delete(self, request: Request, name: str) -> Response:
        schedules.delete(self.one(request, name))
        return envelope.wrapped(self.operation, {"name": name})


class PauseView(OrderView, ScheduleView):
    operation = "schedule.pause"
    order = staticmethod(schedules.pause)


class ResumeView(OrderView, ScheduleView):
    operation = "schedule.resume"
    order = staticmethod(schedules.resume)


class SchedulesView(DatasetView):
    """`GET /dataset/v1/schedule?limit=&cursor=`"""

    operation = "schedule.list"

    def get(self, request: Request) -> Response:
        asked = validation.Paging(data=request.query_params)
        asked.is_valid(raise_exception=True)
        said: dict[str, Any] = asked.validated_data
        caller = keys.caller(request)
        channel_id, _ = self.channel(request)
        found = schedules.page(channel_id, readable(caller), said["limit"], said["cursor"])
        return envelope.wrapped(
            self.operation,
            {
                "count": len(found.schedules),
                "schedules": [presented(schedule) for schedule in found.schedules],
                "nextCursor": found.cursor,
            },
        )


def presented(schedule: Schedule) -> dict[str, Any]:
    """A schedule of `schedules.shown`. One that is paused has no next run."""
    answer = {
        "name": schedule.name,
        "requestedChannel": schedule.channel.identifier,
        **{wire: getattr(schedule, field) for field, wire in WIRE.items()},
        "paused": schedule.paused_at is not None,
        "nextRun": None,
        "nextWindow": None,
        "nextTag": None,
        "lastError": schedule.last_error,
        "jobs": [
            {"requestId": job.request_id, "tag": job.tag, "status": job.status}
            for job in schedule.last_jobs  # type: ignore[attr-defined] # prefetched
        ],
    }
    if schedule.paused_at is not None:
        return answer
    answer["nextRun"] = int(schedule.next_at.timestamp() * 1000)
    try:
        asked = schedules.asked(schedule, schedule.next_at)
    except ValueError:  # a setting took it away: lastError tells
        return answer
    answer["nextWindow"] = {"startDate": asked.first.isoformat(), "endDate": asked.last.isoformat()}
    answer["nextTag"] = asked.tag
    return answer
