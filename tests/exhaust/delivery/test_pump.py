"""A sink gets everything, its cursor moves only after a yes, and nothing gets it stuck."""

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
from exhaust.delivery import batches, destinations, pump, sender
from exhaust.maintenance import daily
from exhaust.models import DeadLetter, Delivery, Sink
from ingest.derive import deriver
from ingest.events import Batch
from ingest.feed import values
from ingest.feed.watermark import watermark
from ingest.models import Application, Participant, Session
from ingest.privacy import consent, erasure
from ingest.store import batches as store
from tests.conftest import make_channel
from tests.exhaust.destinations import (
    at_end,
    derive,
    documents,
    due_now,
    emit,
    ids,
    make_sink,
    pumped,
    settle,
)
from tests.exhaust.receiver import Receiver, Silent, answering, dripping, resetting
from tests.ingest.derive.test_sessions import MINUTE, event

pytestmark = pytest.mark.django_db(transaction=True)
SECRET = "whsec_" + b64encode(b"x" * 32).decode()


@pytest.fixture(autouse=True)
def inside(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers on this machine, and no patience."""
    settings.PUSH_ALLOWED_NETWORKS = [ip_network("127.0.0.0/8")]
    monkeypatch.setattr(sender, "SECONDS", 0.5)
    monkeypatch.setattr(pump, "QUIET", timedelta(seconds=-1))


# What is sent -------------------------------------------------------------------------------------


def test_closed_sessions_come_as_lines_once_each() -> None:
    emitted = emit(1, 2, 3)
    with Receiver() as receiver:
        sink = pumped(make_sink(receiver))
        assert sorted(ids(receiver)) == sorted(emitted)
        assert at_end(sink)

        pumped(sink)
        assert len(receiver.received) == 1

        emitted += emit(4)
        pumped(sink)
        assert sorted(ids(receiver)) == sorted(emitted)
    (got, _) = receiver.received
    assert got.line == "PUT /hook HTTP/1.1"
    assert got.headers["content-type"] == "application/x-ndjson"
    assert got.body.endswith(b"\n")
    assert "authorization" not in got.headers
    assert "webhook-id" not in got.headers
    assert [each.status for each in sink.deliveries.all()] == ["delivered"] * 2
    assert [each.documents for each in sink.deliveries.order_by("id")] == [3, 1]


def test_a_senders_own_document_goes_out_unchanged() -> None:
    emit(7, stringTags={"ä": "\n"}, big=12345678901234567890, half=0.1)
    with Receiver() as receiver:
        pumped(make_sink(receiver, method="POST", content_type="application/json"))
    (said,) = documents(receiver)
    assert said["userSessionId"] == "1394_1015"
    assert (said["stringTags"], said["big"], said["half"]) == (
        {"ä": "\n"}, 12345678901234567890, 0.1,
    )  # fmt: skip
    assert [len(said[name]) for name in ("userActions", "events", "errors")] == [1, 1, 1]
    assert receiver.received[0].line.startswith("POST ")
    assert receiver.received[0].headers["content-type"] == "application/json"


def test_a_derived_session_is_told_in_the_same_field_names() -> None:
    channel = make_channel()
    start = timezone.now() - timedelta(hours=2)
    types = ["_session_start", "_page_view", "_click", "_app_exception"]
    events = [
        event(occurred_at=start + number * MINUTE, type=type_) for number, type_ in enumerate(types)
    ]
    other = event(occurred_at=start, device_id="somebody else")
    store.append(channel.pk, Batch("clickstream", timezone.now(), [*events, other], []))
    derive(channel)
    key = Session.objects.get(device_id="device-1").key

    with Receiver() as receiver:
        pumped(make_sink(receiver))
    said = next(each for each in documents(receiver) if each["internalUserId"] == "device-1")
    begun = int(start.timestamp() * 1000)
    assert (said["tenantId"], said["userSessionId"]) == ("ORG_001", str(key))
    assert (said["startTime"], said["endTime"]) == (begun, begun + 180_000)
    assert said["duration"] == 180_000
    assert [each["name"] for each in said["userActions"]] == ["_page_view", "_click"]
    assert [each["name"] for each in said["events"]] == ["_session_start"]
    assert [each["name"] for each in said["errors"]] == ["_app_exception"]
    assert (said["userActionCount"], said["totalErrorCount"], said["bounce"]) == (2, 1, False)
    assert said["userActions"][0]["startTime"] == begun + 60_000


def test_an_open_session_waits_for_its_close() -> None:
    channel = make_channel()
    now = timezone.now()
    store.append(channel.pk, Batch("test", now, [event(occurred_at=now - MINUTE)], []))
    derive(channel)
    with Receiver() as receiver:
        sink = pumped(make_sink(receiver))
        assert receiver.received == []
        assert at_end(sink)
        deriver.close(channel.pk, now=now + 31 * MINUTE)
        settle()
        pumped(sink)
    assert len(documents(receiver)) == 1


def test_events_come_as_pull_gives_them(client: Client) -> None:
    from tests.conftest import bearer, make_key

    emit(1)
    with Receiver() as receiver:
        sink = make_sink(receiver, resource="events", types=["userAction", "error"])
        pumped(sink)
    query = {"events": ["userAction", "error"]}
    page = client.get("/export/events", query, headers=bearer(make_key("pull"))).json()
    assert documents(receiver) == page["items"]
    assert len(page["items"]) == 2


def test_basic_and_a_signature_that_others_verify() -> None:
    emit(1)
    with Receiver([answering(500), answering(204)]) as receiver:
        sink = make_sink(receiver, user="us", password="pass:word", secret=SECRET)
        pumped(pumped(sink))
    first, second = receiver.received
    assert first.headers["authorization"] == "Basic " + b64encode(b"us:pass:word").decode()
    for got in (first, second):
        line = got.body.strip()
        assert Webhook(SECRET).verify(got.body, got.headers) == json.loads(line)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


def test_batches_end_at_a_thousand_at_896000_bytes_or_when_it_is_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "DOCUMENTS", 3)
    monkeypatch.setattr(batches, "SLICE", 2)
    monkeypatch.setattr(batches, "BYTES", 4_000)
    emit(*range(7))
    Sink._meta.get_field("batch_limit").default = 3
    try:
        with Receiver() as receiver:
            sink = pumped(make_sink(receiver))
            assert [len(got.body.splitlines()) for got in receiver.received] == [3, 3, 1]

            emit(8, note="x" * 3_000)
            emit(9, note="x" * 3_000)
            emit(10, note="x" * 9_000)  # longer than any batch: alone
            pumped(sink)
            assert [len(got.body.splitlines()) for got in receiver.received[3:]] == [1, 1, 1]

            # one that is not full waits until its first has waited long enough
            monkeypatch.setattr(pump, "QUIET", timedelta(seconds=30))
            emit(11)
            assert not pumped(sink).deliveries.filter(status="failing").exists()
            assert len(receiver.received) == 6
            Session.objects.update(modified_at=timezone.now() - timedelta(seconds=31))
            pumped(sink)
            assert len(receiver.received) == 7
    finally:
        Sink._meta.get_field("batch_limit").default = 1000


def test_our_own_door_takes_what_a_sink_pushes(client: Client) -> None:
    """The round trip: another channel here receives what this one pushes."""
    from ingest.auth import keys

    emitted = emit(1, 2)
    channel = make_channel()
    now = timezone.now()
    stale = event(occurred_at=now - timedelta(hours=3), type="_click")
    store.append(channel.pk, Batch("clickstream", now, [stale], []))
    derive(channel)
    other = make_channel("ORG_002")
    application, password = keys.create_application("peer", other)
    for kind in ("webhook", "elasticsearch"):
        with Receiver() as receiver:
            sink = make_sink(
                receiver, name=kind, kind=kind, index="sessions" * (kind != "webhook"),
                user="peer", password=password,
            )  # fmt: skip
            pumped(sink)
        (got, *_) = receiver.received
        answer = client.generic(
            "PUT" if kind == "webhook" else "POST",
            "/export/events" if kind == "webhook" else "/_bulk",
            got.body,
            content_type=got.headers["content-type"],
            headers={"Authorization": got.headers["authorization"]},
        )
        assert answer.status_code == 200, answer.content
        said = answer.json()
        if kind == "webhook":
            assert (said["sessions"], said["rejected"]) == (3, 0)
        else:
            assert not said["errors"]
    derive(other)
    there = Session.objects.filter(channel=other)
    assert Application.objects.get(pk=application.pk).channel == other
    assert there.count() == 3
    assert {f"xxx-{name}" for name in there.values_list("sender_session_id", flat=True)} >= {
        name.rpartition("-")[0] for name in emitted
    }


# When it fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "answer"),
    [
        (answering(500), 500), (answering(503), 503), (answering(401), 401), (answering(404), 404),
        (answering(429), 429), (answering(301, Location="http://169.254.169.254/"), 301),
        (answering(307, Location="http://127.0.0.1:8000/"), 307), (resetting, None),
        (Silent(), None), (dripping(b"HTTP/1.1 200", b"x"), None),
        (dripping(b"", b"H"), None),
    ],
)  # fmt: skip
def test_any_other_word_leaves_the_cursor(behaviour: Any, answer: int | None) -> None:
    emitted = emit(1, 2)
    with Receiver([behaviour, answering(200)]) as receiver:
        sink = make_sink(receiver)
        began = time.monotonic()
        pumped(sink)
        assert time.monotonic() - began < 3
        assert (sink.xid, sink.failures) == (0, 1)
        assert 3.9 < (sink.next_at - timezone.now()).total_seconds() <= 6
        delivery = sink.deliveries.get()
        assert (delivery.status, delivery.answer) == ("failing", answer)
        assert delivery.error

        pumped(sink)
        assert sorted(ids(receiver)[-2:]) == sorted(emitted)
        assert (sink.failures, at_end(sink)) == (0, True)
        delivery.refresh_from_db()
        assert (delivery.status, delivery.attempt) == ("delivered", 2)


def test_the_schedule_grows_then_the_sink_is_switched_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    emit(1)
    with Receiver([answering(500)]) as receiver:
        sink = make_sink(receiver)
        waits = []
        for _ in pump.DELAYS:
            pumped(sink)
            waits.append((sink.next_at - timezone.now()).total_seconds())
            assert destinations.state(sink) == (
                "open" if sink.failures >= pump.BREAKER else "failing"
            )
        for seconds, delay in zip(waits, pump.DELAYS, strict=True):
            assert delay * 0.75 <= seconds <= delay * 1.25
        assert caplog.text.count("sink.opened") == 1

        pumped(sink)
        assert len(receiver.received) == 10  # one at each attempt, also while it is open
        assert (sink.xid, destinations.state(sink)) == (0, "off")
        assert "10 failures" in sink.switched_off
        pumped(sink)
        assert len(receiver.received) == 10

        receiver.script = [answering(200)]
        assert destinations.resume(sink)
        pumped(sink)
        assert destinations.state(sink) == "working"
        assert at_end(sink)


def test_the_breaker_closes_after_one_good_probe() -> None:
    emitted = emit(1, 2, 3)
    with Receiver() as receiver:
        sink = make_sink(receiver)
        Sink.objects.update(failures=pump.BREAKER + 1)
        pumped(sink)
    assert sorted(ids(receiver)) == sorted(emitted)
    assert destinations.state(sink) == "working"


@pytest.mark.parametrize(("asked", "seconds"), [("60", 60), ("1", 1), ("999999", 86_400)])
def test_retry_after_is_obeyed(asked: str, seconds: int) -> None:
    emit(1)
    with Receiver([answering(503, Retry_After=asked)]) as receiver:
        sink = pumped(make_sink(receiver))
    assert abs((sink.next_at - timezone.now()).total_seconds() - seconds) < 2


def test_410_switches_off() -> None:
    emit(1)
    with Receiver([answering(410)]) as receiver:
        sink = pumped(make_sink(receiver))
    assert "410" in sink.switched_off
    assert sink.xid == 0
    assert sink.deliveries.get().status == "dead"


def test_an_address_inside_is_never_reached(settings: Any) -> None:
    emit(1)
    with Receiver() as receiver:
        sink = make_sink(receiver)
        settings.PUSH_ALLOWED_NETWORKS = []
        pumped(sink)
        assert destinations.state(sink) == "off"
        Sink.objects.update(
            switched_off="", url=f"http://127.0.0.1.nip.io:{receiver.port}/", next_at=timezone.now()
        )
        pumped(sink)
    assert receiver.connections == 0


def test_a_document_that_is_refused_is_found_and_set_aside() -> None:
    """One bad among many: it alone becomes a dead letter, everything else arrives."""
    emitted = emit(*range(20))
    bad = emitted[13]

    def deciding(request: Any) -> Any:
        return answering(400 if bad.split("-")[1].encode() in request.body else 200)

    with Receiver(deciding=deciding) as receiver:
        sink = pumped(make_sink(receiver))
        letter = sink.dead_letters.get()
        assert (letter.document_id, letter.answer) == (bad, 400)
        assert at_end(sink)
        taken = [
            name
            for got in receiver.received
            if bad.split("-")[1].encode() not in got.body
            for name in [json.loads(line)["userSessionId"] for line in got.body.splitlines()]
        ]
        assert sorted(taken) == sorted(name.split("-")[1] for name in emitted if name != bad)

        # mended, and sent again
        receiver.deciding = None
        assert destinations.send_again(sink.dead_letters.all()) == 1
        pumped(sink)
        assert ids(receiver)[-1] == bad
        letter.refresh_from_db()
        assert letter.taken_at is not None
        assert destinations.send_again(sink.dead_letters.all()) == 0


def test_a_receiver_that_refuses_everything_gets_no_graveyard() -> None:
    emit(*range(30))
    with Receiver([answering(400)]) as receiver:
        sink = pumped(make_sink(receiver))
    assert sink.dead_letters.count() == pump.BREAKER - 1
    assert destinations.state(sink) == "open"
    assert destinations.lag(sink).documents == 30 - (pump.BREAKER - 1)


# When we fail -------------------------------------------------------------------------------------


def test_a_pump_that_dies_behind_the_yes_repeats_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emitted = emit(1, 2)
    with Receiver() as receiver:
        sink = make_sink(receiver)
        with monkeypatch.context() as dying:
            dying.setattr(pump, "_record", lambda *_: 1 / 0)
            pumped(sink)
        assert sorted(ids(receiver)) == sorted(emitted)
        assert sink.xid == 0
        pumped(sink)
        assert len(receiver.received) == 1  # leased

        emitted_since = emit(3)
        Sink.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        pumped(sink)
    assert sorted(ids(receiver)) == sorted([*emitted, *emitted, *emitted_since])


PUMPING = """
import django
django.setup()
from datetime import timedelta
from exhaust.sinks import pump
pump.QUIET = timedelta(seconds=-1)
pump.run(20)
"""


def test_a_killed_process_repeats_and_loses_nothing(settings: Any, tmp_path: Path) -> None:
    """SIGKILL to a real one, behind the receiver's yes and before the cursor's move."""
    emitted = emit(1, 2)
    (tmp_path / "push.taken").write_text("kill")
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
        "KEY_PEPPER": settings.KEY_PEPPER,
        "ENCRYPTION_KEYS": ",".join(settings.ENCRYPTION_KEYS),
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "EXHAUST_FAILPOINTS": str(tmp_path),
        "PUSH_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    with Receiver() as receiver:
        sink = make_sink(receiver)
        dead = subprocess.run([sys.executable, "-c", PUMPING], env=variables, check=False)
        assert dead.returncode == -signal.SIGKILL
        assert sorted(ids(receiver)) == sorted(emitted)
        sink.refresh_from_db()
        assert sink.xid == 0

        Sink.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        dead = subprocess.run([sys.executable, "-c", PUMPING], env=variables, check=False)
        assert dead.returncode == 0
    first, second = receiver.received
    assert first.body == second.body
    assert at_end(Sink.objects.get())


def test_a_pump_that_was_overtaken_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted = emit(1)
    with Receiver() as receiver:
        sink = make_sink(receiver)
        first = pump._claim()
        assert first is not None
        work = pump._prepared(first)
        assert work is not None
        Sink.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        second = pump._claim()
        assert second is not None
        pump._record(work, sender.http.Answer(200, b"", 0))
        sink.refresh_from_db()
        assert sink.xid == 0

        work = pump._prepared(second)
        assert work is not None
        destinations.rewind(sink, destinations.place_of_cursor(sink, ""))
        pump._record(work, sender.http.Answer(200, b"", 0))
        pumped(sink)
    assert sorted(ids(receiver)) == sorted(emitted)


def sent_with_the_next_read_ahead() -> tuple[pump.Work, pump.Ahead]:
    """A batch of two out of six, which were taken, and what was read meanwhile."""
    emit(*range(6))
    with Receiver() as receiver:
        make_sink(receiver)
    Sink.objects.update(batch_limit=2)
    work = prepared()
    ahead: dict[int, pump.Ahead] = {}
    assert pump._read_ahead([work], ahead)
    assert not pump._read_ahead([work], ahead)  # once is enough
    pump._record(work, sender.http.Answer(200, b"", 0))
    return work, ahead[work.sink.pk]


def prepared(ahead: pump.Ahead | None = None) -> pump.Work:
    claimed = pump._claim()
    assert claimed is not None
    work = pump._prepared(claimed, ahead)
    assert work is not None
    return work


@pytest.mark.parametrize("told_otherwise", [False, True])
def test_what_was_read_ahead_is_sent_unless_the_sink_was_told_otherwise(
    told_otherwise: bool,
) -> None:
    work, ahead = sent_with_the_next_read_ahead()
    if told_otherwise:
        destinations.rewind(work.sink, destinations.place_of_cursor(work.sink, ""))

    next_work = prepared(ahead)

    before, now = ({d.id for d in each.documents} for each in (work, next_work))
    if told_otherwise:
        assert len(now) == 6
    else:
        assert next_work.documents is ahead.batch.documents
        assert len(before | now) == 4


def test_what_was_read_ahead_long_ago_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ahead = sent_with_the_next_read_ahead()
    monkeypatch.setattr(pump, "AHEAD", 0.0)

    assert prepared(ahead).documents is not ahead.batch.documents


@pytest.mark.parametrize("how", ["refused", "withdrawn", "erased"])
def test_what_was_read_ahead_of_a_word_against_it_is_read_again(how: str) -> None:
    work, ahead = sent_with_the_next_read_ahead()
    channel = work.sink.channel
    if how == "erased":
        erasure.erase(channel.pk, "somebody", seconds=5)
    else:
        Participant.objects.create(
            channel=channel,
            device_id="somebody",
            consent=False if how == "refused" else None,
            updated_at=timezone.now(),
        )
    if how == "withdrawn":
        with transaction.atomic():
            consent.withdraw(channel.pk, ["somebody"])

    assert prepared(ahead).documents is not ahead.batch.documents


def test_a_batch_is_read_in_two_steps_where_documents_are_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given
    emit(*range(12))
    with Receiver() as receiver:
        sink = make_sink(receiver)
    steps: list[int] = []
    read = batches._documents

    def counted(sink: Sink, rows: Any) -> Any:
        found = read(sink, rows)
        steps.append(len(found))
        return found

    monkeypatch.setattr(batches, "_documents", counted)
    monkeypatch.setattr(batches, "SLICE", 2)
    every = batches.read(sink, 100, values.START)

    # when
    steps.clear()
    batch = batches.read(sink, 10, values.START)

    # then
    assert batch.documents == every.documents[:10]
    assert (batch.place, batch.full) == (every.documents[9].place, True)
    assert steps == [2, 8]


def test_two_pumps_at_once_send_each_batch_once() -> None:
    emitted = emit(*range(12))
    with Receiver() as receiver:
        sinks = [make_sink(receiver, name=f"sink-{number}") for number in range(3)]
        Sink.objects.update(batch_limit=2)
        connection.close()
        barrier = threading.Barrier(2)

        def pumping() -> None:
            try:
                barrier.wait(5)
                pump.run(20)
            finally:
                connections.close_all()

        threads = [threading.Thread(target=pumping) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for sink in sinks:
            pumped(sink)
    assert sorted(ids(receiver)) == sorted(emitted * 3)


def test_a_sink_that_hangs_holds_up_no_other() -> None:
    emitted = emit(1, 2)
    with Receiver([Silent()]) as hanging, Receiver() as receiver:
        make_sink(hanging, name="a")
        sink = make_sink(receiver, name="b")
        Sink.objects.filter(name="b").update(batch_limit=1)
        arrived: list[float] = []
        receiver.deciding = lambda _: arrived.append(time.monotonic()) or answering(200)  # type: ignore[func-returns-value]
        began = time.monotonic()
        pumped(sink)
    assert sorted(ids(receiver)) == sorted(emitted)
    assert all(at - began < 0.45 for at in arrived)


def test_what_arrives_meanwhile_arrives_there() -> None:
    """Writers, a deriver, and a receiver that fails at random: in the end both sets are one."""
    dice = random.Random(5)
    channel = make_channel()
    emitted: list[str] = []
    wrong: list[BaseException] = []
    done = threading.Event()

    def writing() -> None:
        try:
            for number in range(30):
                emitted.extend(emit(number, number + 1000))
        except BaseException as error:
            wrong.append(error)
        finally:
            done.set()
            connections.close_all()

    def deciding(_: Any) -> Any:
        return dice.choice([answering(200), answering(200), answering(500), resetting])

    derive(channel)
    with Receiver(deciding=deciding) as receiver:
        sink = make_sink(receiver)
        thread = threading.Thread(target=writing)
        connection.close()
        thread.start()
        while not done.is_set():
            Sink.objects.update(failures=0)
            pumped(sink)
        thread.join()
        settle()
        receiver.deciding = None
        receiver.script = [answering(200)]
        pumped(sink)
    assert wrong == []
    assert len(emitted) == 60
    assert set(ids(receiver)) == set(emitted)
    assert at_end(sink)
    assert not DeadLetter.objects.exists()


# Told what to do ----------------------------------------------------------------------------------


def test_a_new_sink_begins_now_and_goes_back_when_told() -> None:
    old = emit(1, 2)
    with Receiver() as receiver:
        sink = make_sink(receiver)
        destinations.delete(sink)
        sink = destinations.save(Sink(channel=make_channel(), name="new", url=receiver.url))
        pumped(sink)
        assert receiver.received == []
        here = destinations.cursor_of(sink)

        new = emit(3)
        pumped(sink)
        assert ids(receiver) == new
        destinations.rewind(sink, destinations.place_of_cursor(sink, here))
        pumped(sink)
        assert ids(receiver) == new * 2
        destinations.rewind(
            sink, destinations.place_of_time(sink, timezone.now() - timedelta(hours=1))
        )
        pumped(sink)
        assert sorted(ids(receiver)) == sorted([*new, *new, *old, *new])
        destinations.rewind(
            sink, destinations.place_of_time(sink, timezone.now() + timedelta(hours=1))
        )
        pumped(sink)
        assert len(receiver.received) == 3
        assert sink.xid < watermark()


def test_a_secret_that_no_key_opens_is_told(settings: Any) -> None:
    emitted = emit(1)
    with Receiver() as receiver:
        sink = make_sink(receiver, user="us", password="secret word")
        other = make_sink(receiver, name="other")
        kept, settings.ENCRYPTION_KEYS = settings.ENCRYPTION_KEYS, [Fernet.generate_key().decode()]
        pumped(sink)
        assert "decrypted" in sink.switched_off
        assert ids(receiver) == emitted  # of the other
        settings.ENCRYPTION_KEYS = kept
        assert destinations.resume(sink)
        pumped(sink)
        assert ids(receiver) == emitted * 2
    assert at_end(sink)
    assert at_end(Sink.objects.get(pk=other.pk))


def test_the_daily_run_forgets_old_deliveries_and_no_dead_letter() -> None:
    emit(1)
    with Receiver([answering(400)]) as receiver:
        sink = pumped(make_sink(receiver))
        destinations.test(sink)
    Delivery.objects.filter(kind="feed").update(ended_at=timezone.now() - timedelta(days=31))
    daily.run()
    assert [each.kind for each in sink.deliveries.all()] == ["test"]
    assert sink.dead_letters.count() == 1


def test_a_paused_sink_is_left_alone() -> None:
    emitted = emit(1)
    with Receiver() as receiver:
        sink = make_sink(receiver)
        assert destinations.pause(sink)
        assert not destinations.pause(sink)
        pumped(sink)
        assert receiver.received == []
        assert destinations.lag(sink).documents == 1
        assert destinations.resume(sink)
        assert not destinations.resume(sink)
        pumped(sink)
    assert sorted(ids(receiver)) == sorted(emitted)


@pytest.mark.usefixtures("days_run_done")
def test_the_sweep_wakes_the_pump(wakes: list[str]) -> None:
    emit(1)
    with Receiver() as receiver:
        sink = make_sink(receiver)
        tasks.sweep()
        assert wakes == ["exhaust.push"]
        tasks.push()
        assert len(receiver.received) == 1
        destinations.pause(sink)
        due_now(sink)
        tasks.sweep()
    assert wakes == ["exhaust.push"]


def test_a_test_is_recorded_and_moves_nothing() -> None:
    with Receiver([answering(200), answering(403)]) as receiver:
        sink = make_sink(receiver)
        good, bad = destinations.test(sink), destinations.test(sink)
    assert (good.kind, good.status, good.answer) == ("test", "delivered", 200)
    assert (bad.status, bad.answer, bad.error) == ("dead", 403, "The answer was 403.")
    assert documents(receiver)[0]["userSessionId"].startswith("test-")
    sink.refresh_from_db()
    assert (sink.xid, sink.failures) == (0, 0)
    assert Delivery.objects.count() == 2
