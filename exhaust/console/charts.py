"""What charts are made of: a period, a drawing, a table, and the same as CSV."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from django.http import Http404, HttpResponse
from django.utils.dateformat import format as format_date
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from exhaust.console import svg
from exhaust.console.templatetags.console import duration, thousands
from exhaust.datasets.cells import escape_formula
from exhaust.files.formats.lines import format_csv_line
from exhaust.jobs import schedules
from ingest.db.clock import read_clock
from ingest.db.time_limit import limit_query_seconds

TIMEOUT_SECONDS = 3.0  # per chart
MAX_DAYS = 366
MAX_TABLE_ROWS = 100  # of a table within the page
PRESETS = {  # windows of `schedules.window_dates`
    "today": gettext_lazy("Today"),
    "yesterday": gettext_lazy("Yesterday"),
    "last 7 days": gettext_lazy("Last 7 days"),
    "last 30 days": gettext_lazy("Last 30 days"),
    "this month": gettext_lazy("This month"),
    "last month": gettext_lazy("Last month"),
}
# an int is a count, a float a share, a timedelta a duration
Value = str | int | float | date | timedelta | None
DayCounts = Sequence[tuple[date, str, int]]  # day, series, count


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

    @cached_property
    def days(self) -> list[date]:
        return [
            self.first + timedelta(days=each) for each in range((self.last - self.first).days + 1)
        ]

    @property
    def before(self) -> "DayRange":
        """As many days, just before these."""
        day = timedelta(days=1)
        return DayRange(self.first - (self.last - self.first) - day, self.first - day)


@dataclass(frozen=True)
class Period:
    """The days of a page of charts, and how it counts them."""

    days: DayRange
    day_of: str = "arrival"  # or "event"
    is_compared: bool = False  # with the days before

    @property
    def query(self) -> str:
        """The parameters of an address with the same charts."""
        params: dict[str, Any] = {"startDate": self.days.first, "endDate": self.days.last}
        if self.day_of == "event":
            params |= {"dayOf": "event"}
        return urlencode(params | ({"compare": "1"} if self.is_compared else {}))


@dataclass(frozen=True)
class Chart:
    """A drawing and its table. Without a drawing the caption says why."""

    caption: str
    drawing: SafeString | str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Value]] = ()
    legend: Sequence[str] = ()
    plot: dict[str, Any] | None = None  # the values by day, for charts.js
    links: Sequence[tuple[str, str]] = ()  # label and address
    figures: Sequence[tuple[str, str]] = ()  # label and value, of the whole period
    name: str = ""
    title: str = ""

    @property
    def has_long_table(self) -> bool:
        """Whether the table has a page of its own: it may be longer than all the rest."""
        return len(self.rows) > MAX_TABLE_ROWS

    @property
    def table(self) -> list[list[tuple[str, str]]]:
        """The rows, each value with the heading of its column."""
        return [
            [(name, format_value(value)) for name, value in zip(self.header, row, strict=True)]
            for row in self.rows
        ]

    @property
    def data_id(self) -> str:
        return f"{self.name}-data"


def parse_period(params: Mapping[str, str]) -> tuple[Period, str]:
    """Returns the period of the parameters, by default the last 30 days, and an error or ''."""
    days, error = _parse_days(params)
    day_of = "event" if params.get("dayOf") == "event" else "arrival"
    return Period(days, day_of, is_compared=bool(params.get("compare"))), error


def _parse_days(params: Mapping[str, str]) -> tuple[DayRange, str]:
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
        return default, _("Enter days as YYYY-MM-DD. You see the last 30 days.")
    if not (first <= last and (last - first).days < MAX_DAYS and 1970 <= first.year <= 9000):
        error = _("Choose a period of at most %(days)s days. You see the last 30 days.")
        return default, error % {"days": MAX_DAYS}
    return DayRange(first, last), ""


def build_chart(name: str, title: str, build: Callable[..., Chart], *arguments: Any) -> Chart:
    """Returns the chart, or one that says that counting took too long."""
    try:
        with limit_query_seconds(TIMEOUT_SECONDS):
            chart = build(*arguments)
    except TimeoutError:
        chart = Chart(_("Counting took too long. Choose fewer days."))
    return replace(chart, name=name, title=title)


def respond_with_csv(charts: Sequence[Chart], name: str, days: DayRange) -> HttpResponse:
    """Returns the table of the chart of that name as CSV: days as dates, times in seconds."""
    chart = next((each for each in charts if each.name == name), None)
    if chart is None:
        raise Http404
    is_time = [
        any(isinstance(row[n], timedelta) for row in chart.rows) for n in range(len(chart.header))
    ]
    header = [
        _("%(column)s (seconds)") % {"column": column} if seconds else column
        for column, seconds in zip(chart.header, is_time, strict=True)
    ]
    lines = [[escape_formula(str(column)) for column in header]]
    lines += [[_format_csv_cell(value) for value in row] for row in chart.rows]
    content = b"".join(format_csv_line(line) for line in lines if line)
    response = HttpResponse(content, "text/csv; charset=utf-8")
    file_name = f"{name}-{days.first}-{days.last}.csv"
    response["Content-Disposition"] = f'attachment; filename="{file_name}"'
    return response


def _format_csv_cell(value: Value) -> str:
    match value:
        case None:
            return ""
        case timedelta():
            return f"{value.total_seconds():.3f}"
        case float():
            return f"{value:.4f}"
        case str():
            return escape_formula(value)
    return str(value)


def format_value(value: Value) -> str:
    """Formats a value of a table for people."""
    match value:
        case None:
            return "–"  # noqa: RUF001
        case timedelta():
            return duration(value)
        case float():
            return f"{value:.0%}"
        case date():
            return format_day(value)
        case int():
            return thousands(value)
    return value


def format_day(day: date) -> str:
    return format_date(day, "j M Y")


def daily_chart(
    days: DayRange, counts: DayCounts, counts_before: DayCounts | None, empty_caption: str
) -> Chart:
    """Returns a chart of stacked columns, and a line of the totals of the days before."""
    before = _total_days(days.before, counts_before)
    if not counts:
        return Chart(empty_caption)
    series = {name: [0] * len(days.days) for _day, name, _count in counts}
    for day, name, count in counts:
        series[name][(day - days.first).days] += count
    names = sorted(sorted(series), key=lambda name: -sum(series[name]))
    series = {name: series[name] for name in names}
    totals = [sum(values) for values in zip(*series.values(), strict=True)]
    peak = max(totals)
    caption = _("%(total)s in %(days)s days. The peak was %(day)s, with %(peak)s.") % {
        "total": thousands(sum(totals)),
        "days": len(totals),
        "day": format_day(days.days[totals.index(peak)]),
        "peak": thousands(peak),
    }
    header: list[str] = [_("Day"), *names]
    rows: list[tuple[Value, ...]] = list(zip(days.days, *series.values(), strict=True))
    if before is not None:
        caption += " " + compare_totals(sum(totals), sum(before))
        header.append(_("Period before"))
        rows = [(*row, count) for row, count in zip(rows, before, strict=True)]
    labels = [format_date(day, "j M") for day in days.days]
    return Chart(
        caption,
        svg.draw_columns(labels, [*series.values()], before),
        header,
        rows,
        names,
        make_plot("columns", days, series, before),
    )


def _total_days(days: DayRange, counts: DayCounts | None) -> list[int] | None:
    """Returns the total of each day; None where the days are not compared."""
    if counts is None:
        return None
    totals = dict.fromkeys(days.days, 0)
    for day, _series, count in counts:
        totals[day] += count
    return list(totals.values())


def make_plot(
    kind: str, days: DayRange, series: Mapping[str, Sequence[float | None]], before: Any = None
) -> dict[str, Any]:
    """Returns what charts.js draws: `columns` of counts, or `lines` of seconds."""
    return {
        "kind": kind,
        "days": [day.isoformat() for day in days.days],
        "series": [{"name": name, "values": values} for name, values in series.items()],
        "before": before,
    }


def compare_totals(count: int, before: int) -> str:
    """Returns a sentence about the change since the period before."""
    if not before:
        return _("The period before had none.")
    change = f"{(count - before) / before:+.0%}"
    sentence = _("The period before had %(count)s (%(change)s since).")
    return sentence % {"count": thousands(before), "change": change}


def bar_chart(
    caption: str,
    label_header: str,
    counts: Sequence[tuple[str, int]],
    before: Sequence[int] | None = None,
) -> Chart:
    """Returns a chart of horizontal bars, each with a mark at its count of the period before."""
    header: list[str] = [label_header, _("Count")]
    rows: list[tuple[Value, ...]] = list(counts)
    if before is not None:
        header.append(_("Period before"))
        caption += " " + _("The mark shows the period before.")
        rows = [(*row, count) for row, count in zip(counts, before, strict=True)]
    bars = [(label, float(count), thousands(count)) for label, count in counts]
    return Chart(caption, svg.draw_bars(bars, before), header, rows)
