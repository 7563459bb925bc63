"""Callbacks: one for every end of a job, delivered until the receiver accepts it."""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any

import psycopg
import pytest
from celery import current_app
from cryptography.fernet import Fernet
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test import Client
from django.utils import timezone
from standardwebhooks import Webhook, WebhookVerificationError

from exhaust import tasks
from exhaust.delivery import callbacks, http_client, loop, webhook
from exhaust.jobs import backoff, submit, transitions
from exhaust.jobs import queries as queries_
from exhaust.models import Callback, CallbackSecret, Job
from tests.conftest import make_channel
from tests.exhaust.factories import (
    CONFIG,
    RESPONSE,
    make_claimed,
    make_finished,
    make_job,
    make_submission,
)
from tests.exhaust.receiver import Receiver, Silent, drip, reset_connection, respond_with

URL = "https://receiver.example/hook?of=me"
SUBMIT = "/dataset/v1/request/submit"


@pytest.fixture(autouse=True)
def local_receivers(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allows receivers on this machine, with a short timeout."""
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {
        f"ORG_{name}": [ip_network("127.0.0.0/8")] for name in ("001", "002", *range(20))
    }
    monkeypatch.setattr(callbacks, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(loop, "breaker", loop.HostBreaker())


def make_callback(url: str = URL, **overrides: Any) -> Callback:
    job = make_finished(callback_url=url, **overrides)
    return make_due(Callback.objects.get(job=job))


def make_due(callback: Callback) -> Callback:
    """Makes a callback due, as after its worker died."""
    past = timezone.now() - timedelta(seconds=1)
    Callback.objects.filter(pk=callback.pk).update(next_at=past, lease_until=None)
    callback.refresh_from_db()
    return callback


def deliver_once(callback: Callback) -> Callback:
    """Returns the callback after one more attempt."""
    make_due(callback)
    callbacks.deliver_due(seconds=0)
    callback.refresh_from_db()
    return callback


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("owner", "name"),
    [(loop, "claim"), (callbacks, "build_request"), (callbacks.CallbackQueue, "record")],
)
def test_lost_database_delays_no_callback(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a server that ends the connection, once, in the middle of a delivery
    call, lost = getattr(owner, name), []

    def lose_connection(*args: Any) -> Any:
        if not lost:
            connection.ensure_connection()
            lost.append(connection.connection)
            with psycopg.connect(**connection.get_connection_params(), autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 10000)", [lost[0].info.backend_pid])
        return call(*args)

    monkeypatch.setattr(owner, name, lose_connection)
    with Receiver() as receiver:
        callback = deliver_once(make_callback(receiver.url))

    # then the same round delivers it, and no lease is waited for
    assert lost
    assert callback.status == Callback.Status.DELIVERED
    assert len(receiver.received) == 1


# Written with the end -----------------------------------------------------------------------------


def reaped(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(
        lease_until=timezone.now() - timedelta(seconds=1), attempt=backoff.MAX_ATTEMPTS
    )
    assert transitions.fail_expired() == [job.pk]


ENDINGS = {
    "SUCCESS": lambda job: transitions.publish(job, [], ""),
    "FAILED": lambda job: transitions.fail(job, "It cannot be.", permanent=True),
    "CANCELLED": lambda job: transitions.cancel(job, "Cancelled by asha."),
    "reaped": reaped,
}


@pytest.mark.django_db
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.usefixtures("enqueued_tasks")
def test_job_end_creates_one_callback(ending: str) -> None:
    job, other = make_claimed(callback_url=URL), make_claimed()

    for one in (job, other):
        ENDINGS[ending](one)
        # every other end is too late
        transitions.publish(one, [], "")
        transitions.fail(one, "no", permanent=True)
        transitions.cancel(one, "no")
        transitions.fail_expired()

    callback = Callback.objects.get()  # of the one with an address alone
    job.refresh_from_db()
    assert (callback.job, callback.job_status, callback.url) == (job, job.status, URL)
    assert job.status in (ending, "FAILED")


@pytest.mark.django_db
def test_unfinished_job_has_no_callback() -> None:
    job = make_claimed(callback_url=URL)
    assert transitions.fail(job, "try again")
    job.refresh_from_db()
    assert job.status == Job.Status.SUBMITTED
    assert not Callback.objects.exists()


@pytest.mark.django_db
def test_rolled_back_end_has_no_callback(
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: Any,
    enqueued_tasks: list[str],
) -> None:
    job = make_claimed(callback_url=URL)

    def broken(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(transitions, "trigger_failpoint", broken)
    with django_capture_on_commit_callbacks(execute=True), pytest.raises(RuntimeError):
        transitions.publish(job, [], "")
    assert (Callback.objects.count(), enqueued_tasks) == (0, [])


@pytest.mark.django_db
def test_job_end_enqueues_delivery(
    django_capture_on_commit_callbacks: Any, enqueued_tasks: list[str]
) -> None:
    job, other = make_claimed(callback_url=URL), make_claimed()
    with django_capture_on_commit_callbacks(execute=True):
        transitions.publish(other, [], "")
    assert enqueued_tasks == []
    with django_capture_on_commit_callbacks(execute=True):
        transitions.publish(job, [], "")
    assert enqueued_tasks == ["exhaust.deliver_callbacks"]


@pytest.mark.django_db
def test_broker_outage_loses_no_callback(
    django_capture_on_commit_callbacks: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def down(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError

    job = make_claimed(callback_url=URL)
    monkeypatch.setattr(current_app, "send_task", down)
    with django_capture_on_commit_callbacks(execute=True):
        assert transitions.publish(job, [], "")

    assert "broker.connection_failed" in caplog.text
    make_due(Callback.objects.get())
    assert callbacks.find_due().count() == 1


@pytest.mark.django_db
def test_sweep_enqueues_due_callbacks(enqueued_tasks: list[str]) -> None:
    callback = make_callback()
    Callback.objects.update(next_at=timezone.now() + timedelta(hours=1))
    tasks.sweep()
    assert "exhaust.deliver_callbacks" not in enqueued_tasks
    make_due(callback)
    tasks.sweep()
    assert "exhaust.deliver_callbacks" in enqueued_tasks


@pytest.mark.django_db
@pytest.mark.parametrize("more", [True, False])
def test_task_enqueues_itself_for_more(
    more: bool, enqueued_tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "deliver_due", lambda seconds: more)
    tasks.deliver_callbacks()
    assert enqueued_tasks == ["exhaust.deliver_callbacks"] * more


# The request -------------------------------------------------------------------------------------


def test_signature_equals_reference_vector() -> None:
    signature = webhook.compute_signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_generated_secret_format() -> None:
    secrets = {webhook.generate_secret() for _ in range(10)}
    assert len(secrets) == 10
    assert all(re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret) for secret in secrets)


@pytest.mark.django_db
def test_receiver_verifies_callback() -> None:
    with Receiver([respond_with(204)]) as receiver:
        callback = deliver_once(make_callback(receiver.url, tag="april"))

    assert (callback.answer, callback.error, callback.attempt) == (204, "", 1)
    assert callback.status == "delivered"
    (request,) = receiver.received
    assert request.line == "POST /hook?job=1 HTTP/1.1"
    assert request.headers["content-type"] == "application/json"
    (secret,) = callbacks.fetch_active_secrets(callback.job.channel)
    payload = Webhook(secret).verify(request.body, request.headers)
    file = callback.job.files.get()
    assert payload == {
        "type": "dataset.request.ended",
        "timestamp": payload["timestamp"],
        "data": {
            "requestId": callback.job.request_id,
            "tag": "april",
            "dataset": RESPONSE,
            "requestedChannel": "ORG_001",
            "status": "SUCCESS",
            "statusMessage": "",
            "rows": 1,
            "bytes": 8,
            "sha256": file.sha256,
        },
    }
    assert payload["timestamp"].endswith("Z")
    assert datetime.fromisoformat(payload["timestamp"]) == callback.created_at

    # and a changed byte, id or moment, or another's secret, does not hold
    earlier = str(int(request.headers["webhook-timestamp"]) - 1)
    for body, headers, key in (
        (request.body.replace(b"april", b"APRIL"), request.headers, secret),
        (request.body, {**request.headers, "webhook-id": "msg_1"}, secret),
        (request.body, {**request.headers, "webhook-timestamp": earlier}, secret),
        (request.body, request.headers, webhook.generate_secret()),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(key).verify(body, headers)


@pytest.mark.django_db
def test_callback_holds_no_name_or_link() -> None:
    with Receiver() as receiver:
        job = make_claimed(callback_url=receiver.url, requested_by="Asha Rao")
        transitions.cancel(job, "Cancelled by Asha Rao.")
        deliver_once(Callback.objects.get())
        deliver_once(make_callback(receiver.url, requested_by="Asha Rao"))

    assert [json.loads(request.body)["data"]["status"] for request in receiver.received] == [
        "CANCELLED",
        "SUCCESS",
    ]
    for request in receiver.received:
        assert b"Asha" not in request.body
        assert b"http" not in request.body
        assert b"download" not in request.body


@pytest.mark.django_db
def test_late_callback_reports_original_end() -> None:
    # given a job that failed, was retried and has its file, before any callback was sent
    with Receiver() as receiver:
        job = make_claimed(callback_url=receiver.url)
        transitions.fail(job, "The storage is full.", permanent=True)
        job.refresh_from_db()
        assert transitions.resubmit(job)
        second_attempt = transitions.claim(job.pk)
        assert second_attempt is not None
        transitions.publish(second_attempt, [], "No data.")

        # when the callbacks of both ends are sent
        Callback.objects.update(next_at=timezone.now() + timedelta(hours=1))
        for callback in Callback.objects.order_by("id"):
            deliver_once(callback)

    # then each reports its own end
    ends = [json.loads(request.body)["data"] for request in receiver.received]
    assert [(end["status"], end["statusMessage"]) for end in ends] == [
        ("FAILED", "The storage is full."),
        ("SUCCESS", "No data."),
    ]
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 2


# Secrets ------------------------------------------------------------------------------------------


def verifies(secret: str, request: Any) -> bool:
    try:
        Webhook(secret).verify(request.body, request.headers)
    except WebhookVerificationError:
        return False
    return True


@pytest.mark.django_db
def test_rotated_secrets_both_sign(capsys: pytest.CaptureFixture[str]) -> None:
    def secrets(*options: str) -> list[str]:
        call_command("callback_secret", "ORG_001", *options)
        return capsys.readouterr().out.split()

    with Receiver() as receiver:
        callback = make_callback(receiver.url)
        (first,) = secrets()
        assert secrets() == [first]
        second, also_first = secrets("--rotate")
        assert also_first == first
        deliver_once(callback)
        assert secrets("--retire-old") == [second]
        callbacks.requeue(Callback.objects.all())
        deliver_once(callback)
        (third, also_second), _ = secrets("--rotate"), secrets("--rotate")
        assert also_second == second
        alone = secrets("--rotate", "--retire-old")

    both, later = receiver.received
    assert len(both.headers["webhook-signature"].split(" ")) == 2
    assert verifies(first, both)
    assert verifies(second, both)
    assert not verifies(first, later)
    assert verifies(second, later)
    assert len(alone) == 1
    assert alone[0] not in {first, second, third}
    assert CallbackSecret.objects.filter(retired_at=None).count() == 1


@pytest.mark.django_db
def test_secret_is_encrypted_per_channel() -> None:
    ours, theirs = (
        callbacks.fetch_active_secrets(make_channel(name)) for name in ("ORG_001", "ORG_002")
    )
    assert ours != theirs
    rows = [bytes(row.encrypted_secret) for row in CallbackSecret.objects.all()]
    assert len(rows) == 2
    assert not any(secret.encode() in row for row in rows for secret in ours + theirs)


@pytest.mark.django_db
def test_unknown_channel_has_no_secret() -> None:
    with pytest.raises(CommandError, match="no channel nobody"):
        call_command("callback_secret", "nobody")
    assert not CallbackSecret.objects.exists()


@pytest.mark.django_db
def test_unreadable_secret_delays_channel(settings: Any) -> None:
    with Receiver() as receiver:
        closed = make_callback(receiver.url)
        callbacks.fetch_active_secrets(closed.job.channel)
        settings.EXHAUST_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
        other = make_callback(receiver.url, channel="ORG_002")
        callbacks.deliver_due(seconds=0)
    closed.refresh_from_db()
    other.refresh_from_db()
    assert other.status == "delivered"
    assert closed.status != "delivered"
    assert "could not be signed" in closed.error
    assert len(receiver.received) == 1


# Receivers that do not take it --------------------------------------------------------------------


@pytest.mark.django_db
def test_retry_keeps_id_and_body() -> None:
    with Receiver(
        [respond_with(500), reset_connection, respond_with(302), respond_with(200)]
    ) as receiver:
        callback = make_callback(receiver.url)
        outcomes = [
            (delivery.answer, delivery.error, delivery.status == "delivered")
            for delivery in (deliver_once(callback) for _ in range(4))
        ]
        callbacks.deliver_due(seconds=0)  # and then never again

    assert outcomes == [
        (500, "The answer was 500.", False),
        (None, "The connection broke.", False),
        (302, "The answer was 302.", False),
        (200, "", True),
    ]
    assert len(receiver.received) == 4
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 1
    assert len({request.body for request in receiver.received}) == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("behaviour", "seconds"),
    [(Silent(), 1.0), (drip(b"HTTP/1.1 ", b"2"), 1.0), (reset_connection, 0.5)],
)
def test_bad_receiver_times_out(behaviour: Any, seconds: float) -> None:
    with Receiver([behaviour]) as receiver:
        callback = make_callback(receiver.url)
        start_time = time.monotonic()
        deliver_once(callback)
        assert time.monotonic() - start_time < seconds
    assert callback.status != "delivered"
    assert callback.error
    assert callback.next_at <= timezone.now() + timedelta(
        seconds=callbacks.BACKOFF.delays_seconds[0]
    )


@pytest.mark.django_db
def test_silent_receiver_costs_its_own_channel_only(monkeypatch: pytest.MonkeyPatch) -> None:
    # given many callbacks to a silent host of one channel, tried before those of another
    late = replace(callbacks.BACKOFF, delays_seconds=(600,), jitter=(1.0, 1.0))
    monkeypatch.setattr(callbacks, "BACKOFF", late)  # none is due again while this runs
    with Receiver([Silent()]) as silent, Receiver() as good:
        callbacks_of_silent = 115
        make_callback(silent.url)
        Callback.objects.bulk_create(
            Callback(
                channel_id=row.channel_id, kind=row.kind, job_id=row.job_id, url=row.url,
                job_status=row.job_status, next_at=row.next_at - timedelta(minutes=1),
            )
            for row in Callback.objects.all()
            for _ in range(callbacks_of_silent - 1)
        )  # fmt: skip
        other = make_callback(good.url, channel="ORG_002")
        start_time = time.monotonic()

        # when
        assert callbacks.deliver_due(seconds=0)

        # then the other one is delivered, and the host gets as many requests as a channel may have
        other.refresh_from_db()
        assert other.status == "delivered"
        assert silent.connections == loop.CHANNEL_CONCURRENCY
        assert time.monotonic() - start_time < 3 * callbacks.TIMEOUT_SECONDS

        # and then the host is left alone, which uses up no attempt
        assert not callbacks.deliver_due(seconds=0)
        assert silent.connections == loop.CHANNEL_CONCURRENCY
        untried = Callback.objects.filter(attempt=0)
        assert untried.count() == callbacks_of_silent - loop.CHANNEL_CONCURRENCY
        assert untried.filter(next_at__lte=timezone.now() + timedelta(seconds=20)).count() == 0


@pytest.mark.django_db
def test_untried_callbacks_go_first() -> None:
    tried, fresh = make_callback(), make_callback()
    Callback.objects.filter(pk=tried.pk).update(attempt=3)
    assert [callback.pk for callback in callbacks.find_due()] == [fresh.pk, tried.pk]


@pytest.mark.django_db
def test_run_stops_and_reports_more_due() -> None:
    with Receiver() as receiver:
        for number in range(loop.CONCURRENCY + 1):
            make_callback(receiver.url, channel=f"ORG_{number}")
        assert callbacks.deliver_due(seconds=0)
        assert len(receiver.received) == loop.CONCURRENCY
        assert not callbacks.deliver_due(seconds=0)
        assert len(receiver.received) == loop.CONCURRENCY + 1


@pytest.mark.django_db
def test_callback_ends_after_last_attempt() -> None:
    with Receiver([respond_with(503)]) as receiver:
        callback = make_callback(receiver.url)
        for attempt in range(1, callbacks.BACKOFF.max_attempts + 1):
            assert deliver_once(callback).attempt == attempt
            assert (callback.status == "failing") is (attempt < callbacks.BACKOFF.max_attempts)
        deliver_once(callback)

    assert len(receiver.received) == callbacks.BACKOFF.max_attempts
    assert (callback.attempt, callback.answer) == (callbacks.BACKOFF.max_attempts, 503)
    assert callback.status != "delivered"


@pytest.mark.django_db
def test_410_ends_callback() -> None:
    with Receiver([respond_with(410)]) as receiver:
        callback = deliver_once(make_callback(receiver.url))
        deliver_once(callback)
    assert len(receiver.received) == 1
    assert (callback.answer, callback.attempt) == (410, 1)
    assert callback.status == "dead"


@pytest.mark.django_db
@pytest.mark.parametrize("url", ["http://169.254.169.254/", "http://[::1]:8000/", "ftp://x.org/"])
def test_forbidden_address_ends_callback(url: str) -> None:
    callback = deliver_once(make_callback(url))
    assert callback.status == "dead"
    assert callback.answer is None
    assert callback.error


@pytest.mark.django_db
def test_crashing_worker_uses_up_attempts() -> None:
    callback = make_callback()
    Callback.objects.update(attempt=callbacks.BACKOFF.max_attempts)
    deliver_once(callback)
    assert callback.status == "dead"
    assert callback.error == "The last delivery ended without a word."


@pytest.mark.parametrize("attempt", range(1, callbacks.BACKOFF.max_attempts))
def test_retry_delays_grow_within_bounds(attempt: int) -> None:
    drawn = [callbacks.BACKOFF.delay(attempt).total_seconds() for _ in range(300)]
    most = callbacks.BACKOFF.delays_seconds[attempt - 1]
    assert all(0 <= seconds <= most for seconds in drawn)
    assert max(drawn) > 0.8 * most
    assert min(drawn) < 0.2 * most
    assert list(callbacks.BACKOFF.delays_seconds) == sorted(callbacks.BACKOFF.delays_seconds)
    assert len(callbacks.BACKOFF.delays_seconds) == callbacks.BACKOFF.max_attempts - 1


def test_retry_after_is_capped() -> None:
    assert callbacks.BACKOFF.delay(1, 900) == timedelta(minutes=15)
    assert callbacks.BACKOFF.delay(1, 10**9) == timedelta(hours=6)


# Two at once, and one that dies -------------------------------------------------------------------


def deliver() -> bool:
    try:
        return callbacks.deliver_due(seconds=0)
    finally:
        connections.close_all()


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("enqueued_tasks")
def test_parallel_workers_send_once() -> None:
    def slowly(peer: Any) -> None:
        time.sleep(0.2)
        respond_with(200)(peer)

    with Receiver([slowly]) as receiver:
        for _ in range(5):
            make_callback(receiver.url)
        start = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: (start.wait(), deliver()), range(4)))
        deliver()

    ids = [request.headers["webhook-id"] for request in receiver.received]
    assert len(ids) == len(set(ids)) == 5
    assert set(Callback.objects.values_list("attempt", flat=True)) == {1}


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("enqueued_tasks")
def test_first_secret_is_made_once() -> None:
    channel = make_channel()
    start = threading.Barrier(4)

    def first() -> list[str]:
        try:
            start.wait()
            return callbacks.fetch_active_secrets(channel)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        secrets = {tuple(future.result()) for future in [pool.submit(first) for _ in range(4)]}
    assert len(secrets) == 1
    assert CallbackSecret.objects.count() == 1


def start_attempt() -> callbacks.Work:
    claimed = loop.claim(callbacks.find_due())
    assert claimed is not None
    work = callbacks.CallbackQueue().prepare(claimed)
    assert work is not None
    return work


@pytest.mark.django_db
def test_claimed_callback_is_leased() -> None:
    make_callback()
    claimed = start_attempt().delivery
    assert loop.claim(callbacks.find_due()) is None
    make_due(claimed)
    second_claim = start_attempt().delivery
    assert (second_claim.pk, second_claim.attempt) == (claimed.pk, 2)


@pytest.mark.django_db
def test_lost_lease_records_nothing() -> None:
    callback = make_callback()
    slow = start_attempt()
    make_due(callback)
    fast = start_attempt()
    callbacks.CallbackQueue().record(fast, http_client.Answer(200, b"", 0))
    callbacks.CallbackQueue().record(slow, http_client.Unreachable("late"))
    callback.refresh_from_db()
    assert (callback.answer, callback.error) == (200, "")
    assert callback.status == "delivered"


@pytest.mark.django_db
def test_crash_keeps_other_outcomes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Receiver() as receiver:
        broken, good = make_callback("http://broken.example/"), make_callback(receiver.url)
        real = http_client.send

        def send(method: str, url: str, *args: Any, **options: Any) -> Any:
            if "broken" in url:
                raise RuntimeError
            return real(method, url, *args, **options)

        monkeypatch.setattr(http_client, "send", send)
        callbacks.deliver_due(seconds=0)
    broken.refresh_from_db()
    good.refresh_from_db()
    assert good.status == "delivered"
    assert broken.error == "The delivery broke; the cause is in the service's log."
    assert broken.status == "failing"


@pytest.mark.postgresql
@pytest.mark.django_db
def test_due_callbacks_use_an_index() -> None:
    job = make_finished(callback_url=URL)
    values = {
        "channel": job.channel, "kind": "callback", "job": job, "job_status": "SUCCESS",
        "url": URL, "status": "delivered", "ended_at": timezone.now(),
    }  # fmt: skip
    for _ in range(6):  # the server ends a transaction that is idle for long
        Callback.objects.bulk_create(Callback(**values) for _ in range(500))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE exhaust_delivery")
    assert "callback_due" in callbacks.find_due().explain()


# The API and the admin ----------------------------------------------------------------------------


def body(url: Any) -> dict[str, Any]:
    config = {"tag": "daily", "dataset": RESPONSE, "datasetConfig": CONFIG}
    return {"request": {**config, "callbackUrl": url}}


def submit_with_callback(client: Client, url: Any) -> Any:
    return client.post(SUBMIT, body(url), content_type="application/json")


@pytest.mark.django_db
@pytest.mark.usefixtures("enqueued_tasks")
def test_submit_takes_callback_url(asker: Client) -> None:
    answer = submit_with_callback(asker, URL)

    assert answer.status_code == 200
    expected = {"url": URL, "delivered": False, "attempts": 0, "answer": None, "error": ""}
    assert answer.json()["result"]["callback"] == expected
    assert Job.objects.get().callback_url == URL
    assert (
        submit_with_callback(asker, URL).json()["result"]["requestId"]
        == Job.objects.get().request_id
    )


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("ftp://receiver.example/", "http:// or https://"),
        ("https://me:secret@receiver.example/", "password"),
        ("https://receiver.example:25/", "port 80, 443"),
        ("https://receiver.example/" + "a" * 2000, "2000"),
        ("http://10.0.0.1/", "not public"),
        ("http://169.254.169.254/latest/", "not public"),
        ("http://2130706433/", "four decimal"),
        ("http://[::ffff:127.0.0.1]/", "not public"),
        ("http://localhost:8000/", "not public"),
        ("", "blank"),
        (7, "http"),
        (None, "null"),
        (["https://receiver.example/"], "string"),
    ],
)
def test_bad_callback_url_is_rejected(url: Any, remedy: str, asker: Client, settings: Any) -> None:
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {}
    answer = submit_with_callback(asker, url)

    assert answer.status_code == 400
    sentence = answer.json()["params"]["errmsg"]
    assert sentence.startswith("request.callbackUrl: ")
    assert remedy in sentence
    assert "secret" not in sentence
    assert not Job.objects.exists()


@pytest.mark.django_db
@pytest.mark.usefixtures("enqueued_tasks")
def test_job_shows_callback_state(asker: Client) -> None:
    with Receiver([respond_with(500), respond_with(200)]) as receiver:
        callback = make_callback(receiver.url)
        states = []
        for _ in range(2):
            deliver_once(callback)
            job = queries_.find_job(callback.job.channel_id, "daily", callback.job.request_id)
            assert job is not None
            answer = asker.get("/dataset/v1/request/read/daily", {"requestId": job.request_id})
            states.append(answer.json()["result"]["callback"])

    base = {"url": receiver.url}
    failed = {"delivered": False, "attempts": 1, "answer": 500, "error": "The answer was 500."}
    assert states == [
        {**base, **failed},
        {**base, "delivered": True, "attempts": 2, "answer": 200, "error": ""},
    ]


@pytest.mark.django_db
@pytest.mark.usefixtures("enqueued_tasks")
def test_rerun_job_hides_earlier_callback(asker: Client) -> None:
    job = make_claimed(callback_url=URL)
    transitions.fail(job, "no", permanent=True)
    Callback.objects.update(attempt=5, answer=500, error="no")
    job.refresh_from_db()
    transitions.resubmit(job)
    state = asker.get("/dataset/v1/request/list/daily").json()["result"]["jobs"][0]["callback"]
    assert (state["attempts"], state["answer"], state["error"]) == (0, None, "")


@pytest.mark.django_db
def test_job_without_url_has_no_callback(asker: Client) -> None:
    make_job()
    (job,) = asker.get("/dataset/v1/request/list/daily").json()["result"]["jobs"]
    assert "callback" not in job


@pytest.mark.django_db
def test_list_query_count_is_constant(asker: Client, django_assert_max_num_queries: Any) -> None:
    def queries() -> int:
        with django_assert_max_num_queries(100) as captured:
            asker.get("/dataset/v1/request/list/daily")
        return len(captured)

    def end(count: int) -> None:
        for _ in range(count):
            transitions.cancel(make_job(callback_url=URL), "")

    end(2)
    queries()  # the first use of a key is written down
    few = queries()
    end(6)
    assert queries() == few


@pytest.mark.django_db
@pytest.mark.usefixtures("enqueued_tasks")
def test_callback_url_is_part_of_identity() -> None:
    first = submit.submit(make_submission(callback_url=URL))
    second = submit.submit(make_submission(callback_url=URL + "2"))
    assert first.request_id != second.request_id


@pytest.fixture
def operator(db: None, client: Client) -> Client:
    client.force_login(get_user_model().objects.create_superuser("operator"))
    return client


def test_admin_requeues_callbacks(operator: Client) -> None:
    with Receiver([respond_with(410), respond_with(200)]) as receiver:
        callback = deliver_once(make_callback(receiver.url))
        waiting = make_callback(receiver.url)
        page = operator.get("/admin/exhaust/callback/?status__exact=dead")
        assert page.status_code == 200
        assert f"/admin/exhaust/callback/{callback.pk}/" in page.content.decode()
        assert f"/admin/exhaust/callback/{waiting.pk}/" not in page.content.decode()
        assert (
            "The answer was 410."
            in operator.get(f"/admin/exhaust/job/{callback.job_id}/change/").content.decode()
        )
        assert operator.get("/admin/exhaust/job/add/").status_code == 200

        answer = operator.post(
            "/admin/exhaust/callback/",
            {"action": "redeliver", "_selected_action": [callback.pk, waiting.pk]},
            follow=True,
        )
        assert "1 will be delivered again" in answer.content.decode()
        assert "1 is still being delivered" in answer.content.decode()
        deliver_once(callback)

    assert (callback.answer, callback.attempt, callback.status) == (200, 1, "delivered")
    ids = [request.headers["webhook-id"] for request in receiver.received]
    assert sorted(map(ids.count, set(ids))) == [1, 2]  # the same id as before


def test_requeue_needs_channel_role(operator: Client, django_user_model: Any) -> None:
    from django.contrib.auth.models import Permission

    reader = django_user_model.objects.create_user("reader", is_staff=True)
    reader.user_permissions.add(Permission.objects.get(codename="change_callback"))
    operator.force_login(reader)
    callback = make_callback("http://10.0.0.1/")
    deliver_once(callback)
    assert operator.get("/admin/exhaust/callback/").status_code == 403
    operator.post(
        "/admin/exhaust/callback/", {"action": "redeliver", "_selected_action": [callback.pk]}
    )
    callback.refresh_from_db()
    assert callback.status == "dead"
