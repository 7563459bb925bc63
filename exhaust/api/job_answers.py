"""The answers to polling as bytes, with the headers that save calls: `ETag`, `Retry-After`.

The views and the event loop build the same answers here.
"""

from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any, NamedTuple

from django.http import HttpResponse
from django.utils.http import parse_etags

from exhaust.api import envelope, job_bodies, list_fields
from exhaust.api.base import required_scope
from exhaust.jobs import queries
from exhaust.jobs.queries import Filters
from exhaust.models import Job
from ingest.collector.exchange import Reply

MAX_RETRY_SECONDS = list_fields.MAX_WAIT_SECONDS
_SWEEP_SECONDS = 5  # after which a delayed attempt starts at the latest
_WORKING_SECONDS = 2


class PresentedJob(NamedTuple):
    """A job as it is shown."""

    pk: int
    scope: str  # that its reader needs
    submitted_at: datetime
    status: str
    body: bytes
    digest: str
    retry_seconds: int  # in which it may have changed; 0 once it has ended
    link_ids: Sequence[int]


class PresentedPage(NamedTuple):
    """A page of jobs as it is shown."""

    body: bytes
    digest: str
    retry_seconds: int = 0
    is_empty: bool = False


def present_job(row: Job) -> PresentedJob:
    """Returns a job of `queries` or `polling`; it may create links."""
    state = job_bodies.build_state(row)
    shown = job_bodies.Job.render(state)
    body = envelope.render(shown)
    return PresentedJob(
        row.pk,
        required_scope(row.dataset, row.own_scope),
        row.submitted_at,
        row.status,
        body,
        _digest(body),
        suggest_retry_seconds(shown),
        [link.pk for link in state.links],
    )


def present_page(
    jobs: Sequence[PresentedJob], cursor: str | None, filters: Filters, count: int | None = None
) -> PresentedPage:
    """Returns a page of these jobs; it ends earlier, with a cursor, where they are large.

    `count` is how many the search found, by default how many the page has.
    """
    shown = envelope.cut_list(jobs, lambda job: len(job.body))
    if len(shown) < len(jobs):
        jobs, cursor = shown, queries.encode_cursor(filters, shown[-1].submitted_at, shown[-1].pk)
    shown_cursor = b"null" if cursor is None else envelope.render(cursor)
    bodies = b",".join([job.body for job in jobs])
    return PresentedPage(
        b'{"count":%d,"jobs":[%b],"nextCursor":%b}'
        % (len(jobs) if count is None else count, bodies, shown_cursor),
        _digest("".join([job.digest for job in jobs]).encode() + shown_cursor),
        is_empty=not jobs,
    )


def _digest(text: bytes) -> str:
    return blake2b(text, digest_size=12).hexdigest()


def suggest_retry_seconds(body: dict[str, Any]) -> int:
    """Returns in how many seconds a job may have changed: 0 for one that has ended."""
    progress = body["progress"]
    match progress["phase"]:
        case "ended":
            return 0
        case "queued":
            return min(MAX_RETRY_SECONDS, max(1, progress["queuePosition"] or 0))
        case "waiting for its time":
            return MAX_RETRY_SECONDS
        case "waiting for the next attempt":
            return _SWEEP_SECONDS
        case _:
            return _WORKING_SECONDS


def build_reply(
    operation: str, presented: PresentedJob | PresentedPage, if_none_match: str | None
) -> Reply:
    """Returns 200 with what is shown, or 304 where the caller has it already."""
    etag = f'W/"{presented.digest}"'
    headers = {"ETag": etag}
    if presented.retry_seconds:
        headers["Retry-After"] = str(presented.retry_seconds)
    if if_none_match is not None and _matches(if_none_match, etag):
        return Reply(304, content_type=None, headers=headers)
    return Reply(200, envelope.wrap_success(operation, presented.body), headers=headers)


def build_response(reply: Reply) -> HttpResponse:
    """Returns the reply of a view."""
    response = HttpResponse(reply.body, reply.content_type, reply.status, headers=reply.headers)
    if reply.content_type is None:
        del response["Content-Type"]
    return response


def _matches(if_none_match: str, etag: str) -> bool:
    """Compares weakly, as RFC 9110 says for `If-None-Match`."""
    given = parse_etags(if_none_match)
    return given == ["*"] or etag[2:] in (each.removeprefix("W/") for each in given)
