"""The dataset API, and the address behind our own links."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.views.decorators.http import require_safe
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from exhaust import metrics
from exhaust.api import envelope, presenters, validation
from exhaust.datasets import DATASETS
from exhaust.files import links, storage
from exhaust.jobs import polling, preview, queries, submit
from exhaust.jobs.queries import Filters, Page
from exhaust.jobs.submit import Submission
from exhaust.models import File, Job, Link
from ingest import audit
from ingest.adapters import body
from ingest.audit import Actor
from ingest.auth import keys
from ingest.auth.keys import Caller
from ingest.events import Refused
from ingest.limits import rate_limits, token_bucket


def scope(dataset: str) -> str:
    """What a key must have to ask for a dataset."""
    return DATASETS[dataset].scope if dataset in DATASETS else "export:private"


class DatasetView(APIView):
    """Answers, and fails, in the envelope."""

    operation: str

    def get_exception_handler(self) -> Callable[..., Any]:
        return envelope.handler

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        body.require_length(request._request)

    def channel(self, request: Request) -> tuple[int, str]:
        caller = keys.caller(request)
        return caller.channel(request.headers.get("X-Channel-ID"))


class NamedView(DatasetView):
    """What is about one thing of a channel, by its name: `/dataset/v1/{operation}/{name}`."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        words = {"PUT": "save", "GET": "read", "DELETE": "delete"}
        if "." not in self.operation and request.method in words:
            self.operation = f"{self.operation}.{words[request.method]}"
        super().initial(request, *args, **kwargs)

    def one(self, request: Request, name: str) -> Any:
        """Raises `NotFound`, also for another channel's."""
        raise NotImplementedError

    def shown(self, one: Any) -> dict[str, Any]:
        raise NotImplementedError

    def answer(self, request: Request, name: str) -> Response:
        return envelope.wrapped(self.operation, self.shown(self.one(request, name)))

    def get(self, request: Request, name: str) -> Response:
        return self.answer(request, name)

    @staticmethod
    def refuse(faults: Mapping[str, str], wire: Mapping[str, str]) -> None:
        """Raises `ValidationError` for the first fault there is, under the wire's name."""
        for field, remedy in faults.items():
            at = f"request.{wire[field]}" if field in wire else field
            raise serializers.ValidationError({at: remedy})


class OrderView(NamedView):
    """`POST /dataset/v1/{kind}/{name}/{order}`, which needs no more words."""

    http_method_names = ["post"]
    order: Callable[[Any], Any]

    def post(self, request: Request, name: str) -> Response:
        self.order(self.one(request, name))
        return self.answer(request, name)


_TAKES_JSON = {"*/*", "application/json", "application/json, */*"}


class PolledView(DatasetView):
    """What is asked all day: a plain GET goes past what DRF does for every other request."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.method != "GET" or request.META.get("HTTP_ACCEPT", "*/*") not in _TAKES_JSON:
            return super().dispatch(request, *args, **kwargs)
        asked = Request(request)
        try:
            body.require_length(request)
            asked.user = keys.KeyAuthentication().authenticate(request)[0]  # type: ignore[assignment]
            answer = self.get(asked, *args, **kwargs)  # type: ignore[attr-defined]
        except Exception as error:  # as DRF does: told in the envelope
            answer = envelope.handler(error, {"view": self})
        told = HttpResponse(JSONRenderer().render(answer.data), status=answer.status_code)
        for name, value in answer.items():
            told[name] = value
        told["Content-Type"], told["Allow"] = "application/json", "GET, HEAD, OPTIONS"
        return told


class AskView(DatasetView):
    """What takes the body of a submission."""

    def asked(self, request: Request) -> Submission:
        sent: Any = request.data
        asked = validation.Submit(data=sent)
        asked.is_valid(raise_exception=True)
        said: dict[str, Any] = asked.validated_data["request"]
        caller = keys.caller(request)
        channel_id, channel = self.channel(request)
        caller.require(scope(said["dataset"]))
        return submission(sent, said, channel_id, channel, caller.name)


def submission(
    sent: Any, said: dict[str, Any], channel_id: int, channel: str, asker: str
) -> Submission:
    """What a valid body asks for: `sent` is the body, `said` its checked `request`.

    Raises `Refused` (400) where it names what the channel does not have.
    """
    asked = Submission(
        channel_id=channel_id,
        channel=channel,
        tag=said["tag"],
        dataset=said["dataset"],
        config=sent["request"]["datasetConfig"],
        requested_by=said.get("requestedBy") or asker,
        output_format=said["output_format"],
        priority=Job.Priority[said["priority"].upper()],
        callback_url=said.get("callbackUrl", ""),
        sealing=said.get("sealing") or "",
        encryption_key=said.get("encryptionKey") or "",
    )
    submit.check(asked)
    return asked


class SubmitView(AskView):
    """`POST /dataset/v1/request/submit`"""

    operation = "request.submit"

    def post(self, request: Request) -> Response:
        job = submit.submit(self.asked(request))
        return envelope.wrapped(self.operation, presenters.job(job))


class PreviewView(AskView):
    """`POST /dataset/v1/request/preview`: what that submission would give; nothing is queued."""

    operation = "request.preview"

    def post(self, request: Request) -> Response:
        asked = self.asked(request)
        return envelope.wrapped(self.operation, presenters.preview(asked, preview.preview(asked)))


class JobView(DatasetView):
    """What is about one job: `…/{tag}?requestId=`."""

    find = staticmethod(queries.find)

    def job(self, request: Request, tag: str) -> Job:
        """Raises `NotFound`, also for another channel's."""
        caller = keys.caller(request)
        channel_id, _ = self.channel(request)
        job = self.find(channel_id, tag, request.query_params.get("requestId", ""))
        if job is None:
            raise NotFound("no job available with the given request_id and tag")
        caller.require(scope(job.dataset))
        return job


class ReadView(PolledView, JobView):
    """`GET /dataset/v1/request/read/{tag}?requestId=`"""

    operation = "request.info"
    find = staticmethod(polling.find)

    def get(self, request: Request, tag: str) -> Response:
        return envelope.wrapped(self.operation, presenters.job(self.job(request, tag)))


class CancelView(JobView):
    """`POST /dataset/v1/request/cancel/{tag}?requestId=`"""

    operation = "request.cancel"

    def post(self, request: Request, tag: str) -> Response:
        job = self.job(request, tag)
        won = submit.cancel(job, keys.caller(request).name)
        if not won and job.status != Job.Status.CANCELLED:
            raise Refused(
                "conflict", f"The request is {job.status}; there is nothing to cancel.", 409
            )
        return envelope.wrapped(self.operation, presenters.job(self.job(request, tag)))


class RetryView(JobView):
    """`POST /dataset/v1/request/retry/{tag}?requestId=`"""

    operation = "request.retry"

    def post(self, request: Request, tag: str) -> Response:
        job = self.job(request, tag)
        if not submit.retry(job):
            raise Refused(
                "conflict",
                f"The request is {job.status}; only what FAILED or was CANCELLED can run again.",
                409,
            )
        return envelope.wrapped(self.operation, presenters.job(self.job(request, tag)))


class RevokeView(JobView):
    """`POST /dataset/v1/request/revoke/{tag}?requestId=`: its links end now."""

    operation = "request.revoke"

    def post(self, request: Request, tag: str) -> Response:
        job = self.job(request, tag)
        if any(not links.is_ours(file) for file in job.files.select_related("job")):
            raise Refused(
                "conflict",
                "Links of this request are the bucket's own and cannot be revoked; they end at"
                " expiresAt.",
                409,
            )
        revoked = links.revoke(Link.objects.filter(file__job=job))
        said = {"requestId": job.request_id, "tag": f"{job.tag}:{job.channel.identifier}"}
        return envelope.wrapped(self.operation, {**said, "revoked": revoked})


_FIRST_PAGE = {  # what a list without a word asks for
    name: validation.Paging().fields[name].default for name in ("limit", "cursor")
}


class ListView(PolledView):
    """`GET /dataset/v1/request/list/{tag}?limit=&cursor=`"""

    operation = "request.list"

    def get(self, request: Request, tag: str) -> Response:
        said: dict[str, Any] = dict(_FIRST_PAGE)
        if request.query_params:
            asked = validation.Paging(data=request.query_params)
            asked.is_valid(raise_exception=True)
            said = asked.validated_data
        caller = keys.caller(request)
        channel_id, _ = self.channel(request)
        found = polling.page(
            Filters(channel_id, readable(caller), tag=tag), said["limit"], said["cursor"]
        )
        return envelope.wrapped(self.operation, _listed(found, len(found.jobs)))


class SearchView(DatasetView):
    """`POST /dataset/v1/request/search`"""

    operation = "request.search"

    def post(self, request: Request) -> Response:
        asked = validation.Search(data=request.data)
        asked.is_valid(raise_exception=True)
        said: dict[str, Any] = asked.validated_data["request"]
        caller = keys.caller(request)
        wanted: dict[str, Any] = said["filters"]
        channel_id, _ = caller.channel(wanted.get("channel") or request.headers.get("X-Channel-ID"))
        first = wanted.get("requestedDate") or wanted.get("requestedFrom")
        last = wanted.get("requestedDate") or wanted.get("requestedTo")
        filters = Filters(
            channel_id,
            [name for name in wanted.get("dataset", DATASETS) if name in readable(caller)],
            tag=wanted.get("tag"),
            tag_prefix=wanted.get("tagPrefix"),
            statuses=wanted.get("status"),
            requested_by=wanted.get("requestedBy"),
            submitted_from=first and _midnight(first),
            submitted_before=last and _midnight(last + timedelta(days=1)),
        )
        found = queries.page(filters, said["limit"], said["cursor"])
        return envelope.wrapped(self.operation, _listed(found, queries.matching(filters).count()))


def readable(caller: Caller) -> list[str]:
    """The datasets whose jobs a key may see."""
    return [name for name in DATASETS if scope(name) in caller.scopes]


def _listed(found: Page, count: int) -> dict[str, Any]:
    return {
        "count": count,
        "jobs": [presenters.job(job) for job in found.jobs],
        "nextCursor": found.cursor,
    }


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)


@require_safe
def download(request: HttpRequest, token: str) -> HttpResponse | FileResponse:
    """`GET /dataset/v1/download/{token}`: a file through our own link, or a hop to the bucket."""
    answer: HttpResponse | FileResponse
    told = audit.acting.set(Actor("link", address=audit.shortened(token_bucket.address(request))))
    try:
        with rate_limits.guessing(request, token):
            link = links.found(token)
        answer = _given(link.file, request)
        if request.method != "HEAD" and answer.status_code != 416:  # what gives nothing is no use
            try:
                links.use(link)
            except links.Unusable:
                answer.close()
                raise
    except (links.Unusable, rate_limits.Limited) as error:
        answer = HttpResponse(f"{error}\n", "text/plain; charset=utf-8", status=error.status)
    except FileNotFoundError:
        answer = HttpResponse("This file was deleted.\n", "text/plain; charset=utf-8", status=410)
    finally:
        audit.acting.reset(told)
    answer["Cache-Control"] = "no-store"
    answer["Referrer-Policy"] = "no-referrer"
    metrics.DOWNLOADS.labels(str(answer.status_code)).inc()
    return answer


_BEHIND = re.compile(r"bytes=([0-9]{1,18})-")


def _given(file: File, request: HttpRequest) -> HttpResponse | FileResponse:
    """The file, or what lies behind the byte at which a broken download goes on, or a hop to the
    bucket. To HEAD, which is not counted, no way into the bucket is told.

    Other ranges are answered with the whole, as RFC 9110 lets us.
    """
    headers = request.headers
    is_head = request.method == "HEAD"
    if not is_head and (address := links.redirect(file)):
        return HttpResponseRedirect(address)
    tag = f'"{file.sha256}"'
    asked = _BEHIND.fullmatch(headers.get("Range", ""))
    if asked is None or headers.get("If-Range", tag) != tag:
        start = None
    elif (start := int(asked[1])) >= file.byte_count:
        return HttpResponse(status=416, headers={"Content-Range": f"bytes */{file.byte_count}"})
    answer: HttpResponse | FileResponse
    if is_head:
        answer = HttpResponse(content_type=file.content_type)
    else:
        content = storage.default().open(file.key)
        if start:
            content.seek(start)
        answer = FileResponse(content, content_type=file.content_type)
    answer["Content-Length"] = file.byte_count - (start or 0)
    answer["Content-Disposition"] = storage.disposition(file.name)
    answer["Accept-Ranges"] = "bytes"
    answer["ETag"] = tag
    if start is not None:
        answer.status_code = 206
        answer["Content-Range"] = f"bytes {start}-{file.byte_count - 1}/{file.byte_count}"
    return answer
