"""Limits concurrent requests in front of Django, queues a few more, and rejects the rest with 503.

A slot stands for a connection to the database, so no request waits for a connection. One caller has
at most half of the slots, and so have all callers of a channel together. All callers without an
identity have one. Nothing is looked up here: a caller is one that the process has authenticated
by the same key or session before, or that `WsgiBridge` has introduced.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
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
from ingest.limits.rate_limits import RecentValues

Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

MAX_QUEUE_LENGTH = 16
MAX_WAIT_SECONDS = 1.0  # in the queue
MAX_STREAMS = 16  # downloads at once
MAX_BODY_BYTES = 3 * 1024 * 1024  # more than any address of Django takes; each says its limit
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
    channel: int | None = None  # of its last request; None for none or several

    @property
    def owner(self) -> str:
        """Whom its bodies count for."""
        return self.name if self.channel is None else f"channel {self.channel}"


_CHANNEL, _CLAIM_STREAM = "exhaust.channel", "exhaust.claim_stream"  # in WSGI's environ
_NO_CHANNEL = -1
known_channels = RecentValues()  # of authenticated callers, by a hash: a name may be a secret


def identify_caller(environ: Environ) -> Caller:
    """Returns the caller that a request names; its network where that was never authenticated."""
    if (name := _read_name(environ)) and (channel := int(known_channels.get(hash(name)))):
        return Caller(name, channel=None if channel == _NO_CHANNEL else channel)
    address = token_bucket.read_client_address(environ)
    return Caller(f"network {token_bucket.find_network(address)}", is_anonymous=True)


def find_unknown_name(environ: Environ) -> str:
    """Returns "key TEXT" or "session COOKIE" that was never authenticated here; "" for none."""
    if environ["PATH_INFO"] in PROBE_PATHS:
        return ""
    name = _read_name(environ)
    return "" if not name or known_channels.get(hash(name)) else name


def _read_name(environ: Environ) -> str:
    """Returns the key or the session of a request, "" for neither."""
    if DOWNLOAD_PATH in environ["PATH_INFO"]:  # there the link is the right
        return ""
    # of a key, the same text in either header is the same caller
    authorization = environ.get("HTTP_AUTHORIZATION", "").rpartition(" ")[2]
    if credential := authorization or environ.get("HTTP_X_API_KEY"):
        return f"key {credential}"
    session = parse_cookie(environ.get("HTTP_COOKIE", "")).get(settings.SESSION_COOKIE_NAME)
    return f"session {session}" if session else ""


def note_caller(environ: Environ, channel_ids: Collection[int] = ()) -> None:
    """Notes that a request was authenticated, and for which channel where that is one."""
    (environ[_CHANNEL],) = channel_ids if len(channel_ids) == 1 else (_NO_CHANNEL,)


def remember_caller(environ: Environ) -> None:
    """Keeps what `note_caller` noted, for the next request."""
    channel: int | None = environ.get(_CHANNEL)
    name = _read_name(environ)
    if channel is not None and name and known_channels.get(hash(name)) != channel:
        known_channels.put(hash(name), channel)


def claim_stream(environ: Environ, channel_id: int) -> bool:
    """Counts the answer as a stream of its channel. Returns False where that has too many."""
    claim: Callable[[int], bool] | None = environ.get(_CLAIM_STREAM)
    return claim is None or claim(channel_id)


class Slots:
    """Slots that callers share, and a short queue in which they take turns."""

    def __init__(self, count: int, queue_length: int = MAX_QUEUE_LENGTH) -> None:
        self._free_count = count
        self._share = max(1, count // 2)  # of one caller, and of one channel
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
            if not self._may_wait(caller):
                return False
            self._waiting.setdefault(caller, deque()).append(ticket := threading.Event())
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
            for owner in _list_owners(caller):
                self._used[owner] -= 1
                if not self._used[owner]:
                    del self._used[owner]
            for waiting in self._waiting:
                if self._may_start(waiting):
                    self._start(waiting)
                    ticket = self._waiting[waiting][0]
                    self._leave(waiting, ticket)
                    self._move_behind(waiting)
                    ticket.set()
                    return

    def _may_start(self, caller: Caller) -> bool:
        share = 1 if caller.is_anonymous else self._share
        return self._free_count > 0 and all(
            self._used[owner] < share for owner in _list_owners(caller)
        )

    def _start(self, caller: Caller) -> None:
        self._free_count -= 1
        self._used.update(_list_owners(caller))

    def _may_wait(self, caller: Caller) -> bool:
        lengths = {waiting: len(queue) for waiting, queue in self._waiting.items()}
        of_channel = sum(n for each, n in lengths.items() if each.channel == caller.channel)
        return (
            sum(lengths.values()) < self._queue_length
            and lengths.get(caller, 0) < self._queue_length // 2
            and (caller.channel is None or of_channel < self._queue_length * 3 // 4)
        )

    def _leave(self, caller: Caller, ticket: threading.Event) -> None:
        queue = self._waiting[caller]
        queue.remove(ticket)
        if not queue:
            del self._waiting[caller]

    def _move_behind(self, served: Caller) -> None:
        """Lets other channels go first, and then other callers of the same one."""
        mates = [
            each
            for each in self._waiting
            if each.channel is not None and each.channel == served.channel and each != served
        ]
        for each in [*mates, served]:
            if each in self._waiting:
                self._waiting[each] = self._waiting.pop(each)


def _list_owners(caller: Caller) -> list[str]:
    """Returns the names of the shares that a request counts for."""
    if caller.is_anonymous:
        return ["anonymous"]
    return [caller.name] if caller.channel is None else [caller.name, caller.owner]


class Streams:
    """The streams that one answer takes: its receiver's and its channel's."""

    def __init__(self, receivers: Slots, channels: Slots, receiver: Caller) -> None:
        self._receivers, self._channels, self._receiver = receivers, channels, receiver
        self._held: list[tuple[Slots, Caller]] = []

    def claim(self, channel_id: int | None = None) -> bool:
        """Returns False where the receiver or the channel has too many."""
        wanted = [(self._receivers, self._receiver)]
        if channel_id is not None:
            wanted.append((self._channels, Caller(f"channel {channel_id}")))
        for slots, owner in wanted:
            if (slots, owner) not in self._held:
                if not slots.acquire(owner):
                    return False
                self._held.append((slots, owner))
        return True

    def is_claimed(self) -> bool:
        return bool(self._held)

    def hand_over(self) -> "Streams":
        """Returns what is claimed to the one that releases it later."""
        taken = Streams(self._receivers, self._channels, self._receiver)
        taken._held, self._held = self._held, []
        return taken

    def release(self) -> None:
        while self._held:
            slots, owner = self._held.pop()
            slots.release(owner)


class AdmissionControl:
    """A WSGI application around another. A download holds a slot only until it starts."""

    def __init__(self, app: App, slots: int) -> None:
        self._app = app
        self.slots = Slots(max(1, slots))
        self.streams = Slots(MAX_STREAMS, queue_length=0)  # by receiver
        self.channel_streams = Slots(MAX_STREAMS, queue_length=0)

    def __call__(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in PROBE_PATHS:
            return self._app(environ, start)
        caller = identify_caller(environ)
        streams = Streams(self.streams, self.channel_streams, Caller(caller.name))
        environ[_CLAIM_STREAM] = streams.claim
        try:
            if DOWNLOAD_PATH in path and not streams.claim():  # before it is counted as a use
                return reject_overloaded(environ, start)
            if not self.slots.acquire(caller):
                return reject_overloaded(environ, start)
            try:
                response = self._app(environ, start)
                remember_caller(environ)
                if not streams.is_claimed() or not getattr(response, "streaming", True):
                    return _read_whole(response)
                connections.close_all()  # a stream needs none, and may last
                return Download(response, streams.hand_over())
            finally:
                self.slots.release(caller)
        finally:
            streams.release()


def _read_whole(response: Iterable[bytes]) -> list[bytes]:
    try:
        return list(response)
    finally:
        response.close()  # type: ignore[attr-defined]


class Download:
    """A streamed response, counted until it is closed."""

    def __init__(self, response: Iterable[bytes], streams: Streams) -> None:
        self._response = response
        self._streams = streams
        self._is_open = True

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._response)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._streams.release()
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
