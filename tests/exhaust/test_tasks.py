"""Celery's side: a message may be lost, doubled or impossible, and the job is made all the same."""

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone
from kombu.pools import producers

from config.celery import app
from exhaust import tasks, worker
from exhaust.delivery import pump
from exhaust.jobs import attempt, submit, transitions, wakeup
from exhaust.models import DailyRun, File, Job, Wakeup
from tests.exhaust.factories import (
    CONFIG,
    fetch_job_row,
    make_claimed,
    make_job,
    make_submission,
    send_events,
    stored_paths,
    unfinished_key,
)
from tests.exhaust.factories import make_answer as made_answer
from tests.service import until

BODY = {"request": {"tag": "daily", "dataset": "uci-response-exhaust", "datasetConfig": CONFIG}}


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[Any]:
    """Points the publisher at another broker."""

    opens = app.connection_for_write

    def point(url: str) -> None:
        settings.CELERY_BROKER_URL = url
        settings.CELERY_BROKER_TRANSPORT_OPTIONS = {}
        monkeypatch.setattr(app, "connection_for_write", partial(opens, url))
        wakeup.publisher_connection.cache_clear()

    yield point
    producers.pop(wakeup.publisher_connection(), None)
    wakeup.publisher_connection.cache_clear()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Yields the port of a server that accepts, is silent, and closes after five seconds."""
    with socket.socket() as server, ExitStack() as accepted:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        server.settimeout(0.1)
        over = threading.Event()
        waiting: list[tuple[float, socket.socket]] = []

        def accept() -> None:
            while not over.is_set():
                if waiting and time.monotonic() - waiting[0][0] > 5:
                    waiting.pop(0)[1].close()
                with suppress(TimeoutError):
                    peer = accepted.enter_context(server.accept()[0])
                    waiting.append((time.monotonic(), peer))

        thread = threading.Thread(target=accept)
        thread.start()
        yield int(server.getsockname()[1])
        over.set()
        thread.join()


@pytest.mark.parametrize("port", ["closed_port", "silent_port"])
@pytest.mark.django_db(transaction=True)
def test_submit_survives_broker_outage(
    port: str,
    request: pytest.FixtureRequest,
    broker: Any,
    asker: Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # given a broker that refuses, or one that is silent
    broker(f"redis://127.0.0.1:{request.getfixturevalue(port)}/0")
    # and build what a process builds once: views, and the OpenAPI document of the checks
    asker.post("/dataset/v1/request/submit", {}, content_type="application/json")

    # when two requests are submitted
    for tag in ("first", "second"):
        caplog.clear()
        started = time.monotonic()
        body = {"request": {**BODY["request"], "tag": tag}}
        answer = asker.post("/dataset/v1/request/submit", body, content_type="application/json")
        submit_seconds = time.monotonic() - started

        # then each is answered soon, a sweep will find its job, and the log has a warning
        assert answer.status_code == 200
        assert submit_seconds < 3
        job = Job.objects.get(tag=tag)
        assert job.status == Job.Status.SUBMITTED
        assert "broker.connection_failed" in caplog.text
        assert "Traceback" not in caplog.text
    Job.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    assert transitions.claimable_jobs().count() == 2


@pytest.mark.django_db(transaction=True)
def test_submit_survives_busy_producers(
    broker: Any, silent_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    # given a silent broker, at which as many requests wait as there are producers
    broker(f"redis://127.0.0.1:{silent_port}/0")
    pool = producers[wakeup.publisher_connection()]
    producers_in_use = [pool.acquire(block=False) for _ in range(pool.limit)]

    # when one more is submitted
    started = time.monotonic()
    try:
        job = submit.submit(make_submission())
    finally:
        for producer in producers_in_use:
            producer.release()

    # then it is not refused for that
    assert time.monotonic() - started < 3
    assert Job.objects.get().pk == job.pk
    assert "broker.connection_failed" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_enqueue_uses_configured_broker(caplog: pytest.LogCaptureFixture) -> None:
    # given the suite's own broker, the folder or Redis
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(app.amqp.queues["nightly"])
        queue.clear()

        # when
        wakeup.enqueue_work(Job.Priority.NIGHTLY)

        # then there is one message, which holds the names of the task and its queue only
        message = queue.get(timeout=5)
        message.ack()
        assert message.headers["task"] == "exhaust.work"
        assert message.payload[:2] == [["nightly"], {}]
        with pytest.raises(queue.Empty):
            queue.get(block=False)
        queue.close()
    assert "broker.connection_failed" not in caplog.text


@pytest.mark.django_db(transaction=True)
def test_work_runs_one_job_and_enqueues(enqueued_tasks: list[str]) -> None:
    # given two due jobs
    send_events(made_answer(1))
    older = make_job(submitted_at=timezone.now() - timedelta(hours=1))
    newer = make_job()

    # when a message arrives, and another, and one too many
    tasks.work()
    assert [fetch_job_row(job)["status"] for job in (older, newer)] == ["SUCCESS", "SUBMITTED"]
    # other workers are woken before the job is made, and after it
    assert len(enqueued_tasks) == 2
    tasks.work()
    tasks.work()

    # then each was made once, and without due jobs no further wake-up is sent
    assert fetch_job_row(newer)["status"] == "SUCCESS"
    assert File.objects.count() == 2
    assert len(enqueued_tasks) == 4


@pytest.mark.django_db(transaction=True)
def test_work_enqueues_after_failure(
    enqueued_tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_job()
    monkeypatch.setattr(attempt, "run", lambda _job: enqueued_tasks.clear())
    tasks.work()
    assert len(enqueued_tasks) == 1


@pytest.mark.usefixtures("daily_run_finished")
@pytest.mark.parametrize("waiting", ["nothing", "not due", "in work", "done", "failed", "last"])
def test_sweep_enqueues_nothing_when_idle(waiting: str, enqueued_tasks: list[str]) -> None:
    # given no due work
    later = timezone.now() + timedelta(minutes=1)
    if waiting == "not due":
        make_job(due_at=later)
    elif waiting == "in work":
        make_claimed()
    elif waiting == "done":
        make_job(status="SUCCESS")
    elif waiting == "failed":
        make_job(status="FAILED")
    elif waiting == "last":
        make_job(status="PROCESSING", attempt=3, lease_until=timezone.now() - timedelta(hours=1))

    # when
    tasks.sweep()

    # then
    assert enqueued_tasks == []
    assert Job.objects.filter(status="FAILED").count() == (waiting in {"failed", "last"})


@pytest.mark.usefixtures("daily_run_finished")
def test_sweep_recovers_lost_message(enqueued_tasks: list[str]) -> None:
    # given a job with a lost message
    make_job()
    make_job()
    assert enqueued_tasks == []

    # when
    tasks.sweep()

    # then one look is enough: the work looks again by itself
    assert len(enqueued_tasks) == 1


@pytest.mark.usefixtures("daily_run_finished")
def test_sweep_recovers_dead_worker(enqueued_tasks: list[str]) -> None:
    # given an attempt that died without a word
    job = make_claimed()
    Job.objects.update(lease_until=timezone.now() - timedelta(seconds=1))

    # when
    tasks.sweep()

    # then
    assert len(enqueued_tasks) == 1
    assert transitions.claim(job.pk) is not None


@pytest.mark.django_db
def test_sweep_enqueues_daily_run(enqueued_tasks: list[str]) -> None:
    # given the day's run as the only due work
    tasks.sweep()
    assert enqueued_tasks == ["exhaust.daily_run"]

    # when it has run
    tasks.daily_run()
    enqueued_tasks.clear()

    # then the day is quiet
    tasks.sweep()
    assert enqueued_tasks == []


@pytest.mark.usefixtures("daily_run_finished")
def test_sweep_removes_orphans_of_failed_job(enqueued_tasks: list[str], files: Path) -> None:
    # given a job whose last attempt died while it wrote, and a running one
    dead = make_job(status="PROCESSING", attempt=3, lease_until=timezone.now() - timedelta(hours=1))
    working = make_claimed()
    drafts = [unfinished_key(dead, 3), unfinished_key(working, 1)]
    assert stored_paths(files) == sorted(drafts)

    # when
    tasks.sweep()

    # then only the running one's draft is left
    assert fetch_job_row(dead)["status"] == "FAILED"
    assert stored_paths(files) == [drafts[1]]


def test_beat_schedule_names_known_tasks(settings: Any) -> None:
    app.loader.import_default_modules()
    scheduled = {entry["task"] for entry in app.conf.beat_schedule.values()}
    assert scheduled == {
        "exhaust.sweep",
        "exhaust.derive_sessions",
        "exhaust.push_documents",
        "exhaust.keep_last_position",
    }
    assert scheduled <= set(app.tasks)
    # with a lease of 30 s, a dead worker's job is another's within 45 s
    assert app.conf.beat_schedule["sweep"]["schedule"] <= 10
    # a document waits for the schedule, its batch and the schedule again, and is then sent
    waited = pump.LINGER + 2 * timedelta(seconds=app.conf.beat_schedule["push"]["schedule"])
    assert waited < timedelta(seconds=settings.EXHAUST_PUSH_SECONDS)


# An idle worker without messages ---------------------------------------------------------------


@pytest.fixture
def poller(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The thread of a worker that no message reaches, impatient for a test."""
    stopped = threading.Event()
    wait = stopped.wait
    monkeypatch.setattr(stopped, "wait", lambda _seconds: wait(0.05))
    thread = threading.Thread(target=worker.poll_loop, args=[stopped])
    thread.start()
    yield
    stopped.set()
    thread.join(20)
    assert not thread.is_alive()


def is_done(*jobs_to_check: Job) -> bool:
    return all(fetch_job_row(job)["status"] == "SUCCESS" for job in jobs_to_check)


@pytest.mark.django_db(transaction=True)
def test_poller_runs_overdue_job(poller: None, caplog: pytest.LogCaptureFixture) -> None:
    # given jobs that are due for longer than a message may take
    long_ago = timezone.now() - timedelta(seconds=30)
    missed = [make_job(due_at=long_ago, submitted_at=long_ago) for _ in range(2)]

    # when / then they are made without a broker
    until(lambda: is_done(*missed), "the poller")
    assert caplog.text.count("broker.stalled") == 2


@pytest.mark.django_db(transaction=True)
def test_poller_leaves_recent_jobs(poller: None) -> None:
    job = make_job(due_at=timezone.now() - timedelta(seconds=5))
    time.sleep(0.5)
    assert fetch_job_row(job)["status"] == "SUBMITTED"


@pytest.mark.django_db(transaction=True)
def test_busy_worker_does_not_poll(poller: None) -> None:
    # given a process that is busy
    long_ago = timezone.now() - timedelta(seconds=30)
    with worker.work_lock:
        missed = make_job(due_at=long_ago, submitted_at=long_ago)
        time.sleep(0.3)
        assert fetch_job_row(missed)["status"] == "SUBMITTED"

    # when / then it looks once it is done
    until(lambda: is_done(missed), "the poller")


@pytest.mark.django_db(transaction=True)
def test_poller_runs_overdue_tasks(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    # given a wake-up that waits behind a long file, one that hangs, and one of another queue
    ran: list[str] = []
    is_free = threading.Event()
    for name in ("exhaust.push_documents", "exhaust.derive_sessions", "exhaust.daily_run"):
        monkeypatch.setattr(app.tasks[name], "run", partial(ran.append, name))
    monkeypatch.setattr(app.tasks["exhaust.deliver_callbacks"], "run", partial(is_free.wait, 20))
    waiting = timezone.now() - timedelta(seconds=8)
    for kind in ("exhaust.push_documents", "exhaust.deliver_callbacks", "exhaust.derive_sessions"):
        Wakeup.objects.create(kind=kind, sent_at=waiting)
    Wakeup.objects.create(kind="exhaust.daily_run", sent_at=timezone.now())
    Wakeup.objects.create(kind="exhaust.sweep", started_at=timezone.now())
    running: dict[str, threading.Thread] = {}

    # when the poller of a worker of one queue looks, while its process is busy
    with worker.work_lock:
        worker.start_overdue_tasks({"deliver"}, running)
    until(lambda: ran == ["exhaust.push_documents"], "the task")
    Wakeup.objects.filter(started_at__isnull=False).update(started_at=waiting)
    until(lambda: not running["exhaust.push_documents"].is_alive(), "its end")
    worker.start_overdue_tasks({"deliver"}, running)

    # then it ran what waits too long there, and begins nothing twice
    until(lambda: ran == ["exhaust.push_documents"] * 2, "the task again")
    assert caplog.text.count("wakeup.overdue") == 3
    is_free.set()
    for thread in running.values():
        thread.join()


@pytest.mark.django_db(transaction=True)
def test_any_poller_sweeps_when_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    # given no sweep yet, then one of seconds ago, then one of long ago
    ran: list[str] = []
    monkeypatch.setattr(app.tasks["exhaust.sweep"], "run", partial(ran.append, "sweep"))
    assert wakeup.fetch_sweep_age() is None
    for age, count in ((None, 1), (14, 1), (16, 2)):
        if age:
            Wakeup.objects.update(started_at=timezone.now() - timedelta(seconds=age))
        running: dict[str, threading.Thread] = {}

        # when
        worker.start_overdue_tasks({"interactive"}, running)

        # then
        for thread in running.values():
            thread.join()
        assert len(ran) == count
    sweep_age = wakeup.fetch_sweep_age()
    assert sweep_age is not None
    assert sweep_age < timedelta(seconds=5)


@pytest.mark.django_db
def test_one_message_of_a_kind_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    is_up = True

    def send(task: str, args: tuple[str, ...], _: Any) -> bool:
        sent.append(task + "".join(args))
        return is_up

    monkeypatch.setattr(wakeup, "send_message", send)
    # given wake-ups of two kinds, each wanted often
    for _ in range(3):
        wakeup.enqueue_work(Job.Priority.INTERACTIVE)
        wakeup.enqueue_work(Job.Priority.NIGHTLY)
    assert sent == ["exhaust.workinteractive", "exhaust.worknightly"]

    # when one is taken, then lost, then cannot be sent
    wakeup.record_start("exhaust.work:nightly")
    wakeup.enqueue_work(Job.Priority.NIGHTLY)
    Wakeup.objects.update(sent_at=timezone.now() - timedelta(seconds=61))
    is_up = False
    wakeup.enqueue_work(Job.Priority.NIGHTLY)
    wakeup.enqueue_work(Job.Priority.NIGHTLY)

    # then another one is sent each time
    assert sent[2:] == ["exhaust.worknightly"] * 3


# Without Celery -------------------------------------------------------------------------------


def run_jobs(*arguments: str) -> list[str]:
    output = io.StringIO()
    call_command("run_jobs", *arguments, stdout=output)
    return output.getvalue().splitlines()


@pytest.mark.django_db(transaction=True)
def test_run_jobs_runs_due_jobs() -> None:
    # given two due, one not due, and one that died in its last attempt
    older = make_job(submitted_at=timezone.now() - timedelta(hours=1))
    newer = make_job()
    later = make_job(due_at=timezone.now() + timedelta(hours=1))
    dead = make_job(status="PROCESSING", attempt=3, lease_until=timezone.now() - timedelta(hours=1))

    # when
    lines = run_jobs()

    # then
    message = "This channel has no conversation with this id; the file holds only its header."
    assert lines == [
        f"{older.request_id} SUCCESS {message}",
        f"{newer.request_id} SUCCESS {message}",
    ]
    assert fetch_job_row(later)["status"] == "SUBMITTED"
    assert fetch_job_row(dead)["status"] == "FAILED"
    assert run_jobs() == []


@pytest.mark.django_db(transaction=True)
def test_run_jobs_by_request_id() -> None:
    # given one that waits for its next attempt, and one beside it that is due
    later = make_job(due_at=timezone.now() + timedelta(hours=1))
    other = make_job()
    send_events(made_answer(1))

    # when its id is given in lower case
    lines = run_jobs("--request-id", later.request_id.lower())

    # then it alone was made
    assert lines == [f"{later.request_id} SUCCESS"]
    assert fetch_job_row(other)["status"] == "SUBMITTED"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("status", ["SUCCESS", "FAILED"])
def test_run_jobs_reports_ended_job(status: str) -> None:
    job = make_job(status=status, status_message="as it was")
    before = fetch_job_row(job)
    assert run_jobs("--request-id", job.request_id) == [f"{job.request_id} {status} as it was"]
    assert fetch_job_row(job) == before


@pytest.mark.django_db(transaction=True)
def test_run_jobs_leaves_running_job() -> None:
    job = make_claimed()
    before = fetch_job_row(job)
    assert run_jobs("--request-id", job.request_id) == [f"{job.request_id} PROCESSING"]
    assert fetch_job_row(job) == before


@pytest.mark.django_db
def test_run_jobs_unknown_request() -> None:
    with pytest.raises(CommandError, match="There is no job with request ID ABC"):
        run_jobs("--request-id", "ABC")


@pytest.mark.django_db(transaction=True)
def test_run_jobs_until_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    # given one due job, and one that is submitted during the pause
    first = make_job()
    later: list[Job] = []

    def pause(_seconds: float) -> None:
        if later:
            raise KeyboardInterrupt
        later.append(make_job())

    monkeypatch.setattr("exhaust.management.commands.run_jobs.sleep", pause)

    # when
    with pytest.raises(KeyboardInterrupt):
        run_jobs("--loop")

    # then both are made, and the day has its run
    assert [fetch_job_row(job)["status"] for job in (first, *later)] == ["SUCCESS", "SUCCESS"]
    assert DailyRun.objects.count() == 1


# One by hand ------------------------------------------------------------------------------------


def run_job_command(*arguments: str) -> str:
    output = io.StringIO()
    call_command("job", *arguments, stdout=output)
    return output.getvalue()


@pytest.mark.django_db
def test_job_command_show_cancel_retry(enqueued_tasks: list[str]) -> None:
    # given a job at work
    job = make_claimed()

    # when / then
    assert f"{job.request_id} PROCESSING" in run_job_command("show", job.request_id.lower())
    output = run_job_command("cancel", job.request_id)
    assert output.startswith(f"{job.request_id} CANCELLED Cancelled by an operator.\n")
    assert "UTC PROCESSING, attempt 1" in output
    assert "UTC CANCELLED, attempt 1" in output
    with pytest.raises(CommandError, match="The job is CANCELLED, so there is nothing to cancel"):
        run_job_command("cancel", job.request_id)
    assert run_job_command("retry", job.request_id).startswith(f"{job.request_id} SUBMITTED\n")


@pytest.mark.django_db
def test_job_command_rejects_ambiguity(settings: Any) -> None:
    # given one id in two channels
    own = make_job(request_id="A" * 32)
    other = make_job(request_id="A" * 32, channel="ORG_002")
    with pytest.raises(CommandError, match="There is no job with request ID B"):
        run_job_command("show", "B")
    with pytest.raises(CommandError, match="--channel"):
        run_job_command("cancel", "A" * 32)
    run_job_command("cancel", "A" * 32, "--channel", "ORG_002")
    assert [fetch_job_row(job)["status"] for job in (own, other)] == ["SUBMITTED", "CANCELLED"]

    # and a full queue has a message
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 1
    make_job(channel="ORG_002")
    with pytest.raises(CommandError, match="1 request waiting"):
        run_job_command("retry", "A" * 32, "--channel", "ORG_002")
