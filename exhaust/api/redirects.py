"""Download links to a bucket on the event loop: an answer is a redirect, and holds no slot."""

import re
from functools import partial
from typing import Any, cast

from django.conf import settings

from exhaust.api import downloads
from exhaust.jobs.polling import take_own_connection
from ingest import metrics
from ingest.adapters.base import OVERLOADED_DETAIL
from ingest.collector.exchange import Handler, Reply, Request
from ingest.collector.groups import GroupWorker, ShareFull, Shares, call_each
from ingest.limits import rate_limits, token_bucket
from ingest.limits.admission import next_retry_seconds

NETWORK_LINKS = 64  # of a network in progress, in a process
_ADDRESS = re.compile(r"/(api/)?dataset/v1/download/([A-Za-z0-9_-]+)(?:/([^/%]+))?")


class Redirects:
    """Answers GET of a link where the files are in a bucket; Django answers all others.

    A thread opens one link at a time, in turns between networks.
    """

    def __init__(self) -> None:
        self._opener: GroupWorker[Any, Any] = GroupWorker("links", _open_each, 1)
        self._shares = Shares(NETWORK_LINKS)

    def close(self) -> None:
        """Ends the thread and closes its connection. A later call makes them again."""
        self._opener.close()

    def find_handler(self, request: Request) -> Handler | None:
        """Returns the handler of a link to a bucket."""
        if not settings.S3_BUCKET or request.method != "GET":
            return None
        if (match := _ADDRESS.fullmatch(request.path)) is None:
            return None
        prefix, token, name = match.groups()
        path = "/<text:name>" if name else ""
        request.route = f"{prefix or ''}dataset/v1/download/<str:token>{path}"
        return partial(self._open, token, name or "")

    async def _open(self, token: str, name: str, request: Request) -> Reply:
        network = token_bucket.get_client_network(request)
        try:
            self._shares.add(network, 1)
        except ShareFull:
            metrics.OVERLOAD_REJECTIONS.inc()
            headers = {"Retry-After": str(next_retry_seconds()), "Cache-Control": "no-store"}
            return Reply(
                503, f"{OVERLOADED_DETAIL}\n".encode(), "text/plain; charset=utf-8", headers
            )
        try:
            # the view reads of a request only what this one has
            view = partial(downloads.download, cast(Any, request), token, name)
            response = await self._opener.run(network, view)
        finally:
            self._shares.remove(network, 0)
        headers = {**response.headers, **rate_limits.build_headers(request)}
        content_type = headers.pop("Content-Type", None)
        return Reply(response.status_code, response.content, content_type, headers)


def _open_each(views: Any) -> list[Any]:
    take_own_connection()
    return call_each(views)
