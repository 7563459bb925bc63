"""The list of a channel's exports.

The code calls an export a job.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.urls import reverse
from django.utils.translation import gettext as _

from exhaust.api import job_bodies, list_fields
from exhaust.console.permissions import (
    SUBMIT_PERMISSIONS,
    ChannelContext,
    clean_params,
    render_page,
    requires,
)
from exhaust.console.templatetags.console import dataset as format_dataset
from exhaust.console.templatetags.console import status as format_status
from exhaust.datasets import DATASETS, is_private
from exhaust.datasets.own import unknown_dataset
from exhaust.jobs import queries, schedules, withdrawal
from exhaust.jobs import transitions as moves
from exhaust.jobs.queries import Filters
from exhaust.models import File, Job, SavedView
from ingest.db.clock import read_clock
from ingest.db.time_limit import limit_query_seconds
from ingest.events import RequestError
from ingest.models import Conversation

_FILTER_NAMES = ("dataset", "status", "tagPrefix", "text", "requestedFrom", "requestedTo")
SEARCH_SECONDS = 5.0
PER_PAGE = 50
MAX_PER_PAGE = 100
MAX_COUNTED = 10_000  # of the newest exports; the counts of all would read all
MAX_SEARCHED = 10_000  # by a page; the next one goes on
# of datasetConfig in the form of a new export; the API's names, so that its errors find their field
CONFIG_FIELDS = (
    "conversationId", "application", "startDate", "endDate", "timezone", "since", "layout",
    "timestamps", "rows", "answers", "by",
)  # fmt: skip
_MIN_ELAPSED = timedelta(seconds=2)
_ALMOST_DONE = timedelta(seconds=1)


@dataclass(frozen=True)
class JobView:
    """A job with the values that a page shows."""

    job: Job
    conversation: str  # its name, else its ID
    progress: dict[str, Any]
    remaining: timedelta | None  # None while there is no pace to estimate from
    files: list[File]

    @property
    def is_open(self) -> bool:
        return self.job.status not in moves.TERMINAL_STATUSES

    @property
    def rows(self) -> int:
        return sum(file.row_count for file in self.files)

    @property
    def byte_count(self) -> int:
        return sum(file.byte_count for file in self.files)

    @property
    def is_almost_done(self) -> bool:
        return self.remaining is not None and self.remaining < _ALMOST_DONE

    @property
    def unavailable_reason(self) -> str:
        """Why no file can be downloaded any more; empty while one can."""
        if not self.files or not all(map(is_unavailable, self.files)):
            return ""
        if not any(file.withdrawn_at for file in self.files):
            return _("Expired")
        is_withdrawn = self.job.status_message == withdrawal.WITHDRAWN_MESSAGE
        return _("Withdrawn") if is_withdrawn else _("Deleted")

    @property
    def status(self) -> str:
        """The label of the status, or of a finished export that has no file any more."""
        return self.unavailable_reason or format_status(self.job.status)

    @property
    def is_private(self) -> bool:
        return is_private(self.job.dataset, self.job.own_scope)

    @property
    def single_file(self) -> File | None:
        """The file to download, where there is one only."""
        return self.files[0] if len(self.files) == 1 and self.can_delete else None

    @property
    def can_delete(self) -> bool:
        return any(file.is_available for file in self.files)

    @property
    def expires_at(self) -> datetime | None:
        """When the first file is deleted; None where there is none."""
        created = [file.created_at for file in self.files if file.is_available]
        days = timedelta(days=settings.EXHAUST_FILE_RETENTION_DAYS)
        return min(created) + days if created else None

    @property
    def url(self) -> str:
        return job_url(self.job)

    @property
    def duplicate_url(self) -> str:
        """The form of a new export, filled with this one's values."""
        return (
            f"{reverse('console:new-export', args=[self.job.channel.identifier])}?{self._query()}"
        )

    @property
    def supplement_url(self) -> str:
        """The form that exports newer rows only; empty where the dataset has no `since`."""
        if self.job.status != Job.Status.SUCCESS or "since" not in _optional_fields(self.job):
            return ""
        query = self._query(since=self.job.request_id)
        return f"{reverse('console:new-export', args=[self.job.channel.identifier])}?{query}"

    @property
    def schedule_url(self) -> str:
        """The form of a schedule like this job."""
        query = {
            "dataset": self.job.dataset,
            "conversationId": self.job.config.get("conversationId", ""),
            "timezone": self.job.config.get("timezone", "UTC"),
            "outputFormat": self.job.output_format,
            "tag": f"{self.job.tag[:116]}-{{start}}",
            "callbackUrl": self.job.callback_url,
            **self._column_params(),
            **{name: self.job.config.get(name, "") for name in schedules.FILTERS},
            "types": self.types,
            "deliverTo": self.job.deliver_to,
        }
        path = reverse("console:new-schedule", args=[self.job.channel.identifier])
        return f"{path}?{urlencode(query)}"

    @property
    def duration_seconds(self) -> float | None:
        """Duration of the last attempt in seconds."""
        return None if self.job.execution_ms is None else self.job.execution_ms / 1000

    @property
    def types(self) -> str:
        """The requested event types, one per line."""
        return "\n".join(map(str, self.job.config.get("types") or ()))

    def _column_params(self) -> dict[str, str]:
        config = self.job.config
        columns = config.get("columns")
        params = {"columns": "\n".join(map(str, columns if isinstance(columns, list) else ()))}
        params |= {name: config.get(name, "") for name in ("layout", "timestamps")}
        return {name: value for name, value in params.items() if value}

    def _query(self, **more: str) -> str:
        config = {
            name: config_value
            for name, config_value in self.job.config.items()
            if name in CONFIG_FIELDS
        }
        params = {
            "dataset": self.job.dataset,
            "outputFormat": self.job.output_format,
            "tag": self.job.tag,
            **config,
            **self._column_params(),
            **({"types": self.types} if self.types else {}),
            **({"callbackUrl": self.job.callback_url} if self.job.callback_url else {}),
            **({"deliverTo": self.job.deliver_to} if self.job.deliver_to else {}),
            **({"encryption": self.job.encryption} if self.job.encryption else {}),
            **more,
        }
        return urlencode(params)


def _optional_fields(job: Job) -> tuple[str, ...]:
    if job.own_scope:
        return ("types", "application", "since")
    return tuple(DATASETS[job.dataset].optional_fields) if job.dataset in DATASETS else ()


def job_url(job: Job) -> str:
    return reverse("console:export", args=[job.channel.identifier, job.tag, job.request_id])


def job_views(rows: list[Job]) -> list[JobView]:
    """Returns the views of a channel's jobs; one query loads all conversation names."""
    identifiers = {str(job.config.get("conversationId", "")) for job in rows}
    names = conversation_names(rows[0].channel_id, identifiers) if rows else {}
    views = []
    for job in rows:
        identifier = str(job.config.get("conversationId", ""))
        files = list(job.files.all()) if job.status == Job.Status.SUCCESS else []
        files = [file for file in files if file.withdrawn_at is None] or files
        views.append(
            JobView(
                job=job,
                conversation=names.get(identifier) or identifier,
                progress=job_bodies.JobProgress.render(job),
                remaining=_remaining_time(job),
                files=sorted(files, key=lambda file: file.part),
            )
        )
    return views


def is_unavailable(file: File) -> bool:
    return not file.is_available


def conversation_names(channel_id: int, identifiers: Iterable[str]) -> dict[str, str]:
    """Returns names of a channel's conversations by identifier."""
    rows = Conversation.objects.filter(channel=channel_id, identifier__in=set(identifiers) - {""})
    return dict(rows.values_list("identifier", "name"))


def _remaining_time(job: Job) -> timedelta | None:
    """Estimates the remaining time from the pace so far; None while there is none."""
    if job.status != Job.Status.PROCESSING or not (job.rows_done and job.rows_estimated):
        return None
    spent = read_clock() - (job.started_at or read_clock())
    rows_left = max(0, job.rows_estimated - job.rows_done)
    return spent * rows_left / job.rows_done if spent > _MIN_ELAPSED else None


@requires(*SUBMIT_PERMISSIONS)
def list_jobs(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    params = {name: text for name, text in clean_params(request.GET).items() if text.strip()}
    errors: dict[str, str] = {}
    filters = _parse_filters(ctx, params, errors)
    rows: list[Job] = []
    next_cursor = None
    if not errors:
        try:
            limit = min(MAX_PER_PAGE, max(1, int(params.get("limit", PER_PAGE))))
            window = MAX_SEARCHED if _is_search(filters) else None
            with limit_query_seconds(SEARCH_SECONDS) if window else nullcontext():
                page = queries.search_jobs(filters, limit, params.get("cursor"), window)
            rows, next_cursor = page.jobs, page.cursor
        except TimeoutError:
            errors["text"] = _("The search took too long. Choose a dataset, or fewer days.")
        except (RequestError, ValueError):
            errors["cursor"] = _(
                "This page of the list has expired. Start with the newest exports."
            )
    views = job_views(rows)
    is_filtered = bool(set(params) & set(_FILTER_NAMES))
    return render_page(
        request,
        ctx,
        "exports.html",
        {
            "jobs": views,
            "unfinished": [each.job.pk for each in views if each.is_open],
            "next_url": _url_with(request, cursor=next_cursor) if next_cursor else "",
            "first_url": _url_with(request) if "cursor" in params else "",
            "params": params,
            "query": _query_with(request.GET),
            "errors": errors,
            "is_filtered": is_filtered,
            "window": MAX_SEARCHED,
            "datasets": _list_filter_choices(ctx, params, rows),
            "saved_views": list(find_saved_views(request, ctx)),
            "search_query": build_search_query(request.GET),
            "has_more_filters": bool({"dataset", "requestedFrom", "requestedTo"} & set(params)),
            "chips": [] if errors else _list_chips(request, filters),
        },
        400 if errors else 200,
    )


@dataclass(frozen=True)
class Chip:
    """A status to filter by: its address, and how many of the newest exports have it."""

    label: str
    url: str
    count: int | None
    is_chosen: bool


def _is_search(filters: Filters) -> bool:
    """Returns whether a filter has no index, so that all exports would be read."""
    return filters.text is not None or filters.tag_prefix is not None


def _list_chips(request: HttpRequest, filters: Filters) -> list[Chip]:
    """Returns a chip for all exports and for each status; a search has no counts."""
    counts: dict[str, int] | None = None
    if not _is_search(filters):
        counts = queries.count_statuses(replace(filters, statuses=None), MAX_COUNTED)
    chosen = request.GET.get("status", "")
    names = {"": _("All"), **{name: format_status(name) for name in Job.Status.values}}
    return [
        Chip(
            label,
            _url_with(request, status=name),
            counts if counts is None else counts.get(name, 0) if name else sum(counts.values()),
            name == chosen,
        )
        for name, label in names.items()
    ]


def _list_filter_choices(
    ctx: ChannelContext, params: dict[str, str], rows: list[Job]
) -> list[tuple[str, str]]:
    """Returns the built-in datasets and the own ones in the list: all would take a query."""
    titles = {name: format_dataset(name) for name in ctx.readable if name in DATASETS}
    own = {job.dataset: job.dataset for job in rows if job.own_scope}
    chosen = params.get("dataset", "")
    return [*(titles | own | ({chosen: chosen} if chosen not in titles and chosen else {})).items()]


def _parse_filters(ctx: ChannelContext, params: dict[str, str], errors: dict[str, str]) -> Filters:
    """Validates the filter form with the API's serializer; adds to `errors` by field."""
    serializer = list_fields.SearchFilters(
        data={name: params[name].strip() for name in _FILTER_NAMES if name in params}
    )
    if not serializer.is_valid():
        errors.update({name: _first_message(error) for name, error in serializer.errors.items()})
        return Filters(ctx.channel_id, [])
    valid: dict[str, Any] = serializer.validated_data
    if queries.find_unknown_dataset(ctx.channel_id, valid.get("dataset", ())):
        errors["dataset"] = unknown_dataset(ctx.channel_id)
    first: date | None = valid.get("requestedFrom")
    last: date | None = valid.get("requestedTo")
    return Filters(
        ctx.channel_id,
        ctx.readable,
        valid.get("dataset"),
        tag_prefix=valid.get("tagPrefix"),
        text=valid.get("text"),
        statuses=valid.get("status"),
        submitted_from=datetime.combine(first, time.min, UTC) if first else None,
        submitted_before=(
            datetime.combine(last + timedelta(days=1), time.min, UTC) if last else None
        ),
    )


def _first_message(error: Any) -> str:
    while not isinstance(error, str):
        error = next(iter(error.values() if isinstance(error, dict) else error))
    return str(error)


def _query_with(query: QueryDict, **changes: str) -> str:
    """Returns the query of another page of the list; an empty value is left out."""
    changed = query.copy()
    for name, value in {"cursor": "", **changes}.items():
        changed.pop(name, None)
        if value:
            changed[name] = value
    return changed.urlencode()


def _url_with(request: HttpRequest, **changes: str) -> str:
    return f"{request.path}?{_query_with(request.GET, **changes)}"


def find_saved_views(request: HttpRequest, ctx: ChannelContext) -> QuerySet[SavedView]:
    """Returns the user's saved views of the list in this channel, by name."""
    return SavedView.objects.filter(user=request.user.pk, channel=ctx.channel_id).order_by("name")


def build_search_query(query: QueryDict) -> str:
    """Returns the part of a list's query that a saved view keeps."""
    return urlencode({name: query[name] for name in _FILTER_NAMES if query.get(name)})
