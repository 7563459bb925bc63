"""One attempt at a job: its rows and objects after success, failure, or a lost lease."""

import csv
import hashlib
import io
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import InterfaceError, OperationalError, connection, connections
from django.utils import timezone

from exhaust.datasets import DATASETS
from exhaust.files import storage, writer
from exhaust.jobs import attempt, heartbeat, plan, transitions
from exhaust.models import File, Job
from tests.conftest import make_channel
from tests.exhaust.factories import (
    BOT,
    CONFIG,
    PRIVATE,
    RESPONSE,
    fetch_job_row,
    leave_orphan,
    make_answer,
    make_job,
    send_events,
    stored_paths,
    unfinished_key,
)

# a watermark passes committed rows only
pytestmark = pytest.mark.django_db(transaction=True)
HEADER = (
    b"Message ID,Conversation ID,Conversation Name,Device ID,Session ID,Question Id,"
    b"Question Type,Question Title,Question Description,Question Duration,Question Score,"
    b"Question Max Score,Question Options,Question Response,X Path,Eof,Timestamp\n"
)
Blocks = Callable[..., Generator[bytes]]


def claim_job(job: Job) -> Job:
    transitions.run_now(job)
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    return claimed


def expire_lease(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(lease_until=timezone.now() - timedelta(seconds=1))


def claim_expired(job: Job) -> Job:
    """Claims the job for another worker, as after the end of this one's lease."""
    for _ in range(20):  # a renewal may come between the two
        expire_lease(job)
        if heir := transitions.claim(job.pk):
            return heir
    raise AssertionError("The job could not be claimed.")


def run_during_rows(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Something happens after the rows were read and before the stream ends."""
    original = writer.iter_parts

    def interrupted(*args: Any, **kwargs: Any) -> Generator[bytes]:
        for part in original(*args, **kwargs):
            yield from part
        act()
        yield b"one more block\n"

    replace_writer(monkeypatch, interrupted)


def replace_writer(monkeypatch: pytest.MonkeyPatch, blocks: Blocks) -> None:
    """The one part of every file is made by this generator."""

    def parts(*args: Any, **kwargs: Any) -> Iterator[Iterator[bytes]]:
        with closing(blocks(*args, **kwargs)) as part:
            yield part

    monkeypatch.setattr(writer, "iter_parts", parts)


def test_success_publishes_stored_file(files: Path) -> None:
    # given three answers in the range, one outside of it, and one of another channel
    send_events(make_answer(1), make_answer(2), make_answer(3), make_answer(60 * 24 * 60))
    send_events(make_answer(4), channel="ORG_002")
    job = claim_job(make_job())

    # when
    assert attempt.run(job)

    # then the row describes the stored file
    after = fetch_job_row(job)
    assert (after["status"], after["status_message"]) == ("SUCCESS", "")
    assert (after["rows_done"], after["rows_estimated"], after["attempt"]) == (3, 3, 1)
    file = File.objects.get()
    assert stored_paths(files) == [file.key]
    content = (files / file.key).read_bytes()
    assert (file.row_count, file.byte_count) == (3, len(content))
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert content.startswith(HEADER)
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    assert [row[0] for row in rows] == ["Message ID", "ASSESS:1", "ASSESS:2", "ASSESS:3"]
    assert rows[1][13] == '[{"ans1": "because 1"}]'


def test_key_holds_no_caller_input(files: Path) -> None:
    # given a job with values from the caller only
    config = {**CONFIG, "conversationId": "../../etc/cron.d/x"}
    job = claim_job(make_job(tag="tag-of-caller", requested_by="../root", config=config))

    # when
    assert attempt.run(job)

    # then the name of a download has them, the key has not
    file = File.objects.get()
    area, number, name = file.key.split("/")
    assert (area, number) == ("response", str(job.pk))
    assert name.startswith("1-")
    assert len(name) == len("1-") + 32 + len(".csv")
    assert file.name == f"_._.._etc_cron.d_x_response_{timezone.now():%Y%m%d}.csv"
    assert stored_paths(files) == [file.key]


def test_private_files_have_own_prefix(files: Path) -> None:
    send_events(make_answer(1))
    job = claim_job(make_job(dataset=PRIVATE))

    assert attempt.run(job)

    file = File.objects.get()
    assert file.key.startswith(f"private/{job.pk}/1-")
    assert file.name == f"{BOT}_userinfo_{timezone.now():%Y%m%d}.csv"
    assert file.row_count == 1


def test_empty_result_is_header_only(files: Path) -> None:
    # given a conversation with no answer in the range
    send_events(make_answer(60 * 24 * 60))
    job = claim_job(make_job())

    # when
    assert attempt.run(job)

    # then
    after = fetch_job_row(job)
    assert (after["status"], after["rows_done"]) == ("SUCCESS", 0)
    assert after["status_message"] == (
        "Nothing was found in these dates; the file holds only its header."
    )
    file = File.objects.get()
    assert (file.row_count, file.byte_count) == (0, len(HEADER))
    assert (files / file.key).read_bytes() == HEADER


def test_unknown_conversation_has_message(files: Path) -> None:
    # given a conversation that only another channel has
    send_events(make_answer(1), channel="ORG_002")
    job = claim_job(make_job())

    # when
    assert attempt.run(job)

    # then the file has none of it
    after = fetch_job_row(job)
    assert (after["status"], after["rows_done"]) == ("SUCCESS", 0)
    assert after["status_message"] == (
        "This channel has no conversation with this id; the file holds only its header."
    )
    assert (files / File.objects.get().key).read_bytes() == HEADER


def test_storage_failure_is_retried(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    # given a storage that cannot take anything: a file lies where its folder should
    send_events(make_answer(1))
    job = claim_job(make_job())
    files.parent.mkdir(exist_ok=True)
    files.write_text("in the way")

    # when
    assert not attempt.run(job)

    # then the job waits for its next attempt, with the reason
    after = fetch_job_row(job)
    assert (after["status"], after["attempt"]) == ("SUBMITTED", 1)
    assert after["status_message"] == "The file could not be stored."
    assert after["due_at"] > timezone.now()
    assert File.objects.count() == 0
    assert "job.storage_failed" in caplog.text

    # and the next one succeeds
    files.unlink()
    assert attempt.run(claim_job(job))
    assert File.objects.count() == 1


def test_truncated_file_is_not_published(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a storage that loses the last byte
    original_put = storage.FolderStorage.put

    def loses(self: storage.FolderStorage, key: str, stream: Any, content_type: str) -> None:
        original_put(self, key, stream, content_type)
        path = files / key
        path.write_bytes(path.read_bytes()[:-1])

    monkeypatch.setattr(storage.FolderStorage, "put", loses)
    job = claim_job(make_job())

    # when
    assert not attempt.run(job)

    # then no object is left
    assert fetch_job_row(job)["status_message"] == "The file could not be stored."
    assert File.objects.count() == 0
    assert stored_paths(files) == []


@pytest.mark.parametrize("error", [RuntimeError("a row is broken"), ValueError("no number")])
def test_row_error_leaves_no_object(
    error: Exception,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # given an error after some bytes were already taken
    def broken() -> None:
        assert [name for name in stored_paths(files) if ".part-" in name]
        raise error

    send_events(make_answer(1))
    job = claim_job(make_job())
    run_during_rows(monkeypatch, broken)

    # when
    assert not attempt.run(job)

    # then no file and no draft of it is left, and the message is not the cause
    assert stored_paths(files) == []
    assert File.objects.count() == 0
    after = fetch_job_row(job)
    assert (after["status"], after["attempt"]) == ("SUBMITTED", 1)
    assert after["status_message"] == (
        "The file could not be made; the cause is in the service's log."
    )
    assert str(error) in caplog.text


def test_late_row_error_leaves_no_object(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given rows of several blocks, and an error while the database still has some to give
    send_events(*(make_answer(number, "x" * 1000) for number in range(600)))
    job = claim_job(make_job())
    original_iter_parts = writer.iter_parts
    block_sizes: list[int] = []

    def broken(*args: Any, **kwargs: Any) -> Generator[bytes]:
        for block in chain.from_iterable(original_iter_parts(*args, **kwargs)):
            block_sizes.append(len(block))
            if len(block_sizes) == 3:
                raise RuntimeError
            yield block

    replace_writer(monkeypatch, broken)

    # when
    assert not attempt.run(job)

    # then no object is left, and the same worker's next attempt makes the whole file
    assert len(block_sizes) == 3
    assert fetch_job_row(job)["status"] == "SUBMITTED"
    assert stored_paths(files) == []
    monkeypatch.setattr(writer, "iter_parts", original_iter_parts)
    assert attempt.run(claim_job(job))
    file = File.objects.get()
    assert file.row_count == 600
    assert (files / file.key).read_bytes().count(b"\n") == 601


def test_third_error_fails_job(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Iterator[bytes]:
        raise RuntimeError

    replace_writer(monkeypatch, broken)
    job = make_job()

    for _ in range(3):
        assert not attempt.run(claim_job(job))

    assert (fetch_job_row(job)["status"], fetch_job_row(job)["attempt"]) == ("FAILED", 3)
    assert stored_paths(files) == []


def test_lost_connection_is_retried(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given an attempt that loses its database connection
    def breaks() -> None:
        connection.close()
        raise RuntimeError

    send_events(make_answer(1))
    job = claim_job(make_job())
    run_during_rows(monkeypatch, breaks)

    # when / then the failure is still written down
    assert not attempt.run(job)
    assert fetch_job_row(job)["status"] == "SUBMITTED"
    assert stored_paths(files) == []


@pytest.mark.parametrize("moment", ["before the rows", "among the rows", "after the last byte"])
def test_superseded_attempt_leaves_no_trace(
    moment: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an attempt that another worker overtakes
    send_events(make_answer(1), make_answer(2))
    job = claim_job(make_job())
    heirs: list[Job] = []
    if moment == "before the rows":
        heirs.append(claim_expired(job))
    elif moment == "among the rows":
        run_during_rows(monkeypatch, lambda: heirs.append(claim_expired(job)))
    else:
        original_put = storage.FolderStorage.put

        def overtaken(self: Any, key: str, stream: Any, content_type: str) -> None:
            original_put(self, key, stream, content_type)
            heirs.append(claim_expired(job))

        monkeypatch.setattr(storage.FolderStorage, "put", overtaken)

    # when
    assert not attempt.run(job)

    # then it published nothing, its object is gone, and the new claim is valid
    (heir,) = heirs
    assert File.objects.count() == 0
    assert stored_paths(files) == []
    after = fetch_job_row(job)
    assert (after["status"], after["attempt"]) == ("PROCESSING", 2)
    assert after["status_message"] == ""

    # and the new attempt makes the file
    monkeypatch.undo()
    storage.get_storage.cache_clear()
    assert attempt.run(heir)
    assert File.objects.count() == 1


@pytest.mark.parametrize("moment", ["among the rows", "after the last byte"])
def test_cancelled_attempt_leaves_no_object(
    moment: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an attempt that is cancelled while it runs
    send_events(make_answer(1), make_answer(2))
    job = claim_job(make_job())
    if moment == "among the rows":
        # a renewal sees it; the stream ends when it has
        def cancelled() -> None:
            assert transitions.cancel(job, "Cancelled by asha.")
            time.sleep(heartbeat.HEARTBEAT_SECONDS * 1.5)

        run_during_rows(monkeypatch, cancelled)
    else:
        original_put = storage.FolderStorage.put

        def stored_then_cancelled(self: Any, key: str, stream: Any, content_type: str) -> None:
            original_put(self, key, stream, content_type)
            assert transitions.cancel(job, "Cancelled by asha.")

        monkeypatch.setattr(storage.FolderStorage, "put", stored_then_cancelled)

    # when
    assert not attempt.run(job)

    # then
    after = fetch_job_row(job)
    assert (after["status"], after["status_message"]) == ("CANCELLED", "Cancelled by asha.")
    assert stored_paths(files) == []
    assert File.objects.count() == 0
    assert transitions.claim(job.pk) is None


@pytest.mark.postgresql
def test_lost_lease_cancels_silent_query(
    files: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # given a query that returns no row for a minute
    job = claim_job(make_job())

    def silent(*_: Any, **__: Any) -> Iterator[bytes]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(60)")
        yield b""

    replace_writer(monkeypatch, silent)
    threading.Timer(
        0.5, lambda: (transitions.cancel(job, "Cancelled."), connections.close_all())
    ).start()

    # when
    started = time.monotonic()
    assert not attempt.run(job)

    # then it does not outlast a renewal, and is no failure
    assert time.monotonic() - started < 10
    assert fetch_job_row(job)["status"] == "CANCELLED"
    assert "job.lease_lost" in caplog.text
    assert "Traceback" not in caplog.text
    assert stored_paths(files) == []


def test_row_limit_fails_with_message(files: Path, settings: Any) -> None:
    send_events(*(make_answer(number) for number in range(6)))
    settings.EXHAUST_MAX_ROWS = 5
    job = claim_job(make_job())

    assert not attempt.run(job)

    after = fetch_job_row(job)
    assert (after["status"], after["attempt"]) == ("FAILED", 1)
    assert after["status_message"] == "There are more than 5 rows; ask for fewer days."
    assert stored_paths(files) == []

    # and as many as may be are made
    settings.EXHAUST_MAX_ROWS = 6
    assert attempt.run(claim_job(make_job()))


TOO_LONG = "It took longer than 1 s; ask for fewer days."


@pytest.mark.parametrize(
    "where", ["between rows", pytest.param("in the query", marks=pytest.mark.postgresql)]
)
def test_time_limit_fails_with_message(
    where: str, files: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a limit of one second, and a row that takes two
    settings.EXHAUST_MAX_SECONDS = 1
    send_events(make_answer(1))
    if where == "between rows":
        run_during_rows(monkeypatch, lambda: time.sleep(1.2))
    else:
        slow = ("SELECT pg_sleep(2)", dict[str, Any]())
        monkeypatch.setattr(DATASETS[RESPONSE], "copy_sql", lambda *_, **__: slow, raising=False)
    job = claim_job(make_job())

    # when
    assert not attempt.run(job)

    # then
    after = fetch_job_row(job)
    assert (after["status"], after["status_message"]) == ("FAILED", TOO_LONG)
    assert stored_paths(files) == []


@pytest.mark.parametrize("stored", ["all of it", "less of it", "nothing"])
def test_lost_write_response_checks_store(
    stored: str, files: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # given a storage that never responds
    original_put = storage.FolderStorage.put

    def unheard(self: Any, key: str, stream: Any, content_type: str) -> None:
        original_put(self, key, stream, content_type)
        path = files / key
        if stored == "less of it":
            path.write_bytes(path.read_bytes()[:-1])
        elif stored == "nothing":
            path.unlink()
        raise storage.StorageError("timeout")

    monkeypatch.setattr(storage.FolderStorage, "put", unheard)
    send_events(make_answer(1))
    job = claim_job(make_job())

    # when / then
    assert attempt.run(job) == (stored == "all of it")
    if stored == "all of it":
        assert stored_paths(files) == [File.objects.get().key]
        assert "storage.write_response_lost" in caplog.text
    else:
        assert stored_paths(files) == []
        assert fetch_job_row(job)["status_message"] == "The file could not be stored."


def test_early_lost_response_is_failure(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a storage that fails after it stored an object of that length, before the stream's end
    def early(self: Any, key: str, stream: Any, content_type: str) -> None:
        first_bytes = stream.read(3)
        path = files / key
        path.parent.mkdir(parents=True)
        path.write_bytes(first_bytes)
        raise storage.StorageError("timeout")

    monkeypatch.setattr(storage.FolderStorage, "put", early)
    send_events(make_answer(1))
    assert not attempt.run(claim_job(make_job()))
    assert stored_paths(files) == []


def test_attempt_removes_earlier_orphans(files: Path) -> None:
    # given a job whose first attempt was killed midway, and another running job
    send_events(make_answer(1))
    job = claim_job(make_job())
    unfinished_key(job, 1)
    leave_orphan(job, 1)
    other = unfinished_key(claim_job(make_job()), 1)

    # when the second one runs
    assert attempt.run(claim_expired(job))

    # then
    assert stored_paths(files) == sorted([other, File.objects.get().key])


def test_superseded_attempt_keeps_new_file(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given an attempt that lost its lease, and a new one that ends before it continues
    send_events(make_answer(1))
    job = claim_job(make_job())
    original_put = storage.FolderStorage.put
    slept: list[str] = []

    def asleep(self: Any, key: str, stream: Any, content_type: str) -> None:
        original_put(self, key, stream, content_type)
        if not slept:
            slept.append(key)
            assert attempt.run(claim_expired(job))

    monkeypatch.setattr(storage.FolderStorage, "put", asleep)

    # when
    assert not attempt.run(job)

    # then only the new attempt's file exists
    file = File.objects.get()
    assert file.key.startswith(f"response/{job.pk}/2-")
    assert stored_paths(files) == [file.key]
    assert fetch_job_row(job)["status"] == "SUCCESS"


def test_attempts_make_same_bytes(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given an attempt that made all its rows and failed at the last moment
    send_events(make_answer(1), make_answer(2))
    job = claim_job(make_job())
    contents: list[bytes] = []
    original_put = storage.FolderStorage.put

    def fails(self: Any, key: str, stream: Any, content_type: str) -> None:
        original_put(self, key, stream, content_type)
        contents.append((files / key).read_bytes())
        if len(contents) == 1:
            self.delete(key)
            raise storage.StorageError("down")

    monkeypatch.setattr(storage.FolderStorage, "put", fails)
    assert not attempt.run(job)
    watermark = fetch_job_row(job)["watermark"]
    assert watermark is not None

    # when events arrive, in the range and between the others, and it runs again
    send_events(make_answer(0), make_answer(3))
    assert attempt.run(claim_job(job))

    # then they are not in the file
    assert contents[0] == contents[1]
    assert contents[0].count(b"\n") == 3
    assert fetch_job_row(job)["watermark"] == watermark
    assert File.objects.get().row_count == 2


def test_new_request_reads_new_events(files: Path) -> None:
    # given a file of one answer
    send_events(make_answer(1))
    assert attempt.run(claim_job(make_job()))

    # when one more arrives and the request is sent again
    send_events(make_answer(2))
    assert attempt.run(claim_job(make_job()))

    # then
    assert list(File.objects.order_by("id").values_list("row_count", flat=True)) == [1, 2]


def test_resubmitted_job_reads_new_events(files: Path) -> None:
    # given a job that failed for good before an event arrived
    send_events(make_answer(1))
    job = claim_job(make_job())
    assert transitions.set_watermark(job, 1, 0)
    assert transitions.fail(job, "cause", permanent=True)
    send_events(make_answer(2))

    # when it is sent again and runs
    assert transitions.resubmit(job)
    assert attempt.run(claim_job(job))

    # then its file has both
    assert File.objects.get().row_count == 2


@pytest.mark.postgresql
def test_slow_writer_loses_no_event(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a batch that is still being written, and a later one that was answered with 200
    monkeypatch.setattr(plan, "WATERMARK_WAIT_SECONDS", 0.2)
    slow = connection.copy()
    try:
        slow.set_autocommit(False)
        with slow.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id()")
        send_events(make_answer(1))
        job = claim_job(make_job())

        # when a file is requested, and the writer does not end in time
        published = attempt.run(job)
    finally:
        slow.rollback()
        slow.close()

    # then no file without the committed event is handed out, now or later
    if not published:
        assert File.objects.count() == 0
        assert fetch_job_row(job)["uncounted_attempts"] == 1
        assert attempt.run(claim_job(job))
    assert File.objects.get().row_count == 1


def test_removed_dataset_fails_permanently(files: Path) -> None:
    # given
    job = claim_job(make_job(dataset="no-more"))

    # when
    assert not attempt.run(job)

    # then it is not tried again
    after = fetch_job_row(job)
    assert (after["status"], after["attempt"]) == ("FAILED", 1)
    assert after["status_message"] == "There is no dataset no-more any more."
    assert stored_paths(files) == []


def test_heartbeat_uses_own_connection(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given rows that are slow, and a lease that would lapse before they are done
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.05)
    beats: list[tuple[str, int]] = []
    renew = transitions.renew

    def record_renewal(job: Job, rows: int) -> bool:
        beats.append((threading.current_thread().name, rows))
        return renew(job, rows)

    monkeypatch.setattr(transitions, "renew", record_renewal)
    send_events(make_answer(1), make_answer(2))
    job = claim_job(make_job())

    def wait_for_a_beat() -> None:
        expire_lease(job)  # by hand: no test waits for thirty seconds
        beat_count = len(beats)
        until = time.monotonic() + 5
        while len(beats) < beat_count + 2 and time.monotonic() < until:
            time.sleep(0.01)
        after = fetch_job_row(job)
        assert after["lease_until"] > timezone.now() + timedelta(seconds=20)
        assert after["rows_done"] == 2
        assert transitions.claim(job.pk) is None

    run_during_rows(monkeypatch, wait_for_a_beat)

    # when / then the lease was renewed while the rows were on their way
    assert attempt.run(job)
    assert {name for name, _ in beats} == {f"lease-{job.pk}"}
    assert beats[-1][1] == 2
    assert threading.current_thread().name != f"lease-{job.pk}"
    assert f"lease-{job.pk}" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("error", [KeyError("default"), InterfaceError("closed")])
def test_heartbeat_survives_any_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a renewal that fails in an unexpected way
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.01)
    renewals: list[int] = []

    def fail_once(_: Job, rows: int) -> bool:
        renewals.append(rows)
        if len(renewals) == 1:
            raise error
        return True

    monkeypatch.setattr(transitions, "renew", fail_once)

    # when / then the next one is made all the same
    with heartbeat.Heartbeat(claim_job(make_job()), writer.Progress()) as beating:
        end = time.monotonic() + 5
        while len(renewals) < 3 and time.monotonic() < end:
            time.sleep(0.01)
        beating.require_lease()
    assert len(renewals) >= 3


def test_heartbeat_reports_lost_lease(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given slow rows, during which another worker takes over
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.05)
    send_events(make_answer(1))
    job = claim_job(make_job())
    further: list[str] = []

    def blocks(*_: Any, **__: Any) -> Iterator[bytes]:
        yield b"header\n"
        claim_expired(job)
        time.sleep(0.5)
        yield b"row\n"
        further.append("asked for more although the lease was gone")
        yield b"row\n"

    replace_writer(monkeypatch, blocks)

    # when
    assert not attempt.run(job)

    # then the work stopped at the next block, and left no object
    assert further == []
    assert stored_paths(files) == []
    assert (fetch_job_row(job)["status"], fetch_job_row(job)["attempt"]) == ("PROCESSING", 2)


@pytest.mark.parametrize(
    ("before", "uncounted", "status"), [(0, 1, "SUBMITTED"), (10, 10, "FAILED")]
)
def test_lost_database_costs_no_attempt(
    files: Path, monkeypatch: pytest.MonkeyPatch, before: int, uncounted: int, status: str
) -> None:
    # given a last attempt whose connection is lost, for the first time or time and again
    def lose() -> None:
        raise OperationalError from psycopg.errors.CrashShutdown()

    send_events(make_answer(1))
    job = claim_job(make_job())
    Job.objects.update(attempt=3 + before, uncounted_attempts=before)
    job.refresh_from_db()
    run_during_rows(monkeypatch, lose)

    # when
    assert not attempt.run(job)

    # then
    row = fetch_job_row(job)
    assert (row["status"], row["uncounted_attempts"]) == (status, uncounted)
    assert "The database was lost" in row["status_message"]
    assert stored_paths(files) == []


def test_unreachable_database_ends_work(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given renewals that fail for longer than a lease lasts
    def down(*_: Any) -> bool:
        raise OperationalError("the server is gone")

    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(transitions, "LEASE", timedelta(seconds=0.3))
    monkeypatch.setattr(transitions, "renew", down)
    send_events(make_answer(1))
    job = claim_job(make_job())
    run_during_rows(monkeypatch, lambda: time.sleep(0.5))

    # when
    assert not attempt.run(job)

    # then it published no file, left no object, and recorded no failure
    assert File.objects.count() == 0
    assert stored_paths(files) == []
    assert fetch_job_row(job)["status"] == "PROCESSING"


def test_two_datasets_run_in_parallel(files: Path) -> None:
    # given two claimed jobs
    send_events(make_answer(1))
    claimed = [claim_job(make_job()), claim_job(make_job(dataset=PRIVATE))]
    done: list[bool] = []

    def work(job: Job) -> None:
        try:
            done.append(attempt.run(job))
        finally:
            connections.close_all()

    # when two workers make them at the same time
    threads = [threading.Thread(target=work, args=(job,)) for job in claimed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    # then both are done
    assert done == [True, True]
    assert sorted(key.partition("/")[0] for key in stored_paths(files)) == ["private", "response"]
    assert make_channel().pk == claimed[0].channel_id
