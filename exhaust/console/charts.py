"""Charts of a channel and their tables: grouped with pandas, drawn by `svg`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import Count, Sum
from django.db.models.functions import TruncDate
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.safestring import SafeString

from exhaust.console import svg
from exhaust.console.new_export import PRESETS
from exhaust.console.permissions import (
    VIEW_PERMISSIONS,
    ChannelContext,
    clean_params,
    render_page,
    requires,
)
from exhaust.console.templatetags.console import duration, status, thousands
from exhaust.delivery import destinations
from exhaust.jobs import schedules
from exhaust.jobs.preview import limit_query_seconds
from exhaust.models import Destination, Job
from ingest.auth import roles
from ingest.db.clock import read_clock
from ingest.derive import deriver
from ingest.models import RejectedEvent, StoredEvent

TIMEOUT_SECONDS = 3.0  # per chart
MAX_DAYS = 366


@dataclass(frozen=True)
class Chart:
    """A drawing and its table. Without a drawing the caption says why."""

    name: str
    title: str
    caption: str
    drawing: SafeString | str = ""
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    legend: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DayRange:
    """Whole days in UTC, first and last day included."""

    first: date
    last: date

    @property
    def start(self) -> datetime:
        return datetime.combine(self.first, time.min, UTC)

    @property
    def end(self) -> datetime:
        return datetime.combine(self.last + timedelta(days=1), time.min, UTC)

    @property
    def days(self) -> list[date]:
        return [
            self.first + timedelta(days=each) for each in range((self.last - self.first).days + 1)
        ]


def parse_days(params: dict[str, str]) -> tuple[DayRange, str]:
    """Returns the days of the parameters, by default the last 30, and an error or ''."""
    today = read_clock().date()
    default = DayRange(today - timedelta(days=29), today)
    try:
        if params.get("preset"):
            return DayRange(*schedules.window_dates(params["preset"], today)), ""
        first = (
            date.fromisoformat(params["startDate"]) if params.get("startDate") else default.first
        )
        last = date.fromisoformat(params["endDate"]) if params.get("endDate") else default.last
    except ValueError:
        return default, "Enter days as YYYY-MM-DD. You see the last 30 days."
    if not (first <= last and (last - first).days < MAX_DAYS and 1970 <= first.year <= 9000):
        return (
            default,
            f"Choose a period of at most {MAX_DAYS} days. You see the last 30 days.",
        )
    return DayRange(first, last), ""


@requires(*VIEW_PERMISSIONS)
def show_charts(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    params = clean_params(request.GET)
    channels = roles.permitted_channels(request.user)
    channel = params.get("channel", ctx.channel)
    if channel not in channels:
        raise Http404
    if channel != ctx.channel:
        params.pop("channel")
        return redirect(f"{reverse('console:charts', args=[channel])}?{urlencode(params)}")
    days, error = parse_days(params)
    builders: list[Callable[[ChannelContext, DayRange], Chart]] = [
        events_by_source,
        answers_by_conversation,
        jobs_by_outcome,
        time_to_export,
        rejections_by_reason,
        processing_delay,
    ]
    return render_page(
        request,
        ctx,
        "charts.html",
        {
            "charts": [_draw_chart(builder, ctx, days) for builder in builders],
            "period": days,
            "error": error,
            "presets": PRESETS,
            "channels": list(channels)[:100],
        },
    )


def _draw_chart(
    builder: Callable[[ChannelContext, DayRange], Chart], ctx: ChannelContext, days: DayRange
) -> Chart:
    try:
        with limit_query_seconds(TIMEOUT_SECONDS):
            return builder(ctx, days)
    except TimeoutError:
        return Chart(
            builder.__name__,
            _TITLES[builder.__name__],
            "Counting took too long. Choose fewer days.",
        )


_TITLES = {
    "events_by_source": "Events received by day and source",
    "answers_by_conversation": "Responses by conversation",
    "jobs_by_outcome": "Exports by day and outcome",
    "time_to_export": "Time to export",
    "rejections_by_reason": "Rejected events by reason",
    "processing_delay": "Processing delay",
}


def _daily_chart(
    name: str, days: DayRange, rows: list[tuple[date, str, int]], empty_caption: str
) -> Chart:
    """Returns a chart of stacked columns from rows of (day, series, count)."""
    import pandas as pd

    if not rows:
        return Chart(name, _TITLES[name], empty_caption)
    table = pd.DataFrame(rows, columns=["day", "series", "count"])
    table = table.pivot_table(index="day", columns="series", values="count", aggfunc="sum")
    table = table.reindex(days.days).fillna(0).astype(int)
    order = table.sum().sort_values(ascending=False).index
    table = table[list(order)]
    total, peak_day = int(table.to_numpy().sum()), table.sum(axis=1).idxmax()
    caption = (
        f"{thousands(total)} in {len(table)} days. The peak was {peak_day:%-d %b %Y},"
        f" with {thousands(int(table.sum(axis=1).max()))}."
    )
    drawing = svg.draw_columns(
        name,
        _TITLES[name],
        caption,
        [f"{each:%-d %b}" for each in table.index],
        [[float(value) for value in table[column]] for column in table.columns],
    )
    return Chart(
        name,
        _TITLES[name],
        caption,
        drawing,
        ["Day", *table.columns],
        [
            [f"{each:%-d %b %Y}", *(thousands(int(value)) for value in values)]
            for each, values in zip(table.index, table.to_numpy(), strict=True)
        ],
        list(table.columns),
    )


def events_by_source(ctx: ChannelContext, days: DayRange) -> Chart:
    rows = (
        StoredEvent.objects.filter(
            channel=ctx.channel_id, received_at__gte=days.start, received_at__lt=days.end
        )
        .annotate(day=TruncDate("received_at"))
        .values_list("day", "source")
        .annotate(count=Count("pk"))
        .order_by()
    )
    empty_caption = "No events received in this period. The README says how to send events."
    return _daily_chart("events_by_source", days, list(rows), empty_caption)


def answers_by_conversation(ctx: ChannelContext, days: DayRange) -> Chart:
    rows = list(
        StoredEvent.objects.filter(
            channel=ctx.channel_id,
            is_answer=True,
            conversation__isnull=False,
            superseded_xid__isnull=True,
            occurred_at__gte=days.start,
            occurred_at__lt=days.end,
        )
        .values_list("conversation__identifier", "conversation__name")
        .annotate(count=Count("pk"))
        .order_by("-count")[:12]
    )
    if not rows:
        return Chart(
            "answers_by_conversation",
            _TITLES["answers_by_conversation"],
            "No responses in this period.",
        )
    values = [(name or identifier, count) for identifier, name, count in rows]
    return _bar_chart(
        "answers_by_conversation",
        "The twelve conversations with the most responses.",
        "Conversation",
        values,
    )


def _bar_chart(name: str, caption: str, label_header: str, rows: list[tuple[str, int]]) -> Chart:
    drawing = svg.draw_bars(
        name, _TITLES[name], caption, [(label, value, thousands(value)) for label, value in rows]
    )
    header = [label_header, "Count"]
    return Chart(
        name,
        _TITLES[name],
        caption,
        drawing,
        header,
        [[label, thousands(value)] for label, value in rows],
    )


def _visible_jobs(ctx: ChannelContext, days: DayRange) -> Any:
    return Job.objects.filter(
        channel=ctx.channel_id,
        dataset__in=ctx.datasets,
        submitted_at__gte=days.start,
        submitted_at__lt=days.end,
    )


def jobs_by_outcome(ctx: ChannelContext, days: DayRange) -> Chart:
    rows = (
        _visible_jobs(ctx, days)
        .annotate(day=TruncDate("submitted_at"))
        .values_list("day", "status")
        .annotate(count=Count("pk"))
        .order_by()
    )
    day_counts = [(day, status(name), count) for day, name, count in rows]
    return _daily_chart("jobs_by_outcome", days, day_counts, "No exports in this period.")


def time_to_export(ctx: ChannelContext, days: DayRange) -> Chart:
    import pandas as pd

    rows = list(
        _visible_jobs(ctx, days)
        .filter(status=Job.Status.SUCCESS, completed_at__isnull=False)
        .order_by("-pk")
        .values_list("submitted_at", "completed_at")[:100_000]
    )
    if not rows:
        return Chart(
            "time_to_export", _TITLES["time_to_export"], "No export finished in this period."
        )
    table = pd.DataFrame(rows, columns=["submitted", "completed"])
    durations = (table["completed"] - table["submitted"]).dt.total_seconds().clip(lower=0)
    shares = {"Median": 0.5, "90th percentile": 0.9, "Slowest": 1.0}
    values = [(label, float(durations.quantile(share))) for label, share in shares.items()]
    caption = f"{thousands(len(durations))} exports, including their time in the queue."
    drawing = svg.draw_bars(
        "time_to_export",
        _TITLES["time_to_export"],
        caption,
        [(label, value, duration(value)) for label, value in values],
    )
    table_rows = [[label, duration(value)] for label, value in values]
    return Chart(
        "time_to_export",
        _TITLES["time_to_export"],
        caption,
        drawing,
        ["Exports", "Time"],
        table_rows,
    )


def rejections_by_reason(ctx: ChannelContext, days: DayRange) -> Chart:
    rows = list(
        RejectedEvent.objects.filter(
            channel=ctx.channel_id, received_at__gte=days.start, received_at__lt=days.end
        )
        .values_list("reason")
        .annotate(total=Sum("count"))
        .order_by("-total")[:12]
    )
    if not rows:
        return Chart(
            "rejections_by_reason",
            _TITLES["rejections_by_reason"],
            "No rejected events in this period.",
        )
    return _bar_chart("rejections_by_reason", "You can reprocess rejected events.", "Reason", rows)


def processing_delay(ctx: ChannelContext, days: DayRange) -> Chart:
    """Returns the current delay of sessions and users, and of each destination."""
    session_lag = deriver.measure_lag(ctx.channel_id)
    rows = [("Sessions and users", session_lag.age.total_seconds(), session_lag.events)]
    if ctx.is_administrator:
        for destination in Destination.objects.filter(channel=ctx.channel_id).order_by("name")[:20]:
            lag = destinations.measure_lag(destination)
            rows.append((f"Destination {destination.name}", lag.seconds, lag.documents))
    caption = "Now: events that are received but not processed or delivered yet."
    if not any(backlog for _, _, backlog in rows):
        caption = "Now: no delay."
    drawing = svg.draw_bars(
        "processing_delay",
        _TITLES["processing_delay"],
        caption,
        [
            (
                name,
                seconds,
                f"{duration(seconds)}, {thousands(count)} waiting" if count else "up to date",
            )
            for name, seconds, count in rows
        ],
    )
    return Chart(
        "processing_delay",
        _TITLES["processing_delay"],
        caption,
        drawing,
        ["Stage", "Delay", "Waiting"],
        [[name, duration(seconds), thousands(count)] for name, seconds, count in rows],
    )
