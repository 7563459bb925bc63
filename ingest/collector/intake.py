"""The way of a call through the collector: authenticate, count, read, parse, store, respond."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any, cast

import msgspec
from django.conf import settings
from django.db import DatabaseError, InterfaceError
from msgspec import structs

from ingest import logs, metrics
from ingest.adapters import Match, find_endpoint, json_body
from ingest.adapters.base import Adapter, AddressLimit, Credential, Endpoint, Receipt, Response
from ingest.adapters.fields import bounded_text
from ingest.auth import failures
from ingest.auth.origins import build_cors_headers
from ingest.collector.exchange import Handler, Reply, Request
from ingest.collector.fresh import FreshCache, NoCache
from ingest.collector.groups import (
    Backlog,
    GroupWorker,
    InlineWorker,
    LoopWorker,
    ShareFull,
    Shares,
    call_each,
)
from ingest.collector.senders import GROUP_COST, Lookup, Sender, Senders
from ingest.collector.writer import LoopWriter
from ingest.db.clock import read_clock
from ingest.events import Batch, Call, RequestError, StoreResult
from ingest.limits import rate_limits, token_bucket
from ingest.limits.admission import next_retry_seconds
from ingest.limits.rate_limits import Limit, find_limit
from ingest.store import batches
from ingest.store.batches import Pending

log = logs.get_logger(__name__)
MAX_LOOP_BYTES = 128 * 1024  # of a body that the loop parses itself
MAX_SMALL_BYTES = 16 * 1024  # of one that it parses at once; larger ones take turns
MAX_TINY_BYTES = 1024  # of one that cannot be slow
GROUP_EVENTS = 1000  # of one commit
BULK_EVENTS = 500  # of a batch that has to wait for batches like it
CHANNEL_REQUESTS, CHANNEL_BYTES = 512, 32 * 1024 * 1024  # in progress, of a channel in a process
REQUEST_BYTES = 512  # of work that a request is besides its body
_encode = msgspec.json.Encoder().encode
_EMPTY = StoreResult(0, 0, [])
_NO_CONTENT = Response(status=204, content_type=None)
Writer = GroupWorker[Pending, StoreResult] | InlineWorker[Pending, StoreResult] | LoopWriter
Parse = Callable[[], Batch]
Parser = GroupWorker[Parse, Batch] | InlineWorker[Parse, Batch]
LoopParser = LoopWorker[Parse, Batch] | InlineWorker[Parse, Batch]


class Collector:
    """Every source's endpoint."""

    def __init__(
        self,
        senders: Senders,
        parser: Parser,
        loop_parser: LoopParser,
        writer: Writer,
        bulk_writer: Writer,
    ) -> None:
        self.senders = senders
        self._parser = parser
        self._loop_parser = loop_parser
        self._writer = writer
        self._bulk_writer = bulk_writer
        self._shares = Shares(CHANNEL_REQUESTS, CHANNEL_BYTES)
        self._backlog = Backlog()

    def close(self) -> None:
        """Ends the threads and closes the connections. A later call makes them again."""
        for worker in (self.senders, self._parser, self._writer, self._bulk_writer):
            worker.close()

    def find_handler(self, request: Request) -> Handler | None:
        """Returns the handler of a source's address; None for any other."""
        match = find_endpoint(request.method, request.path, request.headers.get("Accept") or "")
        return None if match is None else partial(self.handle, match)

    async def handle(self, match: Match, request: Request) -> Reply:
        """Returns the reply in the source's protocol, whatever happens."""
        adapter, endpoint = match.adapter, match.endpoint
        request.route, request.variables = match.route, match.variables
        content_type: str = request.headers.get("Content-Type") or ""
        call = Call(
            channel="",
            received_at=read_clock(may_ask=False),
            content_type=content_type.partition(";")[0].strip().lower(),
            content_encoding=request.headers.get("Content-Encoding") or "identity",
            method=request.method,
            query=request.query,
            route=match.variables,
            device_id=bounded_text(request.headers.get("X-Device-ID")),
        )
        visit = _Visit(adapter, endpoint, request, call)
        try:
            response = await self._receive(visit)
        except RequestError as error:
            response = endpoint.refuse(error, call)
            if error.status == 405:
                response = _with_headers(response, Allow=_allow(adapter, endpoint))
        except ShareFull:
            metrics.OVERLOAD_REJECTIONS.inc()
            response = _reject_overload(endpoint)
        except (DatabaseError, InterfaceError) as error:
            log.error("collector.store_failed", exc_info=error)
            response = _reject_overload(endpoint)
        headers = {**response.headers, **rate_limits.build_headers(request)}
        if adapter.cors:
            origin = request.headers.get("Origin") or ""
            is_allowed = origin != "" and await self._is_allowed_page(visit, origin)
            headers |= build_cors_headers(
                adapter.cors, request.method, origin, is_allowed=is_allowed
            )
        body = b"" if response.content is None else _encode(response.content)
        return Reply(response.status, body, response.content_type, headers)

    async def _receive(self, visit: "_Visit") -> Response:
        adapter, endpoint, request = visit.adapter, visit.endpoint, visit.request
        if adapter.address_limit is not None:
            await self._count_address(visit, adapter.address_limit, adapter.name)
        # only the application that the query names has the origins of such a call
        is_checked_late = adapter.cors and adapter.credential is Credential.APPLICATION_ID
        if not is_checked_late and _is_preflight(visit):
            return _NO_CONTENT
        call = visit.call
        if endpoint.read_parameters:
            call = structs.replace(call, parameters=endpoint.read_parameters(call.query))
        sender = visit.sender = await self.senders.authenticate(request, adapter, call)
        if is_checked_late and _is_preflight(visit):
            return _NO_CONTENT
        if endpoint.parse is not None:  # a refusal has to cost little: no count, and no body
            size = request.content_length() or 0
            self._backlog.check(sender.channel_id, size, _find_party(visit, sender))
        application, limit = sender.application, find_limit(adapter.rate_limit)
        if application and adapter.checks_cookie and application.cookie_digest:
            await self.senders.check_cookie(request, application)
        elif adapter.address_limit is None and _find_party(visit, sender) != sender.caller:
            share = AddressLimit(limit.rate / 2, limit.burst // 2)
            await self._count_address(visit, share, sender.caller)
        await self.senders.count_call(request, limit, sender.caller)
        if application is None:
            call = structs.replace(call, channel=sender.channel)
        else:
            call = structs.replace(
                call,
                channel=sender.channel,
                application=application.identifier,
                application_id=application.id,
                is_hash_required=application.strict_hash,
            )
        return await self._store(visit, call, sender)

    async def _count_address(self, visit: "_Visit", limit: AddressLimit, name: str) -> None:
        """Counts a call of the caller's network. Raises `RequestError` (429)."""
        if seconds := await self.senders.count_address(visit.request, limit, name):
            visit.request.rate_limit_state = Limit("network", *limit).scale(), seconds, seconds
            detail = "Too many calls from this address; wait."
            raise RequestError("too_many_requests", detail, 429)

    async def _is_allowed_page(self, visit: "_Visit", origin: str) -> bool:
        """Whether a page of the origin may read the response, errors included."""
        sender = visit.sender
        if sender and sender.application:
            return origin in sender.application.allowed_origins.split()
        if visit.adapter.credential is Credential.APPLICATION_ID:
            return False
        try:
            known = await self.senders.find_origins(visit.request)
        except (ShareFull, DatabaseError, InterfaceError):
            return False
        return known.allow(origin, sender.channel_id if sender else None)

    async def _store(self, visit: "_Visit", call: Call, sender: Sender) -> Response:
        """Reads, parses and stores the body; the response after the commit."""
        endpoint, owner = visit.endpoint, sender.channel_id
        if endpoint.parse is None:
            return endpoint.respond(Receipt(call, Batch("", call.received_at, [], []), _EMPTY, 0))
        endpoint.check(call)
        request = visit.request
        party, size = _find_party(visit, sender), 0
        stranger = None if party == sender.caller else party

        def reserve(more: int) -> None:
            nonlocal size
            self._shares.add(owner, 0, more, stranger)
            size += more

        self._shares.add(owner, 1, stranger=stranger)
        try:
            sent = b""
            if endpoint.reads_body(call):
                sent = await request.read_body(endpoint.max_bytes, reserve)
            work = len(sent) + REQUEST_BYTES
            self._backlog.enter(owner, work, party)  # not earlier: a slow body is no work
            try:
                is_compressed = endpoint.is_compressed(sent, call)
                parse = partial(_decode_and_parse, endpoint, sent, call)
                batch = await self._parse(parse, sent, owner, party, is_compressed=is_compressed)
                if is_compressed:
                    unpacked = sum(len(event.payload) for event in batch.events)
                    reserve(max(0, unpacked - size))
                result = await self._append(batch, sender, request, party)
            finally:
                self._backlog.leave(owner, work, party)
        finally:
            self._shares.remove(owner, size, stranger)
        elapsed_ms = int((monotonic() - visit.started_at) * 1000)
        return endpoint.respond(Receipt(call, batch, result, elapsed_ms))

    async def _parse(
        self, parse: Parse, sent: bytes, owner: int, party: str, *, is_compressed: bool
    ) -> Batch:
        may_be_slow = is_compressed or len(sent) > MAX_LOOP_BYTES
        if may_be_slow or (len(sent) > MAX_TINY_BYTES and json_body.is_slow(sent)):
            return await self._parser.run(owner, parse, len(sent), party)
        if len(sent) <= MAX_SMALL_BYTES:
            return parse()
        return await self._loop_parser.run(owner, parse, party=party)

    async def _append(
        self, batch: Batch, sender: Sender, request: Request, party: str
    ) -> StoreResult:
        if not (batch.events or batch.rejections or batch.profiles):
            return _EMPTY
        actor = sender.actor(request) if batch.profiles else None
        cost = max(1, len(batch.events) + len(batch.profiles))
        writer = self._writer if cost < BULK_EVENTS else self._bulk_writer
        pending = Pending(sender.channel_id, batch, actor)
        return await writer.run(sender.channel_id, pending, cost, party)


def _find_party(visit: "_Visit", sender: Sender) -> str:
    """Returns whose work it is: the sender's; the network's where each page shows the app's id."""
    if visit.adapter.credential is Credential.APPLICATION_ID:
        return token_bucket.get_client_network(visit.request)
    return sender.caller


class _Visit:
    """A request on its way, with what is known so far."""

    __slots__ = ("adapter", "call", "endpoint", "request", "sender", "started_at")

    def __init__(self, adapter: Adapter, endpoint: Endpoint, request: Request, call: Call) -> None:
        self.adapter = adapter
        self.endpoint = endpoint
        self.request = request
        self.call = call
        self.sender: Sender | None = None
        self.started_at = monotonic()


def _decode_and_parse(endpoint: Endpoint, sent: bytes, call: Call) -> Batch:
    return endpoint.parse(endpoint.decode(sent, call), call)  # type: ignore[misc] # it has one


class LoopTurns:
    """Parses one body at a time on the loop, and leaves all other work as much time in between."""

    def __init__(self) -> None:
        self._starts_at = 0.0

    async def parse(self, calls: Sequence[Parse]) -> list[Batch | Exception]:
        await asyncio.sleep(max(0.0, self._starts_at - monotonic()))
        started_at = monotonic()
        try:
            return [parse() for parse in calls]
        except Exception as error:  # the caller's own
            return [error]
        finally:
            self._starts_at = 2 * monotonic() - started_at


def _is_preflight(visit: _Visit) -> bool:
    """Whether a page asks what it may send. Raises `RequestError` (405) for another method."""
    endpoint = visit.endpoint
    if visit.adapter.cors and visit.call.method == "OPTIONS":
        return True
    if visit.call.method not in endpoint.methods:
        detail = endpoint.method_detail or f"This address takes {endpoint.allow}."
        raise RequestError("method_not_allowed", detail, 405)
    return False


def _allow(adapter: Adapter, endpoint: Endpoint) -> str:
    return f"{endpoint.allow}, OPTIONS" if adapter.cors else endpoint.allow


def _with_headers(response: Response, **headers: str) -> Response:
    return response._replace(headers={**response.headers, **headers})


def _reject_overload(endpoint: Endpoint) -> Response:
    return _with_headers(endpoint.overload, **{"Retry-After": str(next_retry_seconds())})


# The threads -------------------------------------------------------------------------------------


def look_up(lookups: Sequence[Lookup]) -> list[Any]:
    """Answers all lookups of a kind together."""
    outcomes: list[Any] = [None] * len(lookups)
    kinds: dict[Any, list[int]] = {}
    for place, lookup in enumerate(lookups):
        kinds.setdefault(lookup.work, []).append(place)
    for work, places in kinds.items():
        (found,) = call_each([partial(work, [lookups[place].item for place in places])])
        if isinstance(found, Exception):
            found = [found] * len(places)
        for place, outcome in zip(places, found, strict=True):
            outcomes[place] = outcome
    failures.flush_when_due()
    return outcomes


POOLED_CONNECTIONS = 2  # held by the threads of a collector: lookups, writer


def build_senders() -> Senders:
    """Returns the senders of a server's process, with the threads that look up and count them."""
    lookups = GroupWorker("lookups", look_up, GROUP_COST)
    return Senders(lookups, GroupWorker("counter", rate_limits.count_waiting), FreshCache())


def build_collector(senders: Senders) -> Collector:
    """Returns the collector of a server's process, with its threads."""
    fallback = GroupWorker("writer", batches.append_batches, GROUP_EVENTS)
    writer = bulk_writer = cast(Writer, fallback)  # SQLite has one writer at a time
    if "postgresql" in settings.DATABASES["default"]["ENGINE"]:
        writer = LoopWriter(fallback, GROUP_EVENTS, connections=2)
        bulk_writer = LoopWriter(fallback, GROUP_EVENTS)
    parser = GroupWorker("parser", call_each, 1)
    loop_parser = LoopWorker(LoopTurns().parse, max_cost=1)
    return Collector(senders, parser, loop_parser, writer, bulk_writer)


def build_inline_collector() -> Collector:
    """Returns a collector that does all in the calling thread, for `run_inline`."""
    writer = InlineWorker(batches.append_batches)
    senders = Senders(InlineWorker(look_up), InlineWorker(rate_limits.count_waiting), NoCache())
    parser = InlineWorker(call_each)
    return Collector(senders, parser, parser, writer, writer)
