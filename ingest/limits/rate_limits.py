"""Rate limits by caller, a limit for each class of calls, shown in the answer's headers.

A call counts as one, or for the time that it kept a processor or the database busy: a second of
work is as much as a second's calls.
An authenticated caller is counted by key or application, failed authentication by address: of
IPv6, by the first 64 bits.
"""

import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from ingest import metrics
from ingest.adapters import find_endpoint
from ingest.db.busy_time import read_busy_seconds
from ingest.events import RequestError
from ingest.limits import token_bucket
from ingest.limits.token_bucket import HttpMessage, Take


@dataclass(frozen=True)
class Limit:
    """`rate` calls a second, `burst` at once."""

    name: str
    rate: float
    burst: int

    def scale(self) -> "Limit":
        return _scale(self, settings.EXHAUST_RATE_LIMIT_MULTIPLIER)


@lru_cache(maxsize=64)
def _scale(limit: Limit, factor: float) -> Limit:
    return Limit(limit.name, limit.rate * factor, max(1, round(limit.burst * factor)))


EVENTS = Limit("events", 1000, 2000)  # to any ingest endpoint
WRITES = Limit("writes", 10, 100)  # calls that make files, search or change
READS = Limit("reads", 100, 500)  # the rest
AUTH_FAILURES = Limit("failures", 1, 60)  # of one address: unknown keys, passwords, links
QUOTA_SECONDS = 0.05  # of a limit of events or reads, as one local quota
_WRITE_PATHS = re.compile(
    r"/dataset/v1/request/(submit?|preview|search)$|/export/(sample|mapping)$"
)


class RateLimited(RequestError):
    """429, with the time to wait in `Retry-After`."""

    def __init__(self, detail: str) -> None:
        super().__init__("too_many_requests", detail, 429)


def select_limit(request: HttpMessage) -> Limit:
    """Returns the limit of an authenticated call. A source names its own."""
    method = request.method or ""
    if match := find_endpoint(method, request.path):
        return find_limit(match.adapter.rate_limit)
    is_write = method not in {"GET", "HEAD"} or _WRITE_PATHS.search(request.path)
    return WRITES if is_write else READS


def find_limit(name: str) -> Limit:
    """Returns the limit that a source names."""
    return {"events": EVENTS, "writes": WRITES, "reads": READS}[name]


def count_locally(request: HttpMessage | None, limit: Limit, caller: str) -> bool:
    """Counts a call where this process has a quota left, without a trip to Redis.

    Returns False where it has none; then `count_call` has to decide.
    """
    if not settings.EXHAUST_RATE_LIMIT_MULTIPLIER:
        return True
    scaled = limit.scale()
    full_in_seconds = local_quota.take(f"{limit.name}:{caller}", scaled)
    if full_in_seconds is None:
        return False
    if request is not None:
        request.rate_limit_state = scaled, 0.0, full_in_seconds  # type: ignore[attr-defined]
        metrics.count_decision(limit.name, "allowed")  # of an authenticated caller
    return True


class CountedCall(NamedTuple):
    """A call to count. A request shows the limit in its answer's headers."""

    request: HttpMessage | None
    limit: Limit
    caller: str


def count_waiting(calls: Sequence[CountedCall]) -> list[float]:
    """Counts calls that wait together, mostly by two trips to Redis.

    Returns for each the seconds that it has to wait; 0.0 to go on.
    """
    waits = [0.0] * len(calls)
    if not settings.EXHAUST_RATE_LIMIT_MULTIPLIER:
        return waits
    places: dict[tuple[Limit, str], list[int]] = {}
    for place, call in enumerate(calls):
        places.setdefault((call.limit, call.caller), []).append(place)
    wanted = [
        (f"{limit.name}:{caller}", limit.scale(), len(of_caller))
        for (limit, caller), of_caller in places.items()
    ]
    spent = local_quota.spend_all(wanted)
    for of_caller, (_, scaled, _), outcome in zip(places.values(), wanted, spent, strict=True):
        count, wait_seconds, full_in_seconds = outcome
        for number, place in enumerate(of_caller):
            request = calls[place].request
            waits[place] = 0.0 if number < count else wait_seconds
            if request is not None:
                request.rate_limit_state = scaled, waits[place], full_in_seconds  # type: ignore[attr-defined]
                metrics.count_decision(scaled.name, "rejected" if waits[place] else "allowed")
    return waits


def count_call(request: HttpMessage, caller: str) -> None:
    """Counts a call. Raises `RateLimited`. The middleware adds the headers."""
    if not settings.EXHAUST_RATE_LIMIT_MULTIPLIER:
        return
    limit = select_limit(request)
    scaled, is_quota_local = limit.scale(), limit is not WRITES
    wait_seconds, full_in_seconds = _spend(f"{limit.name}:{caller}", scaled, is_quota_local)
    request.rate_limit_state = scaled, wait_seconds, full_in_seconds  # type: ignore[attr-defined]
    decision = "rejected" if wait_seconds else "allowed"
    metrics.count_decision(limit.name, decision)
    if wait_seconds:
        raise reject_call(limit)


def reject_call(limit: Limit) -> RateLimited:
    """Returns the error of a caller that has to wait."""
    return RateLimited(f"Too many {limit.name} by this caller; wait.")


def count_timed_call(request: HttpRequest, caller: str) -> None:
    """Counts a call as `count_call` does. The middleware adds the time that it keeps us busy."""
    count_call(request, caller)
    request.timed_caller = caller  # type: ignore[attr-defined]


def charge_time(request: HttpRequest, seconds: float) -> None:
    """Charges the caller of a timed call for its time, beyond the one call that is counted."""
    caller = getattr(request, "timed_caller", None)
    if caller is None or not settings.EXHAUST_RATE_LIMIT_MULTIPLIER:
        return
    limit = select_limit(request)
    count = int(seconds * limit.rate) - 1
    if count <= 0:
        return
    scaled = limit.scale()
    token_bucket.spend(f"{limit.name}:{caller}", scaled.rate, scaled.burst, count, is_debt=True)
    _, wait_seconds, full_in_seconds = request.rate_limit_state  # type: ignore[attr-defined]
    full_in_seconds += count / scaled.rate
    request.rate_limit_state = scaled, wait_seconds, full_in_seconds  # type: ignore[attr-defined]


_NO_QUOTA = (0, 0, 0.0, 0.0)


class LocalQuota:
    """A process's share of a bucket, taken in one piece, so that most calls cost no trip to Redis.

    No more calls pass than the bucket gave. An unused share expires within a moment. The share
    doubles while it is used up, and after one that expired it is what was used of that one. So a
    rare caller takes one call at a time, and a steady one seldom asks.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # calls left, size, end of the share; when the bucket is full that gave it
        self._quotas: OrderedDict[str, tuple[int, int, float, float]] = OrderedDict()

    def take(self, key: str, limit: Limit) -> float | None:
        """Takes a call of the share at hand. Returns None where there is none.

        Returns in how many seconds the bucket is full, as if each call had been taken by itself.
        """
        now = self._clock()
        with self._lock:
            left_count, size, expires_at, full_at = self._quotas.get(key, _NO_QUOTA)
            if not left_count or now >= expires_at:
                return None
            left_count -= 1
            self._quotas[key] = left_count, size, expires_at, full_at
        return max(0.0, full_at - now - left_count / limit.rate)

    def spend(self, key: str, limit: Limit) -> tuple[float, float]:
        """Takes a call. Returns the seconds to wait (0.0 for none) and until the bucket is full."""
        return self.spend_many(key, limit, 1)[1:]

    def spend_many(self, key: str, limit: Limit, count: int) -> tuple[int, float, float]:
        """Takes calls that wait together, as many as there are in the bucket.

        Returns how many, the seconds that the next one has to wait, 0.0 where all were taken, and
        until the bucket is full.
        """
        return self.spend_all([(key, limit, count)])[0]

    def spend_all(self, calls: Sequence[tuple[str, Limit, int]]) -> list[tuple[int, float, float]]:
        """Returns for each key what `spend_many` does."""
        outcomes: list[Any] = [None] * len(calls)
        asking: list[tuple[int, int, int]] = []  # place, calls that the share lacks, next size
        for place, (key, limit, count) in enumerate(calls):
            missing = count
            while missing and (full_in_seconds := self.take(key, limit)) is not None:
                missing -= 1
                outcomes[place] = count, 0.0, full_in_seconds
            if missing:
                asking.append((place, missing, self._choose_size(key, limit)))
        if not asking:
            return outcomes
        takes = [
            Take(calls[place][0], calls[place][1].rate, calls[place][1].burst, max(size, missing))
            for place, missing, size in asking
        ]
        for (place, missing, size), spent in zip(
            asking, token_bucket.spend_all(takes), strict=True
        ):
            outcomes[place] = self._share(*calls[place], missing, size, spent)
        return outcomes

    def _choose_size(self, key: str, limit: Limit) -> int:
        """Returns how many calls the next share has."""
        now = self._clock()
        left, size, expires_at, _ = self._quotas.get(key, _NO_QUOTA)
        if now < expires_at:
            size *= 2
        else:
            size = size - left if now < expires_at + 2 * QUOTA_SECONDS else 1
        return min(max(1, size), max(1, int(limit.rate * QUOTA_SECONDS)))

    def _share(
        self,
        key: str,
        limit: Limit,
        count: int,
        missing: int,
        size: int,
        spent: tuple[float, float],
    ) -> tuple[int, float, float]:
        """Takes what is missing from what the bucket gave, and keeps the rest as a share."""
        asked = max(size, missing)
        wait_seconds, full_in_seconds = spent
        if wait_seconds and asked > 1:
            left = int(limit.burst - full_in_seconds * limit.rate)
            size, asked = 1, min(missing, max(1, left))
            wait_seconds, full_in_seconds = token_bucket.spend(key, limit.rate, limit.burst, asked)
        if wait_seconds:
            return count - missing, wait_seconds, full_in_seconds
        taken = min(asked, missing)
        now = self._clock()
        with self._lock:
            full_at = now + full_in_seconds
            self._quotas[key] = asked - taken, size, now + 2 * QUOTA_SECONDS, full_at
            self._quotas.move_to_end(key)
            if len(self._quotas) > token_bucket.MAX_BUCKETS:
                self._quotas.popitem(last=False)
        if taken < missing:
            wait_seconds = max(1 / limit.rate, full_in_seconds + (1 - limit.burst) / limit.rate)
        full_in_seconds -= (asked - taken) / limit.rate  # which are not used yet
        return count - missing + taken, wait_seconds, full_in_seconds


local_quota = LocalQuota()


def _spend(key: str, limit: Limit, is_quota_local: bool) -> tuple[float, float]:
    if is_quota_local:
        return local_quota.spend(key, limit)
    return token_bucket.spend(key, limit.rate, limit.burst)


# Failed authentication --------------------------------------------------------------------------


class RecentValues:
    """A bounded map of numbers; the oldest entry makes room."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: OrderedDict[Any, float] = OrderedDict()

    def get(self, key: Any) -> float:
        return self._values.get(key, 0.0)

    def put(self, key: Any, value: float) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > token_bucket.MAX_BUCKETS:
                self._values.popitem(last=False)


blocked_addresses = RecentValues()  # by address: blocked until
verified_credentials = RecentValues()  # by digest: accepted credentials


@contextmanager
def throttle_auth_failures(request: HttpMessage, credential: str) -> Iterator[None]:
    """Counts an authentication that fails in the block with 401 or 403, by address.

    An address with too many failures is blocked for a while and gets `RateLimited`. A credential
    that was accepted before still passes.
    """
    check_blocked(request, credential)
    try:
        yield
    except Exception as error:
        if getattr(error, "status", 0) not in {401, 403}:
            raise
        (blocked,) = count_auth_failures([request])
        if blocked is None:
            raise
        raise blocked from None
    note_verified(credential)


def count_auth_failures(requests: Sequence[HttpMessage]) -> list[RateLimited | None]:
    """Counts failed authentication, by two trips to Redis for all.

    Returns for each the error of an address that is blocked now, None for others.
    """
    outcomes: list[RateLimited | None] = [None] * len(requests)
    if not requests or not settings.EXHAUST_RATE_LIMIT_MULTIPLIER:
        return outcomes
    limit = AUTH_FAILURES.scale()
    addresses = [token_bucket.get_client_network(request) for request in requests]
    spent = token_bucket.spend_all(
        [Take(f"{limit.name}:{address}", limit.rate, limit.burst) for address in addresses]
    )
    for place, (wait_seconds, _) in enumerate(spent):
        if wait_seconds:
            blocked_addresses.put(addresses[place], time.monotonic() + wait_seconds)
            requests[place].rate_limit_state = limit, wait_seconds, wait_seconds  # type: ignore[attr-defined]
            outcomes[place] = RateLimited("Too many failures from this address; wait.")
    return outcomes


def note_verified(credential: str) -> None:
    """Notes that a credential was accepted: it passes also where its address is blocked."""
    digest = _digest(credential)
    if settings.EXHAUST_RATE_LIMIT_MULTIPLIER and not verified_credentials.get(digest):
        verified_credentials.put(digest, 1.0)


def check_blocked(request: HttpMessage, credential: str) -> None:
    """Raises `RateLimited` for a blocked address, unless the credential was accepted before."""
    if not settings.EXHAUST_RATE_LIMIT_MULTIPLIER:
        return
    blocked_until = blocked_addresses.get(token_bucket.get_client_network(request))
    seconds = blocked_until - time.monotonic() if blocked_until else 0.0
    if seconds > 0 and not verified_credentials.get(_digest(credential)):
        request.rate_limit_state = AUTH_FAILURES.scale(), seconds, seconds  # type: ignore[attr-defined]
        raise RateLimited("Too many failures from this address; wait.")


def _digest(credential: str) -> bytes:
    return blake2b(credential.encode("utf-8", "replace"), digest_size=16).digest()


# Headers ----------------------------------------------------------------------------------------


def add_rate_limit_headers(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    """Middleware that adds `Retry-After`, `RateLimit-Policy` and `RateLimit`, and charges the time.

    The latter two follow draft-ietf-httpapi-ratelimit-headers-10. Accepted events go without.
    """

    def respond(request: HttpRequest) -> HttpResponse:
        started_at = read_busy_seconds()
        response = get_response(request)
        charge_time(request, read_busy_seconds() - started_at)
        for name, value in build_headers(request).items():
            response[name] = value
        return response

    return respond


def build_headers(request: HttpMessage) -> dict[str, str]:
    """Returns the headers that tell the caller its limit; none for accepted events."""
    state = getattr(request, "rate_limit_state", None)  # Django's requests have none at first
    if state is None:
        return {}
    limit, wait_seconds, full_in_seconds = state
    if not wait_seconds and limit.name == EVENTS.name:
        return {}
    remaining = 0 if wait_seconds else round(limit.burst - full_in_seconds * limit.rate)
    window = math.ceil(limit.burst / limit.rate)
    headers = {
        "RateLimit-Policy": f'"{limit.name}";q={limit.burst};w={window}',
        "RateLimit": f'"{limit.name}";r={max(0, remaining)};t={math.ceil(full_in_seconds)}',
    }
    if wait_seconds:
        headers["Retry-After"] = str(math.ceil(wait_seconds))
    return headers
