"""The report on floods between runs at full load."""

from typing import Any

from benchmarks.overload import build_results


def run(served: int, rejected: int = 0, work: float = 10.0) -> dict[str, Any]:
    """Ten seconds, `work` of them at work."""
    return {
        "seconds": 10.0, "accepted": served, "sent": served + rejected, "unsent": 0, "silent": 0,
        "answers": {"200": served, "503": rejected}, "work": work, "cores": "1 of 2 cores",
        "accepted_p50": 0.2, "accepted_p99": 0.4, "rejected_p50": 0.005, "rejected_p99": 0.03,
    }  # fmt: skip


def test_goodput_uses_adjacent_capacity():
    before = [run(400), run(600), run(500)]
    floods = [run(450, 4550), run(495, 5005)]

    results = {line.work: line for line in build_results(before, floods, 200)}

    assert results["capacity"].ours == [40, 60, 50]
    line = results["goodput"]
    assert (line.ours, line.reference, line.holds) == ([45, 49.5], [50, 55], True)
    assert line.note.startswith("10.0 times capacity")


def test_rejection_cost():
    results = {
        line.work: line for line in build_results([run(500), run(500)], [run(450, 4550)], 200)
    }

    line = results["CPU of rejecting one"]
    assert line.reference == [20]  # 10 s for 500
    assert [round(each, 3) for each in line.ours] == [0.22]  # 1 s for 4,550


def test_every_bar_is_listed():
    lines = list(build_results([run(500), run(500)], [run(450, 4550)], 200))

    assert [(line.work, line.bar, line.holds) for line in lines if line.bar] == [
        ("goodput", ">= 0.9", True),
        ("accepted p99", "<= 500", True),
        ("rejected p99", "<= 20", False),
        ("rejections without Retry-After", "<= 0", True),
    ]
