"""The filters of the console's templates."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone, translation

from exhaust.console.templatetags import console as filters
from exhaust.datasets import DATASETS
from exhaust.datasets.base import Dataset
from ingest.auth import preferences

NOW = datetime(2026, 3, 2, 12, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "1 second ago"), (-59, "59 seconds ago"), (-60, "1 minute ago"), (-7300, "2 hours ago"),
     (90, "in 1 minute"), (-40 * 86_400, "21 Jan 2026"), (400 * 86_400, "6 Apr 2027")],
)  # fmt: skip
def test_relative_time(monkeypatch: pytest.MonkeyPatch, seconds: int, text: str) -> None:
    monkeypatch.setattr(filters, "read_clock", lambda: NOW)
    html = filters.ago(NOW + timedelta(seconds=seconds)).replace("\xa0", " ")
    assert html.endswith(f" data-relative>{text}</time>")


def test_relative_time_tells_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "read_clock", lambda: NOW)
    assert 'title="2026-03-02 12:00:30 UTC"' in filters.ago(NOW)
    monkeypatch.setattr(preferences, "get_zone", lambda: ZoneInfo("Asia/Kolkata"))
    html = filters.ago(NOW)
    assert 'datetime="2026-03-02T12:00:30Z" title="2026-03-02 17:30:30 Asia/Kolkata"' in html
    assert filters.ago(None) == "never"


def test_copy_button_escapes_text() -> None:
    html = filters.copy_button('a"<b>')
    assert 'data-copy="a&quot;&lt;b&gt;"' in html
    assert "<b>" not in html


def test_filters_are_translated() -> None:
    with translation.override("ar"):
        assert filters.size(4_000_000) == "\u20664.0 MB\u2069"  # the number before its unit
        assert filters.day("2026-03-02") == "2 مارس 2026"
        assert "minute" not in filters.ago(timezone.now() - timedelta(minutes=5))


@pytest.mark.parametrize("each", DATASETS.values(), ids=DATASETS.keys())
def test_titles_of_datasets_are_theirs(each: Dataset) -> None:
    assert filters.dataset(each.name) == filters.dataset_title(each) == each.title


@pytest.mark.parametrize(
    ("agent", "name"),
    [("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/156.0 Safari/537.36",
      "Chrome, Linux"),
     ("Mozilla/5.0 (Windows NT 10.0) Chrome/156.0 Safari/537.36 Edg/156.0", "Edge, Windows"),
     ("Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Version/19.0 Safari/604.1",
      "Safari, iPhone"),
     ("curl/8.5", "curl"), ("a robot", "a robot"), ("", "")],
)  # fmt: skip
def test_browsers_have_names(agent: str, name: str) -> None:
    assert filters.browser(agent) == name
