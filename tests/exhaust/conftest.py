"""What the tests of exhaust may ask for."""

import pytest
from django.utils import timezone

from exhaust.jobs import wakeup
from exhaust.maintenance import daily
from exhaust.models import DailyRun


@pytest.fixture
def enqueued_tasks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every message that would have gone to the broker, by its task's name."""
    names: list[str] = []
    monkeypatch.setattr(wakeup, "enqueue", lambda task, *_, **__: names.append(task))
    return names


@pytest.fixture
def daily_run_finished(db: None) -> None:
    """The day's run is over, and no sweep has a word to say about it."""
    DailyRun.objects.create(day=daily.run_day(timezone.now()), finished_at=timezone.now())
