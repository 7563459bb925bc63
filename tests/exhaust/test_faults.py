"""Faults that `python -m tools.faults` found, each as a small test."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency.asynpool import AsynPool
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from django.utils import timezone
from redis import Redis

from config.celery import (
    app,
    replace_children_lost_without_redis,
    replace_queues_of_dead_children,
)
from exhaust import tasks
from exhaust import worker as worker_
from exhaust.files import orphans, storage
from exhaust.jobs import attempt, transitions, wakeup
from exhaust.models import File, Job
from exhaust.monitoring import health
from exhaust.processes import free_port
from ingest.models import Channel
from tests.exhaust.factories import (
    fetch_job_row,
    make_answer,
    make_claimed,
    make_job,
    send_events,
    stored_paths,
)
from tests.service import until

pytestmark = pytest.mark.django_db(transaction=True)


@contextmanager
def holding(lock: Any) -> Iterator[None]:
    """Another process that was stopped inside a transaction, with a row's lock."""
    is_held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            list(lock.select_for_update(no_key=True))
            is_held.set()
            over.wait(30)
        connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(5)
    try:
        yield
    finally:
        over.set()
        thread.join()


def lapsed() -> Any:
    return timezone.now() - timedelta(seconds=1)


# A stopped process blocks no other ----------------------------------------------------------------


@pytest.mark.postgresql
def test_stopped_claim_blocks_one_channel(monkeypatch: Any) -> None:
    # given a stopped claim in the channel whose turn it is
    monkeypatch.setattr(transitions, "CLAIM_LOCK_TIMEOUT_MS", 300)
    make_job(channel="ORG_001")
    other = make_job(channel="ORG_002")

    # when / then another channel's job is claimed soon
    start_time = time.monotonic()
    with holding(Channel.objects.filter(identifier="ORG_001")):
        claimed = transitions.claim()
    assert claimed is not None
    assert claimed.pk == other.pk
    assert time.monotonic() - start_time < 5


@pytest.mark.postgresql
def test_stopped_claim_times_out(monkeypatch: Any) -> None:
    # given a claim that does not go on before its commit
    monkeypatch.setattr(transitions, "IDLE_TIMEOUT_MS", 100)
    job = make_job()
    monkeypatch.setattr(transitions, "trigger_failpoint", lambda *_: time.sleep(1))

    # when / then the server has ended it by then
    with pytest.raises(DatabaseError):
        transitions.claim(job.pk)
    connection.close()
    assert (fetch_job_row(job)["status"], fetch_job_row(job)["attempt"]) == ("SUBMITTED", 0)


@pytest.mark.postgresql
def test_stopped_publish_times_out(monkeypatch: Any) -> None:
    # given an attempt that does not go on before the commit of its publication
    monkeypatch.setattr(transitions, "IDLE_TIMEOUT_MS", 100)
    job = make_claimed()
    monkeypatch.setattr(transitions, "trigger_failpoint", lambda *_: time.sleep(1))

    # when / then the server has ended it by then, and it does not count
    assert not attempt.run(job)
    row = fetch_job_row(job)
    assert (row["status"], row["attempt"], row["uncounted_attempts"]) == ("SUBMITTED", 1, 1)


@pytest.mark.postgresql
def test_stopped_publish_blocks_no_claim() -> None:
    # given a lapsed job whose attempt was stopped while it published
    stuck, other = make_claimed(tag="stuck"), make_job(tag="other")
    Job.objects.filter(pk=stuck.pk).update(lease_until=lapsed())

    # when / then the channel's next is claimed soon
    start_time = time.monotonic()
    with holding(Job.objects.filter(pk=stuck.pk)):
        claimed = transitions.claim()
    assert claimed is not None
    assert claimed.pk == other.pk
    assert time.monotonic() - start_time < 2


@pytest.mark.postgresql
def test_stopped_publish_blocks_no_sweep() -> None:
    # given two jobs in their last attempt, the first in the middle of its publication
    stuck, dead = (make_claimed(tag=tag, attempt=2) for tag in ("stuck", "dead"))
    Job.objects.update(lease_until=lapsed())

    # when / then
    start_time = time.monotonic()
    with holding(Job.objects.filter(pk=stuck.pk)):
        assert transitions.fail_expired() == [dead.pk]
    assert time.monotonic() - start_time < 2
    assert transitions.fail_expired() == [stuck.pk]


# A commit with a lost response -------------------------------------------------------------------


@pytest.mark.postgresql
def test_late_commit_keeps_its_file(files: Path, monkeypatch: Any) -> None:
    # given a publication that the server is still busy with when the connection is lost
    send_events(make_answer(1))
    publish, threads = transitions.publish, []

    def cut_off(*args: Any, **kwargs: Any) -> bool:
        commit_sent = threading.Event()

        def commit() -> None:
            with transaction.atomic():
                publish(*args, **kwargs)
                commit_sent.set()
                time.sleep(1)
            connections.close_all()

        threads.append(threading.Thread(target=commit))
        threads[0].start()
        assert commit_sent.wait(5)
        raise OperationalError("the connection was lost")

    monkeypatch.setattr(transitions, "publish", cut_off)
    job = make_claimed()

    # when
    attempt.run(job)
    threads[0].join()

    # then the job has its file
    assert fetch_job_row(job)["status"] == "SUCCESS"
    assert stored_paths(files) == [File.objects.get().key]


# An upload that started twice ---------------------------------------------------------------------


def test_unfinished_upload_is_removed(files: Path) -> None:
    # given a published file, and an upload of its key whose start got no response
    send_events(make_answer(1))
    job = make_claimed()
    assert attempt.run(job)
    key = File.objects.get().key
    draft = storage.FolderStorage.draft_path(files / key)
    draft.write_text("half")

    # when / then the file stays
    assert sum(orphans.remove_all()) == 1
    assert stored_paths(files) == [key]


def test_running_upload_is_kept(files: Path) -> None:
    job = make_claimed()
    key = f"response/{job.pk}/1-{'a' * 32}.csv"
    draft = storage.FolderStorage.draft_path(files / key)
    draft.parent.mkdir(parents=True)
    draft.write_text("half")

    assert sum(orphans.remove_all()) == 0
    assert draft.exists()


# A storage that fails while the database has rows to give -----------------------------------------


def test_storage_failure_midway_is_retried(files: Path, monkeypatch: Any) -> None:
    # given more rows than the connection buffers, and a disk that is full after the first
    send_events(*(make_answer(number, "x" * 10_000) for number in range(1500)))

    def full(self: Any, key: str, stream: Any, content_type: str) -> None:
        stream.read(1024 * 1024)
        raise storage.StorageError("folder: No space left on device")

    monkeypatch.setattr(storage.FolderStorage, "put", full)
    job = make_claimed()

    # when / then
    start_time = time.monotonic()
    assert not attempt.run(job)
    assert time.monotonic() - start_time < 10
    assert fetch_job_row(job)["status_message"] == "The file could not be stored."


# The poller ---------------------------------------------------------------------------------------


def test_poller_survives_any_error(files: Path, monkeypatch: Any) -> None:
    # given a job without a message, and a first look that fails unexpectedly
    errors = iter([KeyError("default"), None, None])
    job = make_job(due_at=timezone.now() - timedelta(minutes=1))
    Job.objects.update(submitted_at=timezone.now() - timedelta(minutes=1))
    queue_wait = transitions.queue_wait

    def fail_once(lowest_priority: int) -> timedelta:
        if error := next(errors):
            raise error
        return queue_wait(lowest_priority)

    class Twice(threading.Event):
        turns = 0

        def wait(self, timeout: float | None = None) -> bool:
            self.turns += 1
            return self.turns > 2

    monkeypatch.setattr(transitions, "queue_wait", fail_once)

    # when / then the next look runs the job
    worker_.poll_loop(Twice())
    assert fetch_job_row(job)["status"] == "SUCCESS"


# A broker that fails while messages wait ----------------------------------------------------------


def test_lost_child_is_watched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a child of which the pool knows that it is watched no more, and its end that can be read
    monkeypatch.setattr(AsynPool, "_track_child_process", AsynPool._track_child_process)
    monkeypatch.setattr(AsynPool, "did_start_ok", AsynPool.did_start_ok)
    replace_children_lost_without_redis()
    end, other = os.pipe()
    child = SimpleNamespace(_sentinel_poll=None, _popen=SimpleNamespace(sentinel=end))
    watched: list[int] = []
    hub = SimpleNamespace(add_reader=lambda fd, *_: watched.append(os.fstat(fd).st_ino))
    pool = SimpleNamespace(_event_process_exit=None)

    # when the pool joins a loop again, twice
    AsynPool._track_child_process(pool, child, hub)
    AsynPool._track_child_process(pool, child, hub)

    # then the loop looks at that end
    assert watched == [os.fstat(end).st_ino] * 2
    for fd in (end, other, child._sentinel_poll):
        os.close(fd)


def test_queues_of_a_dead_child_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a pool that still counts the queues of a dead child as taken
    monkeypatch.setattr(AsynPool, "get_process_queues", AsynPool.get_process_queues)
    replace_queues_of_dead_children()
    dead = SimpleNamespace(_is_alive=lambda: False)
    alive = SimpleNamespace(_is_alive=lambda: True)
    owners = {"old": dead, "other": alive}
    pool = SimpleNamespace(_queues=owners, create_process_queues=lambda: "new")

    # when it starts another
    assert AsynPool.get_process_queues(pool) == "new"

    # then that one has its own
    assert owners == {"other": alive, "new": None}


@pytest.mark.redis
def test_worker_survives_redis_restart(tmp_path: Path, settings: Any) -> None:
    # given a worker that has seen its Redis refuse writes
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    log = tmp_path / "worker.log"
    with ExitStack() as stack:
        redis = started(stack, "redis-server", "--port", str(port), "--save", "")
        command = [sys.executable, "-m", "celery", "-A", "config", "worker", "--concurrency", "2"]
        variables = {**os.environ, "CELERY_BROKER_URL": url, "EXHAUST_DATA_DIR": str(tmp_path)}
        variables["EXHAUST_LOG_LEVEL"] = "INFO"
        worker = started(stack, *command, "-l", "INFO", env=variables, log=log)
        until(lambda: b" ready." in log.read_bytes(), "the worker")
        client = stack.enter_context(Redis(port=port))
        client.replicaof("127.0.0.1", "1")
        until(lambda: b"Cannot connect to" in log.read_bytes(), "the worker to try again")
        settings.CELERY_BROKER_URL = url
        assert health.check_broker() == {"broker": "refuses writes"}
        assert log.read_bytes().count(b'"level": "ERROR"') < 3  # it waits before it tries again
        # and lose its processes meanwhile
        processes = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
        lost = processes.read_text().split()
        for child in lost:
            os.kill(int(child), signal.SIGKILL)
        until(lambda: not set(processes.read_text().split()) & set(lost), "their end")
        before = log.stat().st_size
        client.replicaof("no", "one")
        until(lambda: b"mingle: all" in log.read_bytes()[before:], "the worker")
        assert health.check_broker() == {"broker": "ok"}
        # and that has busy processes, a waiting message, and room for another
        until(lambda: len(processes.read_text().split()) == len(lost), "the replacements")
        for child in processes.read_text().split():
            os.kill(int(child), signal.SIGSTOP)
        with app.connection_for_write(url) as broker:
            tasks.sweep.apply_async(connection=broker)
        until(lambda: client.hlen("unacked"), "the message")

        # when Redis stops, and starts again
        before = log.stat().st_size
        redis.kill()
        redis.wait()
        until(lambda: b"Cannot connect to" in log.read_bytes()[before:], "the worker to call")
        started(stack, "redis-server", "--port", str(port), "--save", "")

        # then the worker finds it
        until(lambda: b"Connected to" in log.read_bytes().split(b"Cannot")[-1], "the worker")
        assert worker.poll() is None


@pytest.mark.redis
def test_child_lost_before_redis_first_answers_is_replaced(tmp_path: Path) -> None:
    # given a worker that has not reached Redis yet
    port = free_port()
    log = tmp_path / "worker.log"
    with ExitStack() as stack:
        command = [sys.executable, "-m", "celery", "-A", "config", "worker", "--concurrency", "2"]
        variables = {
            **os.environ,
            "CELERY_BROKER_URL": f"redis://127.0.0.1:{port}/0",
            "EXHAUST_DATA_DIR": str(tmp_path),
            "EXHAUST_LOG_LEVEL": "INFO",
        }
        worker = started(stack, *command, "-l", "INFO", env=variables, log=log)
        until(lambda: b"Cannot connect to" in log.read_bytes(), "the first try")
        processes = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
        killed = processes.read_text().split()
        for child in killed:
            os.kill(int(child), signal.SIGKILL)

        # when
        started(stack, "redis-server", "--port", str(port), "--save", "")

        # then
        until(
            lambda: len(set(processes.read_text().split()) - set(killed)) == len(killed),
            "the replacements",
        )
        assert worker.poll() is None


@pytest.mark.postgresql
@pytest.mark.redis
def test_stopping_worker_releases_its_job(tmp_path: Path) -> None:
    # given a worker in the middle of a job, which it will not have done in time
    job = make_job(priority=Job.Priority.NIGHTLY)
    (tmp_path / "failpoints").mkdir()
    (tmp_path / "failpoints" / "attempt.started").write_text("sleep 300")
    named = connection.settings_dict
    place = f"{named['HOST']}:{named['PORT']}/{named['NAME']}"
    variables = {
        **os.environ,
        "EXHAUST_DATA_DIR": str(tmp_path),
        "EXHAUST_FAILPOINTS": str(tmp_path / "failpoints"),
        "DATABASE_URL": f"postgresql://{named['USER']}@{place}",
        "EXHAUST_WORKER_SHUTDOWN_SECONDS": "1",
        "EXHAUST_LOG_LEVEL": "INFO",
    }
    log = tmp_path / "worker.log"
    with ExitStack() as stack:
        command = [sys.executable, "-m", "celery", "-A", "config", "worker", "--concurrency", "1"]
        worker = started(stack, *command, "-l", "INFO", "-Q", "nightly", env=variables, log=log)
        until(lambda: b" ready." in log.read_bytes(), "the worker")
        wakeup.enqueue_work(Job.Priority.NIGHTLY)
        until(lambda: fetch_job_row(job)["status"] == "PROCESSING", "the claim")
        zombie = Job.objects.get(pk=job.pk)

        # when
        worker.send_signal(signal.SIGQUIT)
        worker.wait(20)

    # then the next worker may have it at once, the stop counts as no failure, the first is fenced
    assert not transitions.renew(zombie, 1)
    heir = transitions.claim()
    assert heir is not None
    assert (heir.pk, heir.attempt, heir.uncounted_attempts) == (job.pk, 2, 1)
    assert attempt.run(heir)


def started(
    stack: ExitStack, *command: str, env: dict[str, str] | None = None, log: Path | None = None
) -> "subprocess.Popen[bytes]":
    """A process that is killed, with its own, at the end."""
    output: Any = stack.enter_context(log.open("wb")) if log else subprocess.DEVNULL
    process = subprocess.Popen(
        command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )

    def end() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    stack.callback(end)
    return process
