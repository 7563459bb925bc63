"""What the tests of exhaust may ask for."""

import pytest
from django.utils import timezone

from exhaust.jobs import wakeup
from exhaust.maintenance import daily
from exhaust.models import DailyRun


@pytest.fixture
def wakes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every message that would have gone to the broker, by its task's name."""
    heard: list[str] = []
    monkeypatch.setattr(wakeup, "wake", lambda task, *_, **__: heard.append(task))
    return heard


@pytest.fixture
def days_run_done(db: None) -> None:
    """The day's run is over, and no sweep has a word to say about it."""
    DailyRun.objects.create(day=daily.day_of(timezone.now()), finished_at=timezone.now())
