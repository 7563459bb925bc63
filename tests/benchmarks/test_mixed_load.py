"""The report on reads under load: when it names figures, and when it stops the run."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from benchmarks import mixed_load

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


class Generator:
    """Returns prepared results at once."""

    def __init__(self, answers: dict[str, int], p99: float = 0.02) -> None:
        self.result = {
            "answers": answers, "sent": sum(answers.values()), "seconds": 2.0,
            "accepted_p50": 0.004, "accepted_p99": p99,
        }  # fmt: skip

    def call(self, request: dict[str, Any]) -> Any:
        return ["000000001"] if "acknowledged" in request else self.result


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Replaces the export under load; returns the stored counts."""
    stored = {"000000001": mixed_load.BATCH}

    def under_load(reader: Generator, sender: Generator, *_: Any) -> Any:
        return {"files": 2, "share": 0.97}, {**reader.result, "accepted_p99": 0.03}, sender.result

    monkeypatch.setattr(mixed_load, "run_with_exports", under_load)
    monkeypatch.setattr(mixed_load, "submit_job", lambda months: 1)
    monkeypatch.setattr(mixed_load, "wait_for_job", lambda pk: None)
    monkeypatch.setattr(mixed_load.overload, "stored_counts", lambda: stored)
    return stored


def measure(read_counts: dict[str, int], batch_counts: dict[str, int]) -> dict[str, Any]:
    reader, sender = Generator(read_counts), Generator(batch_counts)
    results = mixed_load.measure(reader, sender, months=1, seconds=2, times=1)  # type: ignore[arg-type]
    return {line.work: line for line in reversed(results)}


def test_bar_applies_to_reads_under_load(load: dict[str, int]):
    results = measure({"200": 100}, {"200": 40})

    line = results["read, p99, while files are made and events come"]
    assert (list(line.ours), line.bar, line.holds) == ([30], "<= 25", False)
    line = results["read, p50, while files are made and events come"]
    assert line.ratio[0] == 1
    assert results["events acknowledged meanwhile"].ours == [2000]
    assert results["files made meanwhile"].note == "2 ended"


@pytest.mark.parametrize(
    ("read_counts", "batch_counts"),
    [({"200": 99, "503": 1}, {"200": 40}), ({"200": 100}, {"200": 39, "503": 1})],
)
def test_unexpected_status_stops_run(
    load: dict[str, int], read_counts: dict[str, int], batch_counts: dict[str, int]
):
    with pytest.raises(SystemExit, match="returned"):
        measure(read_counts, batch_counts)


def test_lost_batch_stops_run(load: dict[str, int]):
    load["000000001"] -= 1

    with pytest.raises(SystemExit, match="1 acknowledged batches"):
        measure({"200": 100}, {"200": 40})


def test_overlap_counts_window_only():
    created = [(at(-1), at(2)), (at(2.5), at(9)), (at(9), at(12))]

    assert mixed_load.overlap(created, at(0), at(10)) == (2, 0.95)
    assert mixed_load.overlap([(at(-3), at(-1))], at(0), at(10)) == (0, 0)
