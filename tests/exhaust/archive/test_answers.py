"""Answers by who gave them, however few fit into memory."""

import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest

from exhaust.archive import answers

DEVICES = ["", "a", "b", "é", "\ud7ff", "～", "😀"]


def make_rows(chance: random.Random) -> list[tuple[str, str, str]]:
    """Devices and sessions with numbers in the order of time; one may have most of them."""
    frequent = chance.choice([0, 0.8])
    return [
        ("b", "s1", f"{number}")
        if chance.random() < frequent
        else (chance.choice(DEVICES), chance.choice(["", "s1", "s2"]), f"{number}")
        for number in range(chance.randint(1, 300))
    ]


def iterate_tables(rows: list[tuple[str, str, str]], row_count: int) -> Iterator[Any]:
    for start in range(0, len(rows), row_count):
        columns = zip(*rows[start : start + row_count], strict=True)
        yield pa.table([pa.array(texts, pa.string()) for texts in columns], NAMES)


NAMES = ["device", "session", "0"]


@pytest.mark.parametrize("order", ["session", "participant"])
@pytest.mark.parametrize("seed", range(20))
def test_any_answers_are_sorted(seed: int, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    chance = random.Random(seed)
    monkeypatch.setattr(answers, "SORTED_BYTES", chance.choice([1, 500, 3000, 10**9]))
    monkeypatch.setattr(answers, "SAMPLED_KEYS", chance.choice([2, 8, 64]))
    monkeypatch.setattr(answers, "TABLE_ROWS", chance.choice([1, 3, 50]))
    rows, row_count = make_rows(chance), chance.randint(1, 20)

    # when
    tables = list(answers.sort_by_key(lambda: iterate_tables(rows, row_count), order))

    # then
    def find_key(row: tuple[str, ...]) -> tuple[bytes, bytes]:
        session = row[1] if order == "session" or not row[0] else ""
        return row[0].encode(), session.encode()

    sorted_rows = [row for table in tables for row in zip(*table.to_pydict().values(), strict=True)]
    assert sorted_rows == sorted(rows, key=find_key)


def test_little_is_kept_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # given answers that take 20 times as much as may be sorted
    monkeypatch.setattr(answers, "SORTED_BYTES", 20_000)
    rows = [(f"device-{number * 7919 % 9973}", "s", f"{number}") for number in range(9973)]
    sizes: list[int] = []
    sort_tables = answers.sort_tables

    def sort(tables: list[Any], order: str) -> Iterator[Any]:
        sizes.append(sum(table.nbytes for table in tables))
        return sort_tables(tables, order)

    monkeypatch.setattr(answers, "sort_tables", sort)

    # when
    tables = answers.sort_by_key(lambda: iterate_tables(rows, 100), "session")
    devices = [device for table in tables for device in table.column("device").to_pylist()]

    # then
    assert all(first < second for first, second in pairwise(devices))
    assert len(devices) == len(rows)
    assert len(sizes) > 10
    assert max(sizes) < 60_000
