"""The schedules of a channel: list, one with its runs, form, run now, pause, resume, delete."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from exhaust.api import schedules as api
from exhaust.console.exports import conversation_names
from exhaust.console.new_export import (
    LIST_FIELDS,
    column_choices,
    conversation_choices,
    file_destination_choices,
    filter_choices,
    flatten_errors,
    format_choices,
    read_form,
    split_lines,
    zone_choices,
)
from exhaust.console.permissions import ChannelContext, clean_params, render_page, requires
from exhaust.datasets.selection import load_zone
from exhaust.jobs import queries, schedules
from exhaust.models import Job, Schedule
from ingest.auth import preferences
from ingest.events import RequestError

MAX_RUNS = 50  # listed of a schedule
NEXT_RUNS = 3
WINDOWS = (
    ("yesterday", gettext_lazy("Yesterday")),
    ("today", gettext_lazy("Today, up to the run")),
    ("last 7 days", gettext_lazy("Last 7 days")),
    ("last 30 days", gettext_lazy("Last 30 days")),
    ("last week", gettext_lazy("Last week, Monday to Sunday")),
    ("this month", gettext_lazy("This month so far")),
    ("last month", gettext_lazy("Last month")),
)
REPEATS = (
    ("daily", gettext_lazy("Every day")),
    ("weekly", gettext_lazy("Every week")),
    ("monthly", gettext_lazy("Every month")),
    ("custom", gettext_lazy("Custom (cron)")),
)
_WEEKDAYS = (
    ("1", gettext_lazy("Monday")),
    ("2", gettext_lazy("Tuesday")),
    ("3", gettext_lazy("Wednesday")),
    ("4", gettext_lazy("Thursday")),
    ("5", gettext_lazy("Friday")),
    ("6", gettext_lazy("Saturday")),
    ("0", gettext_lazy("Sunday")),
)
_LAST_DAY = "L"  # of a month, as cron writes it
_DEFAULT_CRON = "0 6 * * *"
# no password: it would have to be stored
_ENCRYPTION_CHOICES = (
    ("", gettext_lazy("Channel default")),
    ("publickey", gettext_lazy("Channel's public key")),
)
_PRIORITY_CHOICES = (
    ("low", gettext_lazy("After all other exports")),
    ("interactive", gettext_lazy("At once")),
)


@dataclass(frozen=True)
class Run:
    """A coming run: when, in the schedule's zone, and of which days."""

    at: datetime
    local_time: str
    first: date
    last: date


@dataclass(frozen=True)
class ScheduleView:
    """A schedule, and its next runs: none while it is paused."""

    schedule: Schedule
    conversation: str
    repeats: str  # in words
    period: str  # likewise
    next_runs: list[Run]
    jobs: list[Any]


@requires("administer")
def list_schedules(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Lists the schedules, failing ones first."""
    try:
        page = schedules.fetch_page(
            ctx.channel_id, list(ctx.datasets), 100, request.GET.get("cursor")
        )
    except RequestError:
        return redirect(request.path)
    rows = sorted(page.schedules, key=lambda row: (not row.last_error, row.name))
    context = {"schedules": _describe(ctx, rows), "next_cursor": page.cursor}
    return render_page(request, ctx, "schedules.html", context)


def _describe(ctx: ChannelContext, rows: list[Schedule]) -> list[ScheduleView]:
    names = conversation_names(ctx.channel_id, (each.conversation for each in rows))
    return [
        ScheduleView(
            each,
            names.get(each.conversation) or each.conversation,
            describe_cron(each.cron),
            _format_window(each.window),
            [] if each.paused_at else _list_runs(each),
            each.last_jobs,  # type: ignore[attr-defined]
        )
        for each in rows
    ]


def _list_runs(schedule: Schedule) -> list[Run]:
    """Returns the next runs; none where a setting no longer allows them: `last_error` says so."""
    runs = []
    try:
        zone = load_zone(schedule.zone)
        for moment in schedules.list_slots(schedule.cron, schedule.zone, NEXT_RUNS):
            local = moment.astimezone(zone)
            first, last = schedules.window_dates(schedule.window, local.date())
            runs.append(Run(moment, date_format(local, "D j M Y H:i"), first, last))
    except ValueError:
        return []
    return runs


@requires("administer")
def show_schedule(request: HttpRequest, ctx: ChannelContext, name: str) -> HttpResponse:
    """Shows a schedule, its next runs, and its exports with their results."""
    schedule = _find_schedule(ctx, name)
    jobs = Job.objects.filter(queries.is_readable(ctx.readable), schedule=schedule)
    jobs = jobs.defer("definition").prefetch_related("files").order_by("-submitted_at", "-pk")
    runs = [(job, sum(file.row_count for file in job.files.all())) for job in jobs[:MAX_RUNS]]
    (view,) = _describe(ctx, [schedule])
    context = {"view": view, "schedule": schedule, "runs": runs, "max_runs": MAX_RUNS}
    return render_page(request, ctx, "schedule.html", context)


# The picker ---------------------------------------------------------------------------------------


def build_cron(form: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Returns the cron expression of the picker's fields, and the errors by field."""
    repeat = form.get("repeat") or "custom"
    if repeat == "custom":
        return form.get("cron", ""), {}
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", form.get("time", "").strip())
    if repeat not in dict(REPEATS):
        return _DEFAULT_CRON, {"repeat": _("Choose how often it runs.")}
    if match is None:
        return _DEFAULT_CRON, {"time": _("Enter a time such as 06:00.")}
    weekday, day = form.get("weekday", ""), form.get("day", "")
    if repeat == "weekly" and weekday not in dict(_WEEKDAYS):
        return _DEFAULT_CRON, {"weekday": _("Choose a weekday.")}
    if repeat == "monthly" and day not in dict(_list_days()):
        return _DEFAULT_CRON, {"day": _("Choose a day of the month.")}
    rest = {"daily": "* * *", "weekly": f"* * {weekday}", "monthly": f"{day} * *"}[repeat]
    return f"{int(match[2])} {int(match[1])} {rest}", {}


def parse_cron(cron: str) -> dict[str, str]:
    """Returns the picker's fields of a cron expression."""
    match = re.fullmatch(r"(\d+) (\d+) (\S+) \* (\S+)", cron)
    fields = {"repeat": "custom", "time": "06:00", "weekday": "1", "day": "1"}
    if match is None:
        return fields
    minute, hour, day, weekday = match.groups()
    if day == weekday == "*":
        fields["repeat"] = "daily"
    elif day == "*" and weekday in dict(_WEEKDAYS):
        fields |= {"repeat": "weekly", "weekday": weekday}
    elif weekday == "*" and day in dict(_list_days()):
        fields |= {"repeat": "monthly", "day": day}
    else:
        return fields
    return fields | {"time": f"{int(hour):02}:{int(minute):02}"}


def describe_cron(cron: str) -> str:
    """Says how often a schedule runs; a custom one as its cron expression."""
    fields = parse_cron(cron)
    match fields["repeat"]:
        case "daily":
            return _("every day at %(time)s") % fields
        case "weekly":
            weekday = dict(_WEEKDAYS)[fields["weekday"]]
            return _("every week on %(weekday)s at %(time)s") % {**fields, "weekday": weekday}
        case "monthly" if fields["day"] == _LAST_DAY:
            return _("every month on the last day at %(time)s") % fields
        case "monthly":
            return _("every month on day %(day)s at %(time)s") % fields
    return cron


def _list_days() -> list[tuple[str, str]]:
    """Returns the days that each month has, and the last one."""
    return [*((str(day), str(day)) for day in range(1, 29)), (_LAST_DAY, _("Last day"))]


# The form -----------------------------------------------------------------------------------------


@requires("administer", methods=("GET", "POST"))
def create_schedule(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Shows the form, or saves a new or a changed schedule."""
    if request.method != "POST":
        return _render_form(request, ctx, _default_params(ctx) | clean_params(request.GET), {})
    params = read_form(request.POST)
    params["cron"], picker_errors = build_cron(params)
    if request.POST.get("act") in ("search", "next"):
        return _render_form(request, ctx, params, {})
    schedule, errors = parse_schedule_form(ctx, params)
    errors |= picker_errors
    if schedule is None or errors:
        return _render_form(request, ctx, params, errors, 400)
    saved = schedules.save(schedule)
    messages.success(request, _("“%(name)s” is scheduled.") % {"name": saved.name})
    return redirect("console:schedule", ctx.channel, saved.name)


def _default_params(ctx: ChannelContext) -> dict[str, str]:
    return {
        "dataset": next(iter(ctx.datasets), ""),
        "timezone": str(preferences.get_zone()),
        "window": "yesterday",
        "cron": _DEFAULT_CRON,
        "tag": "{name}-{start}",
        "outputFormat": "csv",
    }


def parse_schedule_form(
    ctx: ChannelContext, form: Mapping[str, str]
) -> tuple[Schedule | None, dict[str, str]]:
    """Returns the schedule, validated by the API's rules, and the errors by field."""
    params: dict[str, Any] = {
        name: form[name].strip() for name in api.WIRE_NAMES.values() if form.get(name, "").strip()
    }
    params |= {name: split_lines(params[name]) for name in LIST_FIELDS if name in params}
    dataset = params.get("dataset", "")
    chosen = ctx.datasets.get(dataset)
    if chosen and "conversationId" not in (*chosen.required_fields, *chosen.optional_fields):
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
    if not chosen and "dataset" not in errors:
        errors["dataset"] = _("You may not export this dataset here. Choose another.")
    replaced = schedules.fetch_schedule(ctx.channel_id, schedule.name)
    # a schedule of a dataset that the user may not export shows only that its name is in use
    if replaced and (form.get("changes") != replaced.name or replaced.dataset not in ctx.datasets):
        errors["name"] = _(
            "This name is in use. Choose another name, or edit the existing schedule."
        )
    return schedule, errors


def _render_form(
    request: HttpRequest,
    ctx: ChannelContext,
    params: dict[str, str],
    errors: dict[str, str],
    status: int = 200,
) -> HttpResponse:
    sample = Schedule(
        cron=params.get("cron", ""),
        zone=params.get("timezone", ""),
        window=params.get("window", ""),
    )
    return render_page(
        request,
        ctx,
        "schedule_form.html",
        {
            "params": parse_cron(params.get("cron", "")) | params,
            "next_runs": _list_runs(sample),
            "repeats": REPEATS,
            "weekdays": _WEEKDAYS,
            "month_days": _list_days(),
            "errors": errors,
            "datasets": list(ctx.datasets.values()),
            "formats": format_choices(),
            "file_destinations": file_destination_choices(ctx),
            "windows": _list_windows(params.get("window", "")),
            "encryptions": _ENCRYPTION_CHOICES,
            "priorities": _PRIORITY_CHOICES,
            "zones": zone_choices(),
            **filter_choices(ctx, params),
            **column_choices(ctx, params),
            **conversation_choices(ctx, params),
        },
        status,
    )


def _list_windows(selected: str) -> list[tuple[str, Any]]:
    """Returns the periods to choose from, and the selected one, which the API may have set."""
    is_other = bool(selected) and selected not in dict(WINDOWS)
    return [*WINDOWS, *([(selected, _format_window(selected))] if is_other else [])]


def _format_window(window: str) -> str:
    """Returns the label of a period; the API may have set another number of days."""
    if window in dict(WINDOWS):
        return str(dict(WINDOWS)[window])
    match = re.fullmatch(r"last (\d+) days?", window)
    count = int(match[1]) if match else 0
    days = ngettext("Last %(count)d day", "Last %(count)d days", count) % {"count": count}
    return days if match else window


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
    params |= {name: "\n".join(getattr(schedule, name)) for name in LIST_FIELDS}
    params |= {"name": name, "changes": name}
    return _render_form(request, ctx, params, {})


@requires("administer", methods=("POST",))
def act_on_schedule(
    request: HttpRequest, ctx: ChannelContext, name: str, action: str
) -> HttpResponse:
    """Runs, pauses, resumes or deletes a schedule."""
    schedule = _find_schedule(ctx, name)
    try:
        match action:
            case "run":
                job = schedules.run_now(schedule)
                if job.is_existing:
                    messages.success(request, _("This export exists already today."))
                else:
                    messages.success(request, _("“%(name)s” runs now.") % {"name": name})
                return redirect("console:export", ctx.channel, job.tag, job.request_id)
            case "pause":
                schedules.pause(schedule)
                messages.success(request, _("“%(name)s” is paused.") % {"name": name})
            case "resume":
                schedules.resume(schedule)
                messages.success(request, _("“%(name)s” is active again.") % {"name": name})
            case "delete":
                schedules.delete(schedule)
                sentence = _("“%(name)s” is deleted. Its exports remain.")
                messages.success(request, sentence % {"name": name})
                return redirect("console:schedules", ctx.channel)
            case _:
                raise Http404
    except RequestError as error:
        messages.error(request, error.detail)
    return redirect("console:schedule", ctx.channel, name)
