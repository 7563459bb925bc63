import threading
import time
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.models import Max

from ingest.feed import watermark as positions
from ingest.feed.watermark import fetch_watermark
from ingest.models import Channel, StoredEvent
from ingest.store import batches
from tests.conftest import make_channel
from tests.ingest.telemetry_samples import answer, batch

BEYOND_BIGINTS_COMFORT = 2**62


def ids_below(watermark: int) -> list[str]:
    """The mids a reader at this watermark sees, in the order of arrival."""
    rows = StoredEvent.objects.filter(xid__lt=watermark).order_by("xid", "id")
    return [row.payload["mid"] for row in rows]


def wait_for_watermark(xid: int) -> int:
    """The watermark once it has passed xid; writers elsewhere in the cluster may hold it back."""
    until = time.monotonic() + 20
    while (watermark := fetch_watermark()) <= xid:
        assert time.monotonic() < until, f"{watermark} never passed {xid}"
        time.sleep(0.02)
    return watermark


def last_xid() -> int:
    return int(StoredEvent.objects.aggregate(last=Max("xid"))["last"])


@pytest.mark.django_db(transaction=True)
def test_watermark_of_empty_feed():
    assert isinstance(fetch_watermark(), int)
    assert fetch_watermark() >= 1
    assert ids_below(fetch_watermark()) == []


@pytest.mark.django_db(transaction=True)
def test_committed_rows_are_below_watermark():
    channel = make_channel()
    batches.append_batch(channel.id, batch(answer(1, mid="a"), answer(2, mid="b")))
    mark = wait_for_watermark(last_xid())

    batches.append_batch(channel.id, batch(answer(3, mid="c")))
    batches.append_batch(channel.id, batch(answer(0, mid="d")))

    assert sorted(ids_below(mark)) == ["a", "b"]
    assert sorted(ids_below(wait_for_watermark(last_xid()))) == ["a", "b", "c", "d"]


@pytest.mark.django_db(transaction=True)
def test_replay_moves_no_row():
    channel = make_channel()
    batches.append_batch(channel.id, batch(answer(1)))
    before = StoredEvent.objects.get().xid
    mark = wait_for_watermark(before)

    batches.append_batch(channel.id, batch(answer(1)))
    batches.append_batch(channel.id, batch(answer(2)))

    rows = StoredEvent.objects.order_by("xid")
    assert rows[0].xid == before
    assert rows[1].xid >= mark


@pytest.mark.django_db
def test_positions_are_ordered_numbers():
    channel = make_channel()
    for number, xid in enumerate((9, 10, 100, BEYOND_BIGINTS_COMFORT)):
        put(channel, number, xid=xid)

    assert list(StoredEvent.objects.order_by("xid").values_list("xid", flat=True)) == [
        9,
        10,
        100,
        BEYOND_BIGINTS_COMFORT,
    ]
    assert StoredEvent.objects.filter(xid__lt=100).count() == 2
    assert StoredEvent.objects.filter(xid__in=[9, 100]).count() == 2
    assert last_xid() == BEYOND_BIGINTS_COMFORT
    assert StoredEvent.objects.filter(superseded_xid=None).count() == 4


def put(channel: Channel, number: int, **overrides: Any) -> StoredEvent:
    read = batch(answer(number)).events[0]
    return StoredEvent.objects.create(
        **{
            "channel": channel,
            "occurred_at": read.occurred_at,
            "received_at": read.occurred_at,
            "is_answer": True,
            "identity": read.identity.hex(),
            "source": "telemetry",
            "type": "ASSESS",
            "payload": {},
            **overrides,
        }
    )


class Writer:
    """A batch in a transaction of its own that stays open until it is told how to end."""

    def __init__(self, channel: Channel, mid: str) -> None:
        self.written = threading.Event()
        self._end = threading.Event()
        self._commit = False
        self._channel_id = channel.id
        self._mid = mid
        self.wrong: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self.written.wait(10)

    def finish(self, *, commit: bool) -> None:
        self._commit = commit
        self._end.set()
        self._thread.join()
        assert self.wrong is None

    def _run(self) -> None:
        try:
            with transaction.atomic():
                batches.append_batch(self._channel_id, batch(answer(1, mid=self._mid)))
                self.written.set()
                assert self._end.wait(30)
                if not self._commit:
                    transaction.set_rollback(True)
        except BaseException as error:
            self.wrong = error
        finally:
            self.written.set()
            connections.close_all()


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("commit", [True, False], ids=["committed", "rolled back"])
def test_open_writer_holds_watermark_back(commit: bool):
    # given a conversation all know, so that no writer waits for another
    channel = make_channel()
    batches.append_batch(channel.id, batch(answer(0, mid="first")))
    first = last_xid()
    wait_for_watermark(first)
    slow = Writer(channel, "slow")

    # when a later writer has committed before it
    batches.append_batch(channel.id, batch(answer(2, mid="fast")))
    fast = last_xid()

    # then a reader sees neither, since one of them may still come to stand before the other
    held = fetch_watermark()
    assert first < held <= fast - 1
    assert ids_below(held) == ["first"]

    # and both, or the one, when it has ended
    slow.finish(commit=commit)
    expected = ["first", "slow", "fast"] if commit else ["first", "fast"]
    assert ids_below(wait_for_watermark(fast)) == expected


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_other_transactions_are_ignored():
    # given somebody's long transaction on another table of the same cluster
    channel = make_channel()
    other = connection.copy()
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute("UPDATE ingest_channel SET name = 'x'")

        # when an event is committed after it began
        batches.append_batch(channel.id, batch(answer(1, mid="mine")))

        # then a reader sees it at once
        assert ids_below(fetch_watermark()) == ["mine"]
    finally:
        other.rollback()
        other.close()


@pytest.mark.parametrize(
    ("near", "number", "whole"),
    [
        (1_000, 999, 999),
        (1_000, 1_001, 1_001),
        ((1 << 32) + 5, 4, (1 << 32) + 4),
        ((1 << 32) + 5, (1 << 32) - 1, (1 << 32) - 1),
        ((3 << 32) - 1, 2, (3 << 32) + 2),
    ],
)
def test_lock_shows_32_bits_of_xid(near: int, number: int, whole: int):
    assert positions.widen_xid(near, number) == whole


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_paged_reader_sees_each_event_once():
    channel = make_channel()
    batches.append_batch(channel.id, batch(answer(0, mid="first")))
    writers = [Writer(channel, f"w{n}") for n in range(4)]
    ends = [(2, True), (0, False), (3, True), (1, True)]
    seen: list[str] = []
    since = 0

    def step(mark: int) -> int:
        rows = StoredEvent.objects.filter(xid__gte=since, xid__lt=mark).order_by("xid", "id")
        seen.extend(row.payload["mid"] for row in rows)
        return max(mark, since)

    since = step(fetch_watermark())
    for writer, commit in ends:
        writers[writer].finish(commit=commit)
        since = step(fetch_watermark())
    since = step(wait_for_watermark(last_xid()))

    assert sorted(seen) == ["first", "w1", "w2", "w3"]
    assert seen[0] == "first"


@pytest.mark.django_db
def test_database_assigns_default_position(on_postgresql: bool):
    row = put(make_channel(), 1)

    row.refresh_from_db()
    if on_postgresql:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id()::text")
            assert row.xid == int(cursor.fetchone()[0])
    else:
        assert row.xid == 0
