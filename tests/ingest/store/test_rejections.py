"""Rejected events are kept within bounds, and the others are counted."""

import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.models import Sum

from ingest.events import Rejection
from ingest.feed.watermark import POSITIONED_TABLES
from ingest.models import RejectedDay, RejectedEvent, RejectedWord, StoredEvent
from ingest.privacy import device_words
from ingest.store import rejections
from tests.conftest import make_channel

pytestmark = pytest.mark.django_db
RECEIVED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def make_rejections(numbers: Sequence[int], size: int = 0) -> list[Rejection]:
    return [
        Rejection(number, "bad", f"bad {number}", b"%d" % number + b"." * size)
        for number in numbers
    ]


def store(
    rejected: list[Rejection],
    channel: str = "ORG_001",
    received_at: datetime = RECEIVED_AT,
    source: str = "telemetry",
) -> None:
    rejections.store_rejections(make_channel(channel).pk, source, received_at, rejected)


def read_day(channel: str = "ORG_001") -> tuple[int, int, int]:
    day = RejectedDay.objects.get(channel__identifier=channel, day=RECEIVED_AT.date())
    return day.row_count, day.byte_count, day.sampled_out


# A batch ----------------------------------------------------------------------------------------


def test_batch_keeps_its_first_hundred():
    store(make_rejections(range(1050)))

    *kept, rest = RejectedEvent.objects.order_by("position")
    assert [row.position for row in kept] == list(range(100))
    assert (rest.reason, rest.position, rest.count) == ("not_kept", 100, 950)
    assert (rest.size, bytes(rest.encrypted_body)) == (0, b"")
    assert rest.detail == (
        "950 more rejected events of this batch are counted and not kept: of a batch we keep the"
        " first 100, up to 1,048,576 bytes."
    )
    assert RejectedEvent.objects.aggregate(total=Sum("count"))["total"] == 1050


def test_batch_keeps_a_megabyte():
    store(make_rejections(range(8), size=200 * 1024))

    *kept, rest = RejectedEvent.objects.order_by("position")
    assert [row.position for row in kept] == [0, 1, 2, 3, 4]
    assert (rest.reason, rest.count) == ("not_kept", 3)


def test_long_texts_count_as_stored():
    store(make_rejections(range(5), size=8_000_000))

    assert RejectedEvent.objects.filter(reason="bad").count() == 4
    assert read_day() == (5, 4 * 256 * 1024, 0)


def test_same_batch_adds_no_rows():
    for _ in range(3):
        store(make_rejections(range(150)))

    assert RejectedEvent.objects.count() == 101
    assert read_day()[0] == 101


def test_repeats_are_counted():
    # given a text that comes again, also twice in a batch, and another one
    later = RECEIVED_AT + timedelta(hours=3)
    store(make_rejections([1, 2]))
    store(make_rejections([1]), received_at=later)
    store(make_rejections([1, 1]), received_at=later)
    store(make_rejections([1]), "ORG_002")

    # then its row has the number and the last time, and the day one row of it
    once, often = RejectedEvent.objects.filter(channel__identifier="ORG_001").order_by("count")
    assert (once.position, once.count, once.repeated_at) == (2, 1, None)
    assert (often.position, often.count, often.received_at) == (1, 4, RECEIVED_AT)
    assert often.repeated_at == often.last_received_at == later
    assert read_day() == (2, 2, 0)


def test_repeat_on_a_later_day_is_of_that_day():
    store(make_rejections([1, 1]))
    next_day = RECEIVED_AT + timedelta(days=1)
    store(make_rejections([1]), received_at=next_day)
    # and a batch of before that was committed late changes no day
    store(make_rejections([1]), received_at=RECEIVED_AT)

    row = RejectedEvent.objects.get()
    assert (row.count, row.received_at, row.last_received_at) == (2, next_day, next_day)
    rows = dict(RejectedDay.objects.values_list("day", "row_count"))
    assert rows == {RECEIVED_AT.date(): 1, next_day.date(): 1}


def test_repeat_after_replay_waits_again():
    store(make_rejections([1, 1]))
    RejectedEvent.objects.update(replayed_at=RECEIVED_AT)
    store(make_rejections([1]))
    row = RejectedEvent.objects.get()
    assert (row.count, row.replayed_at, row.repeated_at) == (1, None, None)


def test_count_has_room_for_ever():
    store(make_rejections([1]))
    RejectedEvent.objects.update(count=2**31 - 1)
    store(make_rejections([1]))
    assert RejectedEvent.objects.get().count == 2**31 - 1


def test_another_rest_is_another_count():
    store(make_rejections(range(150)))
    store(make_rejections(range(170)))

    counted = RejectedEvent.objects.filter(reason="not_kept").values_list("count", flat=True)
    assert sorted(counted) == [50, 70]


@pytest.mark.django_db(transaction=True)
def test_encryption_precedes_transaction(monkeypatch: pytest.MonkeyPatch):
    encrypt = rejections.encrypt
    in_transaction: list[bool] = []

    def watched(plain: bytes) -> bytes:
        in_transaction.append(connection.in_atomic_block)
        return encrypt(plain)

    monkeypatch.setattr(rejections, "encrypt", watched)
    store(make_rejections(range(5000)))

    assert in_transaction == [False] * 100


@pytest.mark.postgresql
def test_rejections_leave_the_feed_alone():
    with transaction.atomic():
        store(make_rejections(range(150)))
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()"
                " AND locktype = 'relation' AND relation = ANY(%s::regclass[]::oid[])",
                [list(POSITIONED_TABLES)],
            )
            assert cursor.fetchone() == (0,)


def test_not_kept_are_metered():
    def read() -> float:
        return rejections.metrics.REJECTED_NOT_KEPT.labels("batch")._value.get()

    before = read()
    store(make_rejections(range(150)))

    assert read() - before == 50


# A day ------------------------------------------------------------------------------------------


@pytest.fixture
def small_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejections, "MAX_DAY_ROWS", 20)
    monkeypatch.setattr(rejections, "MAX_DAY_BYTES", 2000)


def store_one_by_one(numbers: Sequence[int], size: int = 0, **options: Any) -> None:
    for number in numbers:
        moment = RECEIVED_AT + timedelta(seconds=number)
        store(make_rejections([number], size), received_at=moment, **options)


def test_day_keeps_its_newest(small_day: None):
    store_one_by_one(range(50))

    row_count, _, sampled_out = read_day()
    positions = sorted(RejectedEvent.objects.values_list("position", flat=True))
    assert 18 <= row_count <= 20
    assert positions == list(range(50 - row_count, 50))
    assert row_count + sampled_out == 50


def test_day_keeps_few_bytes(small_day: None):
    store_one_by_one(range(9), size=500)

    positions = sorted(RejectedEvent.objects.values_list("position", flat=True))
    assert positions == [6, 7, 8]
    assert read_day() == (3, 3 * 501, 6)


def test_counts_are_sampled_out_too(small_day: None):
    store(make_rejections(range(1000, 1107)))
    store_one_by_one(range(20))

    kept = RejectedEvent.objects.aggregate(total=Sum("count"))["total"]
    assert kept + read_day()[2] == 127


def test_day_spares_others(small_day: None):
    store_one_by_one(range(20), channel="ORG_002")
    store(make_rejections(range(20)), received_at=RECEIVED_AT - timedelta(days=1))

    store_one_by_one(range(100, 150))

    assert RejectedEvent.objects.filter(channel__identifier="ORG_002").count() == 20
    assert RejectedEvent.objects.filter(received_at__lt=RECEIVED_AT).count() == 20
    assert read_day("ORG_002")[2] == 0


def test_erased_rows_make_room(small_day: None):
    store_one_by_one(range(20))
    RejectedEvent.objects.all().delete()

    store_one_by_one(range(100, 110))

    assert RejectedEvent.objects.count() == 10
    assert read_day() == (10, 30, 0)


def test_words_leave_with_their_rows(small_day: None):
    for number in range(50):
        raw = b'{"did": "device-%d"}' % number
        store([Rejection(number, "bad", "", raw)], received_at=RECEIVED_AT)

    assert RejectedWord.objects.count() == RejectedEvent.objects.count() <= 20


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_full_day_has_no_deadlock(small_day: None):
    make_channel()
    connection.close()
    wrong: list[BaseException] = []

    def send(sender: int) -> None:
        try:
            for round_ in range(20):
                numbers = [(sender * 7 + round_ * 11 + step) % 60 for step in range(10)]
                store(make_rejections(numbers))
        except BaseException as error:
            wrong.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert RejectedEvent.objects.count() == read_day()[0] <= 20


def test_full_day_keeps_ten_of_a_batch(small_day: None):
    store(make_rejections(range(30)))
    assert read_day()[2] == 12

    store(make_rejections(range(100, 150)))

    kept = RejectedEvent.objects.filter(position__gte=100).order_by("position")
    assert [row.position for row in kept] == list(range(100, 111))
    assert (kept[10].reason, kept[10].count) == ("not_kept", 40)
    assert "we keep the first 10," in kept[10].detail


def test_limits_are_documented():
    page = (Path(__file__).parents[3] / "docs" / "limits.md").read_text()
    bounds = {
        cells[1].strip(): cells[2].strip()
        for line in page.partition("## Rejected events")[2].splitlines()
        if len(cells := line.split("|")) == 5
    }

    assert bounds["texts of a batch"] == (
        f"the first {rejections.MAX_BATCH_TEXTS}, up to {rejections.MAX_BATCH_BYTES >> 20} MiB;"
        f" the first {rejections.MAX_SAMPLE_TEXTS} on a day that was full"
    )
    assert bounds["bytes of a text"] == f"{rejections.MAX_STORED_BYTES >> 10} KiB"
    assert bounds["a channel's rows of a day (UTC)"] == f"{rejections.MAX_DAY_ROWS:,}"
    assert bounds["a channel's bytes of a day"] == f"{rejections.MAX_DAY_BYTES >> 20} MiB"


# Words ------------------------------------------------------------------------------------------


def test_words_are_keyed_hashes():
    channel = make_channel()
    store([Rejection(0, "ets", "", b'{"ets": "x", "context": {"did": "device-1"}}')])
    store([Rejection(0, "ets", "", b'{"ets": "x", "context": {"did": "device-1"}}')], "ORG_002")

    here, there = RejectedWord.objects.order_by("rejected_event")
    key = device_words.fetch_key(channel.pk)
    assert here.digest == device_words.hash_word(key, b"device-1") != there.digest


def test_unknown_secret_keeps_rejections(settings: Any):
    device_words.fetch_key(make_channel().pk)
    settings.EXHAUST_ENCRYPTION_KEYS = ["A" * 43 + "="]

    store([Rejection(0, "ets", "", b'{"context": {"did": "device-1"}}')])

    assert RejectedEvent.objects.get().is_indexed is False
    assert not StoredEvent.objects.exists()
