"""Limits concurrent requests in front of Django, queues a few more, and rejects the rest with 503.

A slot stands for a connection to the database, so no request waits for a connection. The queue
holds the requests that are served within `QUEUE_WAIT_SECONDS`, by the latency of late, and at least
two requests a slot. When it is full, 503 is returned before the body is read. A request that waits
for its client holds no slot, neither for a slow body nor for a slowly read response.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import cycle
from typing import Any

import msgspec
from django.db import connections

from ingest import metrics
from ingest.adapters import find_endpoint
from ingest.adapters.base import OVERLOAD_PROBLEM, OVERLOADED_DETAIL, Response
from ingest.limits import rate_limits

Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

QUEUE_WAIT_SECONDS = 0.15  # of a queued request
MAX_QUEUE_LENGTH = 16
SLOW_BODY_SECONDS = 0.25  # after which an awaited body lends its slot
MAX_SLOW_BODIES = 32  # at once; one more is rejected
MAX_STREAMS = 16  # streamed responses at once
READ_BYTES = 8 * 1024 * 1024
MAX_UNREAD_BYTES = 16 * 1024  # of a body, on a connection that is kept alive
DOWNLOAD_PATH = "/dataset/v1/download/"
PROBE_PATHS = {"/healthz", "/metrics", "/readyz"}
RETRY_AFTER_SECONDS = range(1, 6)  # in turn, so that rejected callers do not return together
_next_retry_index = cycle(range(len(RETRY_AFTER_SECONDS))).__next__
DATASET_API = "/dataset/"
_DATASET_OVERLOAD = Response(
    {
        "id": "ekstep.analytics.dataset.request",
        "ver": "1.0",
        "params": {"status": "failed", "err": "SERVER_ERROR", "errmsg": OVERLOADED_DETAIL},
        "responseCode": "SERVER_ERROR",
        "result": {},
    },
    503,
)


class PrebuiltResponse:
    """The bytes and headers of a 503 response, for each value of `Retry-After`."""

    def __init__(self, response: Response) -> None:
        self.body = msgspec.json.encode(response.content)
        self.keep_alive_headers = [
            [
                ("Content-Type", str(response.content_type)),
                ("Content-Length", str(len(self.body))),
                ("Retry-After", str(seconds)),
                *response.headers.items(),
            ]
            for seconds in RETRY_AFTER_SECONDS
        ]
        self.close_headers = [
            [*headers, ("Connection", "close")] for headers in self.keep_alive_headers
        ]


def _select_overload_response(path: str) -> PrebuiltResponse:
    """The response in the protocol of the address."""
    if match := find_endpoint("POST", path):
        return _prebuild(match.endpoint.overload)
    return _prebuild(_DATASET_OVERLOAD if DATASET_API in path else OVERLOAD_PROBLEM)


_prebuilt: dict[int, tuple[Response, PrebuiltResponse]] = {}


def _prebuild(response: Response) -> PrebuiltResponse:
    if id(response) not in _prebuilt:
        _prebuilt[id(response)] = response, PrebuiltResponse(response)
    return _prebuilt[id(response)][1]


class ConcurrencyLimiter:
    """Slots for requests, and a queue for a free one."""

    def __init__(self, slots: int) -> None:
        self._slots = self.free_slots = slots
        self.queue: deque[threading.Lock] = deque()
        self._lock = threading.Lock()
        self._mean_seconds = 0.0  # that a request took of late

    def acquire(self) -> bool:
        """Waits for a slot. Returns False at once where the queue is full."""
        if self._is_full():  # without the lock: a rejection must delay no other request
            return False
        with self._lock:
            if self.free_slots:
                self.free_slots -= 1
                return True
            if self._is_full():
                return False
            self.queue.append(ticket := threading.Lock())
            ticket.acquire()
        ticket.acquire()
        return True

    def _is_full(self) -> bool:
        queue_length = len(self.queue) + 1
        rounds = queue_length / self._slots  # until the last of them is served
        return not self.free_slots and (
            queue_length > MAX_QUEUE_LENGTH
            or (rounds > 2 and rounds * self._mean_seconds > QUEUE_WAIT_SECONDS)
        )

    def reacquire(self) -> None:
        """Waits for the next free slot, for a request that was admitted before."""
        with self._lock:
            if self.free_slots:
                self.free_slots -= 1
                return
            self.queue.appendleft(ticket := threading.Lock())
            ticket.acquire()
        ticket.acquire()

    def release(self) -> None:
        with self._lock:
            if self.queue:
                self.queue.popleft().release()
            else:
                self.free_slots += 1

    def record_latency(self, seconds: float) -> None:
        self._mean_seconds += (seconds - self._mean_seconds) / 16


class AdmissionControl:
    """A WSGI application around another.

    The ingest endpoints have half of the slots, so that neither ingest nor the APIs starve the
    other. It is the smaller half: their work is Python's, which a process does one at a time.
    """

    def __init__(self, app: App, slots: int) -> None:
        self._app = app
        self.ingest_slots = ConcurrencyLimiter(max(1, slots // 2))
        self.other_slots = ConcurrencyLimiter(max(1, slots - slots // 2))
        self._lock = threading.Lock()
        self._stream_count = 0
        self.awaited_bodies: dict[RequestBody, None] = {}  # that are being read
        self.slow_count = 0
        self._slow_body_thread: threading.Thread | None = None

    def __call__(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in PROBE_PATHS:
            return self._app(environ, start)
        limiter = (
            self.ingest_slots
            if rate_limits.is_ingest_request(environ["REQUEST_METHOD"], path)
            else self.other_slots
        )
        has_body = environ.get("CONTENT_LENGTH") not in {None, "", "0"}
        is_over_stream_limit = (
            DOWNLOAD_PATH in path and self._stream_count >= MAX_STREAMS
        )  # before it is counted as a use
        if (
            is_over_stream_limit
            or (has_body and self.slow_count >= MAX_SLOW_BODIES)
            or not limiter.acquire()
        ):
            return reject_overloaded(environ, start)
        started_at = time.monotonic()
        environ["wsgi.input"] = body = RequestBody(self, limiter, environ)
        try:
            response = self._app(environ, start)
            if not getattr(response, "streaming", True):
                try:
                    return list(response)
                finally:
                    response.close()  # type: ignore[attr-defined]
            connections.close_all()  # a download needs none, and may last
        finally:
            limiter.record_latency(time.monotonic() - started_at - body.waited_seconds)
            limiter.release()
            body.discard()
        stream = CountedStream(self, response)
        if self.add_streams(1) > MAX_STREAMS:
            stream.close()
            return reject_overloaded(environ, start)
        return stream

    def add_streams(self, change: int) -> int:
        with self._lock:
            self._stream_count += change
            return self._stream_count

    def body_waiting(self, body: "RequestBody") -> None:
        self.awaited_bodies[body] = None
        if not self._slow_body_thread:
            with self._lock:
                if not self._slow_body_thread:
                    self._slow_body_thread = threading.Thread(
                        target=self._release_slow_slots, name="slow-body-slots", daemon=True
                    )
                    self._slow_body_thread.start()

    def body_received(self, body: "RequestBody") -> None:
        with self._lock:
            del self.awaited_bodies[body]
            was_slow, body.is_slow = body.is_slow, False
            self.slow_count -= was_slow
        if was_slow:
            body.limiter.reacquire()

    def _release_slow_slots(self) -> None:
        """Releases the slots of requests whose bodies are slow, again and again."""
        while True:
            time.sleep(SLOW_BODY_SECONDS / 2)
            slow_since = time.monotonic() - SLOW_BODY_SECONDS
            with self._lock:
                slow = [
                    pending
                    for pending in list(self.awaited_bodies)
                    if pending.waiting_since < slow_since
                ]
                for body in slow:
                    if not body.is_slow:
                        body.is_slow = True
                        self.slow_count += 1
                        body.limiter.release()

    def is_overloaded(self) -> bool:
        """Returns whether so many bodies are slow that idle ones should be closed sooner."""
        return self.slow_count > MAX_SLOW_BODIES / 2


class RequestBody:
    """`wsgi.input`. granian waits for a body without a limit; `idle_connections` ends that."""

    def __init__(
        self, admission: AdmissionControl, limiter: ConcurrencyLimiter, environ: Environ
    ) -> None:
        length = environ.get("CONTENT_LENGTH") or ""
        self._remaining_bytes = int(length) if length.isdecimal() else 0
        self._admission = admission
        self._input = environ["wsgi.input"]
        self.buffer = BytesIO()
        self.limiter = limiter
        self.waiting_since = 0.0
        self.is_slow = False
        self.waited_seconds = 0.0

    def read(self, size: int = -1) -> bytes:
        buffered = self.buffer.read(size)
        if len(buffered) == size or not self._remaining_bytes:
            return buffered
        self.buffer = BytesIO(self._fetch(min(self._remaining_bytes, READ_BYTES)))
        if size < 0:
            return buffered + self.buffer.read() + self.read()
        return buffered + self.buffer.read(size - len(buffered))

    def readline(self, size: int = -1) -> bytes:
        self.buffer = BytesIO(self.read())
        return self.buffer.readline(size)

    def discard(self) -> None:
        """Frees the bytes before the garbage collector frees the request, which is in a cycle."""
        self._remaining_bytes = 0
        self.buffer = BytesIO()

    def _fetch(self, size: int) -> bytes:
        for connection in connections.all(initialized_only=True):
            if getattr(connection, "pool", None) and not connection.in_atomic_block:
                connection.close()  # released to the pool while the client is slow
        self.waiting_since = time.monotonic()
        self._admission.body_waiting(self)
        try:
            chunk: bytes = self._input.read(size)
        finally:
            self._admission.body_received(self)
        self.waited_seconds += time.monotonic() - self.waiting_since
        self._remaining_bytes = self._remaining_bytes - len(chunk) if chunk else 0
        return chunk


class CountedStream:
    """A streamed response, counted until it is closed."""

    def __init__(self, admission: AdmissionControl, response: Iterable[bytes]) -> None:
        self._admission = admission
        self._response = response
        self._is_open = True

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._response)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._admission.add_streams(-1)
            if hasattr(self._response, "close"):
                self._response.close()


def reject_overloaded(environ: Environ, start: Callable[..., Any]) -> list[bytes]:
    """Returns 503 in the protocol of the address, with `Retry-After`."""
    metrics.OVERLOAD_REJECTIONS.inc()
    response = _select_overload_response(environ["PATH_INFO"])
    length = environ.get("CONTENT_LENGTH") or "0"
    is_body_readable = (
        length.isdecimal() and int(length) <= MAX_UNREAD_BYTES
    )  # else the server closes in front of it
    start(
        "503 Service Unavailable",
        (response.keep_alive_headers if is_body_readable else response.close_headers)[
            _next_retry_index()
        ],
    )
    return [response.body]
