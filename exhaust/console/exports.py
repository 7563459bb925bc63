"""The jobs of a channel, one of them, and what can be done with it."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone

from exhaust.api import presenters, validation
from exhaust.console.permissions import ASK, Here, missing, show, typed, within
from exhaust.datasets import DATASETS, is_private
from exhaust.files import links
from exhaust.jobs import queries, submit
from exhaust.jobs import transitions as moves
from exhaust.jobs.queries import Filters
from exhaust.models import File, Job, Link
from ingest.events import Refused
from ingest.models import Conversation

PER_PAGE = 50
MOST = 100
_SOON = timedelta(seconds=2)


@dataclass(frozen=True)
class Shown:
    """A job as a page shows it."""

    job: Job
    conversation: str  # its name, or its id where it has none
    progress: dict[str, Any]
    remaining: timedelta | None  # until it is done, where that can be told
    files: list[File]

    @property
    def open(self) -> bool:
        return self.job.status not in moves.ENDS

    @property
    def rows(self) -> int:
        return sum(file.row_count for file in self.files)

    @property
    def byte_count(self) -> int:
        return sum(file.byte_count for file in self.files)

    @property
    def deleted(self) -> bool:
        """Whether nobody can have its files any more: past their life, or withdrawn."""
        return bool(self.files) and all(map(gone, self.files))

    @property
    def address(self) -> str:
        return address(self.job)

    @property
    def again(self) -> str:
        """The form that asks the same once more."""
        return f"{reverse('console:ask', args=[self.job.channel.identifier])}?{self._query()}"

    @property
    def supplement(self) -> str:
        """The form that asks for what came since; empty where the dataset takes no `since`."""
        if self.job.status != Job.Status.SUCCESS or "since" not in _optional(self.job):
            return ""
        query = self._query(since=self.job.request_id)
        return f"{reverse('console:ask', args=[self.job.channel.identifier])}?{query}"

    @property
    def recurring(self) -> str:
        """The form that asks the same by itself, again and again; empty where none can say it."""
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
        form = reverse("console:recurring-new", args=[self.job.channel.identifier])
        return f"{form}?{urlencode(query)}"

    @property
    def took(self) -> float | None:
        """Seconds of the last attempt."""
        return None if self.job.execution_ms is None else self.job.execution_ms / 1000

    @property
    def types(self) -> str:
        """The types of events that were asked for, one a line."""
        return "\n".join(map(str, self.job.config.get("types") or ()))

    def _query(self, **more: str) -> str:
        config = {
            name: config_value
            for name, config_value in self.job.config.items()
            if name
            in ("conversationId", "application", "startDate", "endDate", "timezone", "since")
        }
        said = {
            "dataset": self.job.dataset,
            "outputFormat": self.job.output_format,
            "tag": self.job.tag,
            **config,
            **({"types": self.types} if self.types else {}),
            **({"callbackUrl": self.job.callback_url} if self.job.callback_url else {}),
            **({"sealing": self.job.sealing} if self.job.sealing else {}),
            **more,
        }
        return urlencode(said)


def _optional(job: Job) -> tuple[str, ...]:
    return tuple(DATASETS[job.dataset].optional) if job.dataset in DATASETS else ()


def address(job: Job) -> str:
    return reverse("console:job", args=[job.channel.identifier, job.tag, job.request_id])


def presented(rows: list[Job]) -> list[Shown]:
    """Jobs of one channel; one query for all names."""
    asked = {str(job.config.get("conversationId", "")) for job in rows}
    names = named(rows[0].channel_id, asked) if rows else {}
    shown = []
    for job in rows:
        identifier = str(job.config.get("conversationId", ""))
        files = list(job.files.all()) if job.status == Job.Status.SUCCESS else []
        files = [file for file in files if file.withdrawn_at is None] or files
        shown.append(
            Shown(
                job=job,
                conversation=names.get(identifier) or identifier,
                progress=presenters.progress(job),
                remaining=_remaining(job),
                files=sorted(files, key=lambda file: file.part),
            )
        )
    return shown


def gone(file: File) -> bool:
    return file.deleted_at is not None or file.withdrawn_at is not None


def named(channel_id: int, identifiers: Iterable[str]) -> dict[str, str]:
    """The names of a channel's conversations, by identifier."""
    rows = Conversation.objects.filter(channel=channel_id, identifier__in=set(identifiers) - {""})
    return dict(rows.values_list("identifier", "name"))


def _remaining(job: Job) -> timedelta | None:
    """At the pace so far; None while there is none."""
    if job.status != Job.Status.PROCESSING or not (job.rows_done and job.rows_estimated):
        return None
    spent = timezone.now() - (job.started_at or timezone.now())
    left = max(0, job.rows_estimated - job.rows_done)
    return spent * left / job.rows_done if spent > _SOON else None


# The list -----------------------------------------------------------------------------------------


@within(*ASK)
def listing(request: HttpRequest, here: Here) -> HttpResponse:
    said = {name: text for name, text in typed(request.GET).items() if text.strip()}
    errors: dict[str, str] = {}
    filters = _filters(here, said, errors)
    rows: list[Job] = []
    after = None
    if not errors:
        try:
            limit = min(MOST, max(1, int(said.get("limit", PER_PAGE))))
            page = queries.page(filters, limit, said.get("cursor"))
            rows, after = page.jobs, page.cursor
        except (Refused, ValueError):
            errors["cursor"] = "This page of the list is no more; begin with the newest."
    shown = presented(rows)
    narrowed = set(said) & {"dataset", "status", "tagPrefix", "requestedFrom", "requestedTo"}
    return show(
        request,
        here,
        "jobs.html",
        {
            "jobs": shown,
            "open": [each.job.pk for each in shown if each.open],
            "next": _with(request, cursor=after) if after else "",
            "first": _with(request, cursor="") if "cursor" in said else "",
            "said": said,
            "errors": errors,
            "narrowed": narrowed,
            "datasets": [(name, DATASETS[name].title) for name in here.datasets],
            "statuses": Job.Status.values,
        },
        400 if errors else 200,
    )


def _filters(here: Here, said: dict[str, str], errors: dict[str, str]) -> Filters:
    """The API's search, said by a form; `errors` are filled in by field."""
    words = ("dataset", "status", "tagPrefix", "requestedFrom", "requestedTo")
    asked = validation.SearchFilters(
        data={name: said[name].strip() for name in words if name in said}
    )
    if not asked.is_valid():
        errors.update({name: _sentence(told) for name, told in asked.errors.items()})
        return Filters(here.channel_id, [])
    wanted: dict[str, Any] = asked.validated_data
    first: date | None = wanted.get("requestedFrom")
    last: date | None = wanted.get("requestedTo")
    return Filters(
        here.channel_id,
        [name for name in wanted.get("dataset", DATASETS) if name in here.datasets],
        tag_prefix=wanted.get("tagPrefix"),
        statuses=wanted.get("status"),
        submitted_from=datetime.combine(first, time.min, UTC) if first else None,
        submitted_before=(
            datetime.combine(last + timedelta(days=1), time.min, UTC) if last else None
        ),
    )


def _sentence(told: Any) -> str:
    while not isinstance(told, str):
        told = next(iter(told.values() if isinstance(told, dict) else told))
    return str(told)


def _with(request: HttpRequest, cursor: str) -> str:
    query = request.GET.copy()
    query.pop("cursor", None)
    if cursor:
        query["cursor"] = cursor
    return f"{request.path}?{query.urlencode()}"


# One ----------------------------------------------------------------------------------------------


def find(here: Here, tag: str, request_id: str) -> Job:
    """Raises `Http404`, also for another channel's, and for one whose dataset is not theirs."""
    job = queries.find(here.channel_id, tag, request_id)
    if job is None or job.dataset not in here.datasets:
        raise Http404
    return job


@dataclass(frozen=True)
class Handed:
    """A file of a job, the link that opens it, and the last that was given out."""

    file: File
    standing: Link | None
    last: Link | None

    @property
    def address(self) -> str:
        return links.address(self.standing) if self.standing else ""

    @property
    def revocable(self) -> bool:
        return links.is_ours(self.file)


def handed(file: File, now: datetime) -> Handed:
    last = max(file.links.all(), key=lambda link: link.expires_at, default=None)
    return Handed(file, links.standing(file, now), last)


@within(*ASK)
def one(request: HttpRequest, here: Here, tag: str, request_id: str) -> HttpResponse:
    job = find(here, tag, request_id)
    (shown,) = presented([job])
    now: datetime = job.shown_at  # type: ignore[attr-defined] # by the database's clock
    return show(
        request,
        here,
        "job.html",
        {
            "shown": shown,
            "job": job,
            "files": [handed(file, now) for file in shown.files],
            "private": is_private(job.dataset),
            "callback": presenters.callback(job) if job.callback_url else None,
            "history": job.transitions.order_by("pk"),
            "retention": settings.EXHAUST_RETENTION_DAYS,
            "call": call(job),
            "can_retry": moves.again().filter(pk=job.pk).exists()
            or (job.status == Job.Status.SUBMITTED and job.due_at > timezone.now()),
        },
    )


def call(job: Job) -> str:
    """The same request as a curl command; the key stays in the caller's environment."""
    said = {
        "tag": job.tag,
        "dataset": job.dataset,
        "requestedBy": job.requested_by,
        "datasetConfig": job.config,
        "outputFormat": job.output_format,
    }
    if job.sealing:  # its password, where it has one, is asked for by the answer
        said["sealing"] = job.sealing
    if job.callback_url:
        said["callbackUrl"] = job.callback_url
    if job.priority != Job.Priority.INTERACTIVE:
        said["priority"] = Job.Priority(job.priority).name.lower()
    body = json.dumps({"request": said}, ensure_ascii=False, indent=1)
    url = shlex.quote(f"{settings.PUBLIC_URL}/dataset/v1/request/submit")
    channel = shlex.quote(f"X-Channel-ID: {job.channel.identifier}")
    return " \\\n  ".join(
        (
            f"curl -s {url}",
            f'-H "X-API-Key: $EXHAUST_KEY" -H {channel}',
            "-H 'Content-Type: application/json'",
            f"-d {shlex.quote(body)}",
        )
    )


@within(*ASK, methods=("POST",))
def cancel(request: HttpRequest, here: Here, tag: str, request_id: str) -> HttpResponse:
    job = find(here, tag, request_id)
    if submit.cancel(job, here.person):
        messages.success(request, "The request is cancelled.")
    else:
        messages.warning(request, "It had ended already; there was nothing to cancel.")
    return redirect(address(job))


@within(*ASK, methods=("POST",))
def retry(request: HttpRequest, here: Here, tag: str, request_id: str) -> HttpResponse:
    job = find(here, tag, request_id)
    try:
        if submit.retry(job):
            messages.success(request, "It runs again.")
        else:
            messages.warning(request, "Only what failed or was cancelled can run again.")
    except Refused as error:
        messages.error(request, error.detail)
    return redirect(address(job))


def _file(here: Here, tag: str, request_id: str, part: int) -> File:
    job = find(here, tag, request_id)
    if job.status == Job.Status.SUCCESS:
        for file in job.files.all():
            if file.part == part and file.withdrawn_at is None:
                return file
    raise Http404


@within(*ASK)
def download(
    request: HttpRequest, here: Here, tag: str, request_id: str, part: int
) -> HttpResponse:
    """On to the file's link, a fresh one where the last has ended."""
    file = _file(here, tag, request_id, part)
    link = links.current(file)
    if link is None:
        return missing(request, here, 410)
    return redirect(links.address(link))


@within(*ASK, methods=("POST",))
def link(request: HttpRequest, here: Here, tag: str, request_id: str, part: int) -> HttpResponse:
    """A link to pass on."""
    file = _file(here, tag, request_id, part)
    if links.current(file) is None:
        messages.error(request, "This file was deleted; ask again for a new one.")
    return redirect(f"{address(file.job)}#link-{part}")


@within(*ASK, methods=("POST",))
def revoke(request: HttpRequest, here: Here, tag: str, request_id: str, part: int) -> HttpResponse:
    """Ends the links to a file at once, where they are ours."""
    file = _file(here, tag, request_id, part)
    if links.is_ours(file) and links.revoke(Link.objects.filter(file=file)):
        messages.success(request, "The link opens nothing any more.")
    else:
        messages.warning(request, "There was no link that could be ended.")
    return redirect(f"{address(file.job)}#link-{part}")
