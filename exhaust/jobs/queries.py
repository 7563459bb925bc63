"""Reads jobs: one, a page, a search."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from django.db.models import Case, Count, OuterRef, Q, QuerySet, Subquery, When
from django.db.models.functions import Now

from exhaust.feed import cursor
from exhaust.models import Job


def _jobs_for_display() -> QuerySet[Job]:
    """Jobs with everything that a response shows; `queue_position` 1 is the channel's next job."""
    is_not_later = Q(priority__lt=OuterRef("priority")) | Q(priority=OuterRef("priority")) & (
        Q(submitted_at__lt=OuterRef("submitted_at"))
        | Q(submitted_at=OuterRef("submitted_at"), id__lte=OuterRef("id"))
    )
    jobs_ahead = Job.objects.filter(
        is_not_later, channel=OuterRef("channel"), status=Job.Status.SUBMITTED
    )
    job_count = jobs_ahead.order_by().values("channel").annotate(count=Count("pk")).values("count")
    return (
        Job.objects.select_related("channel")
        .prefetch_related("files__links", "callbacks")
        .annotate(
            queue_position=Case(When(status=Job.Status.SUBMITTED, then=Subquery(job_count))),
            database_now=Now(),  # decides which links have expired
        )
    )


def find_job(channel_id: int, tag: str, request_id: str) -> Job | None:
    """The channel's job of that tag and request id."""
    if "\0" in tag + request_id:  # PostgreSQL accepts no NUL
        return None
    return _jobs_for_display().filter(channel_id=channel_id, tag=tag, request_id=request_id).first()


@dataclass(frozen=True)
class Filters:
    """Conditions on jobs; None does not filter."""

    channel_id: int
    datasets: Sequence[str]
    tag: str | None = None
    tag_prefix: str | None = None
    statuses: Sequence[str] | None = None
    requested_by: str | None = None
    submitted_from: datetime | None = None
    submitted_before: datetime | None = None


@dataclass(frozen=True)
class Page:
    """Jobs, newest first, and the cursor of the next page; None on the last page."""

    jobs: list[Job]
    cursor: str | None


def filter_jobs(filters: Filters) -> QuerySet[Job]:
    """The matching jobs with everything that a response shows."""
    if "\0" in (filters.tag or ""):
        return Job.objects.none()
    lookups = {
        "tag": filters.tag,
        "tag__startswith": filters.tag_prefix,
        "status__in": filters.statuses,
        "requested_by": filters.requested_by,
        "submitted_at__gte": filters.submitted_from,
        "submitted_at__lt": filters.submitted_before,
    }
    return _jobs_for_display().filter(
        channel_id=filters.channel_id,
        dataset__in=filters.datasets,
        **{lookup: value for lookup, value in lookups.items() if value is not None},
    )


def search_jobs(filters: Filters, limit: int, after: str | None = None) -> Page:
    """A page of up to `limit` jobs. Raises `RequestError` (400) for a cursor of other filters."""
    matching_jobs = filter_jobs(filters)
    if after is not None:
        submitted_at, pk = cursor.decode(after, describe_query(filters))
        last_submitted_at = datetime.fromisoformat(submitted_at)
        matching_jobs = matching_jobs.filter(
            Q(submitted_at__lt=last_submitted_at) | Q(submitted_at=last_submitted_at, id__lt=pk),
            submitted_at__lte=last_submitted_at,
        )
    return paginate(
        list(matching_jobs.order_by("-submitted_at", "-id")[: limit + 1]), filters, limit
    )


def describe_query(filters: Filters) -> list[Any]:
    """The query that a cursor of these filters is bound to."""
    return ["jobs", json.loads(json.dumps(asdict(filters), default=str))]


def paginate(rows: list[Job], filters: Filters, limit: int) -> Page:
    """The page of `rows`, which were fetched with one row more than the limit."""
    if len(rows) <= limit:
        return Page(rows, None)
    rows = rows[:limit]
    return Page(rows, encode_cursor(filters, rows[-1].submitted_at, rows[-1].pk))


def encode_cursor(filters: Filters, submitted_at: datetime, pk: int) -> str:
    """The cursor of the page behind a job."""
    return cursor.encode([submitted_at.isoformat(), pk], describe_query(filters))
