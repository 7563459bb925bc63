"""The daily counts are those of the rows, whatever happened to the rows."""

import random
import threading
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext

from ingest.derive import deriver
from ingest.events import Batch, Event, event_identity
from ingest.feed import daily_counts, pruning
from ingest.models import Conversation, DailyCount, DailyCountState, StoredEvent
from ingest.privacy import erasure
from ingest.store import batches
from tests.conftest import make_channel

# steps read what is committed
pytestmark = pytest.mark.django_db(transaction=True)
Kind = DailyCount.Kind
EVER = (date(2000, 1, 1), date(2100, 1, 1))
START = datetime(2026, 3, 1, 22, tzinfo=UTC)


def make_event(number: int, version: int = 0, day: int = 0, **overrides: Any) -> Event:
    values: dict[str, Any] = {
        "identity": event_identity(None, str(number)),
        "type": "LOG",
        "occurred_at": START + timedelta(days=day, hours=version),
        "device_id": f"device-{number % 5}",
        "session_id": "",
        "conversation": f"bot-{number % 3}",
        "is_answer": number % 2 == 0,
        "payload": b'{"version": %d}' % version,
        **overrides,
    }
    return Event(**values)


def store(*events: Event, day: int = 0, source: str = "test", last_wins: bool = True) -> None:
    arrived_at = START + timedelta(days=day, hours=3)
    batch = Batch(source, arrived_at, list(events), [], last_wins=last_wins)
    batches.append_batch(make_channel().pk, batch)


def count_rows(kind: DailyCount.Kind) -> Counter[Any]:
    """Counts the rows one by one."""
    counts: Counter[Any] = Counter()
    for row in StoredEvent.objects.filter(channel=make_channel()):
        if kind == Kind.ARRIVAL:
            counts[row.received_at.date(), row.source] += 1
        elif row.superseded_xid is None:
            if kind == Kind.EVENT:
                counts[row.occurred_at.date(), row.source] += 1
            elif row.is_answer:
                counts[row.occurred_at.date(), str(row.conversation_id)] += 1
    return counts


def set_steps(monkeypatch: pytest.MonkeyPatch, least: int, most: int) -> None:
    monkeypatch.setattr(daily_counts, "MIN_STEP_EVENTS", least)
    monkeypatch.setattr(daily_counts, "MAX_STEP_EVENTS", most)


def check() -> None:
    channel_id = make_channel().pk
    for kind in Kind:
        rows = count_rows(kind)
        assert daily_counts.count_days(channel_id, kind, *EVER) == rows
        names: Counter[Any] = Counter()
        for (_day, name), count in rows.items():
            names[name,] += count
        assert daily_counts.count_names(channel_id, kind, *EVER) == names


@pytest.mark.parametrize("seed", range(12))
def test_counts_are_those_of_the_rows(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    dice = random.Random(seed)
    channel_id = make_channel().pk
    for turn in range(25):
        match dice.choice(("store", "store", "store", "step", "derive", "prune", "erase")):
            case "store":
                events = [
                    make_event(dice.randrange(20), turn, day=dice.randrange(-2, 2))
                    for _ in range(dice.randint(1, 6))
                ]
                store(
                    *events, day=turn // 6, source=dice.choice(("one", "two")),
                    last_wins=dice.random() < 0.7,
                )  # fmt: skip
            case "step":
                set_steps(monkeypatch, 1, dice.randint(1, 8))
                daily_counts.count_step(channel_id)
            case "derive":
                deriver.derive_step(channel_id)
            case "prune":
                before = START + timedelta(days=dice.randrange(5))
                pruning.prune_events(channel_id, before, dice.randint(1, 6))
            case "erase":
                erasure.erase(channel_id, f"device-{dice.randrange(5)}", seconds=5)
        check()
    set_steps(monkeypatch, 1, 5)
    while daily_counts.count_step(channel_id):
        check()
    kept = DailyCount.objects.filter(kind=Kind.ARRIVAL).values_list("day", "name", "count")
    # the position is at the end: nothing but the kept counts is read
    assert {(day, name): n for day, name, n in kept if n} == count_rows(Kind.ARRIVAL)


def test_only_uncounted_events_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    channel_id = make_channel().pk
    store(*(make_event(number) for number in range(6)))
    set_steps(monkeypatch, 7, 9)
    assert daily_counts.count_step(channel_id) == 0
    set_steps(monkeypatch, 6, 9)
    assert daily_counts.count_step(channel_id) == 1
    StoredEvent.objects.all().delete()  # which nothing but a pruning does

    counts = daily_counts.count_days(channel_id, Kind.EVENT, *EVER)

    assert counts == {(date(2026, 3, 1), "test"): 6}
    with CaptureQueriesContext(connection) as queries:
        daily_counts.count_days(channel_id, Kind.EVENT, *EVER)
    assert len(queries) == 2


def test_other_channels_and_days_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    set_steps(monkeypatch, 1, 9)
    store(make_event(1, day=0), make_event(2, day=1), make_event(3, day=2))
    other = make_channel("ORG_002").pk
    day = date(2026, 3, 2)
    for _ in range(2):
        counts = daily_counts.count_days(make_channel().pk, Kind.EVENT, day, day)
        assert counts == {(day, "test"): 1}
        assert daily_counts.count_days(other, Kind.EVENT, *EVER) == {}
        daily_counts.count_step(make_channel().pk)


def test_deriver_and_daily_run_count(monkeypatch: pytest.MonkeyPatch) -> None:
    store(*(make_event(number) for number in range(4)))
    deriver.derive_all(seconds=5)
    assert not DailyCount.objects.exists()  # so few are read as fast
    set_steps(monkeypatch, 1, 3)
    store(make_event(9))
    deriver.derive_all(seconds=5)
    assert DailyCountState.objects.get().version == 1
    daily_counts.count_all()
    assert DailyCountState.objects.get().version == 2
    check()


def test_step_in_the_middle_of_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    channel_id = make_channel().pk
    store(*(make_event(number) for number in range(4)))
    set_steps(monkeypatch, 1, 9)
    group, turns = daily_counts._group, iter(range(9))

    def step_first(*args: Any) -> Any:
        if next(turns) == 0:  # the position is read, the counts are not
            daily_counts.count_step(channel_id)
        return group(*args)

    monkeypatch.setattr(daily_counts, "_group", step_first)
    counts = daily_counts.count_days(channel_id, Kind.ARRIVAL, *EVER)
    assert counts == count_rows(Kind.ARRIVAL)
    assert next(turns) == 6  # read twice


def test_counts_beside_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    set_steps(monkeypatch, 1, 7)
    channel_id = make_channel().pk
    Conversation.objects.bulk_create(
        Conversation(channel_id=channel_id, identifier=f"bot-{number}") for number in range(3)
    )
    faults: list[BaseException] = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        try:
            for turn in range(20):
                if seed == 0:
                    daily_counts.count_step(channel_id)
                elif seed == 1:
                    deriver.derive_step(channel_id)
                    pruning.prune_events(channel_id, START + timedelta(days=1), 3)
                else:
                    store(*(make_event(dice.randrange(30), turn) for _ in range(4)), day=turn // 5)
        except BaseException as fault:
            faults.append(fault)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    check()
    while daily_counts.count_step(channel_id):
        pass
    check()
