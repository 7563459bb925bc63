"""The dataset API, and the address behind our own links."""

from collections.abc import Callable
from typing import Any

from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_safe
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from exhaust import links, storage, submissions
from exhaust.api import envelope, presenters, validation
from exhaust.datasets import DATASETS, is_private
from exhaust.submissions import Submission
from ingest import access
from ingest.adapters import body


def scope(dataset: str) -> str:
    """What a key must have to ask for a dataset."""
    return "export:private" if is_private(dataset) else "export:response"


class DatasetView(APIView):
    """Answers, and fails, in the envelope."""

    operation: str

    def get_exception_handler(self) -> Callable[..., Any]:
        return envelope.handler

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        body.require_length(request._request)

    def channel(self, request: Request) -> tuple[int, str]:
        caller = access.caller(request)
        return caller.channel(request.headers.get("X-Channel-ID"))


class SubmitView(DatasetView):
    """`POST /dataset/v1/request/submit`"""

    operation = "request.submit"

    def post(self, request: Request) -> Response:
        sent: Any = request.data
        asked = validation.Submit(data=sent)
        asked.is_valid(raise_exception=True)
        said: dict[str, Any] = asked.validated_data["request"]
        caller = access.caller(request)
        channel_id, channel = self.channel(request)
        caller.require(scope(said["dataset"]))
        job = submissions.submit(
            Submission(
                channel_id=channel_id,
                channel=channel,
                tag=said["tag"],
                dataset=said["dataset"],
                config=sent["request"]["datasetConfig"],
                requested_by=said.get("requestedBy") or caller.name,
            )
        )
        return envelope.wrapped(self.operation, presenters.job(job))


class ReadView(DatasetView):
    """`GET /dataset/v1/request/read/{tag}?requestId=`"""

    operation = "request.info"

    def get(self, request: Request, tag: str) -> Response:
        caller = access.caller(request)
        channel_id, _ = self.channel(request)
        job = submissions.find(channel_id, tag, request.query_params.get("requestId", ""))
        if job is None:
            raise NotFound("no job available with the given request_id and tag")
        caller.require(scope(job.dataset))
        return envelope.wrapped(self.operation, presenters.job(job))


class ListView(DatasetView):
    """`GET /dataset/v1/request/list/{tag}?limit=`"""

    operation = "request.list"

    def get(self, request: Request, tag: str) -> Response:
        asked = validation.Limit(data=request.query_params)
        asked.is_valid(raise_exception=True)
        caller = access.caller(request)
        channel_id, _ = self.channel(request)
        readable = [name for name in DATASETS if scope(name) in caller.scopes]
        jobs = submissions.by_tag(channel_id, tag, readable, asked.validated_data["limit"])
        return envelope.wrapped(
            self.operation, {"count": len(jobs), "jobs": [presenters.job(job) for job in jobs]}
        )


@require_safe
def download(request: HttpRequest, token: str) -> HttpResponse | FileResponse:
    """`GET /dataset/v1/download/{token}`: a file through our own link, or a hop to the bucket."""
    answer: HttpResponse | FileResponse
    try:
        file = links.opened(token, uses=int(request.method != "HEAD"))
        if address := links.redirect(file):
            answer = HttpResponseRedirect(address)
        else:
            answer = FileResponse(storage.default().open(file.key), content_type=file.content_type)
            answer["Content-Length"] = file.byte_count
            answer["Content-Disposition"] = storage.disposition(file.name)
    except links.Unusable as error:
        answer = HttpResponse(f"{error}\n", "text/plain; charset=utf-8", status=error.status)
    except FileNotFoundError:
        answer = HttpResponse("This file was deleted.\n", "text/plain; charset=utf-8", status=410)
    answer["Cache-Control"] = "no-store"
    answer["Referrer-Policy"] = "no-referrer"
    return answer
