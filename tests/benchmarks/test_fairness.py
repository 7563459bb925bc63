"""The loads of every address, and the figures of the table."""

import re
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from django.urls import resolve

from benchmarks import fairness, fairness_loads, wrk
from benchmarks.fairness import EVENTS, PAGES, Row, Sample
from benchmarks.fairness_loads import LOADS, Caller, World
from exhaust.console import home

VALUES = {"channel": "ORG_001", "tag": "t", "request_id": "A" * 32, "part": "1", "pk": "1"}
WORLD = World(defaultdict(lambda: ["X-Caller: test"]), VALUES)
OF_NO_VIEW = {"static/admin/css/base.css", "nothing/here"}


def test_every_address_has_a_load():
    templates = set(fairness_loads.list_addresses().values())

    assert [each for each in templates if not fairness_loads.find_loads(each)] == []
    assert set(LOADS) - templates == OF_NO_VIEW


def test_requests_reach_their_views():
    for name, calls in fairness_loads.collect_rows().items():
        for (route, load), request in zip(
            calls, fairness_loads.build_requests(calls, WORLD), strict=True
        ):
            path = wrk.fill_numbers(request, 7).split(" ", 2)[1].partition("?")[0]
            if route in OF_NO_VIEW or load.caller is Caller.NOBODY:
                continue
            is_catch_all = resolve(path).func is home.not_found
            assert is_catch_all == (route == "console/<path:path>"), (name, path)
            assert "<" not in path, (name, path)


def test_bodies_have_their_lengths():
    for name, calls in fairness_loads.collect_rows().items():
        for request in fairness_loads.build_requests(calls, WORLD):
            head, _, body = wrk.fill_numbers(request, 7).partition("\r\n\r\n")
            length = re.search(r"Content-Length: (\d+)", head)
            assert int(length[1] if length else 0) == len(body.encode()), name
            assert len(body) <= 8 * 1024 * 1024, name


def samples(*times_ms: float, status: int = 200) -> list[Sample]:
    return [Sample("read", group, ms, status) for ms in times_ms for group in (EVENTS, PAGES)]


def test_row_is_compared_with_its_neighbours():
    alone = [samples(number) for number in range(20)]

    around = [{each.ms for each in fairness.nearest_windows(alone, n)} for n in (0, 9, 18)]

    assert around == [set(range(6)), set(range(7, 13)), set(range(14, 20))]


def test_table_shows_ratio_and_refusals():
    row = Row("submit", [], answers=Counter({"200": 1, "429": 3}), seconds=2.0, places=[0])
    row.beside.append([*samples(*[6.0] * 97), *samples(9.0, status=503), *samples(9.0, 9.0)])

    lines = {line.work: line for line in fairness.build_results([row], [samples(4.0)] * 7)}

    times = lines[f"submit: {PAGES}"]
    assert (times.ratio[0], times.holds, times.note) == (2.25, True, "2/s: 75% 429, 25% 200")
    refused = lines["submit: refused"]
    assert (list(refused.ours), refused.holds, refused.note) == ([0.01], True, "2 read 503")
    assert lines["refused without load"].holds is True


def test_each_round_measures_each_row(monkeypatch: pytest.MonkeyPatch):
    loads: list[tuple[str, int]] = []
    made = {"seconds": 3.0, "statuses": {"200": 7}, "broken": 1}
    monkeypatch.setattr(fairness, "LEAD_SECONDS", 0)

    class Tenant:
        def run(self, seconds: float) -> list[Sample]:
            return samples(seconds)

    def start_load(row: Row, seconds: int) -> Callable[[], dict[str, Any]]:
        loads.append((row.name, seconds))
        return lambda: made

    rows = [Row("a", []), Row("b", [])]
    alone = fairness.measure(
        rows,
        Tenant(),  # type: ignore[arg-type]
        start_load,
        lambda: None,
        Namespace(rounds=2, seconds=2),
    )

    assert loads == [("a", 3), ("b", 3), ("b", 3), ("a", 3)]
    assert len(alone) == 5
    assert [(row.answers, row.seconds, row.places) for row in rows] == [
        ({"200": 14, "broken": 2}, 6.0, [0, 3]),
        ({"200": 14, "broken": 2}, 6.0, [1, 2]),
    ]
