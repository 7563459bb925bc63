"""An engine makes the parts of a file: each attempt the same ones, of the same bytes."""

import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings as django_settings
from django.utils import timezone

from exhaust.engines import processes
from exhaust.files import storage, writer
from exhaust.files.formats import FORMATS
from exhaust.jobs import attempt, engine_parts, plan, produce, transitions
from exhaust.models import ArchiveFile, File, Job
from ingest.models import Channel
from tests import s3server
from tests.exhaust.archive.conftest import Archive, archive
from tests.exhaust.archive.test_read import (
    CONFIG,
    archive_to,
    make_random_answers,
    refuse,
    small_groups,
)
from tests.exhaust.factories import make_answer, make_claimed, send_events, stored_paths
from tests.exhaust.files.test_storage import BUCKET, StorageCase, s3_endpoint, served

pytestmark = pytest.mark.django_db(transaction=True)
__all__ = ["archive", "s3_endpoint", "served", "small_groups"]


@pytest.fixture(autouse=True)
def engine(settings: Any, monkeypatch: pytest.MonkeyPatch, small_groups: None) -> None:
    """Two processes make parts of about ten rows."""
    settings.EXHAUST_ENGINE, settings.EXHAUST_PROCESSES = "processes", 2
    monkeypatch.setattr(engine_parts, "MIN_ROWS", 1)
    monkeypatch.setattr(engine_parts, "PART_ROWS", 10)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    found: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def record(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        found.append(start(*args, **options))
        return found[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    return found


def send_awkward() -> None:
    """Archived answers in two files that overlap, then late ones, replaced ones and refusals."""
    chance = random.Random(7)
    send_events(*make_random_answers(chance, 40, 0))
    archive_to()
    send_events(*make_random_answers(chance, 30, 40))
    archive_to()
    send_events(*make_random_answers(chance, 12, 70), make_answer(-5), make_answer(400_000))
    refuse("device-1")


def read_files(job: Job) -> list[tuple[File, bytes]]:
    files = File.objects.filter(job=job, withdrawn_at=None).order_by("part")
    return [(file, (Path(django_settings.FILES_DIR) / file.key).read_bytes()) for file in files]


def make_by_rows(job: Job, name: str) -> list[bytes]:
    """What a worker makes of rows between the job's edges."""
    job.refresh_from_db()
    whole = plan.make_plan(job)
    made = []
    for part in engine_parts.list_parts(whole):
        progress = writer.Progress()
        blocks = writer.iter_blocks(whole.dataset, part.selection, progress, FORMATS[name])
        body = b"".join(blocks)
        made += [body] if progress.rows else []
    return made


def try_again(job: Job) -> Job:
    Job.objects.filter(pk=job.pk).update(due_at=timezone.now() - timedelta(seconds=1))
    again = transitions.claim(job.pk)
    assert again is not None
    return again


@pytest.mark.parametrize("name", ["csv", "csv.gz", "jsonl", "jsonl.gz"])
@pytest.mark.usefixtures("archive")
def test_parts_have_the_bytes_of_rows(name: str, settings: Any) -> None:
    send_awkward()
    Channel.objects.update(hash_device_ids=True)
    job = make_claimed(output_format=name, config=CONFIG)

    assert attempt.run(job)

    *parts, manifest = read_files(job)
    assert len(parts) > 3
    assert manifest[0].name.endswith("_manifest.json")
    assert [body for _, body in parts] == make_by_rows(job, name)
    assert sum(file.row_count for file, _ in parts) == Job.objects.get().rows_done > 70
    assert {file.key for file, _ in (*parts, manifest)} == set(
        stored_paths(Path(settings.FILES_DIR))
    )


@pytest.mark.usefixtures("archive")
def test_each_attempt_makes_the_same_parts(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    # given a first attempt that fails after some parts, and answers that come after it
    send_awkward()
    job = make_claimed(config=CONFIG)
    original = engine_parts.PartsMaker.take

    def fail(maker: Any, part: Any, result: Any) -> None:
        original(maker, part, result)
        if part.number == 2:
            raise storage.StorageError("full")

    with monkeypatch.context() as patch:
        patch.setattr(engine_parts.PartsMaker, "take", fail)
        assert not attempt.run(job)
    assert stored_paths(Path(settings.FILES_DIR)) == []
    expected = make_by_rows(job, "csv")
    archive_to()
    send_events(make_answer(11))

    # then the next one makes them by the archive, and the last one without it
    monkeypatch.setattr(engine_parts, "PART_ROWS", 30)
    made = []
    for number in (2, 3):
        again = try_again(job)
        assert again.attempt == number
        assert (plan.make_plan(again).archive is None) == (number == 3)
        with monkeypatch.context() as patch:
            patch.setattr(transitions, "publish", keep_files(made))
            assert not attempt.run(again)
        transitions.fail(again, "")
    assert made == [[hashlib.sha256(part).hexdigest() for part in expected]] * 2


def keep_files(made: list[list[str]]) -> Callable[..., bool]:
    """A publication that keeps the digests of the parts, and loses."""

    def keep(job: Job, files: list[File], *args: Any, **options: Any) -> bool:
        made.append([file.sha256 for file in files[:-1]])
        return False

    return keep


@pytest.mark.usefixtures("archive")
def test_parts_with_many_late_rows_are_made_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send_awkward()
    monkeypatch.setattr(engine_parts, "LATE_ROWS", 0)
    of_rows: list[int] = []
    original = engine_parts.PartsMaker.store_part

    def record(maker: Any, part: Any) -> None:
        of_rows.append(part.number)
        original(maker, part)

    monkeypatch.setattr(engine_parts.PartsMaker, "store_part", record)
    job = make_claimed(config=CONFIG)

    assert attempt.run(job)

    *parts, _ = read_files(job)
    assert [body for _, body in parts] == make_by_rows(job, "csv")
    assert 1 < len(of_rows) <= len(parts) + 1


@pytest.mark.usefixtures("archive")
def test_lost_lease_ends_processes_and_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, settings: Any, started: list[subprocess.Popen[bytes]]
) -> None:
    send_awkward()
    job = make_claimed(config=CONFIG)
    original = engine_parts.PartsMaker.take

    def lose(maker: Any, part: Any, result: Any) -> None:
        original(maker, part, result)
        Job.objects.update(attempt=9)

    monkeypatch.setattr(engine_parts.PartsMaker, "take", lose)
    monkeypatch.setattr(engine_parts, "AHEAD", 1)

    def wait_for_loss(maker: Any) -> None:
        if Job.objects.get().attempt == 9:
            time.sleep(1.5)

    assert_before = time.monotonic()
    check = produce.Store.check

    def slow_check(store: Any, progress: Any) -> None:
        wait_for_loss(store)
        check(store, progress)

    monkeypatch.setattr(produce.Store, "check", slow_check)

    assert not attempt.run(job)
    assert time.monotonic() - assert_before < 15
    assert started
    assert all(process.poll() is not None for process in started)
    assert stored_paths(Path(settings.FILES_DIR)) == []
    assert not File.objects.exists()


@pytest.mark.usefixtures("archive")
def test_part_of_a_killed_process_is_made_again(
    monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
) -> None:
    send_awkward()
    job = make_claimed(config=CONFIG)
    submit = processes.Processes.submit
    killed: list[int] = []

    def kill_once(engine: Any, number: int, work: Any) -> None:
        submit(engine, number, work)
        if not killed:
            killed.append(started[0].pid)
            started[0].kill()

    monkeypatch.setattr(processes.Processes, "submit", kill_once)

    assert attempt.run(job)
    *parts, _ = read_files(job)
    assert [body for _, body in parts] == make_by_rows(job, "csv")
    assert killed


@pytest.mark.usefixtures("archive")
def test_part_without_an_answer_is_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    send_awkward()
    job = make_claimed(config=CONFIG)
    submit = processes.Processes.submit
    given: list[int] = []

    def lose_first(engine: Any, number: int, work: Any) -> None:
        given.append(number)
        if given != [0]:
            submit(engine, number, work)

    monkeypatch.setattr(processes.Processes, "submit", lose_first)
    monkeypatch.setattr(engine_parts, "PART_SECONDS", 4.0)

    assert attempt.run(job)
    *parts, _ = read_files(job)
    assert [body for _, body in parts] == make_by_rows(job, "csv")
    assert given.count(0) >= 2


@pytest.mark.usefixtures("archive")
def test_part_that_always_fails_ends_the_attempt(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    send_awkward()
    job = make_claimed(config=CONFIG)
    monkeypatch.setattr(engine_parts, "LINES", {"csv lines": None})
    shared = engine_parts.build_shared
    monkeypatch.setattr(
        engine_parts, "build_shared", lambda plan: replace(shared(plan), lines="none")
    )

    assert not attempt.run(job)
    job.refresh_from_db()
    assert job.status_message == "A part of the file could not be made."
    assert stored_paths(Path(settings.FILES_DIR)) == []


def test_deleted_file_of_the_archive_makes_another_attempt(archive: Archive) -> None:
    send_awkward()
    job = make_claimed(config=CONFIG)
    chosen = plan.make_plan(job)
    edges = engine_parts.choose_edges(chosen)
    assert edges is not None
    assert transitions.set_part_edges(job, edges)
    job.refresh_from_db()
    groups = engine_parts.list_groups(chosen, chosen.archive)  # type: ignore[arg-type]
    assert groups

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_parts, "list_groups", lambda *args: groups)
        for file in ArchiveFile.objects.all():
            (Path(archive.url) / file.key).unlink()
        assert not attempt.run(job)
    job.refresh_from_db()
    assert job.status_message.startswith("The archive changed")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MIN_ROWS", 10_000), ("part_bytes", 0),
        ("output_format", "parquet"),
        ("dataset", "events-exhaust"), ("dataset", "uci-survey-exhaust"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("archive")
def test_other_files_need_no_engine(
    name: str, value: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_awkward()
    if name == "MIN_ROWS":
        monkeypatch.setattr(engine_parts, name, value)
    if name == "part_bytes":
        settings.EXHAUST_PART_BYTES = value
    asked = {name: value} if name in {"output_format", "dataset"} else {}
    job = make_claimed(config=CONFIG, **asked)

    assert attempt.run(job)
    job.refresh_from_db()
    assert job.part_edges is None
    assert File.objects.count() == 1


@pytest.mark.usefixtures("archive")
def test_answers_of_no_conversation_make_one_file_with_a_header() -> None:
    send_awkward()
    job = make_claimed(config=CONFIG | {"conversationId": "another"})

    assert attempt.run(job)
    (file,) = File.objects.all()
    assert (file.row_count, file.part) == (0, 1)


def test_parts_know_no_django() -> None:
    code = "import exhaust.engines.processes, sys; assert 'django' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.s3
def test_parts_of_a_bucket(
    served: StorageCase, s3_endpoint: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes without a key read and write a real server."""
    use_bucket(served, s3_endpoint, settings, monkeypatch)
    send_awkward()
    job = make_claimed(config=CONFIG, output_format="csv.gz")

    assert attempt.run(job)

    *files, _ = File.objects.order_by("part")
    bodies = [served.storage.open(file.key).read() for file in files]
    assert bodies == make_by_rows(job, "csv.gz")
    head = served.client.head_object(Bucket=BUCKET, Key=files[0].key)
    assert head["ContentType"] == "application/gzip"


def use_bucket(
    served: StorageCase, endpoint: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3server.ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3server.SECRET_KEY)
    settings.S3_ENDPOINT_URL = settings.S3_PUBLIC_ENDPOINT_URL = endpoint
    settings.S3_REGION = s3server.REGION
    settings.EXHAUST_ARCHIVE_URL = f"s3://{BUCKET}/past-{uuid4().hex}"
    settings.S3_BUCKET = BUCKET
    storage.get_storage.cache_clear()
