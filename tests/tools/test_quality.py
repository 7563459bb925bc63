"""The tree uses the words of docs/glossary.md, and its import order holds."""

import pytest

from tools import quality

BARS = quality.measure()


@pytest.mark.parametrize("bar", BARS, ids=[bar.name for bar in BARS])
def test_bar_holds(bar: quality.Bar) -> None:
    assert bar.holds, "\n".join(bar.findings[:20])


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
