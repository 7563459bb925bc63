"""Polling on the event loop: one statement reads for all who ask at the same time.

The statement tells only which version of a job there is. What is shown of a version is kept, and
made anew only once it has changed.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import psycopg
from django.db import DatabaseError, InterfaceError, connection
from django.http import QueryDict
from rest_framework.exceptions import NotFound

from exhaust.api import envelope, job_answers, jobs, list_fields
from exhaust.api.base import DatasetView, list_readable
from exhaust.api.job_answers import PresentedJob, PresentedPage
from exhaust.jobs import polling, queries
from exhaust.jobs.polling import JobKey, PageKey
from exhaust.jobs.queries import Filters
from ingest import audit, logs, metrics
from ingest.adapters.base import OVERLOADED_DETAIL
from ingest.auth.keys import Caller, VerifiedKey
from ingest.collector.exchange import Handler, Reply, Request
from ingest.collector.groups import GroupWorker, LoopWorker, ShareFull, Shares
from ingest.collector.senders import Sender, Senders
from ingest.events import RequestError
from ingest.limits import rate_limits

log = logs.get_logger(__name__)
CHANNEL_READS = 512  # of a channel in progress, in a process
CHANNEL_WAITING = 200  # of a channel, whose answers wait for another status
LOOK_SECONDS = 0.5  # between two looks of those
GROUP_COST = 256  # jobs that one statement looks up; a page has as many as its limit
MAX_KEPT_JOBS, MAX_KEPT_BYTES = 10_000, 4096
_ADDRESS = re.compile(r"/(api/)?dataset/v1/request/(read|list)/([A-Za-z0-9._:-]+)")
_ACCEPTED = {"*/*", "application/json", "application/json, */*"}
_SIMPLE_READ = re.compile(rb"requestId=([A-Za-z0-9-]+)")
_OVERLOADED = RequestError("overloaded", OVERLOADED_DETAIL, 503)
_ALLOW = {"Allow": "GET, HEAD, OPTIONS"}
Key = JobKey | PageKey
Presented = PresentedJob | PresentedPage | None


class Presentation(NamedTuple):
    """What is to be presented, and who asks for it."""

    key: Key
    sender: Sender
    request: Request


class Poller:
    """Answers plain reads of a job or of a tag; Django answers all others."""

    def __init__(self, senders: Senders) -> None:
        self._senders = senders
        self._kept = KeptJobs()
        self._presenter: GroupWorker[Presentation, Presented] = GroupWorker(
            "presenter", partial(_present_group, self._kept), GROUP_COST, threads=2
        )
        self._readers = [polling.VersionReader() for _ in range(2 if polling.is_supported() else 0)]
        self._versions: LoopWorker[Key, list[str]] = LoopWorker(
            *(reader.read for reader in self._readers), max_cost=GROUP_COST
        )
        self._reads = Shares(CHANNEL_READS)
        self._waiting = Shares(CHANNEL_WAITING)
        self._views = {"read": (jobs.ReadView, self._read), "list": (jobs.ListView, self._list)}

    def close(self) -> None:
        """Ends the thread and closes the connections. A later call makes them again."""
        self._presenter.close()
        for reader in self._readers:
            reader.close()

    def find_handler(self, request: Request) -> Handler | None:
        """Returns the handler of a plain GET of a job or a tag."""
        if request.method != "GET" or (match := _ADDRESS.fullmatch(request.path)) is None:
            return None
        headers = request.headers
        if (
            headers.get("accept", "*/*") not in _ACCEPTED
            or headers.get("content-length", "0") != "0"
            or headers.get("transfer-encoding") is not None
        ):
            return None
        prefix, name, tag = match.groups()
        request.route = f"{prefix or ''}dataset/v1/request/{name}/<str:tag>"
        return partial(self._handle, *self._views[name], tag)

    async def _handle(
        self,
        view: type[DatasetView],
        respond: Callable[[str, Request], Awaitable[Reply]],
        tag: str,
        request: Request,
    ) -> Reply:
        """Returns the reply in the envelope, whatever happens."""
        try:
            reply = await respond(tag, request)
        except (DatabaseError, InterfaceError, psycopg.Error, ShareFull) as error:
            if isinstance(error, ShareFull):
                metrics.OVERLOAD_REJECTIONS.inc()
            else:
                log.error(
                    "polling.failed",
                    exc_info=error,
                    request=request.request_id,
                    channel=request.channel,
                )
            reply = _build_error(_OVERLOADED, view)
        except Exception as error:
            reply = _build_error(error, view)
        return _with_headers(reply, **_ALLOW, **rate_limits.build_headers(request))

    async def _read(self, tag: str, request: Request) -> Reply:
        caller = (await self._authenticate(request)).caller
        request_id, wait_seconds = _read_query(request.query)
        job = await self._find_job(caller, tag, request_id, request)
        if wait_seconds and job.retry_seconds:
            job = await self._wait(job, wait_seconds, caller, tag, request_id, request)
        if_none_match = request.headers.get("if-none-match")
        return job_answers.build_reply(jobs.ReadView.operation, job, if_none_match)

    async def _wait(
        self,
        first: PresentedJob,
        seconds: int,
        caller: Caller,
        tag: str,
        request_id: str,
        request: Request,
    ) -> PresentedJob:
        """Returns a job once its status is another one, or as it is when the time is over.

        When the process stops, the time is over too.

        Where the channel has too many waiting reads, it does not wait.
        """
        owner = _resolve_sender(caller, request).channel_id
        try:
            self._waiting.add(owner, 1)
        except ShareFull:
            return first
        job, loop = first, asyncio.get_running_loop()
        ends_at = loop.time() + seconds
        try:
            while (
                job.status == first.status
                and not Request.is_stopping
                and (left := ends_at - loop.time()) > 0
            ):
                # all who wait look again at the same time, and so in one statement
                await asyncio.sleep(min(left, LOOK_SECONDS - loop.time() % LOOK_SECONDS))
                caller = (await self._senders.verify_key(request)).caller
                job = await self._find_job(caller, tag, request_id, request)
        finally:
            self._waiting.remove(owner, 0)
        return job

    async def _find_job(
        self, caller: Caller, tag: str, request_id: str, request: Request
    ) -> PresentedJob:
        """Raises `NotFound`, also for one of another channel."""
        sender = _resolve_sender(caller, request)
        tag = queries.strip_channel(tag, sender.channel)
        job = await self._find(JobKey(sender.channel_id, tag, request_id), sender, request)
        # names that are none of ours may be somebody's
        request.log_fields = {"tag": tag, "request_id": request_id}
        caller.require(job.scope)
        return job  # type: ignore[no-any-return]

    async def _list(self, tag: str, request: Request) -> Reply:
        verified = await self._authenticate(request)
        limit, after = _read_paging(request.query)
        sender = _resolve_sender(verified.caller, request)
        tag = queries.strip_channel(tag, sender.channel)
        readable = list_readable(verified.caller)
        filters = Filters(sender.channel_id, readable, tag_or_conversation=tag)
        key = PageKey(filters, limit, after)
        polling.decode_cursor(key)  # which may raise
        page = await self._find(key, sender, request, 1 + limit // 10)
        if not page.is_empty:
            request.log_fields = {"tag": tag}
        if_none_match = request.headers.get("if-none-match")
        return job_answers.build_reply(jobs.ListView.operation, page, if_none_match)

    async def _authenticate(self, request: Request) -> VerifiedKey:
        """Returns the key of a request, and counts the call. Raises as `keys.authenticate` does."""
        verified = await self._senders.verify_key(request)
        request.caller = verified.public_id
        caller = f"key:{verified.caller.key_id}"
        await self._senders.count_call(request, rate_limits.READS, caller)
        return verified

    async def _find(self, key: Key, sender: Sender, request: Request, cost: int = 1) -> Any:
        """Returns what is presented of a job or a page. Raises `NotFound` and `ShareFull`."""
        owner = sender.channel_id
        self._reads.add(owner, 1)
        try:
            if self._readers:
                versions = await self._versions.run(owner, key, cost)
                kept = self._kept.find(sender.channel, key, versions)
                if kept is not None:
                    return kept
            return await self._presenter.run(owner, Presentation(key, sender, request), cost)
        finally:
            self._reads.remove(owner, 0)


class KeptJobs:
    """What was presented of jobs, by version."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, str], PresentedJob] = {}

    def find(self, channel: str, key: Key, versions: Sequence[str]) -> Presented:
        """Returns what was presented of these versions, if all of it is kept."""
        if isinstance(key, JobKey):
            return self._find_job(channel, versions[0]) if versions else None
        found: list[PresentedJob] = []
        for version in versions[: key.limit]:
            if (job := self._find_job(channel, version)) is None:
                return None
            found.append(job)
        cursor = None
        if len(versions) > key.limit:
            cursor = queries.encode_cursor(key.filters, found[-1].submitted_at, found[-1].pk)
        return job_answers.present_page(found, cursor, key.filters)

    def _find_job(self, channel: str, version: str) -> PresentedJob | None:
        return self._jobs.get((channel, version))

    def keep(self, row: Any, presented: PresentedJob) -> None:
        """Keeps what was presented of a job of `polling`, unless it shows more than the version."""
        links = {link.pk for file in row.files.all() for link in file.links.all()}
        if len(presented.body) > MAX_KEPT_BYTES or not links.issuperset(presented.link_ids):
            return  # the version with the new link is the next one
        self._jobs[row.channel.identifier, row.version] = presented
        if len(self._jobs) > MAX_KEPT_JOBS:
            del self._jobs[next(iter(self._jobs))]


def _resolve_sender(caller: Caller, request: Request) -> Sender:
    """Raises `AccessDenied` (403)."""
    channel_id, channel = caller.resolve_channel(request.headers.get("x-channel-id"))
    request.channel = channel
    return Sender(channel_id, channel, f"key:{caller.key_id}", caller.name, request.caller)


def _read_query(query: bytes) -> tuple[str, int]:
    """Returns request id and seconds to wait. Raises `ValidationError` (400)."""
    if match := _SIMPLE_READ.fullmatch(query):
        return match[1].decode(), 0
    params = QueryDict(query)
    wait_seconds = list_fields.read_wait(str(params.get("wait", "0")))
    return jobs.read_request_id(params), wait_seconds


def _read_paging(query: bytes) -> tuple[int, str | None]:
    """Returns limit and cursor. Raises `ValidationError` (400)."""
    params = jobs.read_paging(QueryDict(query) if query else {})
    return params["limit"], params["cursor"]


def _build_error(error: Exception, view: type[DatasetView]) -> Reply:
    response = envelope.build_error(error, {"view": view})
    headers = {name: response[name] for name in envelope.ERROR_HEADERS if name in response}
    return Reply(response.status_code, envelope.render(response.data), headers=headers)


def _with_headers(reply: Reply, **headers: str) -> Reply:
    return reply._replace(headers={**reply.headers, **headers})


# The thread --------------------------------------------------------------------------------------


def _present_group(kept: KeptJobs, wanted: Sequence[Presentation]) -> list[Any]:
    """Returns for each what it shows, or its error. It may make links."""
    polling.take_own_connection()
    outcomes: list[Any] = [None] * len(wanted)
    try:
        fetchers: Any = ((JobKey, polling.fetch_jobs), (PageKey, polling.fetch_pages))
        for kind, fetch in fetchers:
            places = [place for place, each in enumerate(wanted) if isinstance(each.key, kind)]
            rows = fetch([wanted[place].key for place in places]) if places else []
            for place, row in zip(places, rows, strict=True):
                outcomes[place] = _present_one(kept, wanted[place], row)
    except (DatabaseError, InterfaceError):
        connection.close_if_unusable_or_obsolete()
        raise
    return outcomes


def _present_one(kept: KeptJobs, wanted: Presentation, row: Any) -> Presented | Exception:
    try:
        with audit.act_as(wanted.sender.actor(wanted.request)):
            if isinstance(wanted.key, JobKey):
                if row is None:
                    channel_id, tag, _ = wanted.key
                    return NotFound(queries.explain_missing(channel_id, tag))
                return _present_job(kept, row)
            presented = [_present_job(kept, job) for job in row.jobs]
        return job_answers.present_page(presented, row.cursor, wanted.key.filters)
    except Exception as error:  # the caller's own
        if isinstance(error, DatabaseError | InterfaceError):
            connection.close_if_unusable_or_obsolete()
        return error


def _present_job(kept: KeptJobs, row: Any) -> PresentedJob:
    presented = job_answers.present_job(row)
    if polling.is_supported():
        kept.keep(row, presented)
    return presented
