"""Token buckets, exact across processes where Redis is the broker.

A bucket is one number (GCRA): the time at which it is full again. A call moves it on by one step. A
call that would move it more than the burst ahead of now has to wait. A debt moves it in any case,
up to two bursts ahead. While Redis fails, each process counts for itself and logs it.
"""

import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from django.conf import settings

from ingest import logs

if TYPE_CHECKING:
    import redis

log = logs.get_logger(__name__)
_WITH_PORT = re.compile(r"\[([^\]]+)\](?::\d+)?|([\d.]+):\d+")

REDIS_PREFIX = "exhaust:rate_limit:"
REDIS_TIMEOUT_SECONDS = 0.2
REDIS_RETRY_SECONDS = 1.0  # after a failure, without a call to Redis
WARNING_SECONDS = 60.0
MAX_BUCKETS = 10_000  # in process


def take(key: str, rate: float, burst: int) -> float:
    """Takes one of `rate` calls a second, `burst` at once. Returns the seconds to wait, or 0.0."""
    return spend(key, rate, burst)[0]


def spend(
    key: str, rate: float, burst: int, count: int = 1, *, is_debt: bool = False
) -> tuple[float, float]:
    """Takes `count` calls. Returns the seconds to wait (0.0 for none) and until the bucket is full.

    A rejected call takes nothing. A debt is never rejected; later calls wait for it.
    """
    limiter = get_limiter(settings.CELERY_BROKER_URL)
    return limiter.spend(key, rate, burst, count, is_debt=is_debt)


class Take(NamedTuple):
    """Calls to take from a bucket."""

    key: str
    rate: float
    burst: int
    calls: int = 1


def spend_all(takes: Sequence[Take]) -> list[tuple[float, float]]:
    """Returns for each what `spend` does, by two trips to Redis for all."""
    if len(takes) == 1:
        return [spend(*takes[0])]
    return get_limiter(settings.CELERY_BROKER_URL).spend_all(takes)


class HttpMessage(Protocol):
    """What limits and authentication read of a request: Django's, or an event loop's."""

    @property
    def META(self) -> dict[str, Any]: ...  # Django's name

    @property
    def headers(self) -> Any: ...

    @property
    def method(self) -> str | None: ...

    @property
    def path(self) -> str: ...


def get_client_address(request: HttpMessage) -> str:
    """Returns the client's IP address; "" where the server knows none.

    Behind proxies it is what the outermost one wrote into X-Forwarded-For: the first of the last
    `EXHAUST_BEHIND_PROXY` entries. Where that is no address, the peer's own counts.
    """
    return read_client_address(request.META)


def read_client_address(meta: Mapping[str, Any]) -> str:
    """Returns the same from Django's `META`, or from what a WSGI server passes."""
    if proxies := int(settings.EXHAUST_BEHIND_PROXY):
        entries = meta.get("HTTP_X_FORWARDED_FOR", "").rsplit(",", proxies)[-proxies:]
        if address := parse_address(entries[0]):
            return address
    return parse_address(meta.get("REMOTE_ADDR", ""))


@lru_cache(maxsize=4096)
def parse_address(text: str) -> str:
    """Returns the IP address in an entry of X-Forwarded-For; "" for none.

    Some proxies add the port, with brackets around an IPv6 address. Others write `unknown`.
    """
    host = text.strip()
    if match := _WITH_PORT.fullmatch(host):
        host = match[1] or match[2]
    try:
        ip = ip_address(host.partition("%")[0])  # a zone is of one machine
    except ValueError:
        return ""
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def get_client_network(request: HttpMessage) -> str:
    """Returns the network of the client's address."""
    return find_network(get_client_address(request))


def get_network_address(request: HttpMessage) -> str:
    """Returns the first address of the client's network, for what stores addresses alone."""
    return get_client_network(request).partition("/")[0]


@lru_cache(maxsize=4096)
def find_network(address: str) -> str:
    """Returns the network that one caller has: the address, or for IPv6 its first 64 bits."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, IPv6Address):
        return str(ip.ipv4_mapped or ip_network((ip, 64), strict=False))
    return address


class ProcessLimiter:
    """Buckets of this process; the least recently used one makes room."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.buckets: OrderedDict[str, int] = OrderedDict()

    def take(self, key: str, rate: float, burst: int) -> float:
        return self.spend(key, rate, burst)[0]

    def spend(
        self, key: str, rate: float, burst: int, count: int = 1, *, is_debt: bool = False
    ) -> tuple[float, float]:
        # whole nanoseconds: sums of fractions drift, and would reject the last call of a burst
        step = round(1_000_000_000 / rate)
        with self._lock:
            now = self._clock()
            previous = max(self.buckets.pop(key, now), now)
            full_at = previous + step * count
            wait_ns = 0 if is_debt else full_at - burst * step - now
            full_at = min(full_at, now + 2 * burst * step)
            self.buckets[key] = full_at = previous if wait_ns > 0 else full_at
            if len(self.buckets) > MAX_BUCKETS:
                self.buckets.popitem(last=False)
        return max(wait_ns, 0) / 1_000_000_000, (full_at - now) / 1_000_000_000

    def spend_all(self, takes: Sequence[Take]) -> list[tuple[float, float]]:
        return [self.spend(*take) for take in takes]


# One script makes reading and moving atomic. It uses the clock of Redis, because those of two web
# servers differ. Whole microseconds stay exact in Lua's doubles. A bucket that is more than two
# bursts ahead comes from a clock that was set back since.
_GCRA = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local step = tonumber(ARGV[1])
local burst = tonumber(ARGV[2]) * step
local before = tonumber(redis.call('GET', KEYS[1]) or now)
before = math.max(now, math.min(before, now + 2 * burst))
local full_at = before + step * tonumber(ARGV[3])
local wait = full_at - burst - now
if wait > 0 and ARGV[4] == '0' then
    return {wait, before - now}
end
full_at = math.min(full_at, now + 2 * burst)
redis.call('SET', KEYS[1], string.format('%.0f', full_at),
    'PX', math.ceil((full_at - now) / 1000) + 1000)
return {0, full_at - now}
"""


class RedisLimiter:
    """Buckets in Redis, shared by all processes."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self.script: Any = None
        self._retry_redis_at = self._next_warning_at = -math.inf
        self._fallback = ProcessLimiter(lambda: round(clock() * 1_000_000_000))  # while Redis fails

    def take(self, key: str, rate: float, burst: int) -> float:
        return self.spend(key, rate, burst)[0]

    def spend(
        self, key: str, rate: float, burst: int, count: int = 1, *, is_debt: bool = False
    ) -> tuple[float, float]:
        return self._spend([Take(key, rate, burst, count)], is_debt=is_debt)[0]

    def spend_all(self, takes: Sequence[Take]) -> list[tuple[float, float]]:
        return self._spend(takes)

    def _spend(self, takes: Sequence[Take], *, is_debt: bool = False) -> list[tuple[float, float]]:
        if self._clock() >= self._retry_redis_at:
            try:
                return [_read_reply(reply) for reply in self._run_script(takes, is_debt=is_debt)]
            except Exception as error:  # no failure of Redis may reject a call
                now = self._clock()
                self._retry_redis_at = now + REDIS_RETRY_SECONDS
                if now >= self._next_warning_at:
                    self._next_warning_at = now + WARNING_SECONDS
                    log.warning("rate_limiter.redis_failed", error=error)
        return [self._fallback.spend(*take, is_debt=is_debt) for take in takes]

    def _run_script(self, takes: Sequence[Take], *, is_debt: bool) -> list[object]:
        if self.script is None:
            self.script = self.connect().register_script(_GCRA)
        calls = [
            (
                REDIS_PREFIX + take.key,
                [round(1_000_000 / take.rate), take.burst, take.calls, int(is_debt)],
            )
            for take in takes
        ]
        (key, arguments), *others = calls
        replies = [self.script(keys=[key], args=arguments)]  # which loads it into Redis
        if others:
            with self.script.registered_client.pipeline(transaction=False) as pipeline:
                for key, arguments in others:
                    pipeline.evalsha(self.script.sha, 1, key, *arguments)
                replies += pipeline.execute()
        return replies

    def connect(self) -> "redis.Redis":
        import redis  # slow to import, and not needed without Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return redis.Redis.from_url(
            self._url,
            socket_timeout=REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),  # the default tries three times
        )


def _read_reply(reply: object) -> tuple[float, float]:
    match reply:
        case [int(wait), int(behind)] if wait >= 0 and behind >= 0:
            return wait / 1_000_000, behind / 1_000_000
    raise ValueError("no waiting time")


@cache
def get_limiter(url: str) -> ProcessLimiter | RedisLimiter:
    return RedisLimiter(url) if url.startswith("redis") else ProcessLimiter()
