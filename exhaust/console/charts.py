"""What a channel does, in pictures with their numbers: tables by pandas, drawn by `svg`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import Count
from django.db.models.functions import TruncDate
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString

from exhaust.console import svg
from exhaust.console.new_export import PRESETS
from exhaust.console.permissions import VIEW, Here, show, typed, within
from exhaust.console.templatetags.console import grouped, lasting, status
from exhaust.delivery import destinations
from exhaust.jobs import schedules
from exhaust.jobs.preview import within_seconds
from exhaust.models import Job, Sink
from ingest.auth import roles
from ingest.derive import deriver
from ingest.models import Rejected, StoredEvent

SECONDS = 3.0  # for one picture's numbers
LONGEST = 366


@dataclass(frozen=True)
class Picture:
    """A drawing and its numbers; without a drawing, why there is none."""

    name: str
    title: str
    told: str
    drawing: SafeString | str = ""
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    legend: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Span:
    """Whole days in UTC, both ends included."""

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


def span(said: dict[str, str]) -> tuple[Span, str]:
    """The days an address names, the last 30 by default, and what is wrong with them."""
    today = timezone.now().date()
    default = Span(today - timedelta(days=29), today)
    try:
        if said.get("preset"):
            return Span(*schedules.days(said["preset"], today)), ""
        first = date.fromisoformat(said["startDate"]) if said.get("startDate") else default.first
        last = date.fromisoformat(said["endDate"]) if said.get("endDate") else default.last
    except ValueError:
        return default, "Write days as YYYY-MM-DD. Shown are the last 30."
    if not (first <= last and (last - first).days < LONGEST and 1970 <= first.year <= 9000):
        return default, f"From the first to the last day, at most {LONGEST}. Shown are the last 30."
    return Span(first, last), ""


@within(*VIEW)
def pictures(request: HttpRequest, here: Here) -> HttpResponse:
    said = typed(request.GET)
    channels = roles.channels(request.user)
    wanted = said.get("channel", here.channel)
    if wanted not in channels:
        raise Http404
    if wanted != here.channel:
        said.pop("channel")
        return redirect(f"{reverse('console:pictures', args=[wanted])}?{urlencode(said)}")
    days, wrong = span(said)
    makers: list[Callable[[Here, Span], Picture]] = [doors, answers, outcomes, waits, reasons, lags]
    return show(
        request,
        here,
        "pictures.html",
        {
            "pictures": [_drawn(maker, here, days) for maker in makers],
            "span": days,
            "wrong": wrong,
            "presets": PRESETS,
            "channels": list(channels)[:100],
        },
    )


def _drawn(maker: Callable[[Here, Span], Picture], here: Here, days: Span) -> Picture:
    try:
        with within_seconds(SECONDS):
            return maker(here, days)
    except TimeoutError:
        return Picture(
            maker.__name__,
            _TITLES[maker.__name__],
            "Counting took too long; choose fewer days.",
        )


_TITLES = {
    "doors": "Events that arrived, by day and door",
    "answers": "Answers by conversation",
    "outcomes": "Requests by day and outcome",
    "waits": "From asking to having",
    "reasons": "Rejected events by reason",
    "lags": "How far behind",
}


def _by_day(name: str, days: Span, rows: list[tuple[date, str, int]], nothing: str) -> Picture:
    """Stacked columns of (day, series, count)."""
    import pandas as pd

    if not rows:
        return Picture(name, _TITLES[name], nothing)
    table = pd.DataFrame(rows, columns=["day", "series", "count"])
    table = table.pivot_table(index="day", columns="series", values="count", aggfunc="sum")
    table = table.reindex(days.days).fillna(0).astype(int)
    order = table.sum().sort_values(ascending=False).index
    table = table[list(order)]
    total, best = int(table.to_numpy().sum()), table.sum(axis=1).idxmax()
    told = (
        f"{grouped(total)} in {len(table)} days; the most on {best:%-d %b %Y},"
        f" {grouped(int(table.sum(axis=1).max()))}."
    )
    drawing = svg.columns(
        name,
        _TITLES[name],
        told,
        [f"{each:%-d %b}" for each in table.index],
        [[float(value) for value in table[column]] for column in table.columns],
    )
    return Picture(
        name,
        _TITLES[name],
        told,
        drawing,
        ["Day", *table.columns],
        [
            [f"{each:%-d %b %Y}", *(grouped(int(value)) for value in values)]
            for each, values in zip(table.index, table.to_numpy(), strict=True)
        ],
        list(table.columns),
    )


def doors(here: Here, days: Span) -> Picture:
    rows = (
        StoredEvent.objects.filter(
            channel=here.channel_id, received_at__gte=days.start, received_at__lt=days.end
        )
        .annotate(day=TruncDate("received_at"))
        .values_list("day", "dialect")
        .annotate(count=Count("pk"))
        .order_by()
    )
    nothing = "Nothing arrived in these days; choose others, or look at how to send in the README."
    return _by_day("doors", days, list(rows), nothing)


def answers(here: Here, days: Span) -> Picture:
    rows = list(
        StoredEvent.objects.filter(
            channel=here.channel_id,
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
        return Picture("answers", _TITLES["answers"], "Nobody answered in these days.")
    shown = [(name or identifier, count) for identifier, name, count in rows]
    return _lying("answers", "Those with the most answers, up to twelve.", "Conversation", shown)


def _lying(name: str, told: str, what: str, rows: list[tuple[str, int]]) -> Picture:
    drawing = svg.bars(
        name, _TITLES[name], told, [(label, value, grouped(value)) for label, value in rows]
    )
    head = [what, "Count"]
    return Picture(
        name, _TITLES[name], told, drawing, head, [[label, grouped(value)] for label, value in rows]
    )


def _jobs(here: Here, days: Span) -> Any:
    return Job.objects.filter(
        channel=here.channel_id,
        dataset__in=here.datasets,
        submitted_at__gte=days.start,
        submitted_at__lt=days.end,
    )


def outcomes(here: Here, days: Span) -> Picture:
    rows = (
        _jobs(here, days)
        .annotate(day=TruncDate("submitted_at"))
        .values_list("day", "status")
        .annotate(count=Count("pk"))
        .order_by()
    )
    told = [(day, status(name), count) for day, name, count in rows]
    return _by_day("outcomes", days, told, "Nothing was asked for in these days.")


def waits(here: Here, days: Span) -> Picture:
    import pandas as pd

    rows = list(
        _jobs(here, days)
        .filter(status=Job.Status.SUCCESS, completed_at__isnull=False)
        .order_by("-pk")
        .values_list("submitted_at", "completed_at")[:100_000]
    )
    if not rows:
        return Picture("waits", _TITLES["waits"], "No request became ready in these days.")
    table = pd.DataFrame(rows, columns=["asked", "had"])
    taken = (table["had"] - table["asked"]).dt.total_seconds().clip(lower=0)
    shares = {"Half within": 0.5, "Nine of ten within": 0.9, "All within": 1.0}
    values = [(label, float(taken.quantile(share))) for label, share in shares.items()]
    told = f"Of {grouped(len(taken))} requests; the wait in the queue is part of it."
    drawing = svg.bars(
        "waits", _TITLES["waits"], told, [(label, value, lasting(value)) for label, value in values]
    )
    table_rows = [[label, lasting(value)] for label, value in values]
    return Picture("waits", _TITLES["waits"], told, drawing, ["Share", "Time"], table_rows)


def reasons(here: Here, days: Span) -> Picture:
    rows = list(
        Rejected.objects.filter(
            channel=here.channel_id, received_at__gte=days.start, received_at__lt=days.end
        )
        .values_list("reason")
        .annotate(count=Count("pk"))
        .order_by("-count")[:12]
    )
    if not rows:
        return Picture("reasons", _TITLES["reasons"], "Nothing was rejected in these days.")
    return _lying("reasons", "Each is kept and can be sent again.", "Reason", rows)


def lags(here: Here, days: Span) -> Picture:
    """Now, whatever the days: sessions and users, and each sink, behind what has arrived."""
    behind = deriver.lag(here.channel_id)
    rows = [("Sessions and users", behind.age.total_seconds(), behind.events)]
    if here.administers:
        for sink in Sink.objects.filter(channel=here.channel_id).order_by("name")[:20]:
            lag = destinations.lag(sink)
            rows.append((f"Sink {sink.name}", lag.seconds, lag.documents))
    told = "Now; what arrived and is not worked in, or not sent, yet."
    if not any(waiting for _, _, waiting in rows):
        told = "Now: nothing waits."
    drawing = svg.bars(
        "lags",
        _TITLES["lags"],
        told,
        [
            (
                name,
                seconds,
                f"{lasting(seconds)}, {grouped(count)} waiting" if count else "up to date",
            )
            for name, seconds, count in rows
        ],
    )
    return Picture(
        "lags",
        _TITLES["lags"],
        told,
        drawing,
        ["What", "Behind", "Waiting"],
        [[name, lasting(seconds), grouped(count)] for name, seconds, count in rows],
    )
