"""The schedules of a channel: list, form, pause, resume, delete."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect

from exhaust.api import schedules as api
from exhaust.console.exports import conversation_names
from exhaust.console.new_export import (
    conversation_choices,
    flatten_errors,
    format_choices,
    zone_choices,
)
from exhaust.console.permissions import ChannelContext, clean_params, render_page, requires
from exhaust.datasets import DATASETS
from exhaust.jobs import schedules
from exhaust.jobs.schedules import RequestedWindow
from exhaust.models import Schedule
from ingest.events import RequestError

WINDOWS = ("yesterday", "last 7 days", "last 30 days", "last week", "this month", "last month")
# no password: it would have to be stored
_ENCRYPTION_CHOICES = (
    ("", "Channel default"),
    ("publickey", "Channel's public key"),
)


@dataclass(frozen=True)
class ScheduleView:
    """A schedule and its next request, which is None while the schedule is paused."""

    schedule: Schedule
    conversation: str
    next_request: RequestedWindow | None
    jobs: list[Any]


@requires("administer")
def list_schedules(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    try:
        page = schedules.fetch_page(ctx.channel_id, ctx.datasets, 100, request.GET.get("cursor"))
    except RequestError:
        return redirect(request.path)
    names = conversation_names(ctx.channel_id, (each.conversation for each in page.schedules))
    return render_page(
        request,
        ctx,
        "schedules.html",
        {
            "schedules": [
                ScheduleView(
                    each,
                    names.get(each.conversation) or each.conversation,
                    _next_request(each),
                    each.last_jobs,  # type: ignore[attr-defined]
                )
                for each in page.schedules
            ],
            "next_cursor": page.cursor,
        },
    )


def _next_request(schedule: Schedule) -> RequestedWindow | None:
    if schedule.paused_at is not None:
        return None
    try:
        return schedules.requested_window(schedule, schedule.next_at)
    except ValueError:  # a setting no longer allows it: last_error says so
        return None


@requires("administer", methods=("GET", "POST"))
def create_schedule(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Shows the form, or saves a new or a changed schedule."""
    if request.method != "POST":
        return _render_form(request, ctx, _default_params(ctx) | clean_params(request.GET), {})
    params = clean_params(request.POST)
    if request.POST.get("act") == "search":
        return _render_form(request, ctx, params, {})
    schedule, errors = parse_schedule_form(ctx, params)
    if schedule is None or errors:
        return _render_form(request, ctx, params, errors, 400)
    saved = schedules.save(schedule)
    messages.success(request, f"“{saved.name}” is scheduled.")
    return redirect("console:schedules", ctx.channel)


def _default_params(ctx: ChannelContext) -> dict[str, str]:
    return {
        "dataset": ctx.datasets[0] if ctx.datasets else "",
        "timezone": "UTC",
        "window": "yesterday",
        "cron": "0 6 * * *",
        "tag": "{name}-{start}",
        "outputFormat": "csv",
    }


def parse_schedule_form(
    ctx: ChannelContext, form: Mapping[str, str]
) -> tuple[Schedule | None, dict[str, str]]:
    """Returns the schedule, validated by the API's rules, and the errors by field."""
    params = {
        name: form[name].strip() for name in api.WIRE_NAMES.values() if form.get(name, "").strip()
    }
    dataset = params.get("dataset", "")
    if dataset in DATASETS and "conversationId" not in (
        *DATASETS[dataset].required_fields,
        *DATASETS[dataset].optional_fields,
    ):
        params.pop("conversationId", None)
    params["requestedBy"] = ctx.username
    serializer = api.ScheduleBody(data={"request": params})
    if not serializer.is_valid():
        return None, flatten_errors(serializer.errors.get("request", {}))
    valid = serializer.validated_data["request"]
    values = {field: valid[wire] for field, wire in api.WIRE_NAMES.items() if wire in valid}
    schedule = Schedule(channel_id=ctx.channel_id, name=form.get("name", "").strip(), **values)
    errors = {
        api.WIRE_NAMES.get(name, name): error
        for name, error in schedules.find_errors(schedule).items()
    }
    if dataset in DATASETS and dataset not in ctx.datasets:
        errors["dataset"] = "You may not export this dataset here. Choose another."
    replaced = schedules.fetch_schedule(ctx.channel_id, schedule.name)
    # a schedule of a dataset that the user may not export shows only that its name is in use
    if replaced and (form.get("changes") != replaced.name or replaced.dataset not in ctx.datasets):
        errors["name"] = "This name is in use. Choose another name, or edit the existing schedule."
    return schedule, errors


def _render_form(
    request: HttpRequest,
    ctx: ChannelContext,
    params: dict[str, str],
    errors: dict[str, str],
    status: int = 200,
) -> HttpResponse:
    return render_page(
        request,
        ctx,
        "schedule_form.html",
        {
            "params": params,
            "errors": errors,
            "datasets": [DATASETS[name] for name in ctx.datasets],
            "formats": format_choices(),
            "windows": [(window, window.capitalize()) for window in WINDOWS],
            "encryptions": _ENCRYPTION_CHOICES,
            "zones": zone_choices(),
            **conversation_choices(ctx, params),
        },
        status,
    )


def _find_schedule(ctx: ChannelContext, name: str) -> Schedule:
    schedule = schedules.fetch_schedule(ctx.channel_id, name)
    if schedule is None or schedule.dataset not in ctx.datasets:
        raise Http404
    return schedule


@requires("administer")
def edit_schedule(request: HttpRequest, ctx: ChannelContext, name: str) -> HttpResponse:
    """Shows the form with the values of a schedule."""
    schedule = _find_schedule(ctx, name)
    params = {wire: str(getattr(schedule, field)) for field, wire in api.WIRE_NAMES.items()}
    return _render_form(request, ctx, params | {"name": name, "changes": name}, {})


@requires("administer", methods=("POST",))
def act_on_schedule(
    request: HttpRequest, ctx: ChannelContext, name: str, action: str
) -> HttpResponse:
    """Pauses, resumes or deletes a schedule."""
    schedule = _find_schedule(ctx, name)
    match action:
        case "pause":
            schedules.pause(schedule)
            messages.success(request, f"“{name}” is paused.")
        case "resume":
            try:
                schedules.resume(schedule)
                messages.success(request, f"“{name}” is active again.")
            except RequestError as error:
                messages.error(request, error.detail)
        case "delete":
            schedules.delete(schedule)
            messages.success(request, f"“{name}” is deleted. Its exports remain.")
        case _:
            raise Http404
    return redirect("console:schedules", ctx.channel)
