"""The loop of deliveries: destinations and callbacks are claimed, leased and retried alike."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from exhaust.delivery import callbacks, loop, pump
from exhaust.delivery.backoff import Backoff
from exhaust.delivery.http_client import Answer, NoAnswer
from exhaust.models import Callback, Destination
from tests.exhaust.destinations import make_destination
from tests.exhaust.factories import make_finished

pytestmark = pytest.mark.django_db


def make_due_destination() -> Destination:
    destination = make_destination()
    destination.dead_letters.create(
        row=1, xid=1, document_id="a", answer=400, reason="", requeued_at=timezone.now()
    )
    return destination


def make_due_callback() -> Callback:
    past = timezone.now() - timedelta(seconds=1)
    make_finished(callback_url="https://receiver.example/hook")
    Callback.objects.update(next_at=past)
    return Callback.objects.get()


each_kind = pytest.mark.parametrize(
    ("make_row", "find_due"),
    [(make_due_destination, pump.find_due), (make_due_callback, callbacks.find_due)],
    ids=["destination", "callback"],
)


@each_kind
def test_lost_lease_writes_nothing(make_row: Callable[[], Any], find_due: Any) -> None:
    # given a claim whose lease has expired, and the claim of another worker
    make_row()
    first = loop.claim(find_due())
    assert first is not None
    assert loop.claim(find_due()) is None
    expired = timezone.now() - timedelta(seconds=1)
    loop.claimed_row(first).update(lease_until=expired)
    second = loop.claim(find_due())
    assert second is not None

    # then only the other one may write
    later = timezone.now() + timedelta(hours=1)
    assert second.fencing_token == first.fencing_token + 1
    assert not loop.release(first, next_at=later)
    assert loop.release(second, next_at=later)
    assert loop.claim(find_due()) is None


@each_kind
def test_lease_has_one_length(make_row: Callable[[], Any], find_due: Any) -> None:
    make_row()
    row = loop.claim(find_due())
    assert row is not None
    row.refresh_from_db()
    lease = row.lease_until - timezone.now()
    assert timedelta(0) < lease <= loop.LEASE
    assert lease > loop.LEASE - timedelta(seconds=30)


@pytest.mark.parametrize(
    ("can_shorten", "retry_after_seconds", "seconds"),
    [(True, 1, 1), (False, 1, 10), (True, 15, 15), (False, 15, 15), (False, 99, 20), (True, 0, 10)],
)
def test_backoff_follows_retry_after(
    can_shorten: bool, retry_after_seconds: int, seconds: int
) -> None:
    backoff = Backoff((10, 20), jitter=(1.0, 1.0), can_shorten=can_shorten)

    assert backoff.delay(1, retry_after_seconds) == timedelta(seconds=seconds)
    assert backoff.max_attempts == 3


def test_silent_host_is_probed_by_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a host that was silent thrice in a row, for one channel
    now = 0.0
    monkeypatch.setattr(loop, "monotonic", lambda: now)
    breaker = loop.HostBreaker()
    url, silence = "https://receiver.example/hook", NoAnswer("No answer within 15 seconds.")
    for _ in range(3):
        assert breaker.seconds_left(1, url) == 0
        breaker.record(1, url, silence)

    # then no request of this channel is sent there for half a minute, and then one
    assert breaker.seconds_left(1, url) == 30
    assert breaker.seconds_left(2, url) == breaker.seconds_left(1, "https://other.example/") == 0
    now = 30.0
    assert [breaker.seconds_left(1, url), breaker.seconds_left(1, url)] == [0, 30]
    breaker.record(1, url, silence)
    assert breaker.seconds_left(1, url) == 30

    # and all of them after an answer
    breaker.record(1, url, Answer(503, b"", 0))
    assert breaker.seconds_left(1, url) == 0
