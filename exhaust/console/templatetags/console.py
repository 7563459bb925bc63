"""Template filters for times, numbers, sizes, statuses and datasets."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from django import template
from django.conf import settings
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import get_language_bidi, gettext_lazy, ngettext
from django.utils.translation import gettext as _

from exhaust.console.sentences import translate_sentence
from exhaust.datasets.base import Dataset
from exhaust.models import Job
from ingest.auth import preferences
from ingest.db.clock import read_clock

register = template.Library()
_STATUS_LABELS = {
    Job.Status.SUBMITTED: gettext_lazy("Queued"),
    Job.Status.PROCESSING: gettext_lazy("Running"),
    Job.Status.SUCCESS: gettext_lazy("Ready"),
    Job.Status.FAILED: gettext_lazy("Failed"),
    Job.Status.CANCELLED: gettext_lazy("Cancelled"),
}
# of an event that could not be read; any other reason names a field
_REASON_LABELS = {
    "not_json": gettext_lazy("Not valid JSON"),
    "not_an_object": gettext_lazy("Not a JSON object"),
    "not_a_batch": gettext_lazy("Neither a batch nor an event"),
    "empty": gettext_lazy("Empty body"),
    "gzip": gettext_lazy("The gzip cannot be unpacked"),
    "encoding": gettext_lazy("Unknown Content-Encoding"),
    "too_deep": gettext_lazy("JSON nested too deeply"),
    "too_large": gettext_lazy("Too large"),
    "too_many": gettext_lazy("Too many events at once"),
    "number_out_of_range": gettext_lazy("A number is out of range"),
    "time_out_of_range": gettext_lazy("A time is out of range"),
    "1001": gettext_lazy("The event's type has characters that are not allowed"),
    "1002": gettext_lazy("The event's type is too long"),
    "not_kept": gettext_lazy("Counted and not kept"),
}
_COLUMN_TYPES = {
    "text": gettext_lazy("text"),
    "number": gettext_lazy("number"),
    "whole": gettext_lazy("whole number"),
    "json": gettext_lazy("JSON"),
    "time": gettext_lazy("time"),
    "uuid": gettext_lazy("UUID"),
}
_RELATIVE_DAYS = 30  # an older time is shown as its date


@register.filter
def ago(value: datetime | None) -> SafeString | str:
    """Formats a time as `5 minutes ago` or `in 2 hours`, with the exact time and zone on hover."""
    if value is None:
        return _("never")
    local = value.astimezone(preferences.get_zone())
    return format_html(
        '<time datetime="{}" title="{} {}" data-relative>{}</time>',
        f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        f"{local:%Y-%m-%d %H:%M:%S}",
        local.tzinfo,
        _describe_distance(local, read_clock()),
    )


def _describe_distance(value: datetime, now: datetime) -> str:
    distance = abs(now - value)
    if distance > timedelta(days=_RELATIVE_DAYS):
        return date_format(value, "j M Y")
    if distance < timedelta(minutes=1):
        seconds = distance.seconds
        text = ngettext("%(count)d second", "%(count)d seconds", seconds) % {"count": seconds}
    else:
        text = timesince(now - distance, now, depth=1)
    if value > now:
        return _("in %(duration)s") % {"duration": text}
    return _("%(duration)s ago") % {"duration": text}


@register.filter
def copy_button(text: str) -> SafeString:
    """A button that copies a text; it shows with JavaScript only."""
    return format_html(
        '<button type="button" class="js quiet copy-button" data-copy="{}">{}'
        '<span class="hidden"> {}</span></button>',
        text,
        _("Copy"),
        text,
    )


@register.filter
def timestamp(value: datetime | None) -> SafeString | str:
    """Formats a time in the user's own zone, else in UTC, with UTC on hover.

    `console.js` shows it in the user's own zone, else in the browser's.
    """
    if value is None:
        return _("never")
    local = value.astimezone(preferences.get_zone())
    return format_html(
        '<time datetime="{}" title="{} UTC">{} {}</time>',
        value.strftime("%Y-%m-%dT%H:%M:%SZ"),
        value.strftime("%Y-%m-%d %H:%M:%S"),
        date_format(local, "j M Y, H:i"),
        local.tzname(),
    )


@register.simple_tag
def administrator() -> SafeString | str:
    """Returns whom to ask: the name in the settings as a link, or "your administrator"."""
    name, address = settings.EXHAUST_ADMINISTRATOR
    return format_html('<a href="{}">{}</a>', address, name) if name else _("your administrator")


@register.filter
def exact_time(value: datetime) -> SafeString:
    """Formats a time as `timestamp` does, with its seconds, for steps that share a minute."""
    local = value.astimezone(preferences.get_zone())
    return format_html(
        '<time datetime="{}" title="{} UTC" data-seconds>{} {}</time>',
        value.strftime("%Y-%m-%dT%H:%M:%SZ"),
        value.strftime("%Y-%m-%d %H:%M:%S"),
        date_format(local, "j M Y, H:i:s"),
        local.tzname(),
    )


@register.filter
def elapsed(value: timedelta | float) -> str:
    """Formats a duration (a number is in seconds), of less than a minute as `2.5 s`."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    return f"{max(0.0, seconds):.1f} {_('s')}" if seconds < 59.95 else duration(seconds)


@register.filter
def day(value: date | str) -> str:
    """Formats a date as `3 Mar 2026`; returns other text unchanged."""
    try:
        parsed = date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return str(value)
    return date_format(parsed, "j M Y")


@register.filter
def day_range(first: date, last: date) -> str:
    """Formats a range of days as `24 to 30 Nov 2026`, or one day."""
    if first == last:
        return day(first)
    if (first.year, first.month) == (last.year, last.month):
        return _("%(first)s to %(last)s") % {"first": first.day, "last": day(last)}
    return _("%(first)s to %(last)s") % {"first": day(first), "last": day(last)}


@register.filter
def period(config: dict[str, Any]) -> str:
    """Formats the days of a datasetConfig, which may leave out one of them or both."""
    first, last = (day(str(config.get(name, ""))) for name in ("startDate", "endDate"))
    if first and first == last:
        return first
    if first and last:
        return _("%(first)s to %(last)s") % {"first": first, "last": last}
    if first:
        return _("From %(day)s") % {"day": first}
    return _("Until %(day)s") % {"day": last} if last else _("All days")


@register.filter
def thousands(number: float | None) -> str:
    return "–" if number is None else f"{number:,}"  # noqa: RUF001


@register.filter
def size(byte_count: int | None) -> str:
    """Formats bytes as `10.7 MB`, with units of 1000."""
    if byte_count is None:
        return _("unknown size")
    if byte_count < 1000:
        return ngettext("%(count)d byte", "%(count)d bytes", byte_count) % {"count": byte_count}
    value, unit = byte_count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value >= 999.5:
            value, unit = value / 1000, larger
    text = f"{value:.{1 if value < 99.95 else 0}f} {unit}"
    return f"\u2066{text}\u2069" if get_language_bidi() else text  # the number first


@register.filter
def duration(value: timedelta | float | None) -> str:
    """Formats a duration (a number is in seconds) as `2 min 5 s`, its two largest units."""
    if value is None:
        return "–"  # noqa: RUF001
    remaining = int(value.total_seconds() if isinstance(value, timedelta) else value)
    parts: list[str] = []
    for unit, length in ((_("d"), 86_400), (_("h"), 3600), (_("min"), 60), (_("s"), 1)):
        count, remaining = divmod(remaining, length)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(filter(None, parts[:2])) or _("less than a second")


@register.filter
def milliseconds(value: int | None) -> str:
    """Formats milliseconds as `duration` does."""
    return duration(None if value is None else value / 1000)


_BROWSERS = ("Edg", "OPR", "Firefox", "Chrome", "Safari", "curl")  # Edge names Chrome too
_BROWSER_NAMES = {"Edg": "Edge", "OPR": "Opera"}
_SYSTEMS = ("Android", "iPhone", "iPad", "Windows", "Mac OS X", "Linux")


@register.filter
def browser(agent: str) -> str:
    """Names the browser and the system of a User-Agent; an unknown one stays as it is."""
    found = [next((each for each in names if each in agent), "") for names in (_BROWSERS, _SYSTEMS)]
    return ", ".join(_BROWSER_NAMES.get(name, name) for name in found if name) or agent


@register.filter
def status(name: str) -> str:
    return str(_STATUS_LABELS[Job.Status(name)])


@register.filter
def reason(code: str) -> str:
    """Says why an event was rejected, in words."""
    if code in _REASON_LABELS:
        return str(_REASON_LABELS[code])
    return _("Field “%(name)s” is missing or not valid") % {"name": code}


_DATASET_TITLES = {
    "uci-response-exhaust": gettext_lazy("Responses"),
    "uci-survey-exhaust": gettext_lazy("Survey (a column for each question)"),
    "uci-summary-exhaust": gettext_lazy("Summary (counts for each option)"),
    "uci-private-exhaust": gettext_lazy("Participants (names, phones)"),
    "events-exhaust": gettext_lazy("Events"),
    "sessions-exhaust": gettext_lazy("Sessions"),
    "users-exhaust": gettext_lazy("User profiles"),
}


@register.filter
def column_type(kind: str) -> str:
    return str(_COLUMN_TYPES[kind])


register.filter("translated", translate_sentence)


@register.filter
def dataset(name: str) -> str:
    """Returns the title of a built-in dataset, and the name of another."""
    return str(_DATASET_TITLES.get(name, name))


@register.filter
def dataset_title(each: Dataset) -> str:
    return str(_DATASET_TITLES.get(each.name, each.title))


_DATASET_SUMMARIES = {
    "uci-response-exhaust": gettext_lazy("A row for each answer: question, answer, device, time."),
    "uci-survey-exhaust": gettext_lazy("A row for each session, a column for each question."),
    "uci-summary-exhaust": gettext_lazy("How often each option was chosen, with its share."),
    "uci-private-exhaust": gettext_lazy(
        "A row for each participant: name, phone, first and last seen."
    ),
    "events-exhaust": gettext_lazy("A row for each event as it arrived, with its payload."),
    "sessions-exhaust": gettext_lazy("A row for each visit: start, end, pages, answers."),
    "users-exhaust": gettext_lazy("A row for each user: profile, first and last seen."),
}


@register.filter
def dataset_summary(each: Dataset) -> str:
    """Returns the sentence that tells people the rows of a dataset."""
    if text := _DATASET_SUMMARIES.get(each.name):
        return str(text)
    names = ", ".join(column.header for column in each.columns[:4])
    return _("A dataset of this channel: %(columns)s …") % {"columns": names}


@register.filter
def lookup(mapping: dict[str, Any], key: str) -> Any:
    """Returns the value of a key, or '' where there is none."""
    return mapping.get(key, "") if mapping else ""
