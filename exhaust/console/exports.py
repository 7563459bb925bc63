"""The exports of a channel: the list, one export, its files and its actions.

The code calls an export a job.
"""

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, cast
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from exhaust.api import downloads, response_bodies, validation
from exhaust.console.permissions import (
    SUBMIT_PERMISSIONS,
    ChannelContext,
    clean_params,
    render_not_found,
    render_page,
    requires,
)
from exhaust.datasets import DATASETS, is_private
from exhaust.files import links
from exhaust.jobs import queries, submit
from exhaust.jobs import transitions as moves
from exhaust.jobs.queries import Filters
from exhaust.models import File, Job, Link
from ingest.db.clock import read_clock
from ingest.events import RequestError
from ingest.models import Conversation

PER_PAGE = 50
MAX_PER_PAGE = 100
SHARE_USES = (0, 10, 1)  # 0 is the most that the dataset allows
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
        return "Withdrawn" if any(file.withdrawn_at for file in self.files) else "Expired"

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
        """The form of a schedule like this job; empty where a schedule has no such filter."""
        if {"types", "application"} & set(self.job.config):
            return ""
        query = {
            "dataset": self.job.dataset,
            "conversationId": self.job.config.get("conversationId", ""),
            "timezone": self.job.config.get("timezone", "UTC"),
            "outputFormat": self.job.output_format,
            "tag": f"{self.job.tag[:116]}-{{start}}",
            "callbackUrl": self.job.callback_url,
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

    def _query(self, **more: str) -> str:
        config = {
            name: config_value
            for name, config_value in self.job.config.items()
            if name
            in ("conversationId", "application", "startDate", "endDate", "timezone", "since")
        }
        params = {
            "dataset": self.job.dataset,
            "outputFormat": self.job.output_format,
            "tag": self.job.tag,
            **config,
            **({"types": self.types} if self.types else {}),
            **({"callbackUrl": self.job.callback_url} if self.job.callback_url else {}),
            **({"encryption": self.job.encryption} if self.job.encryption else {}),
            **more,
        }
        return urlencode(params)


def _optional_fields(job: Job) -> tuple[str, ...]:
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
                progress=response_bodies.JobProgress.render(job),
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


# The list -----------------------------------------------------------------------------------------


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
            page = queries.search_jobs(filters, limit, params.get("cursor"))
            rows, next_cursor = page.jobs, page.cursor
        except (RequestError, ValueError):
            errors["cursor"] = "This page of the list has expired. Start with the newest exports."
    views = job_views(rows)
    is_filtered = bool(
        set(params) & {"dataset", "status", "tagPrefix", "requestedFrom", "requestedTo"}
    )
    return render_page(
        request,
        ctx,
        "exports.html",
        {
            "jobs": views,
            "unfinished": [each.job.pk for each in views if each.is_open],
            "next_url": _url_with_cursor(request, cursor=next_cursor) if next_cursor else "",
            "first_url": _url_with_cursor(request, cursor="") if "cursor" in params else "",
            "params": params,
            "errors": errors,
            "is_filtered": is_filtered,
            "datasets": [(name, DATASETS[name].title) for name in ctx.datasets],
            "statuses": Job.Status.values,
        },
        400 if errors else 200,
    )


def _parse_filters(ctx: ChannelContext, params: dict[str, str], errors: dict[str, str]) -> Filters:
    """Validates the filter form with the API's serializer; adds to `errors` by field."""
    names = ("dataset", "status", "tagPrefix", "requestedFrom", "requestedTo")
    serializer = validation.SearchFilters(
        data={name: params[name].strip() for name in names if name in params}
    )
    if not serializer.is_valid():
        errors.update({name: _first_message(error) for name, error in serializer.errors.items()})
        return Filters(ctx.channel_id, [])
    valid: dict[str, Any] = serializer.validated_data
    first: date | None = valid.get("requestedFrom")
    last: date | None = valid.get("requestedTo")
    return Filters(
        ctx.channel_id,
        [name for name in valid.get("dataset", DATASETS) if name in ctx.datasets],
        tag_prefix=valid.get("tagPrefix"),
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


def _url_with_cursor(request: HttpRequest, cursor: str) -> str:
    query = request.GET.copy()
    query.pop("cursor", None)
    if cursor:
        query["cursor"] = cursor
    return f"{request.path}?{query.urlencode()}"


# One ----------------------------------------------------------------------------------------------


def find_job(ctx: ChannelContext, tag: str, request_id: str) -> Job:
    """Returns the job. Raises `Http404` if the user may not see it, or there is none."""
    job = queries.find_job(ctx.channel_id, tag, request_id)
    if job is None or job.dataset not in ctx.datasets:
        raise Http404
    return job


@dataclass(frozen=True)
class FileView:
    """A file of a job, its usable link and the last link that was created for it."""

    file: File
    active_link: Link | None
    last_link: Link | None

    @property
    def link_url(self) -> str:
        return links.build_url(self.active_link) if self.active_link else ""


def share_lives() -> list[int]:
    """Returns the seconds that a share link can live, shortest first."""
    longest = settings.EXHAUST_LINK_SECONDS
    return [*(seconds for seconds in (3600, 86400) if seconds < longest), longest]


def file_view(file: File) -> FileView:
    last = max(file.links.all(), key=lambda link: link.expires_at, default=None)
    return FileView(file, links.find_usable(file), last)


@requires(*SUBMIT_PERMISSIONS)
def show_job(request: HttpRequest, ctx: ChannelContext, tag: str, request_id: str) -> HttpResponse:
    job = find_job(ctx, tag, request_id)
    (view,) = job_views([job])
    return render_page(
        request,
        ctx,
        "export.html",
        {
            "view": view,
            "job": job,
            "files": [file_view(file) for file in view.files],
            "private": is_private(job.dataset),
            "share_lives": share_lives(),
            "default_life": share_lives()[0 if is_private(job.dataset) else -1],
            "share_uses": SHARE_USES,
            "most_uses": Link.MAX_USES if is_private(job.dataset) else None,
            "callback": response_bodies.JobCallback.render(response_bodies.find_callback(job))
            if job.callback_url
            else None,
            "timeline": job.transitions.order_by("pk"),
            "retention": settings.EXHAUST_FILE_RETENTION_DAYS,
            "api_call": curl_command(job),
            "can_retry": moves.rerunnable_jobs().filter(pk=job.pk).exists()
            or (job.status == Job.Status.SUBMITTED and job.due_at > read_clock()),
        },
    )


def curl_command(job: Job) -> str:
    """Returns the job's request as a curl command; it reads the key from the environment."""
    request = {
        "tag": job.tag,
        "dataset": job.dataset,
        "requestedBy": job.requested_by,
        "datasetConfig": job.config,
        "outputFormat": job.output_format,
    }
    if job.encryption:  # the API's error asks for the password
        request["encryption"] = job.encryption
    if job.callback_url:
        request["callbackUrl"] = job.callback_url
    if job.priority != Job.Priority.INTERACTIVE:
        request["priority"] = Job.Priority(job.priority).name.lower()
    body = json.dumps({"request": request}, ensure_ascii=False, indent=1)
    url = shlex.quote(f"{settings.EXHAUST_PUBLIC_URL}/dataset/v1/request/submit")
    channel = shlex.quote(f"X-Channel-ID: {job.channel.identifier}")
    return " \\\n  ".join(
        (
            f"curl -s {url}",
            f'-H "X-API-Key: $EXHAUST_KEY" -H {channel}',
            "-H 'Content-Type: application/json'",
            f"-d {shlex.quote(body)}",
        )
    )


@requires(*SUBMIT_PERMISSIONS, methods=("POST",))
def cancel_job(
    request: HttpRequest, ctx: ChannelContext, tag: str, request_id: str
) -> HttpResponse:
    job = find_job(ctx, tag, request_id)
    if submit.cancel(job, ctx.username):
        messages.success(request, "Export cancelled.")
    else:
        messages.warning(request, "The export had finished already.")
    return redirect(job_url(job))


@requires(*SUBMIT_PERMISSIONS, methods=("POST",))
def retry_job(request: HttpRequest, ctx: ChannelContext, tag: str, request_id: str) -> HttpResponse:
    job = find_job(ctx, tag, request_id)
    try:
        if submit.retry(job):
            messages.success(request, "Export queued again.")
        else:
            messages.warning(request, "You can retry only a failed or cancelled export.")
    except RequestError as error:
        messages.error(request, error.detail)
    return redirect(job_url(job))


def _find_file(ctx: ChannelContext, tag: str, request_id: str, part: int) -> File:
    job = find_job(ctx, tag, request_id)
    if job.status == Job.Status.SUCCESS:
        for file in job.files.all():
            if file.part == part and file.withdrawn_at is None:
                return file
    raise Http404


@requires(*SUBMIT_PERMISSIONS)
def download_file(
    request: HttpRequest, ctx: ChannelContext, tag: str, request_id: str, part: int
) -> HttpResponse:
    """Sends the file. It makes no link, so nothing works without signing in."""
    file = _find_file(ctx, tag, request_id, part)
    if not file.is_available:
        return render_not_found(request, ctx, 410)
    return cast(HttpResponse, downloads.send_to_user(file, request))


@requires(*SUBMIT_PERMISSIONS, methods=("POST",))
def create_link(
    request: HttpRequest, ctx: ChannelContext, tag: str, request_id: str, part: int
) -> HttpResponse:
    """Creates a share link where the file has no usable one, of the chosen life and uses."""
    file = _find_file(ctx, tag, request_id, part)
    params = clean_params(request.POST)
    seconds, uses = (params.get(name, "") for name in ("seconds", "uses"))
    link = links.get_or_create(
        file,
        seconds=int(seconds) if seconds in map(str, share_lives()) else None,
        max_uses=int(uses) if uses in map(str, SHARE_USES) else 0,
    )
    if link is None:
        messages.error(request, "This file was deleted. Export it again.")
    return redirect(f"{job_url(file.job)}#link-{part}")


@requires(*SUBMIT_PERMISSIONS, methods=("POST",))
def revoke_link(
    request: HttpRequest, ctx: ChannelContext, tag: str, request_id: str, part: int
) -> HttpResponse:
    """Revokes all links to a file."""
    file = _find_file(ctx, tag, request_id, part)
    if links.revoke(Link.objects.filter(file=file)):
        messages.success(request, "Link revoked.")
    else:
        messages.warning(request, "There was no link to revoke.")
    return redirect(f"{job_url(file.job)}#link-{part}")
