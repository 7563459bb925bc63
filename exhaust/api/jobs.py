"""Exports in the dataset API: submit, preview, read, list, search, cancel, retry, revoke."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from django.http import HttpResponse
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from exhaust.api import envelope, job_answers, job_bodies, list_fields, responses, validation
from exhaust.api.base import DatasetView, list_readable, required_scope
from exhaust.api.job_answers import PresentedJob, PresentedPage
from exhaust.api.responses import POLLED
from exhaust.datasets.own import list_datasets, require_dataset
from exhaust.files import links
from exhaust.jobs import polling, preview, queries, submit
from exhaust.jobs.queries import Filters, Page
from exhaust.jobs.schedules import next_night
from exhaust.jobs.submit import Submission
from exhaust.models import Job, Link
from ingest import logs
from ingest.auth import keys
from ingest.collector.exchange import Reply
from ingest.db import time_limit
from ingest.events import RequestError
from ingest.http.response_fields import Body, integer, text
from ingest.http.schema import extend_schema

SEARCH_SECONDS = 5.0
_TOO_SLOW = (
    f"request.filters: The search takes longer than {SEARCH_SECONDS:.0f} seconds; name a tag, or"
    " fewer days."
)


class SubmissionView(DatasetView):
    """Takes the body of a submission."""

    def read_submission(self, request: Request) -> Submission:
        raw_body: Any = request.data
        fields = validation.read_fields(validation.SubmitBody, raw_body)["request"]
        caller = keys.get_caller(request)
        channel_id, channel = self.resolve_channel(request)
        caller.require(require_dataset(channel_id, fields["dataset"]).scope)
        return build_submission(raw_body, fields, channel_id, channel, caller.name)


def build_submission(
    raw_body: Any, fields: dict[str, Any], channel_id: int, channel: str, default_requester: str
) -> Submission:
    """Returns the submission of a valid body; `fields` is its checked `request`.

    Raises `RequestError` (400) if it names an object that the channel does not have.
    """
    dataset = require_dataset(channel_id, fields["dataset"])
    for name, remedy in validation.find_config_errors(dataset, fields["datasetConfig"]).items():
        raise RequestError("invalid", f"request.datasetConfig.{name}: {remedy}")
    priority = Job.Priority[fields["priority"].upper()]
    is_nightly = priority == Job.Priority.NIGHTLY
    built = Submission(
        channel_id=channel_id,
        channel=channel,
        tag=fields["tag"],
        dataset=fields["dataset"],
        config=_complete_config(raw_body["request"]["datasetConfig"], fields["datasetConfig"]),
        requested_by=fields.get("requestedBy") or default_requester,
        output_format=fields["output_format"],
        priority=priority,
        not_before=fields.get("notBefore") or (next_night() if is_nightly else None),
        force_new=fields.get("forceNew", False),
        callback_url=fields.get("callbackUrl", ""),
        deliver_to=fields.get("deliverTo", ""),
        encryption=fields.get("encryption") or "",
        encryption_key=fields.get("encryptionKey") or "",
    )
    submit.check_configuration(built)
    return built


def _complete_config(sent: dict[str, Any], checked: dict[str, Any]) -> dict[str, Any]:
    """Returns datasetConfig as it was sent, with the days that it leaves out and the zone's
    canonical name: what a retry reads tomorrow is what was asked for today."""
    days = {name: checked[name].isoformat() for name in ("startDate", "endDate") if name in checked}
    zone = {"timezone": checked["timezone"]} if "timezone" in sent else {}
    return sent | days | zone


class SubmitView(SubmissionView):
    operation = "request.submit"

    @extend_schema("submitJob", job_bodies.SubmittedJob, request=validation.SubmitBody)
    def post(self, request: Request) -> Response:
        """Request an export.

        The same request on the same day (UTC) is the same export. Needs the scope of the dataset.
        """
        job = submit.submit(self.read_submission(request))
        logs.bind(tag=job.tag, request_id=job.request_id)
        body: Any = request.data
        warnings = validation.list_warnings(body)
        result = job_bodies.present_submitted(job, warnings)
        return envelope.build_success(self.operation, result)


class PreviewView(SubmissionView):
    operation = "request.preview"

    @extend_schema("previewJob", job_bodies.Preview, request=validation.SubmitBody)
    def post(self, request: Request) -> Response:
        """Preview an export.

        Needs the scope of the dataset.
        """
        submission = self.read_submission(request)
        body: Any = request.data
        state = job_bodies.PreviewState(
            submission, preview.build_preview(submission), validation.list_warnings(body)
        )
        return envelope.build_success(self.operation, job_bodies.Preview.render(state))


def read_request_id(query: Mapping[str, Any]) -> str:
    """Returns the request id of a query. Raises `ValidationError` (400)."""
    request_id = str(query.get("requestId", ""))
    if not request_id:
        raise ValidationError({"requestId": "Missing; name the request's id: ?requestId=…"})
    return request_id


class JobQuery(Body):
    """The query of one export."""

    requestId = text("The id of the export.")


class ReadQuery(JobQuery):
    """The query of a read."""

    wait = integer(
        "Seconds to wait for another status before the answer. 0, the default, does not wait.",
        {"minimum": 0, "maximum": list_fields.MAX_WAIT_SECONDS, "default": 0},
        required=False,
    )


class JobView(DatasetView):
    """One job: `…/{tag}?requestId=`."""

    find = staticmethod(queries.find_job)

    def fetch_job(self, request: Request, tag: str) -> Job:
        """Raises `NotFound`, also for one of another channel."""
        caller = keys.get_caller(request)
        request_id = read_request_id(request.query_params)
        channel_id, channel = self.resolve_channel(request)
        tag = queries.strip_channel(tag, channel)
        job = self.find(channel_id, tag, request_id)
        if job is None:
            raise NotFound(queries.explain_missing(channel_id, tag))
        logs.bind(tag=tag, request_id=job.request_id)
        caller.require(required_scope(job.dataset, job.own_scope))
        return job


class ReadView(JobView):
    operation = "request.info"
    find = staticmethod(polling.fetch_job)

    @extend_schema("readJob", job_bodies.Job, 304, 404, parameters=[ReadQuery, *POLLED])
    def get(self, request: Request, tag: str) -> HttpResponse:
        """Get an export.

        Needs the scope of the dataset. A server that cannot wait ignores `wait`.
        """
        list_fields.read_wait(request.query_params.get("wait", "0"))
        job = job_answers.present_job(self.fetch_job(request, tag))
        return _respond(self.operation, job, request)


class CancelView(JobView):
    operation = "request.cancel"

    @extend_schema("cancelJob", job_bodies.Job, 404, 409, parameters=[JobQuery])
    def post(self, request: Request, tag: str) -> Response:
        """Cancel an export.

        Needs the scope of the dataset.
        """
        job = self.fetch_job(request, tag)
        has_cancelled = submit.cancel(job, keys.get_caller(request).name)
        if not has_cancelled and job.status != Job.Status.CANCELLED:
            raise RequestError(
                "conflict", f"The request is {job.status}; there is nothing to cancel.", 409
            )
        return envelope.build_success(
            self.operation, job_bodies.present_job(self.fetch_job(request, tag))
        )


class RetryView(JobView):
    operation = "request.retry"

    @extend_schema("retryJob", job_bodies.Job, 404, 409, parameters=[JobQuery])
    def post(self, request: Request, tag: str) -> Response:
        """Retry an export.

        One that FAILED or was CANCELLED; one that waits is tried now.
        Needs the scope of the dataset.
        """
        job = self.fetch_job(request, tag)
        if not submit.retry(job):
            raise RequestError(
                "conflict",
                f"The request is {job.status}; only what FAILED or was CANCELLED can run again.",
                409,
            )
        return envelope.build_success(
            self.operation, job_bodies.present_job(self.fetch_job(request, tag))
        )


class RevokeView(JobView):
    operation = "request.revoke"

    @extend_schema("revokeLinks", responses.Revoked, 404, parameters=[JobQuery])
    def post(self, request: Request, tag: str) -> Response:
        """Revoke an export's links.

        Needs the scope of the dataset.
        """
        job = self.fetch_job(request, tag)
        revoked = links.revoke(Link.objects.filter(file__job=job))
        summary = {"requestId": job.request_id, "tag": f"{job.tag}:{job.channel.identifier}"}
        return envelope.build_success(self.operation, {**summary, "revoked": revoked})


_DEFAULT_PAGING = {  # of a list without a query
    name: list_fields.Paging().fields[name].default for name in ("limit", "cursor")
}


def read_paging(query: Any) -> dict[str, Any]:
    """Returns limit and cursor of a query. Raises `ValidationError` (400)."""
    if not query:
        return dict(_DEFAULT_PAGING)
    return validation.read_fields(list_fields.Paging, query)


def _respond(
    operation: str, presented: PresentedJob | PresentedPage, request: Request
) -> HttpResponse:
    reply = job_answers.build_reply(operation, presented, request.headers.get("If-None-Match"))
    return job_answers.build_response(reply)


class ListView(DatasetView):
    operation = "request.list"

    @extend_schema("listJobs", responses.JobList, 304, parameters=[list_fields.Paging, *POLLED[:2]])
    def get(self, request: Request, tag: str) -> HttpResponse:
        """List the exports of a tag, or of a conversation.

        Those of datasets whose scope the key has.
        """
        params = read_paging(request.query_params)
        caller = keys.get_caller(request)
        channel_id, channel = self.resolve_channel(request)
        tag = queries.strip_channel(tag, channel)
        filters = Filters(channel_id, list_readable(caller), tag_or_conversation=tag)
        page = polling.fetch_page(filters, params["limit"], params["cursor"])
        if page.jobs:
            logs.bind(tag=tag)
        return _respond(self.operation, _present_page(page, filters), request)


class SearchView(DatasetView):
    operation = "request.search"

    @extend_schema("searchJobs", responses.JobList, request=list_fields.SearchBody)
    def post(self, request: Request) -> HttpResponse:
        """Search the channel's exports.

        Those of datasets whose scope the key has.
        """
        params = validation.read_fields(list_fields.SearchBody, request.data)["request"]
        caller = keys.get_caller(request)
        requested: dict[str, Any] = params["filters"]
        channel_id, channel = caller.resolve_channel(
            requested.get("channel") or request.headers.get("X-Channel-ID")
        )
        tag = requested.get("tag")
        first = requested.get("requestedDate") or requested.get("requestedFrom")
        last = requested.get("requestedDate") or requested.get("requestedTo")
        filters = Filters(
            channel_id,
            list_readable(caller),
            requested.get("dataset"),
            tag=tag and queries.strip_channel(tag, channel),
            tag_prefix=requested.get("tagPrefix"),
            statuses=requested.get("status"),
            requested_by=requested.get("requestedBy"),
            submitted_from=first and _start_of_day(first),
            submitted_before=last and _start_of_day(last + timedelta(days=1)),
            request_id=requested.get("requestId"),
            conversation=requested.get("conversationId"),
            text=requested.get("text"),
        )
        try:
            with time_limit.limit_query_seconds(SEARCH_SECONDS):
                if queries.find_unknown_dataset(channel_id, filters.datasets or ()):
                    known = ", ".join(dataset.name for dataset in list_datasets(channel_id))
                    raise RequestError("invalid", f"request.filters.dataset: One of {known}.")
                page = queries.search_jobs(filters, params["limit"], params["cursor"])
                count = queries.filter_jobs(filters).count()
        except TimeoutError:
            raise RequestError("too_slow", _TOO_SLOW) from None
        presented = _present_page(page, filters, count)
        body = envelope.wrap_success(self.operation, presented.body)
        return job_answers.build_response(Reply(200, body))


def _present_page(page: Page, filters: Filters, count: int | None = None) -> PresentedPage:
    presented = [job_answers.present_job(job) for job in page.jobs]
    return job_answers.present_page(presented, page.cursor, filters, count)


def _start_of_day(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)
