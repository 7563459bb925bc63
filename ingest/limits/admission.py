"""In front of Django: so many requests at work, a short line before them, and 503 for the rest.

A place at work stands for a connection to the database, so nobody waits for one of these. The line
is as long as what is served within `WAIT_SECONDS`, by how long requests took of late, and never
shorter than two for each place; whoever finds it full is told at once, before the body is read.
Whoever waits for its caller holds no place: not while a body is slow to come, nor while an answer
is slow to be taken.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from io import BytesIO
from itertools import cycle
from typing import Any

import msgspec
from django.db import connections

from ingest import metrics
from ingest.limits import rate_limits

Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

WAIT_SECONDS = 0.15  # in the line
LONGEST_LINE = 16
SLOW_SECONDS = 0.25  # a body that takes longer works for nobody meanwhile
SLOW_BODIES = 32  # at once; whoever brings one more comes again later
STREAMS = 16  # answers under way in pieces
STEP = 8 * 1024 * 1024
UNREAD = 16 * 1024  # bytes of a body that may be left unread on a connection that stays
DOWNLOAD = "/dataset/v1/download/"
PROBES = {"/healthz", "/metrics", "/readyz"}
SENTENCE = "More comes than we can serve; send it again after Retry-After seconds."
_ELASTIC = {"type": "es_rejected_execution_exception", "reason": SENTENCE}
_ENVELOPE = {
    "ver": "1.0",
    "params": {"status": "failed", "err": "SERVER_ERROR", "errmsg": SENTENCE},
    "responseCode": "SERVER_ERROR",
    "result": {},
}
# by what an address ends with, or has in it: the words that its callers read
_WORDS: list[tuple[str, Any]] = [
    ("/v1/telemetry", {"id": "api.telemetry", **_ENVELOPE}),
    ("/v3/telemetry", {"id": "api.telemetry", **_ENVELOPE}),
    ("/hit", {"status": "error", "message": SENTENCE, "code": 503, "reason": "overloaded"}),
    ("/hit/bulk", {"status": "error", "message": SENTENCE, "code": 503, "reason": "overloaded"}),
    ("/_bulk", {"error": {"root_cause": [_ELASTIC], **_ELASTIC}, "status": 503}),
    ("/dataset/", {"id": "ekstep.analytics.dataset.request", **_ENVELOPE}),
    ("", {"type": "about:blank", "title": "overloaded", "status": 503, "detail": SENTENCE}),
]
_SEVERAL = range(1, 6)  # seconds to come again after, in turn, so that not all come at once
_turn = cycle(range(len(_SEVERAL))).__next__


class Refusal:
    """An answer made before anybody is sent away, by when to come again."""

    def __init__(self, at: str, said: dict[str, Any]) -> None:
        self.at = at
        self.body = msgspec.json.encode(said)
        self.stays = [
            [
                ("Content-Type", "application/" + ("problem+" if "type" in said else "") + "json"),
                ("Content-Length", str(len(self.body))),
                ("Retry-After", str(seconds)),
                *([("X-Elastic-Product", "Elasticsearch")] if at == "/_bulk" else ()),
            ]
            for seconds in _SEVERAL
        ]
        self.closes = [[*headers, ("Connection", "close")] for headers in self.stays]

    def fits(self, path: str) -> bool:
        return path.endswith(self.at) or (self.at == "/dataset/" and self.at in path)


_REFUSALS = [Refusal(at, said) for at, said in _WORDS]


@lru_cache(maxsize=64)
def _refusal(path: str) -> Refusal:
    return next(each for each in _REFUSALS if each.fits(path))


class Line:
    """Places at work, and who waits for one."""

    def __init__(self, places: int) -> None:
        self._places = self._free = places
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()
        self._seconds = 0.0  # that a request took of late

    def enter(self) -> bool:
        """Whether there was a place within reach; it is the caller's now."""
        if self._is_full():  # without the lock: who is sent away must not keep anybody waiting
            return False
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            if self._is_full():
                return False
            self._waiting.append(turn := threading.Lock())
            turn.acquire()
        turn.acquire()
        return True

    def _is_full(self) -> bool:
        length = len(self._waiting) + 1
        turns = length / self._places  # until the last of them is served
        return not self._free and (
            length > LONGEST_LINE or (turns > 2 and turns * self._seconds > WAIT_SECONDS)
        )

    def enter_again(self) -> None:
        """A place for one that was let in before: the next one."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            self._waiting.appendleft(turn := threading.Lock())
            turn.acquire()
        turn.acquire()

    def leave(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1

    def took(self, seconds: float) -> None:
        self._seconds += (seconds - self._seconds) / 16


class Gate:
    """A WSGI application around another.

    The doors have half of the places, so that neither questions nor events keep the others out;
    the smaller half, for their work is Python's, of which a process does one thing at a time.
    """

    def __init__(self, app: App, places: int) -> None:
        self._app = app
        self._doors = Line(max(1, places // 2))
        self._others = Line(max(1, places - places // 2))
        self._lock = threading.Lock()
        self._streams = 0
        self._bodies: dict[Body, None] = {}  # that are being read
        self._slow = 0
        self._watch: threading.Thread | None = None

    def __call__(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in PROBES:
            return self._app(environ, start)
        line = self._doors if rate_limits.is_door(environ["REQUEST_METHOD"], path) else self._others
        has_body = environ.get("CONTENT_LENGTH") not in {None, "", "0"}
        is_late = DOWNLOAD in path and self._streams >= STREAMS  # before it is counted as a use
        if is_late or (has_body and self._slow >= SLOW_BODIES) or not line.enter():
            return shed(environ, start)
        begun = time.monotonic()
        environ["wsgi.input"] = body = Body(self, line, environ)
        try:
            answer = self._app(environ, start)
            if not getattr(answer, "streaming", True):
                try:
                    return list(answer)
                finally:
                    answer.close()  # type: ignore[attr-defined]
            connections.close_all()  # a download needs none, and may last
        finally:
            line.took(time.monotonic() - begun - body.waited)
            line.leave()
            body.forget()
        stream = Stream(self, answer)
        if self.streams(1) > STREAMS:
            stream.close()
            return shed(environ, start)
        return stream

    def streams(self, more: int) -> int:
        with self._lock:
            self._streams += more
            return self._streams

    def waits(self, body: "Body") -> None:
        self._bodies[body] = None
        if not self._watch:
            with self._lock:
                if not self._watch:
                    self._watch = threading.Thread(target=self._lend, name="gate", daemon=True)
                    self._watch.start()

    def came(self, body: "Body") -> None:
        with self._lock:
            del self._bodies[body]
            was_slow, body.is_slow = body.is_slow, False
            self._slow -= was_slow
        if was_slow:
            body.line.enter_again()

    def _lend(self) -> None:
        """The places of those whose bodies are slow work for others."""
        while True:
            time.sleep(SLOW_SECONDS / 2)
            late = time.monotonic() - SLOW_SECONDS
            with self._lock:
                slow = [each for each in list(self._bodies) if each.since < late]
                for body in slow:
                    if not body.is_slow:
                        body.is_slow = True
                        self._slow += 1
                        body.line.leave()

    def is_crowded(self) -> bool:
        """Whether so many bodies do not come that nobody should be waited for."""
        return self._slow > SLOW_BODIES / 2


class Body:
    """`wsgi.input`. The server waits for it as long as it takes; `idle_connections` ends that."""

    def __init__(self, gate: Gate, line: Line, environ: Environ) -> None:
        length = environ.get("CONTENT_LENGTH") or ""
        self._left = int(length) if length.isdecimal() else 0
        self._gate = gate
        self._input = environ["wsgi.input"]
        self._kept = BytesIO()
        self.line = line
        self.since = 0.0
        self.is_slow = False
        self.waited = 0.0

    def read(self, size: int = -1) -> bytes:
        got = self._kept.read(size)
        if len(got) == size or not self._left:
            return got
        self._kept = BytesIO(self._fetched(min(self._left, STEP)))
        if size < 0:
            return got + self._kept.read() + self.read()
        return got + self._kept.read(size - len(got))

    def readline(self, size: int = -1) -> bytes:
        self._kept = BytesIO(self.read())
        return self._kept.readline(size)

    def forget(self) -> None:
        """Django's request is part of a cycle: until that is collected it would hold the bytes."""
        self._left = 0
        self._kept = BytesIO()

    def _fetched(self, size: int) -> bytes:
        for each in connections.all(initialized_only=True):
            if getattr(each, "pool", None) and not each.in_atomic_block:
                each.close()  # who waits for a caller keeps no other waiting for a connection
        self.since = time.monotonic()
        self._gate.waits(self)
        try:
            piece: bytes = self._input.read(size)
        finally:
            self._gate.came(self)
        self.waited += time.monotonic() - self.since
        self._left = self._left - len(piece) if piece else 0
        return piece


class Stream:
    """An answer in pieces; counted until it is closed."""

    def __init__(self, gate: Gate, answer: Iterable[bytes]) -> None:
        self._gate = gate
        self._answer = answer
        self._is_open = True

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._answer)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._gate.streams(-1)
            if hasattr(self._answer, "close"):
                self._answer.close()


def shed(environ: Environ, start: Callable[..., Any]) -> list[bytes]:
    """503 in the words of the address, and when to come again."""
    metrics.SHED.inc()
    refusal = _refusal(environ["PATH_INFO"])
    length = environ.get("CONTENT_LENGTH") or "0"
    is_read = length.isdecimal() and int(length) <= UNREAD  # else the server closes in front of it
    start("503 Service Unavailable", (refusal.stays if is_read else refusal.closes)[_turn()])
    return [refusal.body]
