import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis
from django.test import RequestFactory

from ingest.limits import token_bucket
from ingest.limits.token_bucket import REDIS_PREFIX, ProcessLimiter, RedisLimiter, Take

RATE, BURST = 100, 500


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def seconds(self) -> float:
        return self.now

    def nanoseconds(self) -> int:
        return round(self.now * 1_000_000_000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(settings: Any) -> Iterator[redis.Redis]:
    """The Redis of the installation; the test's buckets are gone afterwards."""
    client = redis.Redis.from_url(settings.CELERY_BROKER_URL)
    yield client
    for key in client.scan_iter(REDIS_PREFIX + "test:*"):
        client.delete(key)
    client.close()


def key() -> str:
    return f"test:{uuid4()}"


def count_passed(take: Callable[[], float], times: int) -> int:
    return sum(take() == 0.0 for _ in range(times))


def count_passed_by_threads(take: Callable[[], float], times_each: int) -> int:
    """How many of all their calls passed."""
    barrier = threading.Barrier(8)
    counts: list[int] = []

    def call() -> None:
        barrier.wait()
        counts.append(count_passed(take, times_each))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == 8
    return sum(counts)


# in process -------------------------------------------------------------------------------------


def test_burst_passes_then_next_waits(clock: Clock):
    buckets = ProcessLimiter(clock.nanoseconds)

    assert count_passed(lambda: buckets.take("a", RATE, BURST), BURST) == BURST
    assert buckets.take("a", RATE, BURST) == 0.01
    assert buckets.take("a", RATE, BURST) == 0.01  # a refusal costs nothing


@pytest.mark.parametrize(
    ("seconds", "let_through"), [(0.009, 0), (0.01, 1), (0.5, 50), (1, 100), (5, 500), (900, 500)]
)
def test_bucket_refills_up_to_burst(clock: Clock, seconds: float, let_through: int):
    buckets = ProcessLimiter(clock.nanoseconds)
    count_passed(lambda: buckets.take("a", RATE, BURST), BURST)

    clock.now += seconds

    assert count_passed(lambda: buckets.take("a", RATE, BURST), 600) == let_through


def test_calls_at_rate_never_wait(clock: Clock):
    buckets = ProcessLimiter(clock.nanoseconds)

    for _ in range(2_000):
        assert buckets.take("a", RATE, 1) == 0.0
        clock.now += 0.01


def test_reported_wait_is_enough(clock: Clock):
    buckets = ProcessLimiter(clock.nanoseconds)
    count_passed(lambda: buckets.take("a", 0.5, 1), 1)

    wait = buckets.take("a", 0.5, 1)
    clock.now += wait

    assert wait == 2.0
    assert buckets.take("a", 0.5, 1) == 0.0


def check_debt(buckets: Any, name: str) -> None:
    """A debt is taken in any case, is paid by waiting, and ends at two bursts."""
    assert buckets.spend(name, 0.01, 10, 6, is_debt=True)[0] == 0.0
    assert count_passed(lambda: buckets.take(name, 0.01, 10), 6) == 4
    waits = []
    for _ in range(3):
        assert buckets.spend(name, 0.01, 10, 6, is_debt=True)[0] == 0.0
        waits.append(buckets.take(name, 0.01, 10))
    assert waits == pytest.approx([700, 1100, 1100], abs=5)


def test_debt_makes_later_calls_wait(clock: Clock):
    check_debt(ProcessLimiter(clock.nanoseconds), "a")


@pytest.mark.redis
def test_debt_in_redis_is_alike(server: redis.Redis, settings: Any):
    check_debt(RedisLimiter(settings.CELERY_BROKER_URL), key())


def test_each_key_has_its_own_bucket(clock: Clock):
    buckets = ProcessLimiter(clock.nanoseconds)
    count_passed(lambda: buckets.take("a", RATE, BURST), BURST)

    assert buckets.take("b", RATE, BURST) == 0.0


def test_memory_is_bounded_by_least_recent(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_bucket, "MAX_BUCKETS", 100)
    buckets = ProcessLimiter(clock.nanoseconds)

    for number in range(1_000):
        buckets.take(str(number), RATE, BURST)
        buckets.take("busy", 0.001, 1)

    assert len(buckets.buckets) == 100
    assert buckets.take("busy", 0.001, 1) > 0


def test_threads_share_one_bucket_exactly(clock: Clock):
    buckets = ProcessLimiter(clock.nanoseconds)

    assert count_passed_by_threads(lambda: buckets.take("a", RATE, BURST), 250) == BURST


# Redis ------------------------------------------------------------------------------------------


@pytest.mark.redis
def test_threads_share_redis_bucket_exactly(server: redis.Redis, settings: Any):
    # a step so long that nothing refills while the test runs; each thread its own connection,
    # as separate processes have
    name = key()
    shared = threading.local()

    def take() -> float:
        if not hasattr(shared, "buckets"):
            shared.buckets = RedisLimiter(settings.CELERY_BROKER_URL)
        return float(shared.buckets.take(name, 0.001, BURST))

    assert count_passed_by_threads(take, 125) == BURST


@pytest.mark.redis
def test_redis_and_process_agree(server: redis.Redis, settings: Any, clock: Clock):
    there, here = RedisLimiter(settings.CELERY_BROKER_URL), ProcessLimiter(clock.nanoseconds)
    name = key()

    for _ in range(7):
        told = there.take(name, 0.01, 5), here.take(name, 0.01, 5)
        assert told[0] == pytest.approx(told[1], abs=5)
        assert (told[0] == 0) is (told[1] == 0)


@pytest.mark.redis
def test_redis_bucket_refills_and_expires(server: redis.Redis, settings: Any):
    buckets, name = RedisLimiter(settings.CELERY_BROKER_URL), key()
    assert count_passed(lambda: buckets.take(name, 2, 2), 3) == 2
    assert 1_000 < server.pttl(REDIS_PREFIX + name) <= 2_000

    time.sleep(buckets.take(name, 2, 2))

    assert count_passed(lambda: buckets.take(name, 2, 2), 3) == 1


@pytest.mark.redis
def test_clock_set_back_locks_no_caller_out(server: redis.Redis, settings: Any):
    buckets, name = RedisLimiter(settings.CELERY_BROKER_URL), key()
    server.set(REDIS_PREFIX + name, str(int((time.time() + 86_400) * 1_000_000)))

    assert buckets.take(name, 100, 5) == pytest.approx(0.06, abs=0.005)


@pytest.mark.redis
@pytest.mark.parametrize("kept", ["no number", "list"])
def test_corrupt_bucket_lets_pass(
    server: redis.Redis, settings: Any, kept: str, caplog: pytest.LogCaptureFixture
):
    buckets, name = RedisLimiter(settings.CELERY_BROKER_URL), key()
    if kept == "list":
        server.lpush(REDIS_PREFIX + name, "x")
    else:
        server.set(REDIS_PREFIX + name, kept)

    assert buckets.take(name, RATE, BURST) == 0.0
    assert len(caplog.records) == 1


@pytest.mark.redis
def test_script_is_reloaded_after_flush(server: redis.Redis, settings: Any):
    buckets, name = RedisLimiter(settings.CELERY_BROKER_URL), key()
    buckets.take(name, 0.001, 2)

    server.script_flush()

    assert buckets.take(name, 0.001, 2) == 0.0
    assert buckets.take(name, 0.001, 2) > 0.0


@pytest.mark.redis
def test_several_takes_are_one_by_one(server: redis.Redis, settings: Any):
    server.script_flush()
    takes = [Take(name, 0.001, 3, 2) for name in (key(), key())] * 2
    expected = ProcessLimiter(lambda: 0).spend_all(takes)

    spent = RedisLimiter(settings.CELERY_BROKER_URL).spend_all(takes)

    assert [wait > 0 for wait, _ in spent] == [wait > 0 for wait, _ in expected]
    assert [wait > 0 for wait, _ in spent] == [False, False, True, True]
    assert [full for _, full in spent] == [pytest.approx(full, rel=0.01) for _, full in expected]


@pytest.mark.redis
def test_redis_broker_selects_redis_limiter(server: redis.Redis):
    name = key()

    assert count_passed(lambda: token_bucket.take(name, 0.001, 3), 5) == 3
    assert server.exists(REDIS_PREFIX + name) == 1


# Redis out of order -----------------------------------------------------------------------------


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def url(listening: socket.socket) -> str:
    return f"redis://127.0.0.1:{listening.getsockname()[1]}/0"


def test_process_counts_while_redis_is_down(port: socket.socket, caplog: pytest.LogCaptureFixture):
    buckets = RedisLimiter(url(port))
    port.close()

    began = time.monotonic()
    let_through = count_passed(lambda: buckets.take("a", 0.001, 700), 1_000)

    assert let_through == 700  # counted here meanwhile
    assert time.monotonic() - began < 1
    (record,) = caplog.records
    assert record.msg == {
        "event": "rate_limiter.redis_failed",
        "error": "ConnectionRefusedError",
        "code": "ECONNREFUSED",
    }


def test_silent_redis_costs_one_timeout(port: socket.socket, clock: Clock):
    buckets = RedisLimiter(url(port), clock.seconds)

    began = time.monotonic()
    let_through = count_passed(lambda: buckets.take("a", RATE, 2_000), 1_000)
    once = time.monotonic() - began
    clock.now += token_bucket.REDIS_RETRY_SECONDS
    let_through += count_passed(lambda: buckets.take("a", RATE, 2_000), 1_000)

    assert let_through == 2_000
    assert once < 1
    assert token_bucket.REDIS_TIMEOUT_SECONDS <= once < time.monotonic() - began < 2


def test_redis_failure_logged_once_a_minute(
    port: socket.socket, clock: Clock, caplog: pytest.LogCaptureFixture
):
    buckets = RedisLimiter(url(port), clock.seconds)
    port.close()

    for _ in range(121):
        buckets.take("a", RATE, 1)
        clock.now += 1

    assert [(r.name, r.levelno) for r in caplog.records] == [
        ("ingest.limits.token_bucket", logging.WARNING)
    ] * 3


@pytest.mark.parametrize("said", ["soon", None, -1, [1], [-1, 0], [0, -1], [0.5, 1], [b"1", 2]])
def test_unexpected_reply_lets_pass(
    said: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    buckets = RedisLimiter("redis://127.0.0.1:1/0")
    monkeypatch.setattr(buckets, "script", lambda **_: said)

    assert buckets.take("a", RATE, 1) == 0.0
    assert len(caplog.records) == 1


def test_invalid_redis_url_lets_pass(caplog: pytest.LogCaptureFixture):
    assert RedisLimiter("redis://host:port/0").take("a", RATE, 1) == 0.0
    assert len(caplog.records) == 1


@pytest.mark.redis
def test_redis_is_used_again_after_recovery(server: redis.Redis, settings: Any, clock: Clock):
    buckets, name = RedisLimiter(settings.CELERY_BROKER_URL, clock.seconds), key()
    works = buckets.connect().register_script("return redis.error_reply('no')")
    buckets.script = works
    assert count_passed(lambda: buckets.take(name, 0.001, 1), 2) == 1
    assert not server.exists(REDIS_PREFIX + name)

    buckets.script = None
    clock.now += token_bucket.REDIS_RETRY_SECONDS

    assert count_passed(lambda: buckets.take(name, 0.001, 1), 2) == 1
    assert server.exists(REDIS_PREFIX + name)


# whose call it is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proxies", "forwarded", "expected"),
    [
        (0, None, "192.0.2.7"),
        (0, "203.0.113.5", "192.0.2.7"),
        (1, None, "192.0.2.7"),
        (1, "203.0.113.5", "203.0.113.5"),
        (1, "10.0.0.1, 198.51.100.9 , 203.0.113.5 ", "203.0.113.5"),
        (1, "203.0.113.5, ", "192.0.2.7"),
        (1, "x" * 5_000, "192.0.2.7"),
        # with a port, in brackets, as IPv4 inside of IPv6, with the zone of a machine
        (1, "203.0.113.7:51234", "203.0.113.7"),
        (1, "[2001:db8::1]:443", "2001:db8::1"),
        (1, "[2001:db8::1]", "2001:db8::1"),
        (1, "2001:DB8::1", "2001:db8::1"),
        (1, "::ffff:203.0.113.7", "203.0.113.7"),
        (1, "[::ffff:203.0.113.7]:80", "203.0.113.7"),
        (1, "fe80::1%eth0", "fe80::1"),
        # no address
        (1, "unknown", "192.0.2.7"),
        (1, "_hidden:80", "192.0.2.7"),
        (1, "203.0.113.7:", "192.0.2.7"),
        (1, "[2001:db8::1", "192.0.2.7"),
        (1, "203.0.113.999", "192.0.2.7"),
        (1, "\u0662\u0660\u0663.0.113.7", "192.0.2.7"),
        # what the outermost of our proxies wrote; one before it is the client's own word
        (2, "10.0.0.1, 203.0.113.7:80, 198.51.100.9", "203.0.113.7"),
        (2, "203.0.113.7", "203.0.113.7"),
        (2, "unknown, 198.51.100.9", "192.0.2.7"),
        (3, "10.0.0.1, 203.0.113.7, 198.51.100.9, 198.51.100.8", "203.0.113.7"),
    ],
)
def test_client_address_is_peer_or_forwarded(
    proxies: int, forwarded: str | None, expected: str, settings: Any, rf: RequestFactory
):
    settings.EXHAUST_BEHIND_PROXY = proxies
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}

    request = rf.get("/hit", headers=headers, REMOTE_ADDR="192.0.2.7")

    assert token_bucket.get_client_address(request) == expected


def test_peer_address_is_read_alike(rf: RequestFactory):
    for peer, expected in (("::ffff:192.0.2.7", "192.0.2.7"), ("", ""), ("unix:", "")):
        assert token_bucket.get_client_address(rf.get("/hit", REMOTE_ADDR=peer)) == expected


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("no address", "no address"),
    ],
)
def test_network_of_a_caller(address: str, network: str):
    assert token_bucket.find_network(address) == network


def test_embedded_uses_process_limiter(settings: Any):
    settings.CELERY_BROKER_URL = "filesystem://localhost//"

    assert isinstance(token_bucket.get_limiter(settings.CELERY_BROKER_URL), ProcessLimiter)
    name = key()
    assert count_passed(lambda: token_bucket.take(name, 0.001, 3), 5) == 3
