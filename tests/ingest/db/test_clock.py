"""All processes share the database's clock, whatever their machines' clocks show."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError

from exhaust.jobs import attempt, transitions
from exhaust.models import File, Job
from ingest.db import clock
from tests.exhaust.factories import make_answer, make_job, send_events

HOUR = timedelta(hours=1)
MOMENT = timedelta(seconds=5)


@pytest.fixture(params=[-HOUR, HOUR], ids=["behind", "ahead"])
def wrong_clock(request: Any, monkeypatch: pytest.MonkeyPatch) -> timedelta:
    """Moves the process's clock. The database's stays."""

    class WrongDatetime(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + request.param

    monkeypatch.setattr(clock, "datetime", WrongDatetime)
    monkeypatch.setattr(clock, "sample", None)
    monkeypatch.setattr(clock, "retry_at", 0.0)
    return request.param


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_worker_an_hour_off_makes_the_file(wrong_clock: timedelta) -> None:
    send_events(make_answer(1))
    began = datetime.now(UTC)
    job = make_job()
    claimed = transitions.claim()
    assert claimed is not None

    assert attempt.run(claimed)

    job = Job.objects.get(pk=job.pk)
    times = [job.submitted_at, job.started_at, File.objects.get().created_at, job.completed_at]
    assert times == sorted(times)
    assert all(abs(time - began) < MOMENT for time in times)
    assert 0 <= job.execution_ms < 5_000
    assert transitions.queue_wait() == timedelta()


@pytest.mark.postgresql
@pytest.mark.django_db
def test_clock_counts_on_without_a_database(
    wrong_clock: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process that has never asked: its own time is all there is
    assert abs(clock.read_clock(may_ask=False) - datetime.now(UTC) - wrong_clock) < MOMENT

    # when it has asked once, and the database is gone for an hour
    assert abs(clock.read_clock() - datetime.now(UTC)) < MOMENT
    started_at = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: started_at + 3600)

    def fail(*_: Any) -> None:
        raise OperationalError

    monkeypatch.setattr(clock, "fetch_all", fail)

    # then it counts on
    assert abs(clock.read_clock() - datetime.now(UTC) - HOUR) < MOMENT
