"""Template filters for times, numbers, sizes, statuses and datasets."""

from datetime import date, datetime, timedelta
from typing import Any

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

from exhaust.datasets import DATASETS
from exhaust.models import Job

register = template.Library()
_STATUS_LABELS = {
    Job.Status.SUBMITTED: "Queued",
    Job.Status.PROCESSING: "Running",
    Job.Status.SUCCESS: "Ready",
    Job.Status.FAILED: "Failed",
    Job.Status.CANCELLED: "Cancelled",
}


@register.filter
def timestamp(value: datetime | None) -> SafeString | str:
    """Formats a time in UTC; `console.js` shows it in the browser's zone, with UTC on hover."""
    if value is None:
        return "never"
    return format_html(
        '<time datetime="{}" title="{} UTC">{} UTC</time>',
        value.strftime("%Y-%m-%dT%H:%M:%SZ"),
        value.strftime("%Y-%m-%d %H:%M:%S"),
        f"{value.day} {value:%b %Y, %H:%M}",
    )


@register.filter
def day(value: date | str) -> str:
    """Formats a date as `3 Mar 2026`; returns other text unchanged."""
    try:
        parsed = date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return str(value)
    return f"{parsed.day} {parsed:%b %Y}"


@register.filter
def thousands(number: float | None) -> str:
    return "–" if number is None else f"{number:,}"  # noqa: RUF001


@register.filter
def size(byte_count: int | None) -> str:
    """Formats bytes as `10.7 MB`, with units of 1000."""
    if byte_count is None:
        return "unknown size"
    if byte_count < 1000:
        return f"{byte_count} byte{'' if byte_count == 1 else 's'}"
    value, unit = byte_count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value >= 999.5:
            value, unit = value / 1000, larger
    return f"{value:.{1 if value < 99.95 else 0}f} {unit}"


@register.filter
def duration(value: timedelta | float | None) -> str:
    """Formats a duration (a number is in seconds) as `2 min 5 s`: its two largest units."""
    if value is None:
        return "–"  # noqa: RUF001
    remaining = int(value.total_seconds() if isinstance(value, timedelta) else value)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, remaining = divmod(remaining, length)
        if count or (parts and unit != "s"):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "less than a second"


@register.filter
def status(name: str) -> str:
    return _STATUS_LABELS[Job.Status(name)]


@register.filter
def dataset(name: str) -> str:
    return DATASETS[name].title if name in DATASETS else name


@register.filter
def lookup(mapping: dict[str, Any], key: str) -> Any:
    """Returns the value of a key, or '' where there is none."""
    return mapping.get(key, "") if mapping else ""
