"""The tree uses the words of docs/glossary.md, and its import order holds."""

import pytest

from tools import quality


def test_bars_hold() -> None:
    missed = [bar for bar in quality.measure() if not bar.holds]

    assert {bar.name: bar.findings[:20] or bar.value for bar in missed} == {}


def test_words_come_from_the_glossary() -> None:
    words = quality.list_banned_words()

    assert {"door", "doors", "sink", "ledger", "horizon"} <= words
    assert not {"source", "destination", "audit", "not"} & words


@pytest.mark.parametrize(
    ("name", "words"),
    [("list_audit_events", ["list", "audit", "events"]), ("FeedPosition", ["feed", "position"]),
     ("HTTPClient", ["http", "client"])],
)  # fmt: skip
def test_identifier_is_split_into_words(name: str, words: list[str]) -> None:
    assert quality.split_identifier(name) == words
