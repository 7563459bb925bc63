"""How much one caller may ask for: a limit for each class of calls, told in the answer's headers.

Whoever is known is counted by key or application; whoever fails to say who they are, by address.
"""

import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from ingest import metrics
from ingest.events import Refused
from ingest.limits import token_bucket


@dataclass(frozen=True)
class Limit:
    """`rate` calls a second, `burst` at once."""

    name: str
    rate: float
    burst: int

    def scaled(self) -> "Limit":
        factor = settings.RATE_LIMITS
        return Limit(self.name, self.rate * factor, max(1, round(self.burst * factor)))


EVENTS = Limit("events", 1000, 2000)  # into any door
QUESTIONS = Limit("questions", 10, 100)  # what makes files, looks through jobs, changes something
READS = Limit("reads", 100, 500)  # the rest
FAILURES = Limit("failures", 1, 60)  # of one address: unknown keys, passwords, links
LEASE_SECONDS = 0.05  # of an events limit, taken by a process in one piece
_DOORS = re.compile(r"/(data/v\d/telemetry|v1/|collect$|ping$|hit|([^/]+/)?_bulk$)")
_ASKING = re.compile(r"/dataset/v1/request/(submit?|preview|search)$|/export/(sample|mapping)$")


class Limited(Refused):
    """429; `Retry-After` says when to come again."""

    def __init__(self, detail: str) -> None:
        super().__init__("too_many_requests", detail, 429)


def limit_of(request: HttpRequest) -> Limit:
    """The class of a call by a known caller."""
    if is_door(request.method or "", request.path):
        return EVENTS
    is_asking = request.method not in {"GET", "HEAD"} or _ASKING.search(request.path)
    return QUESTIONS if is_asking else READS


def is_door(method: str, path: str) -> bool:
    """Whether a call brings events."""
    return bool(_DOORS.match(path)) or (method in {"PUT", "POST"} and path == "/export/events")


def count(request: HttpRequest, caller: str) -> None:
    """One more call by `caller`. Raises `Limited`; the middleware tells the headers."""
    if not settings.RATE_LIMITS:
        return
    limit = limit_of(request)
    wait, behind = _spend(f"{limit.name}:{caller}", limit.scaled(), limit is EVENTS)
    request.limited = limit.scaled(), wait, behind  # type: ignore[attr-defined]
    metrics.LIMITED.labels(limit.name, "refused" if wait else "let through").inc()
    if wait:
        raise Limited(f"Too many {limit.name} by this caller; wait.")


class Leases:
    """Calls that a process has taken in one piece: most then cost no way to Redis.

    Never more is let through than the bucket gave; what is not used within a moment is lost. The
    piece grows while it is used up, so that who comes seldom takes one at a time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: OrderedDict[str, tuple[int, int, float, float]] = OrderedDict()

    def spend(self, key: str, limit: Limit) -> tuple[float, float]:
        now = self._clock()
        with self._lock:
            left, size, until, behind = self._held.get(key, (0, 0, 0.0, 0.0))
            if left and now < until:
                self._held[key] = left - 1, size, until, behind
                return 0.0, behind
        most = max(1, int(limit.rate * LEASE_SECONDS))
        size = min(max(1, size * 2), most) if now < until else 1
        wait, behind = token_bucket.spend(key, limit.rate, limit.burst, size)
        if wait and size > 1:
            size = 1
            wait, behind = token_bucket.spend(key, limit.rate, limit.burst)
        with self._lock:
            if not wait:
                self._held[key] = size - 1, size, now + 2 * LEASE_SECONDS, behind
                self._held.move_to_end(key)
                if len(self._held) > token_bucket.MAX_BUCKETS:
                    self._held.popitem(last=False)
        return wait, behind


_leases = Leases()


def _spend(key: str, limit: Limit, is_leased: bool) -> tuple[float, float]:
    if is_leased:
        return _leases.spend(key, limit)
    return token_bucket.spend(key, limit.rate, limit.burst)


# Guessing ---------------------------------------------------------------------------------------


class Memory:
    """The newest thousands of keys, each with a number."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Any, float] = OrderedDict()

    def get(self, key: Any) -> float:
        return self._kept.get(key, 0.0)

    def put(self, key: Any, value: float) -> None:
        with self._lock:
            self._kept[key] = value
            self._kept.move_to_end(key)
            if len(self._kept) > token_bucket.MAX_BUCKETS:
                self._kept.popitem(last=False)


_shut = Memory()  # addresses that failed too often: until when
_good = Memory()  # digests of what let somebody in


@contextmanager
def guessing(request: HttpRequest, word: str) -> Iterator[None]:
    """Around the check of a caller's key, password or link: an error of 401 or 403 is a failure.

    An address with too many failures is not listened to for a while, and raises `Limited`; what let
    somebody in before still does.
    """
    if not settings.RATE_LIMITS:
        yield
        return
    address = token_bucket.address(request)
    digest = blake2b(word.encode("utf-8", "replace"), digest_size=16).digest()
    shut_for = _shut.get(address) - time.monotonic()
    limit = FAILURES.scaled()
    if shut_for > 0 and not _good.get(digest):
        request.limited = limit, shut_for, shut_for  # type: ignore[attr-defined]
        raise Limited("Too many failures from this address; wait.")
    try:
        yield
    except Exception as error:
        if getattr(error, "status", 0) not in {401, 403}:
            raise
        wait = token_bucket.take(f"{limit.name}:{address}", limit.rate, limit.burst)
        if not wait:
            raise
        _shut.put(address, time.monotonic() + wait)
        request.limited = limit, wait, wait  # type: ignore[attr-defined]
        raise Limited("Too many failures from this address; wait.") from None
    if not _good.get(digest):
        _good.put(digest, 1.0)


# Headers ----------------------------------------------------------------------------------------


def headers(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    """Middleware: `Retry-After`, and as draft-ietf-httpapi-ratelimit-headers-10 writes them,
    `RateLimit-Policy` and `RateLimit`; events that pass go without."""

    def answered(request: HttpRequest) -> HttpResponse:
        answer = get_response(request)
        limit, wait, behind = getattr(request, "limited", (EVENTS, 0.0, 0.0))
        if wait or limit.name != EVENTS.name:
            left = 0 if wait else round(limit.burst - behind * limit.rate)
            window = math.ceil(limit.burst / limit.rate)
            answer["RateLimit-Policy"] = f'"{limit.name}";q={limit.burst};w={window}'
            answer["RateLimit"] = f'"{limit.name}";r={max(0, left)};t={math.ceil(behind)}'
            if wait:
                answer["Retry-After"] = str(math.ceil(wait))
        return answer

    return answered
