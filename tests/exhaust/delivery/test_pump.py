"""A destination gets every document, and its cursor moves only after a success."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from base64 import b64encode
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.db import connection, connections, transaction
from django.test import Client
from django.utils import timezone
from standardwebhooks import Webhook

from exhaust import tasks
from exhaust.delivery import (
    batches,
    destinations,
    http_client,
    loop,
    pump,
    receiver_tests,
    sender,
    states,
)
from exhaust.maintenance import daily
from exhaust.models import DeadLetter, Delivery, Destination
from ingest.derive import deriver
from ingest.events import Batch
from ingest.feed import reader, values
from ingest.feed.watermark import fetch_watermark
from ingest.models import Application, Participant, ReadCount, Session, StoredEvent
from ingest.privacy import consent, erasure
from ingest.store import batches as store
from tests.conftest import make_channel
from tests.exhaust.destinations import (
    LONG_AGO,
    deliver_all,
    derive_sessions,
    emit_sessions,
    is_at_end,
    make_destination,
    make_due,
    received_documents,
    received_ids,
    wait_for_watermark,
)
from tests.exhaust.factories import make_answer, send_events
from tests.exhaust.receiver import Receiver, Silent, drip, reset_connection, respond_with
from tests.ingest.derive.test_sessions import MINUTE, event

pytestmark = pytest.mark.django_db(transaction=True)
SECRET = "whsec_" + b64encode(b"x" * 32).decode()


@pytest.fixture(autouse=True)
def local_receivers(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allows receivers on this machine, with a short timeout and no lingering."""
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {
        f"ORG_{name}": [ip_network("127.0.0.0/8")] for name in ("001", "002", *range(20))
    }
    monkeypatch.setattr(sender, "BATCH_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(pump, "LINGER", timedelta(seconds=-1))
    monkeypatch.setattr(loop, "breaker", loop.HostBreaker())  # ports are used again


# The request -------------------------------------------------------------------------------------


def test_closed_sessions_are_sent_once() -> None:
    emitted = emit_sessions(1, 2, 3)
    with Receiver() as receiver:
        destination = deliver_all(make_destination(receiver))
        assert sorted(received_ids(receiver)) == sorted(emitted)
        assert is_at_end(destination)

        deliver_all(destination)
        assert len(receiver.received) == 1

        emitted += emit_sessions(4)
        deliver_all(destination)
        assert sorted(received_ids(receiver)) == sorted(emitted)
    (request, _) = receiver.received
    assert request.line == "PUT /hook HTTP/1.1"
    assert request.headers["content-type"] == "application/x-ndjson"
    assert request.body.endswith(b"\n")
    assert "authorization" not in request.headers
    assert "webhook-id" not in request.headers
    assert [each.status for each in destination.deliveries.all()] == ["delivered"] * 2
    assert [each.documents for each in destination.deliveries.order_by("id")] == [3, 1]
    counted = ReadCount.objects.values_list("action", "actor", "channel", "subject")
    subject = f"sessions to {destination.name}"
    assert set(counted) == {("feed.pushed", "service", "ORG_001", subject)}
    assert sum(row.row_count for row in ReadCount.objects.all()) == 4


def test_client_session_is_sent_unchanged() -> None:
    emit_sessions(7, stringTags={"ä": "\n"}, big=12345678901234567890, half=0.1)
    with Receiver() as receiver:
        deliver_all(make_destination(receiver, method="POST", content_type="application/json"))
    (document,) = received_documents(receiver)
    assert document["userSessionId"] == "1394_1015"
    assert (document["stringTags"], document["big"], document["half"]) == (
        {"ä": "\n"}, 12345678901234567890, 0.1,
    )  # fmt: skip
    assert [len(document[name]) for name in ("userActions", "events", "errors")] == [1, 1, 1]
    assert receiver.received[0].line.startswith("POST ")
    assert receiver.received[0].headers["content-type"] == "application/json"


def test_derived_session_document() -> None:
    channel = make_channel()
    start = timezone.now() - timedelta(hours=2)
    types = ["_session_start", "_page_view", "_click", "_app_exception"]
    events = [
        event(occurred_at=start + number * MINUTE, type=type_) for number, type_ in enumerate(types)
    ]
    other = event(occurred_at=start, device_id="somebody else")
    store.append_batch(channel.pk, Batch("clickstream", timezone.now(), [*events, other], []))
    derive_sessions(channel)
    key = Session.objects.get(device_id="device-1").key

    with Receiver() as receiver:
        deliver_all(make_destination(receiver))
    document = next(
        each for each in received_documents(receiver) if each["internalUserId"] == "device-1"
    )
    start_ms = int(start.timestamp() * 1000)
    assert (document["tenantId"], document["userSessionId"]) == ("ORG_001", str(key))
    assert (document["startTime"], document["endTime"]) == (start_ms, start_ms + 180_000)
    assert document["duration"] == 180_000
    assert [each["name"] for each in document["userActions"]] == ["_page_view", "_click"]
    assert [each["name"] for each in document["events"]] == ["_session_start"]
    assert [each["name"] for each in document["errors"]] == ["_app_exception"]
    assert (document["userActionCount"], document["totalErrorCount"], document["bounce"]) == (
        2,
        1,
        False,
    )
    assert document["userActions"][0]["startTime"] == start_ms + 60_000


def test_open_session_is_not_sent() -> None:
    channel = make_channel()
    now = timezone.now()
    store.append_batch(channel.pk, Batch("test", now, [event(occurred_at=now - MINUTE)], []))
    derive_sessions(channel)
    with Receiver() as receiver:
        destination = deliver_all(make_destination(receiver))
        assert receiver.received == []
        assert is_at_end(destination)
        deriver.close_sessions(channel.pk, now=now + 31 * MINUTE)
        wait_for_watermark()
        deliver_all(destination)
    assert len(received_documents(receiver)) == 1


def test_events_equal_pull_items(client: Client) -> None:
    from tests.conftest import bearer, make_key

    emit_sessions(1)
    with Receiver() as receiver:
        destination = make_destination(receiver, resource="events", types=["userAction", "error"])
        deliver_all(destination)
    query = {"events": ["userAction", "error"]}
    page = client.get("/export/events", query, headers=bearer(make_key("pull"))).json()
    assert received_documents(receiver) == page["items"]
    assert len(page["items"]) == 2


def test_basic_auth_and_signature() -> None:
    emit_sessions(1)
    with Receiver([respond_with(500), respond_with(204)]) as receiver:
        destination = make_destination(receiver, user="us", password="pass:word", secret=SECRET)
        deliver_all(deliver_all(destination))
    first, second = receiver.received
    assert first.headers["authorization"] == "Basic " + b64encode(b"us:pass:word").decode()
    for request in (first, second):
        line = request.body.strip()
        assert Webhook(SECRET).verify(request.body, request.headers) == json.loads(line)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


def test_batch_ends_by_count_bytes_or_linger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "MAX_BATCH_DOCUMENTS", 3)
    monkeypatch.setattr(batches, "FIRST_READ_ROWS", 2)
    monkeypatch.setattr(batches, "MAX_BATCH_BYTES", 4_000)
    emit_sessions(*range(7))
    with Receiver() as receiver:
        destination = deliver_all(make_destination(receiver))
        assert [len(request.body.splitlines()) for request in receiver.received] == [3, 3, 1]

        emit_sessions(8, note="x" * 3_000)
        emit_sessions(9, note="x" * 3_000)
        emit_sessions(10, note="x" * 9_000)  # longer than any batch: alone
        deliver_all(destination)
        assert [len(request.body.splitlines()) for request in receiver.received[3:]] == [1, 1, 1]

        # one that is not full waits until its first has waited long enough
        monkeypatch.setattr(pump, "LINGER", timedelta(seconds=30))
        emit_sessions(11)
        assert not deliver_all(destination).deliveries.filter(status="failing").exists()
        assert len(receiver.received) == 6
        Session.objects.update(modified_at=timezone.now() - timedelta(seconds=31))
        deliver_all(destination)
        assert len(receiver.received) == 7


@pytest.mark.parametrize("resource", ["sessions", "events"])
def test_only_destinations_with_work_are_due(resource: str) -> None:
    with Receiver() as receiver:
        destination = make_destination(receiver, resource=resource)
        assert not pump.find_due().exists()
        emit_sessions(1)
        assert pump.find_due().exists()
        deliver_all(destination)
        make_due(destination)
        assert not pump.find_due().exists()
        emit_sessions(2, channel="ORG_002")
        assert not pump.find_due().exists()
        destination.dead_letters.create(
            row=1, xid=1, document_id="a", answer=400, reason="", requeued_at=timezone.now()
        )
        assert pump.find_due().exists()


def test_unwanted_documents_move_the_cursor() -> None:
    emit_sessions(1)
    with Receiver() as receiver:
        destination = deliver_all(make_destination(receiver, resource="events", types=["other"]))
    assert receiver.received == []
    assert is_at_end(destination)
    assert destination.next_at > timezone.now() - LONG_AGO


def test_batch_waits_for_its_first_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "LINGER", timedelta(seconds=20))
    emit_sessions(1, 2)
    destination = deliver_all(make_destination())
    first = Session.objects.order_by("xid", "id")[0]
    assert destination.next_at == first.modified_at + timedelta(seconds=20)


def test_own_ingest_accepts_push(client: Client) -> None:
    """A round trip: another channel ingests the documents of this one."""
    from ingest.auth import keys

    emitted = emit_sessions(1, 2)
    channel = make_channel()
    now = timezone.now()
    stale = event(occurred_at=now - timedelta(hours=3), type="_click")
    store.append_batch(channel.pk, Batch("clickstream", now, [stale], []))
    derive_sessions(channel)
    other = make_channel("ORG_002")
    application, password = keys.create_application("peer", other)
    for kind in ("webhook", "elasticsearch"):
        with Receiver() as receiver:
            destination = make_destination(
                receiver, name=kind, kind=kind, index="sessions" * (kind != "webhook"),
                user="peer", password=password,
            )  # fmt: skip
            deliver_all(destination)
        (request, *_) = receiver.received
        answer = client.generic(
            "PUT" if kind == "webhook" else "POST",
            "/export/events" if kind == "webhook" else "/_bulk",
            request.body,
            content_type=request.headers["content-type"],
            headers={"Authorization": request.headers["authorization"]},
        )
        assert answer.status_code == 200, answer.content
        counts = answer.json()
        if kind == "webhook":
            assert (counts["sessions"], counts["rejected"]) == (3, 0)
        else:
            assert not counts["errors"]
    derive_sessions(other)
    pushed_sessions = Session.objects.filter(channel=other)
    assert Application.objects.get(pk=application.pk).channel == other
    assert pushed_sessions.count() == 3
    assert {
        f"xxx-{name}" for name in pushed_sessions.values_list("sender_session_id", flat=True)
    } >= {name.rpartition("-")[0] for name in emitted}


# When it fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "answer"),
    [
        (respond_with(500), 500), (respond_with(503), 503), (respond_with(401), 401),
        (respond_with(404), 404),
        (respond_with(429), 429), (respond_with(301, Location="http://169.254.169.254/"), 301),
        (respond_with(307, Location="http://127.0.0.1:8000/"), 307), (reset_connection, None),
        (Silent(), None), (drip(b"HTTP/1.1 200", b"x"), None),
        (drip(b"", b"H"), None),
    ],
)  # fmt: skip
def test_failure_keeps_the_cursor(behaviour: Any, answer: int | None) -> None:
    emitted = emit_sessions(1, 2)
    with Receiver([behaviour, respond_with(200)]) as receiver:
        destination = make_destination(receiver)
        began = time.monotonic()
        deliver_all(destination)
        assert time.monotonic() - began < 3
        assert (destination.cursor_xid, destination.failures) == (0, 1)
        assert 3.9 < (destination.next_at - timezone.now()).total_seconds() <= 6
        delivery = destination.deliveries.get()
        assert (delivery.status, delivery.answer) == ("failing", answer)
        assert delivery.error

        deliver_all(destination)
        assert sorted(received_ids(receiver)[-2:]) == sorted(emitted)
        assert (destination.failures, is_at_end(destination)) == (0, True)
        delivery.refresh_from_db()
        assert (delivery.status, delivery.attempt) == ("delivered", 2)


def test_retries_grow_then_disable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    emit_sessions(1)
    with Receiver([respond_with(500)]) as receiver:
        destination = make_destination(receiver)
        delays = []
        for _ in pump.BACKOFF.delays_seconds:
            deliver_all(destination)
            delays.append((destination.next_at - timezone.now()).total_seconds())
            assert states.determine_state(destination) == (
                "circuit_open"
                if destination.failures >= pump.CIRCUIT_BREAKER_FAILURES
                else "failing"
            )
        for seconds, delay in zip(delays, pump.BACKOFF.delays_seconds, strict=True):
            assert delay * 0.75 <= seconds <= delay * 1.25
        assert caplog.text.count("destination.circuit_opened") == 1

        deliver_all(destination)
        assert len(receiver.received) == 10  # one at each attempt, also while it is open
        assert (destination.cursor_xid, states.determine_state(destination)) == (
            0,
            "disabled",
        )
        assert "10 failures" in destination.disabled_reason
        deliver_all(destination)
        assert len(receiver.received) == 10

        receiver.script = [respond_with(200)]
        assert destinations.resume(destination)
        deliver_all(destination)
        assert states.determine_state(destination) == "working"
        assert is_at_end(destination)


def test_circuit_closes_after_success() -> None:
    emitted = emit_sessions(1, 2, 3)
    with Receiver() as receiver:
        destination = make_destination(receiver)
        Destination.objects.update(failures=pump.CIRCUIT_BREAKER_FAILURES + 1)
        deliver_all(destination)
    assert sorted(received_ids(receiver)) == sorted(emitted)
    assert states.determine_state(destination) == "working"


@pytest.mark.parametrize(("retry_after", "seconds"), [("60", 60), ("1", 1), ("999999", 86_400)])
def test_retry_after_is_obeyed(retry_after: str, seconds: int) -> None:
    emit_sessions(1)
    with Receiver([respond_with(503, Retry_After=retry_after)]) as receiver:
        destination = deliver_all(make_destination(receiver))
    assert abs((destination.next_at - timezone.now()).total_seconds() - seconds) < 2


def test_410_disables_destination() -> None:
    emit_sessions(1)
    with Receiver([respond_with(410)]) as receiver:
        destination = deliver_all(make_destination(receiver))
    assert "410" in destination.disabled_reason
    assert destination.cursor_xid == 0
    assert destination.deliveries.get().status == "dead"


def test_internal_address_is_never_reached(settings: Any) -> None:
    emit_sessions(1)
    with Receiver() as receiver:
        destination = make_destination(receiver)
        settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {}
        deliver_all(destination)
        assert states.determine_state(destination) == "disabled"
        Destination.objects.update(
            disabled_reason="",
            url=f"http://127.0.0.1.nip.io:{receiver.port}/",
            next_at=timezone.now(),
        )
        deliver_all(destination)
    assert receiver.connections == 0


def test_rejected_document_is_dead_lettered() -> None:
    """One bad document among many is dead-lettered; every other one arrives."""
    emitted = emit_sessions(*range(20))
    bad = emitted[13]

    def deciding(request: Any) -> Any:
        return respond_with(400 if bad.split("-")[1].encode() in request.body else 200)

    with Receiver(choose_behaviour=deciding) as receiver:
        destination = deliver_all(make_destination(receiver))
        letter = destination.dead_letters.get()
        assert (letter.document_id, letter.answer) == (bad, 400)
        assert is_at_end(destination)
        accepted = [
            name
            for each in receiver.received
            if bad.split("-")[1].encode() not in each.body
            for name in [json.loads(line)["userSessionId"] for line in each.body.splitlines()]
        ]
        assert sorted(accepted) == sorted(name.split("-")[1] for name in emitted if name != bad)

        # mended, and sent again
        receiver.choose_behaviour = None
        assert destinations.requeue_dead_letters(destination.dead_letters.all()) == 1
        deliver_all(destination)
        assert received_ids(receiver)[-1] == bad
        letter.refresh_from_db()
        assert letter.delivered_at is not None
        assert destinations.requeue_dead_letters(destination.dead_letters.all()) == 0


def test_rejecting_receiver_trips_breaker() -> None:
    emit_sessions(*range(30))
    with Receiver([respond_with(400)]) as receiver:
        destination = deliver_all(make_destination(receiver))
    assert destination.dead_letters.count() == pump.CIRCUIT_BREAKER_FAILURES - 1
    assert states.determine_state(destination) == "circuit_open"
    assert states.measure_lags([destination])[0].documents == 30 - (
        pump.CIRCUIT_BREAKER_FAILURES - 1
    )


# When we fail -------------------------------------------------------------------------------------


def test_crash_after_success_repeats_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emitted = emit_sessions(1, 2)
    with Receiver() as receiver:
        destination = make_destination(receiver)
        with monkeypatch.context() as dying:
            dying.setattr(pump.PushQueue, "record", lambda *_: 1 / 0)
            deliver_all(destination)
        assert sorted(received_ids(receiver)) == sorted(emitted)
        assert destination.cursor_xid == 0
        deliver_all(destination)
        assert len(receiver.received) == 1  # leased

        emitted_since = emit_sessions(3)
        Destination.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        deliver_all(destination)
    assert sorted(received_ids(receiver)) == sorted([*emitted, *emitted, *emitted_since])


PUMPING = """
import django
django.setup()
from datetime import timedelta
from exhaust.delivery import pump
pump.LINGER = timedelta(seconds=-1)
pump.deliver_due(20)
"""


def test_killed_process_repeats_batch(settings: Any, tmp_path: Path) -> None:
    """A real process gets SIGKILL between the receiver's success and the cursor's move."""
    emitted = emit_sessions(1, 2)
    (tmp_path / "push.accepted").write_text("kill")
    database = connection.settings_dict
    url = f"sqlite:///{database['NAME']}"
    if connection.vendor == "postgresql":
        url = (
            f"postgresql://{database['USER']}:{database['PASSWORD']}"
            f"@{database['HOST']}:{database['PORT']}/{database['NAME']}"
        )
    variables = {
        **os.environ,
        "DATABASE_URL": url,
        "SECRET_KEY": settings.SECRET_KEY,
        "EXHAUST_KEY_PEPPER": settings.EXHAUST_KEY_PEPPER,
        "EXHAUST_ENCRYPTION_KEYS": ",".join(settings.EXHAUST_ENCRYPTION_KEYS),
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "EXHAUST_FAILPOINTS": str(tmp_path),
        "EXHAUST_PUSH_ALLOWED_NETWORKS": "ORG_001=127.0.0.0/8",
    }
    with Receiver() as receiver:
        destination = make_destination(receiver)
        dead = subprocess.run([sys.executable, "-c", PUMPING], env=variables, check=False)
        assert dead.returncode == -signal.SIGKILL
        assert sorted(received_ids(receiver)) == sorted(emitted)
        destination.refresh_from_db()
        assert destination.cursor_xid == 0

        Destination.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        dead = subprocess.run([sys.executable, "-c", PUMPING], env=variables, check=False)
        assert dead.returncode == 0
    first, second = receiver.received
    assert first.body == second.body
    assert is_at_end(Destination.objects.get())


def test_lost_lease_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted = emit_sessions(1)
    with Receiver() as receiver:
        destination = make_destination(receiver)
        first = loop.claim(pump.find_due())
        assert first is not None
        work = pump.PushQueue().prepare(first)
        assert work is not None
        Destination.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        second = loop.claim(pump.find_due())
        assert second is not None
        pump.PushQueue().record(work, http_client.Answer(200, b"", 0))
        destination.refresh_from_db()
        assert destination.cursor_xid == 0

        work = pump.PushQueue().prepare(second)
        assert work is not None
        destinations.rewind(destination, destinations.decode_cursor(destination, ""))
        pump.PushQueue().record(work, http_client.Answer(200, b"", 0))
        deliver_all(destination)
    assert sorted(received_ids(receiver)) == sorted(emitted)


def sent_with_the_next_read_ahead() -> tuple[pump.Work, pump.Prefetched]:
    """Returns a delivered batch of two out of six, and the batch prefetched meanwhile."""
    emit_sessions(*range(6))
    with Receiver() as receiver:
        make_destination(receiver)
    Destination.objects.update(batch_limit=2)
    work = prepared()
    queue = pump.PushQueue()
    assert queue.prefetch([work])
    assert not queue.prefetch([work])  # once is enough
    pump.PushQueue().record(work, http_client.Answer(200, b"", 0))
    return work, queue.prefetched[work.destination.pk]


def claim_due() -> Destination:
    claimed = loop.claim(pump.find_due())
    assert claimed is not None
    return claimed


def prepared(ahead: pump.Prefetched | None = None) -> pump.Work:
    claimed = claim_due()
    queue = pump.PushQueue()
    if ahead is not None:
        queue.prefetched[claimed.pk] = ahead
    work = queue.prepare(claimed)
    assert work is not None
    return work


@pytest.mark.parametrize("told_otherwise", [False, True])
def test_prefetched_batch_validity(
    told_otherwise: bool,
) -> None:
    work, ahead = sent_with_the_next_read_ahead()
    if told_otherwise:
        destinations.rewind(work.destination, destinations.decode_cursor(work.destination, ""))

    next_work = prepared(ahead)

    before, now = ({d.id for d in each.documents} for each in (work, next_work))
    if told_otherwise:
        assert len(now) == 6
    else:
        assert next_work.documents is ahead.batch.documents
        assert len(before | now) == 4


def test_old_prefetch_is_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ahead = sent_with_the_next_read_ahead()
    monkeypatch.setattr(pump, "PREFETCH_MAX_AGE_SECONDS", 0.0)

    assert prepared(ahead).documents is not ahead.batch.documents


@pytest.mark.parametrize("how", ["refused", "withdrawn", "erased"])
def test_prefetch_is_void_after_withdrawal(how: str) -> None:
    work, ahead = sent_with_the_next_read_ahead()
    channel = work.destination.channel
    Participant.objects.create(
        channel=channel,
        device_id="somebody",
        consent=False if how == "refused" else None,
        updated_at=timezone.now(),
    )
    if how == "erased":
        erasure.erase(channel.pk, "somebody", seconds=5)
    if how == "withdrawn":
        with transaction.atomic():
            consent.withdraw(channel.pk, ["somebody"])

    assert prepared(ahead).documents is not ahead.batch.documents


def test_batch_is_read_in_two_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given
    emit_sessions(*range(12))
    with Receiver() as receiver:
        destination = make_destination(receiver)
    steps: list[int] = []
    read = batches.build_documents

    def counted(destination: Destination, rows: Any) -> Any:
        batch_documents = read(destination, rows)
        steps.append(len(batch_documents))
        return batch_documents

    monkeypatch.setattr(batches, "build_documents", counted)
    monkeypatch.setattr(batches, "FIRST_READ_ROWS", 2)
    every = batches.read_batch(destination, 100, values.START)

    # when
    steps.clear()
    batch = batches.read_batch(destination, 10, values.START)

    # then
    assert batch.documents == every.documents[:10]
    assert (batch.end_position, batch.has_more) == (every.documents[9].position, True)
    assert steps == [2, 8]


def test_search_for_rare_documents_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a wanted event after nine others, and a turn that searches three
    send_events(*(make_answer(number) for number in range(9)))
    send_events({**make_answer(9), "eid": "RARE"})
    wait_for_watermark()
    StoredEvent.objects.update(received_at=timezone.now() - timedelta(hours=1))
    monkeypatch.setattr(reader, "WINDOW_ROWS", 3)
    monkeypatch.setattr(batches, "SEARCH_SECONDS", 0)
    monkeypatch.setattr(batches, "COUNT_SECONDS", 0)
    with Receiver() as receiver:
        destination = make_destination(receiver, resource="events", types=["RARE"])

        # when / then each turn moves the cursor, and the next one is due at once
        for turn in range(3):
            lag = states.measure_lags([destination])[0]
            assert (lag.documents, lag.seconds > 3500) == (0, True)
            before = destination.cursor_xid, destination.cursor_id
            work = pump.PushQueue().prepare(claim_due())
            assert work is None
            destination.refresh_from_db()
            assert (destination.cursor_xid, destination.cursor_id) > before
            assert destination.next_at <= timezone.now(), turn
        assert states.measure_lags([destination])[0].documents == 1
        deliver_all(destination)
    assert [document["deviceId"] for document in received_documents(receiver)] == ["device-9"]
    assert is_at_end(destination)
    assert states.measure_lags([destination])[0] == states.Lag(0, 0.0)


def test_batch_is_filled_across_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        send_events({**make_answer(number), "eid": "ASSESS" if number % 3 else "START"})
    wait_for_watermark()
    monkeypatch.setattr(reader, "WINDOW_ROWS", 2)
    monkeypatch.setattr(batches, "FIRST_READ_ROWS", 1)
    destination = make_destination(resource="events", types=["START"])
    batch = batches.read_batch(destination, 3, values.START)
    assert (len(batch.documents), batch.has_more) == (3, True)
    batch = batches.read_batch(destination, 3, batch.end_position)
    assert (len(batch.documents), batch.has_more) == (1, False)
    assert batches.count_waiting(destination)[0] == 4


def test_parallel_pumps_send_each_batch_once() -> None:
    emitted = emit_sessions(*range(12))
    with Receiver() as receiver:
        destinations = [
            make_destination(receiver, name=f"destination-{number}") for number in range(3)
        ]
        Destination.objects.update(batch_limit=2)
        connection.close()
        barrier = threading.Barrier(2)

        def pumping() -> None:
            try:
                barrier.wait(5)
                pump.deliver_due(20)
            finally:
                connections.close_all()

        threads = [threading.Thread(target=pumping) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for destination in destinations:
            deliver_all(destination)
    assert sorted(received_ids(receiver)) == sorted(emitted * 3)


def test_hanging_destination_blocks_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a receiver that answers only once the other one has got both documents
    monkeypatch.setattr(sender, "BATCH_TIMEOUT_SECONDS", 20.0)
    emitted = emit_sessions(1, 2)
    have_arrived = threading.Event()

    def hang(peer: Any) -> None:
        have_arrived.wait(15)
        respond_with(200)(peer)

    def accept(_: Any) -> Any:
        if len(receiver.received) == 2:
            have_arrived.set()
        return respond_with(200)

    with Receiver([hang]) as hanging, Receiver(choose_behaviour=accept) as receiver:
        make_destination(hanging, name="a")
        destination = make_destination(receiver, name="b")
        Destination.objects.filter(name="b").update(batch_limit=1)
        deliver_all(destination)
    assert have_arrived.is_set()
    assert sorted(received_ids(receiver)) == sorted(emitted)


def test_silent_destinations_cost_their_channel_only() -> None:
    # given more silent destinations of one channel than requests at once, before that of another
    emit_sessions(1)
    emitted = emit_sessions(2, channel="ORG_002")
    with Receiver([Silent()]) as silent, Receiver() as receiver:
        for number in range(loop.CONCURRENCY + 1):
            make_destination(silent, name=f"silent-{number}")
        make_destination(receiver, name="good", channel="ORG_002")

        # when
        pump.deliver_due(seconds=0)

        # then
        assert received_ids(receiver) == emitted
        assert silent.connections == loop.CHANNEL_CONCURRENCY


def test_events_arriving_meanwhile_are_sent() -> None:
    """Writers, derivation and a receiver that fails at random: every document arrives."""
    dice = random.Random(5)
    channel = make_channel()
    emitted: list[str] = []
    wrong: list[BaseException] = []
    done = threading.Event()

    def writing() -> None:
        try:
            for number in range(30):
                emitted.extend(emit_sessions(number, number + 1000))
        except BaseException as error:
            wrong.append(error)
        finally:
            done.set()
            connections.close_all()

    def deciding(_: Any) -> Any:
        return dice.choice(
            [respond_with(200), respond_with(200), respond_with(500), reset_connection]
        )

    derive_sessions(channel)
    with Receiver(choose_behaviour=deciding) as receiver:
        destination = make_destination(receiver)
        thread = threading.Thread(target=writing)
        connection.close()
        thread.start()
        while not done.is_set():
            Destination.objects.update(failures=0)
            deliver_all(destination)
        thread.join()
        wait_for_watermark()
        receiver.choose_behaviour = None
        receiver.script = [respond_with(200)]
        deliver_all(destination)
    assert wrong == []
    assert len(emitted) == 60
    assert set(received_ids(receiver)) == set(emitted)
    assert is_at_end(destination)
    assert not DeadLetter.objects.exists()


# Actions ----------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_rows_of_a_destination_are_read_in_their_order() -> None:
    destination = make_destination()
    undelivered = destination.dead_letters.filter(delivered_at=None)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        plans = [rows[:10].explain() for rows in (
            destination.deliveries.order_by("-pk"), undelivered.order_by("pk"),
        )]  # fmt: skip
    assert "delivery_by_destination" in plans[0]
    assert "deadletter_undelivered" in plans[1]


def test_new_destination_starts_now() -> None:
    old = emit_sessions(1, 2)
    with Receiver() as receiver:
        destination = make_destination(receiver)
        destinations.delete(destination)
        destination = destinations.save(
            Destination(channel=make_channel(), name="new", url=receiver.url)
        )
        deliver_all(destination)
        assert receiver.received == []
        own_cursor = destinations.encode_cursor(destination)

        new = emit_sessions(3)
        deliver_all(destination)
        assert received_ids(receiver) == new
        destinations.rewind(destination, destinations.decode_cursor(destination, own_cursor))
        deliver_all(destination)
        assert received_ids(receiver) == new * 2
        destinations.rewind(
            destination,
            destinations.find_position_at(destination, timezone.now() - timedelta(hours=1)),
        )
        deliver_all(destination)
        assert sorted(received_ids(receiver)) == sorted([*new, *new, *old, *new])
        destinations.rewind(
            destination,
            destinations.find_position_at(destination, timezone.now() + timedelta(hours=1)),
        )
        deliver_all(destination)
        assert len(receiver.received) == 3
        assert destination.cursor_xid < fetch_watermark()


def test_position_of_time_is_found_in_part_of_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = make_channel()
    first = timezone.now() - timedelta(hours=20)
    for hour in range(20):
        at = first + timedelta(hours=hour)
        clicks = [event(occurred_at=at, device_id=f"d{hour}") for _ in range(3)]
        store.append_batch(channel.pk, Batch("clickstream", at, clicks, []))
        derive_sessions(channel)
        Session.objects.filter(device_id=f"d{hour}").update(modified_at=at)
    replayed = event(occurred_at=first, device_id="d0")
    store.append_batch(channel.pk, Batch("clickstream", first, [replayed], []))
    wait_for_watermark()
    monkeypatch.setattr(reader, "WINDOW_ROWS", 6)
    monkeypatch.setattr(batches, "SEARCH_SECONDS", 0)
    destination = make_destination(resource="events")

    def find_next(hour: float) -> str | None:
        position = batches.find_position_at(destination, first + timedelta(hours=hour))
        rows = StoredEvent.objects.filter(channel=channel)
        after = reader.select_after(rows, position, fetch_watermark())
        return after.values_list("device_id", flat=True).first()

    assert [find_next(hour) for hour in (-1, 0, 4.5, 13, 19)] == ["d0", "d0", "d5", "d13", "d19"]
    assert find_next(21) is None
    Session.objects.all().delete()  # nothing shows where to begin
    assert find_next(13) == "d2"


def test_unreadable_secret_disables(settings: Any) -> None:
    emitted = emit_sessions(1)
    with Receiver() as receiver:
        destination = make_destination(receiver, user="us", password="secret word")
        other = make_destination(receiver, name="other")
        former_keys, settings.EXHAUST_ENCRYPTION_KEYS = (
            settings.EXHAUST_ENCRYPTION_KEYS,
            [Fernet.generate_key().decode()],
        )
        deliver_all(destination)
        assert "decrypted" in destination.disabled_reason
        assert received_ids(receiver) == emitted  # of the other
        settings.EXHAUST_ENCRYPTION_KEYS = former_keys
        assert destinations.resume(destination)
        deliver_all(destination)
        assert received_ids(receiver) == emitted * 2
    assert is_at_end(destination)
    assert is_at_end(Destination.objects.get(pk=other.pk))


def test_daily_run_purges_deliveries() -> None:
    emit_sessions(1)
    with Receiver([respond_with(400)]) as receiver:
        destination = deliver_all(make_destination(receiver))
        receiver_tests.request_test(destination)
    Delivery.objects.filter(kind="feed").update(ended_at=timezone.now() - timedelta(days=31))
    daily.run_daily()
    assert [each.kind for each in destination.deliveries.all()] == ["test"]
    assert destination.dead_letters.count() == 1


def test_paused_destination_gets_nothing() -> None:
    emitted = emit_sessions(1)
    with Receiver() as receiver:
        destination = make_destination(receiver)
        assert destinations.pause(destination)
        assert not destinations.pause(destination)
        deliver_all(destination)
        assert receiver.received == []
        assert states.measure_lags([destination])[0].documents == 1
        assert destinations.resume(destination)
        assert not destinations.resume(destination)
        deliver_all(destination)
    assert sorted(received_ids(receiver)) == sorted(emitted)


@pytest.mark.usefixtures("daily_run_finished")
def test_sweep_enqueues_push(enqueued_tasks: list[str]) -> None:
    emit_sessions(1)
    with Receiver() as receiver:
        destination = make_destination(receiver)
        tasks.sweep()
        assert enqueued_tasks == ["exhaust.push_documents"]
        tasks.push_documents()
        assert len(receiver.received) == 1
        destinations.pause(destination)
        make_due(destination)
        tasks.sweep()
    assert enqueued_tasks == ["exhaust.push_documents"]
