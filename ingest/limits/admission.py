"""Limits concurrent requests in front of Django, queues a few more, and rejects the rest with 503.

A slot stands for a connection to the database, so no request waits for a connection. One caller has
at most half of the slots, and all callers without an identity have one together. A caller is named
by the request alone, before anything is looked up.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import cycle
from typing import Any, NamedTuple

import msgspec
from django.conf import settings
from django.db import connections
from django.http import parse_cookie

from ingest import metrics
from ingest.adapters import find_endpoint
from ingest.adapters.base import OVERLOAD_PROBLEM, OVERLOADED_DETAIL, Response
from ingest.limits import token_bucket

Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

MAX_QUEUE_LENGTH = 16
MAX_WAIT_SECONDS = 1.0  # in the queue
MAX_STREAMS = 16  # downloads at once
READ_BYTES = 64 * 1024
MAX_BODY_BYTES = 9 * 1024 * 1024  # more than any address takes; each says its own limit
MAX_DISCARDED_BYTES = 32 * 1024 * 1024  # of a body that is not wanted
DOWNLOAD_PATH = "/dataset/v1/download/"
PROBE_PATHS = {"/healthz", "/metrics", "/readyz"}
RETRY_AFTER_SECONDS = range(1, 6)  # in turn, so that rejected callers do not return together
next_retry_seconds = cycle(RETRY_AFTER_SECONDS).__next__
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


class Caller(NamedTuple):
    """Whose share a request takes: a key, a session, or a network of callers without either."""

    name: str
    is_anonymous: bool = False


def identify_caller(environ: Environ) -> Caller:
    """Returns the caller that a request names. Nothing is verified."""
    if DOWNLOAD_PATH not in environ["PATH_INFO"]:  # there the link is the right
        # of a key, the same text in either header is the same caller
        authorization = environ.get("HTTP_AUTHORIZATION", "").rpartition(" ")[2]
        if credential := authorization or environ.get("HTTP_X_API_KEY"):
            return Caller(f"key {credential}")
        cookies = parse_cookie(environ.get("HTTP_COOKIE", ""))
        if session := cookies.get(settings.SESSION_COOKIE_NAME):
            return Caller(f"session {session}")
    address = token_bucket.read_client_address(environ)
    return Caller(f"network {token_bucket.find_network(address)}", is_anonymous=True)


class Slots:
    """Slots that callers share, and a short queue in which they take turns."""

    def __init__(self, count: int, queue_length: int = MAX_QUEUE_LENGTH) -> None:
        self._free_count = count
        self._share = max(1, count // 2)  # of one caller
        self._used: Counter[str] = Counter()
        self._queue_length = queue_length
        self._waiting: dict[Caller, deque[threading.Event]] = {}  # the next one's turn comes first
        self._lock = threading.Lock()

    def acquire(self, caller: Caller) -> bool:
        """Waits for a slot. Returns False when the queue is full, or the wait is over."""
        with self._lock:
            if self._may_start(caller):
                self._start(caller)
                return True
            queue = self._waiting.get(caller, deque())
            queued_count = sum(map(len, self._waiting.values()))
            if queued_count >= self._queue_length or len(queue) >= self._queue_length // 2:
                return False
            self._waiting[caller] = queue
            queue.append(ticket := threading.Event())
        if ticket.wait(MAX_WAIT_SECONDS):
            return True
        with self._lock:
            if ticket.is_set():  # in the last moment
                return True
            self._leave(caller, ticket)
            return False

    def release(self, caller: Caller) -> None:
        """Gives the slot to the next caller whose share allows it."""
        with self._lock:
            self._free_count += 1
            owner = _find_owner(caller)
            self._used[owner] -= 1
            if not self._used[owner]:
                del self._used[owner]
            for waiting in self._waiting:
                if self._may_start(waiting):
                    self._start(waiting)
                    queue = self._waiting[waiting]
                    ticket = queue[0]
                    self._leave(waiting, ticket)
                    if queue:
                        self._waiting[waiting] = self._waiting.pop(waiting)  # behind the others
                    ticket.set()
                    return

    def _may_start(self, caller: Caller) -> bool:
        share = 1 if caller.is_anonymous else self._share
        return self._free_count > 0 and self._used[_find_owner(caller)] < share

    def _start(self, caller: Caller) -> None:
        self._free_count -= 1
        self._used[_find_owner(caller)] += 1

    def _leave(self, caller: Caller, ticket: threading.Event) -> None:
        queue = self._waiting[caller]
        queue.remove(ticket)
        if not queue:
            del self._waiting[caller]


def _find_owner(caller: Caller) -> str:
    return "anonymous" if caller.is_anonymous else caller.name


class AdmissionControl:
    """A WSGI application around another. A download holds a slot only until it starts."""

    def __init__(self, app: App, slots: int) -> None:
        self._app = app
        self.slots = Slots(max(1, slots))
        self.streams = Slots(MAX_STREAMS, queue_length=0)

    def __call__(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in PROBE_PATHS:
            return self._app(environ, start)
        caller = identify_caller(environ)
        if DOWNLOAD_PATH in path:
            return self._serve_download(environ, start, caller)
        if not self.slots.acquire(caller):
            return reject_overloaded(environ, start)
        try:
            return _read_whole(self._app(environ, start))
        finally:
            self.slots.release(caller)

    def _serve_download(
        self, environ: Environ, start: Callable[..., Any], caller: Caller
    ) -> Iterable[bytes]:
        receiver = Caller(caller.name)
        if not self.streams.acquire(receiver):  # before it is counted as a use
            return reject_overloaded(environ, start)
        stream = None
        try:
            if not self.slots.acquire(caller):
                return reject_overloaded(environ, start)
            try:
                response = self._app(environ, start)
                if not getattr(response, "streaming", True):
                    return _read_whole(response)
                connections.close_all()  # a stream needs none, and may last
                stream = Download(response, lambda: self.streams.release(receiver))
                return stream
            finally:
                self.slots.release(caller)
        finally:
            if stream is None:
                self.streams.release(receiver)


def _read_whole(response: Iterable[bytes]) -> list[bytes]:
    try:
        return list(response)
    finally:
        response.close()  # type: ignore[attr-defined]


class Download:
    """A streamed response, counted until it is closed."""

    def __init__(self, response: Iterable[bytes], release: Callable[[], None]) -> None:
        self._response = response
        self._release = release
        self._is_open = True

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._response)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._release()
            self._response.close()  # type: ignore[attr-defined]

    __del__ = close  # of one whose client left before the first byte


def build_overload(environ: Environ) -> tuple[list[tuple[str, str]], bytes]:
    """Returns the headers and the body of 503, in the protocol of the address."""
    metrics.OVERLOAD_REJECTIONS.inc()
    path = environ["PATH_INFO"]
    response = _DATASET_OVERLOAD if DATASET_API in path else OVERLOAD_PROBLEM
    if match := find_endpoint(environ["REQUEST_METHOD"], path):
        response = match.endpoint.overload
    body = msgspec.json.encode(response.content)
    headers = [
        ("Content-Type", str(response.content_type)),
        ("Content-Length", str(len(body))),
        ("Retry-After", str(next_retry_seconds())),
        *response.headers.items(),
    ]
    return headers, body


def reject_overloaded(environ: Environ, start: Callable[..., Any]) -> list[bytes]:
    """Answers 503 in the protocol of the address, with `Retry-After`."""
    headers, body = build_overload(environ)
    start("503 Service Unavailable", headers)
    return [body]


def measure_bodies(app: App) -> App:
    """Wraps an application so that a body in chunks reaches it with a length; Django needs one.

    Only a server that ends such a body itself (`wsgi.input_terminated`) lets us read it.
    """

    def respond(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        is_unmeasured = environ.get("HTTP_TRANSFER_ENCODING") and "CONTENT_LENGTH" not in environ
        if (
            is_unmeasured
            and environ.get("wsgi.input_terminated")
            and environ["PATH_INFO"] not in PROBE_PATHS
        ):
            body = bytearray()
            size = 0
            while size < MAX_DISCARDED_BYTES and (piece := environ["wsgi.input"].read(READ_BYTES)):
                size += len(piece)
                body += piece if size <= MAX_BODY_BYTES else b""
            del environ["HTTP_TRANSFER_ENCODING"]
            environ["CONTENT_LENGTH"] = str(size)
            environ["wsgi.input"] = BytesIO(body)
        return app(environ, start)

    return respond


def discard_bodies(app: App) -> App:
    """Wraps an application so that it leaves no byte of a body unread.

    A server closes a connection with unread bytes, and the proxy that still writes them would lose
    the response. The proxy has the body whole, so this takes no time.
    """

    def respond(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        response = app(environ, start)
        is_chunked = "HTTP_TRANSFER_ENCODING" in environ and environ.get("wsgi.input_terminated")
        if is_chunked or environ.get("CONTENT_LENGTH") not in {None, "", "0"}:
            while environ["wsgi.input"].read(READ_BYTES):
                pass
        return response

    return respond
