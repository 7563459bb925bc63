"""Further processes make the same lines, and an attempt leaves none of them behind."""

import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from exhaust.archive import engine, read
from exhaust.jobs import attempt, transitions
from exhaust.models import File, Job
from ingest.models import Channel
from tests.exhaust import corpus
from tests.exhaust.archive.test_read import (
    archive_to,
    choose,
    refuse,
    require_same,
    run_job,
    small_groups,
)
from tests.exhaust.factories import make_answer, make_claimed, send_events

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("archive")]
__all__ = ["small_groups"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, settings: Any) -> list[subprocess.Popen[bytes]]:
    """The processes that make rows: two for each file, which waits for them."""
    settings.EXHAUST_PROCESSES = 3
    monkeypatch.setattr(read, "PROCESS_ROWS", 0)
    monkeypatch.setattr(engine, "START_WAIT_MS", 20_000)
    processes: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def record(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        processes.append(start(*args, **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    return processes


def test_processes_make_the_same_bytes(
    started: list[subprocess.Popen[bytes]], small_groups: None
) -> None:
    # given awkward answers, hashed devices, refusals, and answers that came later
    selection = corpus.store_corpus()
    refuse("device-1")
    Channel.objects.update(hash_device_ids=True)
    archive_to()
    send_events(make_answer(-5), make_answer(4000))

    # then
    for limit in (0, 3000):
        require_same(selection, formats=["csv", "jsonl", "parquet"], limit=limit)
        require_same(choose(), formats=["csv.gz", "jsonl"], limit=limit)
    assert started
    assert all(process.poll() is not None for process in started)


def test_few_rows_need_no_process(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "PROCESS_ROWS", 10)
    send_events(*(make_answer(number) for number in range(9)))
    archive_to()

    assert run_job().row_count == 9
    assert started == []


def test_job_whose_process_dies_is_made_of_rows(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    send_events(*(make_answer(number) for number in range(9)))
    expected = run_job().sha256
    archive_to()
    job = make_claimed()
    original = engine.Engine.make_group

    def kill_and_make(*args: Any) -> Any:
        for process in started:
            process.kill()
            process.wait()
        return original(*args)

    monkeypatch.setattr(engine.Engine, "make_group", kill_and_make)

    # then
    assert not attempt.run(job)
    Job.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    again = transitions.claim(job.pk)
    assert again is not None
    assert attempt.run(again)
    assert File.objects.get(job=job).sha256 == expected


def test_error_of_a_process_reaches_the_job(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    send_events(*(make_answer(number) for number in range(9)))
    archive_to()
    monkeypatch.setitem(read.LINES, "csv lines", len)

    assert not attempt.run(make_claimed())
    assert started
    assert all(process.poll() is not None for process in started)


def test_process_ends_with_its_parent() -> None:
    code = "from exhaust.archive import engine; engine.serve()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()

        assert process.wait(20) == 0


def test_processes_know_no_django() -> None:
    code = "import exhaust.archive.engine, sys; assert 'django' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
