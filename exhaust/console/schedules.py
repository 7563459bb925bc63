"""Recurring requests of a channel: listed, made, paused, resumed, deleted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect

from exhaust.api import schedules as api
from exhaust.console.exports import named
from exhaust.console.new_export import by_field, formats, found, zones
from exhaust.console.permissions import Here, show, typed, within
from exhaust.datasets import DATASETS
from exhaust.jobs import schedules
from exhaust.jobs.schedules import Asked
from exhaust.models import Schedule
from ingest.events import Refused

WINDOWS = ("yesterday", "last 7 days", "last 30 days", "last week", "this month", "last month")
# a password would have to be kept
_SEALINGS = (("", "As the channel demands"), ("publickey", "For the channel's public key"))


@dataclass(frozen=True)
class Shown:
    """A schedule and what it asks for next; None while it is paused."""

    schedule: Schedule
    conversation: str
    upcoming: Asked | None
    jobs: list[Any]


@within("administer")
def listing(request: HttpRequest, here: Here) -> HttpResponse:
    try:
        page = schedules.page(here.channel_id, here.datasets, 100, request.GET.get("cursor"))
    except Refused:
        return redirect(request.path)
    names = named(here.channel_id, (each.conversation for each in page.schedules))
    return show(
        request,
        here,
        "recurring.html",
        {
            "schedules": [
                Shown(
                    each,
                    names.get(each.conversation) or each.conversation,
                    _upcoming(each),
                    each.last_jobs,  # type: ignore[attr-defined]
                )
                for each in page.schedules
            ],
            "next": page.cursor,
        },
    )


def _upcoming(schedule: Schedule) -> Asked | None:
    if schedule.paused_at is not None:
        return None
    try:
        return schedules.asked(schedule, schedule.next_at)
    except ValueError:  # a setting took it away: last_error tells
        return None


@within("administer", methods=("GET", "POST"))
def new(request: HttpRequest, here: Here) -> HttpResponse:
    """The form of a new one, or of one that is changed."""
    if request.method != "POST":
        return _form(request, here, _fresh(here) | typed(request.GET), {})
    said = typed(request.POST)
    if request.POST.get("act") == "search":
        return _form(request, here, said, {})
    schedule, errors = read(here, said)
    if schedule is None or errors:
        return _form(request, here, said, errors, 400)
    kept = schedules.save(schedule)
    messages.success(request, f"“{kept.name}” asks by itself from now on.")
    return redirect("console:recurring", here.channel)


def _fresh(here: Here) -> dict[str, str]:
    return {
        "dataset": here.datasets[0] if here.datasets else "",
        "timezone": "UTC",
        "window": "yesterday",
        "cron": "0 6 * * *",
        "tag": "{name}-{start}",
        "outputFormat": "csv",
    }


def read(here: Here, form: Mapping[str, str]) -> tuple[Schedule | None, dict[str, str]]:
    """The schedule by the API's rules, and what is wrong by field."""
    said = {name: form[name].strip() for name in api.WIRE.values() if form.get(name, "").strip()}
    dataset = said.get("dataset", "")
    if dataset in DATASETS and "conversationId" not in (
        *DATASETS[dataset].required,
        *DATASETS[dataset].optional,
    ):
        said.pop("conversationId", None)
    said["requestedBy"] = here.person
    checked = api.Put(data={"request": said})
    if not checked.is_valid():
        return None, by_field(checked.errors.get("request", {}))
    valid = checked.validated_data["request"]
    words = {field: valid[wire] for field, wire in api.WIRE.items() if wire in valid}
    schedule = Schedule(channel_id=here.channel_id, name=form.get("name", "").strip(), **words)
    errors = {api.WIRE.get(name, name): told for name, told in schedules.faults(schedule).items()}
    if dataset in DATASETS and dataset not in here.datasets:
        errors["dataset"] = "You may not ask for this one here; choose another."
    replaced = schedules.find(here.channel_id, schedule.name)
    # of one that they may not ask for, they are told no more than that the name is taken
    if replaced and (form.get("changes") != replaced.name or replaced.dataset not in here.datasets):
        errors["name"] = "There is one of that name; choose another, or change that one."
    return schedule, errors


def _form(
    request: HttpRequest,
    here: Here,
    said: dict[str, str],
    errors: dict[str, str],
    status: int = 200,
) -> HttpResponse:
    return show(
        request,
        here,
        "recurring_new.html",
        {
            "said": said,
            "errors": errors,
            "datasets": [DATASETS[name] for name in here.datasets],
            "formats": formats(),
            "windows": [(window, window.capitalize()) for window in WINDOWS],
            "sealings": _SEALINGS,
            "zones": zones(),
            **found(here, said),
        },
        status,
    )


def _find(here: Here, name: str) -> Schedule:
    schedule = schedules.find(here.channel_id, name)
    if schedule is None or schedule.dataset not in here.datasets:
        raise Http404
    return schedule


@within("administer")
def change(request: HttpRequest, here: Here, name: str) -> HttpResponse:
    """The form, filled with what one says."""
    schedule = _find(here, name)
    said = {wire: str(getattr(schedule, field)) for field, wire in api.WIRE.items()}
    return _form(request, here, said | {"name": name, "changes": name}, {})


@within("administer", methods=("POST",))
def act(request: HttpRequest, here: Here, name: str, what: str) -> HttpResponse:
    """Pauses, resumes or deletes one."""
    schedule = _find(here, name)
    match what:
        case "pause":
            schedules.pause(schedule)
            messages.success(request, f"“{name}” is paused; it asks for nothing.")
        case "resume":
            try:
                schedules.resume(schedule)
                messages.success(request, f"“{name}” asks again.")
            except Refused as error:
                messages.error(request, error.detail)
        case "delete":
            schedules.delete(schedule)
            messages.success(request, f"“{name}” is deleted. What it asked for stays.")
        case _:
            raise Http404
    return redirect("console:recurring", here.channel)
