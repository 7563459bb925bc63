"""What the tests of exhaust may ask for."""

import pytest

from exhaust import tasks


@pytest.fixture
def wakes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every "look now" that would have gone to the broker."""
    heard: list[str] = []
    monkeypatch.setattr(tasks, "wake", lambda: heard.append("look now"))
    return heard
