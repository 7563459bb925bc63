"""A storage that hangs, trickles, refuses or is full: deadlines, errors, jobs that wait."""

import errno
import io
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from botocore.retries.standard import ExponentialBackoff
from django.db import connections
from django.db.models import F
from django.utils import timezone

from exhaust.files import storage
from exhaust.files.storage import CallLimit, FolderStorage, StorageError, StorageOutage, folder
from exhaust.files.storage import base as storage_base
from exhaust.files.storage.s3 import S3Storage
from exhaust.jobs import attempt, heartbeat, transitions
from exhaust.maintenance import retention
from exhaust.models import File, Job
from tests.exhaust.factories import fetch_job_row, make_answer, make_claimed, make_job, send_events

KEY = "response/1/1-ab.csv"
MIB = 1024 * 1024


class BadServer:
    """An S3 server on a socket that behaves as `behaviour` says, and counts its connections."""

    def __init__(self) -> None:
        self.behaviour = "silent"
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            self.connections += 1
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._answer(connection)
            except OSError:
                return

    def _answer(self, connection: socket.socket) -> None:
        match self.behaviour:
            case "deaf":
                time.sleep(30)
            case "silent":
                while connection.recv(MIB):
                    pass
            case "trickle":
                connection.recv(MIB)
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Name: ")
                for _ in range(600):
                    connection.sendall(b"x")
                    time.sleep(0.05)
            case error:  # as S3: the code in the body, none for HEAD
                status, _, code = error.partition(" ")
                while data := connection.recv(MIB):
                    body = f"<Error><Code>{code}</Code></Error>".encode()
                    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                    connection.sendall(head + (b"" if data.startswith(b"HEAD") else body))


@pytest.fixture(scope="module")
def bad_server() -> BadServer:
    return BadServer()


@pytest.fixture(scope="module")
def shared_bucket(bad_server: BadServer) -> S3Storage:
    """A bucket behind it; a client takes longer to make than each of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        place = S3Storage("files", bad_server.url, bad_server.url, "us-east-1")
        place.session.get_credentials().get_frozen_credentials()  # type: ignore[union-attr]
        return place


@pytest.fixture
def bucket(shared_bucket: S3Storage, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Storage]:
    """The bucket without pauses between tries, and without connections of other tests."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0)
    monkeypatch.setattr(storage_base, "_LAST_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(storage_base, "_HANG_SECONDS", 0.2)
    yield shared_bucket
    shared_bucket.client.close()


def put(place: S3Storage, size: int = 10) -> None:
    place.put(KEY, io.BytesIO(b"x" * size), "text/csv")


# Deadlines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 9 * MIB], ids=["whole", "in parts"])
@pytest.mark.parametrize("behaviour", ["silent", "deaf", "trickle"])
def test_answer_has_a_deadline(
    bad_server: BadServer, bucket: S3Storage, behaviour: str, size: int
) -> None:
    # given a server that takes connections and never ends an answer
    bad_server.behaviour = behaviour

    # when / then a call ends soon after the time for its answer
    started = time.monotonic()
    with CallLimit(60) as limit:
        limit.answer_seconds = 0.2
        with pytest.raises(StorageOutage):
            put(bucket, size)
    assert time.monotonic() - started < 2


def test_silence_is_tried_twice(
    bad_server: BadServer, bucket: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a server that is silent, as one is after a failover of the load balancer
    bad_server.behaviour = "silent"
    impatient = bucket._make_client(bad_server.url, "us-east-1", answer=0.2)
    monkeypatch.setattr(bucket, "client", impatient)
    before = bad_server.connections

    # when / then a second connection gets its chance, and no third one
    with pytest.raises(StorageOutage, match="no answer in time"):
        bucket.size(KEY)
    assert bad_server.connections - before == 2


def test_attempt_has_a_deadline(bad_server: BadServer, bucket: S3Storage) -> None:
    bad_server.behaviour = "silent"
    started = time.monotonic()
    with CallLimit(0.3), pytest.raises(StorageOutage):
        put(bucket)
    assert time.monotonic() - started < 1.5

    # and once it is over, no call begins
    before = bad_server.connections
    with CallLimit(0), pytest.raises(StorageOutage):
        bucket.delete(KEY)
    assert bad_server.connections == before


def test_removal_is_not_cut_off() -> None:
    # given two attempts in a call that another thread can end; one is removing what it stored
    ended: list[str] = []
    storing, removing = CallLimit(60), CallLimit(60)
    storing.end_call = lambda: bool(ended.append("put"))
    removing.end_call = lambda: bool(ended.append("delete"))
    removing.shorten()

    # when the lease of both is lost
    storing.end()
    removing.end()

    # then the removal goes on, for its few seconds
    assert ended == ["put"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("behaviour", ["silent", "deaf", "trickle"])
def test_cancel_frees_hanging_worker(
    bad_server: BadServer,
    bucket: S3Storage,
    behaviour: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # given an attempt that hangs in its upload
    bad_server.behaviour = behaviour
    monkeypatch.setattr(storage, "get_storage", cache(lambda: bucket))
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.05)
    calls: list[str] = []
    monkeypatch.setattr(
        bucket, "delete", lambda key: (calls.append(key), S3Storage.delete(bucket, key))
    )
    job = make_claimed()

    def cancel() -> None:
        transitions.cancel(job, "Cancelled by asha.")
        connections.close_all()

    # when it is cancelled
    canceller = threading.Timer(0.3, cancel)
    canceller.start()
    started = time.monotonic()
    assert not attempt.run(job)
    canceller.join()

    # then its worker is free, without waiting for the storage once more, and the job as it was
    assert len(calls) == 1
    assert time.monotonic() - started < 1.5
    assert fetch_job_row(job)["status"] == "CANCELLED"
    assert "job.lease_lost" in caplog.text


# Classes of errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour",
    ["500 InternalError", "503 SlowDown", "503 ServiceUnavailable", "429 TooManyRequests",
     "403 RequestTimeTooSkewed", "400 RequestTimeout", "507 XMinioStorageFull"],
)  # fmt: skip
def test_outage_of_s3(bad_server: BadServer, bucket: S3Storage, behaviour: str) -> None:
    bad_server.behaviour = behaviour
    for call in (lambda: put(bucket), lambda: bucket.delete(KEY), lambda: bucket.open(KEY)):
        with pytest.raises(StorageOutage) as raised:
            call()
        assert raised.value.sentence == "Storage is unreachable"


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ("403 AccessDenied", "Storage denies access; an operator"),
        ("403 InvalidAccessKeyId", "Storage does not know the service's access key; an operator"),
        ("404 NoSuchBucket", "The bucket does not exist; an operator"),
        ("400 InvalidArgument", "The file could not be stored."),
    ],
)
def test_lasting_error_of_s3(
    bad_server: BadServer, bucket: S3Storage, behaviour: str, sentence: str
) -> None:
    bad_server.behaviour = behaviour
    with pytest.raises(StorageError) as raised:
        put(bucket)
    assert not isinstance(raised.value, StorageOutage)
    assert raised.value.sentence.startswith(sentence)


def test_refused_connection_is_outage(bucket: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setattr(bucket, "client", bucket._make_client(url, "us-east-1"))
    with pytest.raises(StorageOutage):
        put(bucket)


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "Storage is full"),
        (errno.EDQUOT, "Storage is full"),
        (errno.ESTALE, "Storage is unreachable"),
        (errno.EROFS, None),
    ],
)
def test_outage_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str | None
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, "made to fail")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError) as raised:
        FolderStorage(tmp_path).put(KEY, io.BytesIO(b"x"), "text/csv")
    assert isinstance(raised.value, StorageOutage) == (sentence is not None)
    assert raised.value.sentence == (sentence or "The file could not be stored.")


def test_full_disk_is_seen_while_the_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the system tells a failed write once, to whoever asks first
    outcomes = [OSError(errno.ENOSPC, "made to fail")]

    def fail_once(_: int) -> None:
        if outcomes:
            raise outcomes.pop()

    monkeypatch.setattr(os, "fsync", fail_once)
    monkeypatch.setattr(folder, "FLUSH_BYTES", 1)
    with pytest.raises(StorageOutage):
        FolderStorage(tmp_path).put(KEY, io.BytesIO(b"x"), "text/csv")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# Jobs that wait -------------------------------------------------------------------------------

pytest_outage = pytest.mark.django_db(transaction=True)


@pytest.fixture
def outage() -> Iterator[pytest.MonkeyPatch]:
    """The folder fails every upload, until the test undoes it."""

    def fail(*_: Any) -> None:
        raise StorageOutage("down")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderStorage, "put", fail)
        yield patch


def move_time(job: Job, seconds: float) -> None:
    """Everything of this job happened so much earlier."""
    row = fetch_job_row(job)
    earlier = timedelta(seconds=seconds)
    names = ("submitted_at", "due_at", "started_at", "storage_failed_at")
    values = {name: row[name] - earlier for name in names if row[name] is not None}
    Job.objects.filter(pk=job.pk).update(**values)
    job.transitions.update(changed_at=F("changed_at") - earlier)


def run_next() -> Job | None:
    job = transitions.claim()
    if job is not None:
        attempt.run(job)
    return job


@pytest_outage
def test_outage_uses_up_no_attempt(outage: pytest.MonkeyPatch) -> None:
    # given a storage that is out, and a job that is tried again and again
    send_events(make_answer(1))
    job = make_job()
    delays = []
    for number in range(1, 8):
        assert run_next() is not None
        row = fetch_job_row(job)
        assert (row["status"], row["attempt"]) == ("SUBMITTED", number)
        assert row["uncounted_attempts"] == number
        assert transitions.count_failed_attempts(Job.objects.get()) == 0
        assert re.fullmatch(
            r"Storage is unreachable; next try at \d\d:\d\d UTC\.", row["status_message"]
        )
        assert f"{row['due_at']:%H:%M}" in row["status_message"]
        delays.append((row["due_at"] - row["storage_failed_at"]).total_seconds())
        move_time(job, 301)

    # then it backs off to minutes
    assert delays == [10, 20, 40, 80, 160, 300, 300]


@pytest_outage
def test_outage_ends_after_a_day(outage: pytest.MonkeyPatch) -> None:
    # given a job that has waited for the storage for almost a day
    job = make_job()
    assert run_next() is not None
    move_time(job, 86_390)

    # when the storage is still out
    assert run_next() is not None

    # then the job ends, with a reason
    row = fetch_job_row(job)
    assert (row["status"], row["storage_failed_at"]) == ("FAILED", None)
    assert row["status_message"] == (
        "Storage is unreachable, for 24 hours. Send the request again when it works."
    )


@pytest_outage
def test_wait_for_a_time_is_no_outage(outage: pytest.MonkeyPatch) -> None:
    # given a job that was not to run for two days
    job = make_job()
    Job.objects.filter(pk=job.pk).update(submitted_at=job.submitted_at - timedelta(days=2))

    assert run_next() is not None

    assert fetch_job_row(job)["status"] == "SUBMITTED"


@pytest_outage
def test_outage_stops_claims(outage: pytest.MonkeyPatch) -> None:
    # given two jobs of which the first has met the outage
    first, second, third = make_job(), make_job(channel="ORG_002"), make_job(channel="ORG_003")
    assert run_next() == first

    # when / then for some seconds no worker claims another file, and none is woken for one
    assert transitions.claim() is None
    assert not transitions.claimable_jobs().exists()
    assert transitions.queue_wait() == timedelta()

    # and then one of them tries the storage
    move_time(first, 15)
    trial = transitions.claim()
    assert trial is not None
    assert transitions.claim() is None

    # when it has stored its file
    outage.undo()
    assert attempt.run(trial)

    # then all others go on at once
    made = {trial.pk}
    while job := run_next():
        made.add(job.pk)
    assert made == {first.pk, second.pk, third.pk}
    assert set(Job.objects.values_list("status", "storage_failed_at")) == {("SUCCESS", None)}


@pytest_outage
def test_one_job_tries_the_storage(outage: pytest.MonkeyPatch) -> None:
    # given one job that waits for the storage, and others that have not met the outage
    waiting = make_job()
    assert run_next() == waiting
    move_time(waiting, 15)
    for number in range(2, 4):
        make_job(channel=f"ORG_00{number}", due_at=timezone.now() + timedelta(hours=1))
    trial = transitions.claim()
    assert trial == waiting
    Job.objects.filter(status="SUBMITTED").update(due_at=timezone.now() - timedelta(seconds=1))

    # when / then no other one starts while it tries
    assert transitions.claim() is None

    # and once it has stored its file, they do
    outage.undo()
    assert attempt.run(trial)
    assert transitions.claim() is not None
    assert transitions.claim() is not None


@pytest_outage
def test_takeover_waits_for_no_outage(outage: pytest.MonkeyPatch) -> None:
    # given a job of a lost worker, and an outage that another one has just met
    lost = make_claimed()
    Job.objects.filter(pk=lost.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
    waiting = make_job(channel="ORG_002")
    claimed = transitions.claim(waiting.pk)
    assert claimed is not None
    assert not attempt.run(claimed)

    # when / then
    assert transitions.claim() == lost
    assert transitions.claim() is None


@pytest_outage
def test_long_attempt_blocks_no_trial(outage: pytest.MonkeyPatch) -> None:
    # given an outage, and an attempt that reads the database for minutes
    long = make_claimed()
    move_time(long, 61)
    waiting = make_job()
    assert run_next() == waiting
    move_time(waiting, 15)

    # when / then
    assert transitions.claim() == waiting


@pytest.mark.django_db
def test_counted_failure_ends_wait() -> None:
    # given a job whose storage answered, but not with success
    job = make_claimed(storage_failed_at=timezone.now())
    transitions.fail(job, "The bucket does not exist.")
    assert fetch_job_row(job)["storage_failed_at"] is None


@pytest_outage
def test_deletion_stops_at_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    # given two withdrawn files and a storage that is out
    job = make_claimed()
    for number in range(2):
        File.objects.create(
            job=job, part=number + 1, key=f"response/{job.pk}/{number}.csv", name="a.csv",
            content_type="text/csv", row_count=0, byte_count=0, sha256="",
            withdrawn_at=timezone.now(),
        )  # fmt: skip
    tried = []

    def fail(_self: Any, key: str) -> None:
        tried.append(key)
        raise StorageOutage("down")

    monkeypatch.setattr(FolderStorage, "delete", fail)

    # when / then it waits for one of them only
    assert retention.delete_withdrawn_files() == 0
    assert len(tried) == 1
