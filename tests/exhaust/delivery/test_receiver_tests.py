"""A test of a destination is a delivery that a worker makes once, one at a time of a channel."""

from datetime import timedelta
from ipaddress import ip_network
from time import monotonic
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.utils import timezone

from exhaust import tasks
from exhaust.delivery import loop, receiver_tests, sender
from exhaust.models import Delivery, Destination
from ingest.events import RequestError
from tests.exhaust.destinations import (
    FakeElasticsearch,
    make_destination,
    received_documents,
    received_ids,
)
from tests.exhaust.receiver import Receiver, Silent, respond_with

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def local_receivers(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allows receivers on this machine, with a short timeout."""
    local = [ip_network("127.0.0.0/8")]
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {f"ORG_00{number}": local for number in range(5)}
    monkeypatch.setattr(receiver_tests, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(loop, "breaker", loop.HostBreaker())  # ports are used again


def run_test(destination: Destination) -> Delivery:
    delivery = receiver_tests.request_test(destination)
    tasks.send_tests()
    delivery.refresh_from_db()
    return delivery


def test_worker_sends_it_and_moves_no_cursor() -> None:
    with Receiver([respond_with(200), respond_with(403)]) as receiver:
        destination = make_destination(receiver)
        waiting = receiver_tests.request_test(destination)
        assert (waiting.kind, waiting.status, waiting.ended_at) == ("test", "waiting", None)
        assert receiver.received == []
        tasks.send_tests()
        bad = run_test(destination)
    waiting.refresh_from_db()
    assert (waiting.status, waiting.answer, waiting.error) == ("delivered", 200, "")
    assert waiting.attempted_at is not None
    assert waiting.ended_at is not None
    assert waiting.byte_count == len(receiver.received[0].body)
    assert (bad.status, bad.answer, bad.error) == ("dead", 403, "The answer was 403.")
    assert received_documents(receiver)[0]["userSessionId"].startswith("test-")
    assert len(set(received_ids(receiver))) == 2
    destination.refresh_from_db()
    assert (destination.cursor_xid, destination.failures) == (0, 0)


def test_channel_has_one_at_a_time() -> None:
    first, second = make_destination(), make_destination(name="second")
    elsewhere = make_destination(channel="ORG_002")
    waiting = receiver_tests.request_test(first)
    assert receiver_tests.request_test(first) == waiting
    with pytest.raises(RequestError, match="“ours” is being tested") as error:
        receiver_tests.request_test(second)
    assert error.value.status == 409
    assert receiver_tests.request_test(elsewhere).channel_id == elsewhere.channel_id
    Delivery.objects.filter(pk=waiting.pk).update(status="dead", ended_at=timezone.now())
    assert receiver_tests.request_test(second).destination_id == second.pk


def test_silent_receivers_are_sent_to_at_once() -> None:
    with Receiver([Silent()] * 4) as silent:
        for number in range(4):
            receiver_tests.request_test(make_destination(silent, channel=f"ORG_00{number}"))
        started_at = monotonic()
        tasks.send_tests()
        assert monotonic() - started_at < 4 * 0.5
        assert silent.connections == 4
    assert set(Delivery.objects.values_list("status", "answer")) == {("dead", None)}


def test_lost_worker_ends_it() -> None:
    with Receiver() as receiver:
        waiting = receiver_tests.request_test(make_destination(receiver))
        long_ago = timezone.now() - timedelta(minutes=5)
        Delivery.objects.update(attempt=1, lease_until=long_ago)
        tasks.send_tests()
        assert receiver.received == []
    waiting.refresh_from_db()
    assert waiting.status == "dead"
    assert "test it again" in waiting.error


def test_unreadable_password_ends_it(settings: Any) -> None:
    destination = make_destination(user="us", password="secret word")
    settings.EXHAUST_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    delivery = run_test(destination)
    assert delivery.status == "dead"
    assert "decrypted" in delivery.error


def test_rejected_bulk_item_is_explained() -> None:
    index = FakeElasticsearch(lambda identifier: 400)
    with Receiver(choose_behaviour=index) as receiver:
        destination = make_destination(
            receiver, kind="elasticsearch", method="POST", index="sessions"
        )
        delivery = run_test(destination)
    assert (delivery.status, delivery.answer) == ("dead", 200)
    assert delivery.error.startswith("400 ")


def test_ended_ones_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_tests, "MAX_KEPT", 2)
    with Receiver() as receiver:
        destination = make_destination(receiver)
        made = [run_test(destination).pk for _ in range(4)]
    assert list(destination.deliveries.order_by("pk").values_list("pk", flat=True)) == made[2:]


def test_destination_deleted_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    def delete_all(*_: Any) -> Any:
        Destination.objects.all().delete()
        return OSError("no answer")

    destination = make_destination()
    monkeypatch.setattr(sender, "send", delete_all)
    receiver_tests.request_test(destination)
    tasks.send_tests()
    assert not Delivery.objects.exists()
    with pytest.raises(RequestError) as error:
        receiver_tests.request_test(destination)
    assert error.value.status == 404


@pytest.mark.usefixtures("daily_run_finished")
def test_sweep_wakes_for_tests(enqueued_tasks: list[str]) -> None:
    destination = make_destination()
    Destination.objects.update(paused_at=timezone.now())
    receiver_tests.request_test(destination)
    tasks.sweep()
    assert enqueued_tasks == ["exhaust.send_tests"]
