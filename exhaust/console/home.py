"""The choice of a channel, and a channel's home page: is it set up, and does it work?"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.db.models import Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache

from exhaust.console.exports import MAX_SEARCHED, job_views
from exhaust.console.permissions import (
    SUBMIT_PERMISSIONS,
    VIEW_PERMISSIONS,
    ChannelContext,
    render_not_found,
    render_page,
    requires,
)
from exhaust.console.sentences import translate_sentence
from exhaust.datasets.response import RESPONSE
from exhaust.delivery import states
from exhaust.jobs import queries
from exhaust.jobs.queries import Filters
from exhaust.models import Destination, Job, Schedule
from ingest.adapters import ADAPTERS
from ingest.auth import roles
from ingest.auth.roles import Permission
from ingest.db.clock import read_clock
from ingest.db.time_limit import limit_query_seconds
from ingest.feed import reader
from ingest.models import ApiKey, Application, Conversation, RejectedEvent, StoredEvent

MAX_LISTED = 200
NEWEST_EVENTS = 5_000  # read for the table of sources
MAX_FAILURES = 5
MAX_EXPORTS = 3
MAX_CONVERSATIONS = 3
SECTION_SECONDS = 2.0
LAGGING_SECONDS = 300
_FAILURE_DAYS = 7


@never_cache
def choose_channel(request: HttpRequest) -> HttpResponse:
    """Lists the user's channels, or redirects to the only one."""
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path())
    names = list(roles.permitted_channels(request.user))
    if len(names) == 1:
        return redirect("console:start", names[0])
    query = request.GET.get("q", "").strip()
    matches = [name for name in names if query.lower() in name.lower()]
    return render_page(
        request,
        None,
        "channels.html",
        {
            "channels": [
                (name, reverse("console:start", args=[name])) for name in matches[:MAX_LISTED]
            ],
            "count": len(names),
            "more": max(0, len(matches) - MAX_LISTED),
            "q": query,
            "closed_channels": roles.list_closed_channels(request.user),
        },
    )


@requires(*VIEW_PERMISSIONS, "audit")
def show_home(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Shows the first steps until they are done, what is newest, and what fails."""
    sections: list[Callable[[ChannelContext], dict[str, Any]]] = []
    if ctx.has_any(*VIEW_PERMISSIONS):
        sections += [_read_sources, _read_rejections, _read_steps]
    if ctx.can_submit:
        sections += [_read_own_jobs, _read_failed_jobs]
    if ctx.is_administrator:
        sections += [_read_failing_schedules, _read_failing_destinations]
    context: dict[str, Any] = {"slow": False, "can_view": ctx.has_any(*VIEW_PERMISSIONS)}
    for read_section in sections:
        try:
            with limit_query_seconds(SECTION_SECONDS):
                context |= read_section(ctx)
        except TimeoutError:
            context["slow"] = True
    problems = ("jobs", "schedules", "destinations", "rejections")
    context["is_healthy"] = not context["slow"] and not any(map(context.get, problems))
    return render_page(request, ctx, "home.html", context)


# The first run ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A step of the first run; `url` is empty where the user may not do it."""

    title: str
    hint: str
    is_done: bool
    url: str = ""
    is_optional: bool = False


def _read_steps(ctx: ChannelContext) -> dict[str, Any]:
    """Reads which steps are done. Nothing is counted: each asks for one row."""
    keys = ApiKey.objects.filter(channels=ctx.channel_id, revoked_at=None)
    applications = Application.objects.filter(channel=ctx.channel_id)
    steps = [
        Step(_("Channel"), _("Your events and exports are kept apart in it."), is_done=True),
        Step(
            _("API key"),
            _("Your application sends events with it."),
            keys.exists() or applications.exists(),
            _find_url(ctx, "keys", "administer"),
        ),
        Step(
            _("First event"),
            _("Send one, then look whether it arrived."),
            StoredEvent.objects.filter(channel=ctx.channel_id).exists(),
            _find_url(ctx, "events", *VIEW_PERMISSIONS),
        ),
        Step(
            _("First export"),
            _("Choose a dataset and days, and download the file."),
            Job.objects.filter(channel=ctx.channel_id).exists(),
            _find_url(ctx, "new-export", *SUBMIT_PERMISSIONS),
        ),
        Step(
            _("Destination"),
            _("We push events, sessions or files to your system."),
            Destination.objects.filter(channel=ctx.channel_id).exists(),
            _find_url(ctx, "destinations", "administer"),
            is_optional=True,
        ),
    ]
    is_set_up = all(step.is_done or step.is_optional for step in steps)
    return {"steps": [] if is_set_up else steps}


def _find_url(ctx: ChannelContext, name: str, *permissions: Permission) -> str:
    return reverse(f"console:{name}", args=[ctx.channel]) if ctx.has_any(*permissions) else ""


# The last events ----------------------------------------------------------------------------------


@dataclass
class SourceActivity:
    """A source of the newest events: its last one, and how many came within an hour."""

    name: str
    title: str
    last_at: datetime
    hour_count: int = 0


def _read_sources(ctx: ChannelContext) -> dict[str, Any]:
    newest = StoredEvent.objects.filter(channel=ctx.channel_id).order_by("-xid", "-id")
    columns = newest.values_list("source", "received_at", "conversation")
    rows = list(reader.stream_tuples(columns[:NEWEST_EVENTS]))
    hour_ago = read_clock() - timedelta(hours=1)
    sources: dict[str, SourceActivity] = {}
    conversations: dict[int, datetime] = {}
    for name, received_at, conversation in rows:
        if conversation is not None:
            conversations.setdefault(conversation, received_at)
        title = translate_sentence(ADAPTERS[name].title) if name in ADAPTERS else name
        source = sources.setdefault(name, SourceActivity(name, title, received_at))
        source.last_at = max(source.last_at, received_at)
        source.hour_count += received_at > hour_ago
    is_whole_hour = len(rows) < NEWEST_EVENTS or rows[-1][1] <= hour_ago
    shown = list(conversations)[:MAX_CONVERSATIONS]
    found = Conversation.objects.in_bulk(shown)
    return {
        "conversations": [(found[pk], conversations[pk]) for pk in shown],
        "can_export_responses": RESPONSE.name in ctx.datasets,
        "sources": sorted(sources.values(), key=lambda source: source.last_at, reverse=True),
        "is_whole_hour": is_whole_hour,
        "newest_events": NEWEST_EVENTS,
    }


# The last exports ---------------------------------------------------------------------------------


def _read_own_jobs(ctx: ChannelContext) -> dict[str, Any]:
    filters = Filters(ctx.channel_id, ctx.readable, requested_by=ctx.username)
    found = queries.search_jobs(filters, MAX_EXPORTS, window=MAX_SEARCHED)
    return {"exports": job_views(found.jobs)}


# Problems -----------------------------------------------------------------------------------------


def _read_rejections(ctx: ChannelContext) -> dict[str, Any]:
    recent = RejectedEvent.objects.filter(
        channel=ctx.channel_id, received_at__gte=read_clock() - timedelta(days=1), replayed_at=None
    )
    reasons = recent.values("reason", "source").annotate(total=Sum("count")).order_by("-total")
    return {"rejections": list(reasons[:3])}


def _read_failed_jobs(ctx: ChannelContext) -> dict[str, Any]:
    filters = Filters(
        ctx.channel_id,
        ctx.readable,
        statuses=[Job.Status.FAILED],
        submitted_from=read_clock() - timedelta(days=_FAILURE_DAYS),
    )
    return {"jobs": queries.search_jobs(filters, MAX_FAILURES).jobs, "failure_days": _FAILURE_DAYS}


def _read_failing_schedules(ctx: ChannelContext) -> dict[str, Any]:
    rows = Schedule.objects.filter(channel=ctx.channel_id, dataset__in=list(ctx.datasets))
    return {"schedules": list(rows.exclude(last_error="").order_by("name")[:MAX_FAILURES])}


def _read_failing_destinations(ctx: ChannelContext) -> dict[str, Any]:
    """Reads those that are stopped or fail, and those that lag by minutes."""
    rows = list(Destination.objects.filter(channel=ctx.channel_id, paused_at=None).order_by("name"))
    found = []
    for row, lag in zip(rows, states.measure_lags(rows), strict=True):
        state = states.determine_state(row)
        if state != "working" or lag.seconds > LAGGING_SECONDS:
            found.append({"destination": row, "state": state, "lag": lag})
    return {"destinations": found[:MAX_FAILURES]}


def not_found(request: HttpRequest, path: str) -> HttpResponse:
    return render_not_found(request)
