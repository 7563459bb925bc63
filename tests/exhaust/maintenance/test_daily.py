"""The daily run: once a day, however many workers look."""

import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from exhaust.delivery import callbacks
from exhaust.files import links, orphans, storage
from exhaust.maintenance import daily
from exhaust.models import Callback, DailyRun, DeadLetter, File, Job, Link, Transition
from ingest.models import BrowserSession
from tests.exhaust.destinations import make_destination
from tests.exhaust.factories import (
    fetch_job_row,
    leave_orphan,
    make_finished,
    make_job,
    stored_paths,
)

DAY = timedelta(days=1)


def parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "day"),
    [
        ("2026-03-10T01:59:59", date(2026, 3, 9)),
        ("2026-03-10T02:00:00", date(2026, 3, 10)),
        ("2026-03-10T23:59:59", date(2026, 3, 10)),
        ("2026-03-11T01:59:59", date(2026, 3, 10)),
        ("2027-01-01T01:00:00", date(2026, 12, 31)),
    ],
)
def test_run_day_begins_at_two(now: str, day: date) -> None:
    assert daily.run_day(parse_time(now)) == day


def test_run_day_begins_at_set_hour(settings: Any) -> None:
    settings.EXHAUST_DAILY_HOUR, settings.EXHAUST_DAILY_TIMEZONE = 1, "Asia/Kolkata"
    assert daily.run_day(parse_time("2026-03-10T19:29:59")) == date(2026, 3, 10)
    assert daily.run_day(parse_time("2026-03-10T19:30:00")) == date(2026, 3, 11)


def test_run_days_have_no_gaps() -> None:
    # given a look every twenty minutes through the changes of every clock
    start = parse_time("2024-01-01T02:00:00")
    run_days = {
        daily.run_day(start + timedelta(minutes=20 * number)) for number in range(2500 * 72)
    }
    assert len(run_days) == 2500


@pytest.mark.django_db
def test_runs_once_a_day() -> None:
    # given a scheduler that was down from the 9th to 5:00 of the 12th
    assert daily.run_daily(parse_time("2026-03-09T02:00:01"))
    assert not daily.run_daily(parse_time("2026-03-09T14:00:00"))
    assert not daily.is_due(parse_time("2026-03-10T01:00:00"))

    # when it is back
    assert daily.is_due(parse_time("2026-03-12T05:00:00"))
    assert daily.run_daily(parse_time("2026-03-12T05:00:00"))

    # then missed runs are made up for once, and the next is at the usual hour
    assert not daily.run_daily(parse_time("2026-03-12T05:00:05"))
    assert not daily.is_due(parse_time("2026-03-13T01:59:59"))
    assert daily.is_due(parse_time("2026-03-13T02:00:00"))
    assert [str(run.day) for run in DailyRun.objects.order_by("day")] == [
        "2026-03-09",
        "2026-03-12",
    ]


@pytest.mark.django_db
def test_deletes_expired_files_and_orphans(files: Path) -> None:
    # given an old file, a young one, and a orphan
    old, young = make_finished(), make_finished()
    File.objects.filter(job=old).update(created_at=timezone.now() - 40 * DAY)
    leave_orphan(make_job(status="FAILED"), 1)

    # when
    assert daily.run_daily()

    # then
    assert stored_paths(files) == [File.objects.get(job=young).key]
    run = DailyRun.objects.get()
    assert (run.files_deleted, run.orphans_deleted) == (1, 1)
    assert run.finished_at is not None
    assert fetch_job_row(old)["status"] == "SUCCESS"


@pytest.mark.django_db
def test_deletes_records_of_ended_jobs(settings: Any, files: Path) -> None:
    # given old jobs that ended, one with a file and one whose callback is still to be delivered
    settings.EXHAUST_JOB_RETENTION_DAYS = 100
    long_ago = timezone.now() - 101 * DAY
    ended = [make_finished() for _ in range(3)]
    running, recent = make_job(), make_finished()
    for job in ended:
        links.get_or_create(File.objects.get(job=job))
        callbacks.create_callback(job)
    Job.objects.exclude(pk=recent.pk).update(submitted_at=long_ago, completed_at=long_ago)
    deleted, with_file, told = ended
    File.objects.exclude(job=with_file).update(deleted_at=long_ago)
    Callback.objects.exclude(job=told).update(status="delivered")

    # and dead letters of which one is old, and sessions of which one has ended
    destination = make_destination()
    for row, created_at in ((1, long_ago), (2, timezone.now())):
        values = {"row": row, "xid": 1, "answer": 400, "created_at": created_at}
        DeadLetter.objects.create(destination=destination, **values)
    for key, expire_date in (("old", long_ago), ("new", timezone.now() + DAY)):
        BrowserSession.objects.create(session_key=key, expire_date=expire_date, used_at=long_ago)

    # when
    assert daily.run_daily()

    # then
    kept = [with_file.pk, told.pk, running.pk, recent.pk]
    assert list(Job.objects.order_by("pk").values_list("pk", flat=True)) == sorted(kept)
    assert not Link.objects.filter(file__job=deleted.pk).exists()
    assert not Transition.objects.filter(job=deleted.pk).exists()
    assert DeadLetter.objects.get().row == 2
    assert BrowserSession.objects.get().session_key == "new"


@pytest.mark.django_db
def test_dead_run_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a run that died in the middle
    def dies() -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(orphans, "remove_all", dies)
        with pytest.raises(KeyboardInterrupt):
            daily.run_daily()
    assert not daily.is_due()
    assert not daily.run_daily()

    # when it has been silent for long
    DailyRun.objects.update(renewed_at=timezone.now() - timedelta(minutes=11))

    # then the next sweep starts it, once
    assert daily.is_due()
    assert daily.run_daily()
    assert not daily.is_due()
    assert not daily.run_daily()
    assert DailyRun.objects.count() == 1


@pytest.mark.django_db
def test_run_survives_storage_outage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def down(*_: Any) -> Any:
        raise storage.StorageError("down")

    monkeypatch.setattr(storage.FolderStorage, "list_keys", down)
    assert daily.run_daily()
    assert "daily_run.storage_failed" in caplog.text
    assert DailyRun.objects.get().finished_at is not None


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_parallel_schedulers_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # given twenty that look at the same moment
    ran: list[str] = []
    monkeypatch.setattr(orphans, "remove_all", lambda: ran.append("run") or iter(()))
    answers: list[bool] = []
    barrier = threading.Barrier(20)

    def look() -> None:
        try:
            barrier.wait()
            answers.append(daily.run_daily())
        finally:
            connections.close_all()

    threads = [threading.Thread(target=look) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    # then one has it
    assert sorted(answers) == [False] * 19 + [True]
    assert ran == ["run"]
    assert DailyRun.objects.count() == 1
