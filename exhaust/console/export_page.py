"""The page of one export: its files and links, its timeline, columns, programs and downloads."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from exhaust.api import downloads, job_bodies, validation
from exhaust.console import snippets
from exhaust.console.exports import JobView, job_url, job_views
from exhaust.console.permissions import (
    SUBMIT_PERMISSIONS,
    ChannelContext,
    clean_params,
    render_not_found,
    render_page,
    requires,
)
from exhaust.console.templatetags.console import status as format_status
from exhaust.datasets import is_private
from exhaust.datasets.base import Dataset
from exhaust.datasets.layout import arrange_columns
from exhaust.datasets.own import find_job_dataset
from exhaust.files import links
from exhaust.jobs import backoff, queries, submit
from exhaust.jobs import transitions as moves
from exhaust.models import File, Job, Link
from ingest.db.clock import read_clock
from ingest.db.time_limit import limit_query_seconds
from ingest.events import RequestError
from ingest.models import AuditEvent

SHARE_USES = (0, 10, 1)  # 0 is the most that the dataset allows
MAX_DOWNLOADS = 50
DOWNLOADS_SECONDS = 3.0
TABS = {
    "": gettext_lazy("Overview"),
    "columns": gettext_lazy("Columns"),
    "api": gettext_lazy("API"),
    "downloads": gettext_lazy("Downloads"),
}


def find_job(ctx: ChannelContext, tag: str, request_id: str) -> Job:
    """Returns the job. Raises `Http404` if the user may not see it, or there is none."""
    job = queries.find_job(ctx.channel_id, tag, request_id)
    if job is None or not ctx.may_export(is_private(job.dataset, job.own_scope)):
        raise Http404
    return job


@dataclass(frozen=True)
class LinkView:
    """A link with its address, which is empty once it opens nothing."""

    link: Link
    url: str
    state: str

    @property
    def uses(self) -> str:
        if self.link.max_uses == Link.UNLIMITED:
            return str(self.link.use_count)
        return _("%(count)d of %(most)d") % {
            "count": self.link.use_count,
            "most": self.link.max_uses,
        }


@dataclass(frozen=True)
class FileView:
    """A file of a job, and its links, the newest first."""

    file: File
    links: list[LinkView]

    @property
    def path(self) -> str:
        return f"{job_url(self.file.job)}/files/{self.file.part}"


def view_link(link: Link, now: datetime) -> LinkView:
    """Returns a link as its file's list shows it."""
    if link.is_usable:
        return LinkView(link, links.build_url(link), _("Works"))
    if link.revoked_at is not None:
        return LinkView(link, "", _("Revoked"))
    return LinkView(link, "", _("Expired") if link.expires_at <= now else _("Used up"))


def share_lives() -> list[int]:
    """Returns the seconds that a share link can live, shortest first."""
    longest = settings.EXHAUST_LINK_SECONDS
    return [*(seconds for seconds in (3600, 86400) if seconds < longest), longest]


@dataclass(frozen=True)
class Step:
    """A change of a job: its time, and the time since the one before; None where unknown."""

    at: datetime | None
    after: timedelta | None
    label: str
    message: str = ""


def list_steps(job: Job) -> list[Step]:
    """Returns the request and every change of status since, oldest first."""
    changes = list(job.transitions.order_by("pk"))
    # a retry moves `submitted_at`
    is_first = not changes or job.submitted_at <= changes[0].changed_at
    before = job.submitted_at if is_first else None
    steps = [Step(before, None, _("Requested by %(name)s") % {"name": job.requested_by})]
    for change in changes:
        label = format_status(change.status)
        if change.attempt > 1:
            label = _("%(status)s, attempt %(number)d") % {
                "status": label,
                "number": change.attempt,
            }
        after = change.changed_at - before if before else None
        steps.append(Step(change.changed_at, after, label, change.message))
        before = change.changed_at
    return steps


def choose_remedy(job: Job) -> str:
    """Returns what helps a failed job: `retry`, `edit`, or `password` to type that again."""
    if job.encryption == "password":
        return "password"
    # fewer than all attempts: another one would end the same; none: an outage ended it
    is_permanent = 0 < moves.count_failed_attempts(job) < backoff.MAX_ATTEMPTS
    return "edit" if is_permanent else "retry"


@requires(*SUBMIT_PERMISSIONS)
def show_job(request: HttpRequest, ctx: ChannelContext, tag: str, request_id: str) -> HttpResponse:
    """Shows one of the tabs of an export, by default the overview."""
    job = find_job(ctx, tag, request_id)
    (view,) = job_views([job])
    tab = request.GET.get("tab", "")
    tabs = {name: label for name, label in TABS.items() if name != "downloads" or _may_audit(ctx)}
    if tab not in tabs:
        raise Http404
    return render_page(
        request,
        ctx,
        "export.html",
        {
            "view": view,
            "job": job,
            "tab": tab,
            "tabs": tabs.items(),
            "warnings": validation.list_config_warnings(job.config),
            "can_retry": moves.rerunnable_jobs().filter(pk=job.pk).exists()
            or (job.status == Job.Status.SUBMITTED and job.due_at > read_clock()),
            "remedy": choose_remedy(job) if job.status == Job.Status.FAILED else "",
            **_TAB_CONTEXTS[tab](ctx, view),
        },
    )


def _may_audit(ctx: ChannelContext) -> bool:
    return ctx.has_any("audit")


def _show_overview(ctx: ChannelContext, view: JobView) -> dict[str, Any]:
    job = view.job
    delivery = job_bodies.find_file_delivery(job)
    now = links.database_now()
    files = []
    for file in view.files:
        newest = sorted(file.links.all(), key=lambda link: -link.pk)
        files.append(FileView(file, [view_link(link, now) for link in newest]))
    return {
        "files": files,
        "share_lives": share_lives(),
        "default_life": share_lives()[0 if view.is_private else -1],
        "share_uses": SHARE_USES,
        "most_uses": Link.MAX_USES if view.is_private else None,
        "callback": job_bodies.JobCallback.render(job_bodies.find_callback(job))
        if job.callback_url
        else None,
        "delivery": delivery and job_bodies.JobDelivery.render(delivery),
        "steps": list_steps(job),
        "retention": settings.EXHAUST_FILE_RETENTION_DAYS,
    }


def _show_columns(ctx: ChannelContext, view: JobView) -> dict[str, Any]:
    dataset = find_job_dataset(view.job)
    if dataset is None:
        return {"columns": []}
    try:
        columns = arrange_columns(dataset, view.job.config).columns
    except LookupError:  # a later version has other columns
        columns = dataset.columns
    return {
        "columns": columns,
        "has_more_columns": type(dataset).pin_columns is not Dataset.pin_columns,
    }


def _show_programs(ctx: ChannelContext, view: JobView) -> dict[str, Any]:
    return {
        "programs": [
            ("curl", snippets.write_curl(view.job)),
            ("Python", snippets.write_python(view.job)),
            ("JavaScript", snippets.write_javascript(view.job)),
        ]
    }


def _show_downloads(ctx: ChannelContext, view: JobView) -> dict[str, Any]:
    files = {file.pk: file.name for file in view.job.files.all()}
    if not files:
        return {"downloads": []}
    first = min(file.created_at for file in view.job.files.all())
    events = AuditEvent.objects.filter(
        channel=ctx.channel,
        recorded_at__gte=first,
        action="file.downloaded",
        subject=view.job.request_id,
        details__file__in=list(files),
    ).order_by("-recorded_at", "-id")
    try:
        with limit_query_seconds(DOWNLOADS_SECONDS):
            found = list(events[:MAX_DOWNLOADS])
    except TimeoutError:
        return {"is_slow": True}
    return {"downloads": [(event, files[event.details["file"]]) for event in found]}


_TAB_CONTEXTS: dict[str, Callable[[ChannelContext, JobView], dict[str, Any]]] = {
    "": _show_overview,
    "columns": _show_columns,
    "api": _show_programs,
    "downloads": _show_downloads,
}


# Actions ------------------------------------------------------------------------------------------


@requires(*SUBMIT_PERMISSIONS, methods=("POST",))
def cancel_job(
    request: HttpRequest, ctx: ChannelContext, tag: str, request_id: str
) -> HttpResponse:
    job = find_job(ctx, tag, request_id)
    if submit.cancel(job, ctx.username):
        messages.success(request, _("Export cancelled."))
    else:
        messages.warning(request, _("The export had finished already."))
    return redirect(job_url(job))


@requires(*SUBMIT_PERMISSIONS, methods=("POST",))
def retry_job(request: HttpRequest, ctx: ChannelContext, tag: str, request_id: str) -> HttpResponse:
    job = find_job(ctx, tag, request_id)
    try:
        if submit.retry(job):
            messages.success(request, _("Export queued again."))
        else:
            messages.warning(request, _("You can retry only a failed or cancelled export."))
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
    """Creates a share link of the chosen life and uses."""
    file = _find_file(ctx, tag, request_id, part)
    params = clean_params(request.POST)
    seconds, uses = (params.get(name, "") for name in ("seconds", "uses"))
    try:
        link = links.share(
            file,
            int(seconds) if seconds in map(str, share_lives()) else None,
            int(uses) if uses in map(str, SHARE_USES) else 0,
        )
        if link is None:
            messages.error(request, _("This file was deleted. Export it again."))
    except RequestError as error:
        messages.error(request, error.detail)
    return redirect(f"{job_url(file.job)}#link-{part}")


@requires(*SUBMIT_PERMISSIONS, methods=("POST",))
def revoke_link(
    request: HttpRequest, ctx: ChannelContext, tag: str, request_id: str, part: int
) -> HttpResponse:
    """Revokes the link that the form names, or all links to a file."""
    file = _find_file(ctx, tag, request_id, part)
    chosen = Link.objects.filter(file=file)
    pk = clean_params(request.POST).get("link", "")
    if pk:
        chosen = chosen.filter(pk=int(pk) if re.fullmatch("[0-9]{1,18}", pk) else 0)
    if links.revoke(chosen):
        messages.success(request, _("Link revoked."))
    else:
        messages.warning(request, _("There was no link to revoke."))
    return redirect(f"{job_url(file.job)}#link-{part}")
