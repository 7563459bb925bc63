"""Fixtures of the tests of exhaust."""

import pytest
from django.utils import timezone

from exhaust.jobs import wakeup
from exhaust.maintenance import daily
from exhaust.models import DailyRun


@pytest.fixture
def enqueued_tasks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tasks sent to the broker, which gets none of them."""
    names: list[str] = []
    monkeypatch.setattr(wakeup, "enqueue", lambda task, *_, **__: names.append(task))
    return names


@pytest.fixture
def daily_run_finished(db: None) -> None:
    """The daily run of today has finished."""
    DailyRun.objects.create(day=daily.run_day(timezone.now()), finished_at=timezone.now())
