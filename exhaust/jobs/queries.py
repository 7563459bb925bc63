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
    """Jobs with what an answer shows of them; `queue_position` is 1 for the channel's next."""
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
            database_now=Now(),  # by the clock that decides what has expired
        )
    )


def find_job(channel_id: int, tag: str, request_id: str) -> Job | None:
    if "\0" in tag + request_id:  # PostgreSQL would not even look
        return None
    return _jobs_for_display().filter(channel_id=channel_id, tag=tag, request_id=request_id).first()


@dataclass(frozen=True)
class Filters:
    """Which jobs; what is None filters nothing."""

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
    """Jobs, the newest first, and the cursor behind them; None at the end."""

    jobs: list[Job]
    cursor: str | None


def filter_jobs(filters: Filters) -> QuerySet[Job]:
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
    """Up to `limit` jobs behind a cursor. Raises `Refused` for a cursor of another question."""
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
    """What a cursor of these filters is bound to."""
    return ["jobs", json.loads(json.dumps(asdict(filters), default=str))]


def paginate(rows: list[Job], filters: Filters, limit: int) -> Page:
    """The page of rows of which one more than its limit was asked for."""
    if len(rows) <= limit:
        return Page(rows, None)
    rows = rows[:limit]
    last = [rows[-1].submitted_at.isoformat(), rows[-1].pk]
    return Page(rows, cursor.encode(last, describe_query(filters)))
