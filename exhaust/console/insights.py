"""The page Insights: charts of a channel."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import Count, Sum
from django.db.models.functions import TruncDate
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.dateformat import format as format_date
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from exhaust.console import svg
from exhaust.console.charts import (
    PRESETS,
    Chart,
    DayCounts,
    DayRange,
    Period,
    bar_chart,
    build_chart,
    daily_chart,
    make_plot,
    parse_period,
    respond_with_csv,
)
from exhaust.console.permissions import (
    VIEW_PERMISSIONS,
    ChannelContext,
    clean_params,
    render_page,
    requires,
)
from exhaust.console.templatetags.console import duration, reason, status, thousands
from exhaust.delivery import states
from exhaust.jobs.queries import is_readable
from exhaust.models import Destination, Job
from ingest.auth import roles
from ingest.derive import deriver
from ingest.feed import daily_counts, reader
from ingest.feed.reader import Microseconds
from ingest.models import Conversation, DailyCount, RejectedEvent

MAX_BARS = 12
MAX_TIMED_JOBS = 100_000


@requires(*VIEW_PERMISSIONS)
def show_insights(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Shows the charts of a period, or one of them: with its table, or as CSV."""
    params = clean_params(request.GET)
    channels = roles.permitted_channels(request.user)
    channel = params.get("channel", ctx.channel)
    if channel not in channels:
        raise Http404
    if channel != ctx.channel:
        params.pop("channel")
        return redirect(f"{reverse('console:charts', args=[channel])}?{urlencode(params)}")
    period, error = parse_period(params)
    wanted = params.get("csv", params.get("table"))
    charts = [
        build_chart(name, str(title), build, ctx, period)
        for name, (title, build) in CHARTS.items()
        if wanted in (None, name)
    ]
    if "csv" in params:
        return respond_with_csv(charts, params["csv"], period.days)
    if not charts:
        raise Http404
    context = {
        "charts": charts,
        "period": period,
        "query": period.query,
        "is_table": wanted is not None,
        "error": error,
        "presets": PRESETS,
        "channels": list(channels)[:100],
    }
    return render_page(request, ctx, "charts.html", context)


def events_by_source(ctx: ChannelContext, period: Period) -> Chart:
    kind = DailyCount.Kind.ARRIVAL if period.day_of == "arrival" else DailyCount.Kind.EVENT

    def count_events(days: DayRange) -> DayCounts:
        counts = daily_counts.count_days(ctx.channel_id, kind, days.first, days.last)
        return [(day, name, count) for (day, name), count in counts.items()]

    return daily_chart(
        period.days,
        count_events(period.days),
        count_events(period.days.before) if period.is_compared else None,
        _("No events in this period. The README says how to send events."),
    )


def answers_by_conversation(ctx: ChannelContext, period: Period) -> Chart:
    def count_answers(days: DayRange) -> dict[int, int]:
        counts = daily_counts.count_names(
            ctx.channel_id, DailyCount.Kind.ANSWER, days.first, days.last
        )
        return {int(name): count for (name,), count in counts.items()}

    counts = count_answers(period.days)
    if not counts:
        return Chart(_("No responses in this period."))
    least = sorted(counts.values(), reverse=True)[:MAX_BARS][-1]
    shown = Conversation.objects.in_bulk(key for key, count in counts.items() if count >= least)
    rows = sorted(
        ((row, counts[key]) for key, row in shown.items()),
        key=lambda pair: (-pair[1], pair[0].identifier),
    )[:MAX_BARS]
    before = None
    if period.is_compared:
        earlier = count_answers(period.days.before)
        before = [earlier.get(row.pk, 0) for row, _count in rows]
    chart = bar_chart(
        _("The conversations with the most responses, at most twelve."),
        _("Conversation"),
        [(str(row), count) for row, count in rows],
        before,
    )
    page = reverse("console:conversation", args=[ctx.channel])
    links = [
        (str(row), f"{page}?{urlencode({'id': row.identifier})}&{period.query}")
        for row, _count in rows
    ]
    return replace(chart, links=links)


def _visible_jobs(ctx: ChannelContext, days: DayRange) -> Any:
    return Job.objects.filter(
        is_readable(ctx.readable),
        channel=ctx.channel_id,
        submitted_at__gte=days.start,
        submitted_at__lt=days.end,
    )


def exports_by_outcome(ctx: ChannelContext, period: Period) -> Chart:
    def count_jobs(days: DayRange) -> DayCounts:
        groups = (
            _visible_jobs(ctx, days)
            .annotate(day=TruncDate("submitted_at", tzinfo=UTC))
            .values_list("day", "status")
            .annotate(count=Count("pk"))
            .order_by()
        )
        with reader.force_index_scan():
            return [(day, str(status(name)), count) for day, name, count in groups]

    return daily_chart(
        period.days,
        count_jobs(period.days),
        count_jobs(period.days.before) if period.is_compared else None,
        _("No exports in this period."),
    )


def time_to_export(ctx: ChannelContext, period: Period) -> Chart:
    def read_seconds(days: DayRange) -> dict[date, list[float]]:
        """Returns the times of the newest exports by day, each list in ascending order."""
        took = Microseconds("completed_at") - Microseconds("submitted_at")
        rows = (
            _visible_jobs(ctx, days)
            .filter(status=Job.Status.SUCCESS, completed_at__isnull=False)
            .order_by("-submitted_at", "-pk")
            .annotate(day=TruncDate("submitted_at", tzinfo=UTC), took=took)
            .values_list("day", "took")[:MAX_TIMED_JOBS]
        )
        by_day: dict[date, list[float]] = {}
        for day, microseconds in reader.stream_tuples(rows):
            by_day.setdefault(day, []).append(max(0, microseconds) / 1e6)
        return {day: sorted(seconds) for day, seconds in by_day.items()}

    by_day = read_seconds(period.days)
    if not by_day:
        return Chart(_("No export finished in this period."))
    shares = {_("Median"): 0.5, _("90th percentile"): 0.9, _("Slowest"): 1.0}
    times = sorted(itertools.chain(*by_day.values()))
    whole = {name: _find_quantile(times, share) for name, share in shares.items()}
    caption = ngettext(
        "%(count)s export, including its time in the queue: %(times)s.",
        "%(count)s exports, including their time in the queue: %(times)s.",
        len(times),
    ) % {
        "count": thousands(len(times)),
        "times": ", ".join(f"{name.lower()} {duration(value)}" for name, value in whole.items()),
    }
    if period.is_compared:
        before = sorted(itertools.chain(*read_seconds(period.days.before).values()))
        caption += " " + (
            _("The median of the period before: %(time)s.")
            % {"time": duration(_find_quantile(before, 0.5)) if before else _("no export")}
        )
    series: dict[str, list[float | None]] = {
        name: [
            _find_quantile(by_day[day], share) if day in by_day else None
            for day in period.days.days
        ]
        for name, share in shares.items()
    }
    rows: list[Any] = [
        (_("Whole period"), len(times), *(_seconds(value) for value in whole.values())),
        *(
            (day, len(by_day[day]), *(_seconds(values[n]) for values in series.values()))
            for n, day in enumerate(period.days.days)
            if day in by_day
        ),
    ]
    return Chart(
        caption,
        svg.draw_lines([format_date(day, "j M") for day in period.days.days], [*series.values()]),
        [_("Day"), _("Exports"), *shares],
        rows,
        [*shares],
        make_plot("lines", period.days, series),
    )


def _find_quantile(ordered: Sequence[float], share: float) -> float:
    """Returns the value that a share of the values does not exceed, between two by their weight."""
    place = (len(ordered) - 1) * share
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _seconds(value: float | None) -> timedelta | None:
    return None if value is None else timedelta(seconds=value)


def rejections_by_reason(ctx: ChannelContext, period: Period) -> Chart:
    def count_rejections(days: DayRange) -> Any:
        return (
            RejectedEvent.objects.filter(
                channel=ctx.channel_id, received_at__gte=days.start, received_at__lt=days.end
            )
            .values_list("reason")
            .annotate(total=Sum("count"))
        )

    rows = list(count_rejections(period.days).order_by("-total", "reason")[:MAX_BARS])
    if not rows:
        return Chart(_("No rejected events in this period."))
    before = None
    if period.is_compared:
        counts = dict(count_rejections(period.days.before))
        before = [counts.get(code, 0) for code, _total in rows]
    counts_by_reason = [(reason(code), count) for code, count in rows]
    caption = _("You can reprocess rejected events.")
    return bar_chart(caption, _("Reason"), counts_by_reason, before)


def processing_delay(ctx: ChannelContext, period: Period) -> Chart:
    """Returns the current delay of sessions and users, and of each destination."""
    lag = deriver.measure_lag(ctx.channel_id)
    rows = [(_("Sessions and users"), lag.age, lag.events)]
    if ctx.is_administrator:
        shown = list(Destination.objects.filter(channel=ctx.channel_id).order_by("name")[:20])
        for destination, waiting in zip(shown, states.measure_lags(shown), strict=True):
            name = _("Destination %(name)s") % {"name": destination.name}
            rows.append((name, timedelta(seconds=waiting.seconds), waiting.documents))
    caption = _("Now: events that are received but not processed or delivered yet.")
    if not any(backlog for _name, _delay, backlog in rows):
        caption = _("Now: no delay.")
    bars = [
        (
            name,
            delay.total_seconds(),
            _("%(delay)s, %(count)s waiting")
            % {"delay": duration(delay), "count": thousands(count)}
            if count
            else _("up to date"),
        )
        for name, delay, count in rows
    ]
    return Chart(caption, svg.draw_bars(bars), [_("Stage"), _("Delay"), _("Waiting")], rows)


CHARTS: dict[str, tuple[Any, Callable[[ChannelContext, Period], Chart]]] = {
    "events_by_source": (gettext_lazy("Events by day and source"), events_by_source),
    "answers_by_conversation": (gettext_lazy("Responses by conversation"), answers_by_conversation),
    "exports_by_outcome": (gettext_lazy("Exports by day and outcome"), exports_by_outcome),
    "time_to_export": (gettext_lazy("Time to export"), time_to_export),
    "rejections_by_reason": (gettext_lazy("Rejected events by reason"), rejections_by_reason),
    "processing_delay": (gettext_lazy("Processing delay"), processing_delay),
}
