"""`uci-summary-exhaust`: counts and shares for each option, without free text."""

from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from exhaust.datasets import DATASETS, answers, summary
from exhaust.datasets.base import DatasetLimitExceeded
from exhaust.files import writer
from tests.exhaust import corpus
from tests.exhaust.corpus import select_corpus
from tests.exhaust.datasets.surveys import (
    MEALS,
    SUMMARY,
    choose,
    list_options,
    pin,
    read_table,
    reply,
    store,
)
from tests.exhaust.datasets.test_datasets import store_participant
from tests.exhaust.datasets.test_survey import post

GOLDEN = Path(__file__).parent.parent / "golden" / "summary.csv"
HOUR = 3600


def read_counts(**config: Any) -> list[tuple[Any, ...]]:
    """Day, title, option, its text, answers, answers to the question, share."""
    rows = (list(row.values()) for row in read_table(SUMMARY, **config))
    return [(row[0], *row[3:]) for row in rows]


def store_votes() -> None:
    store(
        choose(1, "1"),
        choose(2, "2", device="bela"),
        choose(3, "2", "3", device="chand"),
        reply(4, "secret words", question="meal", item={"params": list_options(MEALS)}),
        reply(5, "because of my name"),
    )


@pytest.mark.django_db
def test_counts_and_shares():
    store_votes()

    assert read_counts() == [
        (None, "meal?", "1", "Rice", "1", "4", "0.2500"),
        (None, "meal?", "2", "Lentils", "2", "4", "0.5000"),
        (None, "meal?", "3", "Bread", "1", "4", "0.2500"),
        (None, "meal?", None, "(text)", "1", "4", "0.2500"),
        (None, "why?", None, "(text)", "1", "1", "1.0000"),
    ]


@pytest.mark.django_db
def test_row_names_its_question():
    store_votes()

    first = next(iter(pin(SUMMARY).iterate_rows(select_corpus())))

    assert first[3:6] == ["/data/meal", "meal", "meal?"]


@pytest.mark.django_db
def test_columns_are_chosen():
    store_votes()

    dataset = pin(SUMMARY, columns=["Answers", "Option Text"])

    assert next(iter(dataset.iterate_rows(select_corpus()))) == ["1", "Rice"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "values",
    [
        [{"1": {"text": "secret"}}],  # an option's key with another text
        [{"9": {"text": "Rice"}}],  # another key
        [{"ans1": "secret"}],
        "secret",
        ["secret", {"secret": "secret"}],
        {"1": "secret"},
    ],
)
def test_free_text_never_leaks(values: Any):
    store(reply(1, values, question="meal", item={"params": list_options(MEALS)}))

    (row,) = read_table(SUMMARY)

    assert (row["Option"], row["Option Text"], row["Answers"]) == (None, "(text)", "1")
    assert "secret" not in str(row)


@pytest.mark.django_db
def test_days_are_of_the_requests_zone():
    # given answers at 4:00, 18:29 and 18:30 UTC; in Kolkata the last one is of the next day
    store(
        choose(0, "1"),
        choose(14 * HOUR + 1740, "1", device="bela"),
        choose(14 * HOUR + 1800, "2", device="chand"),
    )
    zone = ZoneInfo("Asia/Kolkata")
    start = datetime(2022, 4, 1, tzinfo=zone)

    def days(**overrides: Any) -> list[tuple[Any, ...]]:
        rows = pin(SUMMARY, by="day").iterate_rows(select_corpus(**overrides))
        return [(row[2], row[7], row[8]) for row in rows]

    assert days(start=start) == [("2022-04-01", "Rice", "2"), ("2022-04-02", "Lentils", "1")]
    assert days() == [("2022-04-01", "Rice", "2"), ("2022-04-01", "Lentils", "1")]


@pytest.mark.django_db
def test_options_go_by_number():
    options = {str(number): f"Class {number}" for number in range(1, 12)}
    store(*(choose(n, key, options=options, device=key) for n, key in enumerate(options)))

    assert [row[2] for row in read_counts()] == list(options)


@pytest.mark.django_db
def test_refused_answers_are_not_counted():
    store_votes()
    store_participant(device_id="bela", consent=False)

    lentils = read_counts()[1]

    assert lentils[3:] == ("Lentils", "1", "3", "0.3333")


@pytest.mark.django_db
def test_too_many_counts_fail(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(summary, "MAX_ROWS", 4)
    store_votes()

    with pytest.raises(DatasetLimitExceeded, match="more than 4 counts; ask for fewer days"):
        read_counts()


@pytest.mark.parametrize(
    ("count", "total", "share"),
    [(1, 3, "0.3333"), (2, 3, "0.6667"), (1, 1, "1.0000"), (1, 20_000, "0.0001"), (0, 5, "0.0000")],
)
def test_share_is_rounded_half_up(count: int, total: int, share: str):
    assert summary.format_share(count, total) == share


@pytest.mark.django_db
def test_corpus_is_the_same_everywhere():
    """A golden file, which each database must equal."""
    selection = corpus.store_corpus()
    dataset = DATASETS[SUMMARY].pin_columns(selection, {"by": "day"})

    data = b"".join(writer.iter_blocks(dataset, selection, writer.Progress()))

    assert data == GOLDEN.read_bytes()


# Preview ----------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_preview_counts():
    store_votes()

    preview = post("preview", SUMMARY).json()["result"]

    assert preview["estimate"]["rows"] == 5
    assert preview["estimate"]["counted"] is True
    assert [row["Option Text"] for row in preview["rows"]][:2] == ["Rice", "Lentils"]


@pytest.mark.django_db(transaction=True)
def test_preview_of_many_answers_is_estimated(monkeypatch: pytest.MonkeyPatch, on_postgresql: bool):
    monkeypatch.setattr(answers, "PREVIEW_ANSWERS", 2)
    store_votes()

    preview = post("preview", SUMMARY).json()["result"]

    assert preview["estimate"]["counted"] is False
    assert [row["Answers"] for row in preview["rows"]] == ["1", "1"]
    assert preview["message"].endswith("of the first 2 answers; the file has all.")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"by": "week"}, "by: One of range, day."),
        ({"rows": "session"}, "rows: uci-summary-exhaust takes none"),
        ({"since": "0" * 32}, "since: Later answers change earlier rows"),
    ],
)
def test_bad_choices_name_the_field(config: dict[str, Any], sentence: str):
    answered = post("submit", SUMMARY, **config)

    assert answered.status_code == 400
    assert f"request.datasetConfig.{sentence}" in answered.json()["params"]["errmsg"]
