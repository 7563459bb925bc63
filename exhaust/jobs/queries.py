"""Reads jobs: one, a page, a search."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from django.db.models import Case, Count, OuterRef, Prefetch, Q, QuerySet, Subquery, When
from django.db.models.functions import Now

from exhaust.datasets import DATASETS
from exhaust.feed import cursor
from exhaust.models import Job, Link, OwnDataset
from ingest.models import Conversation


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
        .defer("definition")
        # a query for all: without it Django builds the manager's query for each file
        .prefetch_related(Prefetch("files__links", Link.objects.all()), "deliveries")
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


def explain_missing(channel_id: int, tag: str) -> str:
    """A sentence that says which is unknown to the channel: the tag, or the request id."""
    is_known = "\0" not in tag and Job.objects.filter(channel=channel_id, tag=tag).exists()
    unknown = "the tag has no such requestId" if is_known else "the channel has no such tag"
    return f"no job available with the given request_id and tag: {unknown}"


def strip_channel(tag: str, channel: str) -> str:
    """The tag as it was submitted, of one that may be written as answers write it."""
    return tag.removesuffix(f":{channel}")


@dataclass(frozen=True)
class Filters:
    """Conditions on jobs; None does not filter.

    `readable` names the built-in datasets that the reader may see, and for own ones the scopes.
    """

    channel_id: int
    readable: Sequence[str]
    datasets: Sequence[str] | None = None
    tag: str | None = None
    tag_or_conversation: str | None = None
    tag_prefix: str | None = None
    statuses: Sequence[str] | None = None
    requested_by: str | None = None
    submitted_from: datetime | None = None
    submitted_before: datetime | None = None
    request_id: str | None = None
    conversation: str | None = None
    text: str | None = None  # a part of tag, request id, or conversation's id or name


def is_readable(readable: Sequence[str], prefix: str = "") -> Q:
    """The condition on jobs of these built-in datasets, and of own ones with these scopes.

    `prefix` is the path to the job.
    """
    own_scope, dataset = f"{prefix}own_scope", f"{prefix}dataset__in"
    return Q(**{own_scope: "", dataset: readable}) | Q(**{f"{own_scope}__in": readable})


@dataclass(frozen=True)
class Page:
    """Jobs, newest first, and the cursor of the next page; None on the last page."""

    jobs: list[Job]
    cursor: str | None


def filter_jobs(filters: Filters) -> QuerySet[Job]:
    """The matching jobs with everything that a response shows."""
    if any("\0" in value for value in vars(filters).values() if isinstance(value, str)):
        return Job.objects.none()
    lookups = {
        "dataset__in": filters.datasets,
        "tag": filters.tag,
        "tag__startswith": filters.tag_prefix,
        "status__in": filters.statuses,
        "requested_by": filters.requested_by,
        "submitted_at__gte": filters.submitted_from,
        "submitted_at__lt": filters.submitted_before,
        "request_id": filters.request_id,
        "conversation": filters.conversation,
    }
    jobs = _jobs_for_display()
    if (name := filters.tag_or_conversation) is not None:
        jobs = jobs.filter(Q(tag=name) | Q(conversation=name))
    if filters.text is not None:
        jobs = jobs.filter(_contains(filters.channel_id, filters.text))
    return jobs.filter(
        is_readable(filters.readable),
        channel_id=filters.channel_id,
        **{lookup: value for lookup, value in lookups.items() if value is not None},
    )


def _contains(channel_id: int, text: str) -> Q:
    named = Conversation.objects.filter(channel=channel_id, name__icontains=text)
    return (
        Q(tag__icontains=text)
        | Q(request_id__icontains=text)
        | Q(conversation__icontains=text)
        | Q(conversation__in=named.values("identifier"))
    )


def find_unknown_dataset(channel_id: int, names: Sequence[str]) -> str:
    """A name that is no dataset of the channel, and that no job has; empty if there is none."""
    unknown = set(names) - set(DATASETS)
    if unknown:
        own = OwnDataset.objects.filter(channel=channel_id, name__in=unknown)
        unknown -= set(own.values_list("name", flat=True))
    if unknown:
        jobs = Job.objects.filter(channel=channel_id, dataset__in=unknown)
        unknown -= set(jobs.order_by().values_list("dataset", flat=True).distinct())
    return min(unknown, default="")


def search_jobs(
    filters: Filters, limit: int, after: str | None = None, window: int | None = None
) -> Page:
    """A page of up to `limit` jobs. Raises `RequestError` (400) for a cursor of other filters.

    With `window` a page reads that many jobs at most to find those of a filter without an index,
    so it can be empty and have a next one.
    """
    matching_jobs = _start_after(filter_jobs(filters), filters, after)
    window_end = None
    if window is not None:
        others = filter_jobs(replace(filters, text=None, tag_prefix=None, requested_by=None))
        window_end = _find_window_end(_start_after(others, filters, after), window)
    if window_end is not None:
        submitted_at, pk = window_end
        matching_jobs = matching_jobs.filter(
            Q(submitted_at__gt=submitted_at) | Q(submitted_at=submitted_at, id__gte=pk),
            submitted_at__gte=submitted_at,
        )
    rows = list(matching_jobs.order_by("-submitted_at", "-id")[: limit + 1])
    page = paginate(rows, filters, limit)
    if page.cursor is None and window_end is not None:
        return replace(page, cursor=encode_cursor(filters, *window_end))
    return page


def _find_window_end(jobs: QuerySet[Job], window: int) -> tuple[datetime, int] | None:
    """Time and id of the last of the newest `window` jobs; None where no more follow."""
    positions = jobs.order_by("-submitted_at", "-id").values_list("submitted_at", "pk")
    ends = list(positions[window - 1 : window + 1])
    return ends[0] if len(ends) > 1 else None


def _start_after(jobs: QuerySet[Job], filters: Filters, after: str | None) -> QuerySet[Job]:
    if after is None:
        return jobs
    submitted_at, pk = cursor.decode(after, describe_query(filters))
    last_submitted_at = datetime.fromisoformat(submitted_at)
    return jobs.filter(
        Q(submitted_at__lt=last_submitted_at) | Q(submitted_at=last_submitted_at, id__lt=pk),
        submitted_at__lte=last_submitted_at,
    )


def count_statuses(filters: Filters, limit: int) -> dict[str, int]:
    """How many of the newest `limit` matching jobs have each status."""
    newest = filter_jobs(filters).order_by("-submitted_at", "-id")
    return Counter(newest.values_list("status", flat=True)[:limit])


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
