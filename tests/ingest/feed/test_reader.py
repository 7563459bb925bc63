"""A reader behind a cursor meets every event once, whatever writers do beside it."""

import json
import random
import threading
import time
from collections import Counter
from contextlib import nullcontext
from datetime import UTC, datetime

import pytest
from django.db import connection, connections, transaction

from ingest.feed import reader as feed
from ingest.feed.values import START
from ingest.feed.watermark import fetch_watermark
from ingest.models import StoredEvent
from ingest.store import batches
from ingest.times import to_microseconds
from tests.conftest import make_channel
from tests.ingest.telemetry_samples import answer, batch

WRITERS, READERS, BATCHES = 16, 3, 12


class RolledBack(Exception):
    """A writer's change of mind."""


@pytest.mark.django_db(transaction=True)
def test_no_event_lost_beside_slow_writers(monkeypatch: pytest.MonkeyPatch):
    # given writers whose transactions overlap, some slow, some undone, and which rest between
    # the first row they write, a conversation's, and their events
    register = batches.ensure_conversations
    rests = random.Random(7)
    monkeypatch.setattr(
        batches,
        "ensure_conversations",
        lambda *args: (register(*args), time.sleep(rests.choice([0, 0, 0.02])))[0],
    )
    # a thread has a connection of its own, and a pool has eight: the others wait for one
    channel = make_channel()
    batches.append_batch(channel.id, batch(answer(0, mid="first")))
    committed: list[str] = ["first"]
    wrong: list[BaseException] = []
    done = threading.Event()

    # SQLite's writers are one at a time: a rest of one is a rest of all
    rest = [0, 0, 0, 0.001, 0.01, 0.05] if connection.vendor == "postgresql" else [0, 0, 0.002]

    def write(writer: int) -> None:
        dice = random.Random(writer)
        try:
            for number in range(BATCHES):
                mids = [f"{writer}-{number}-{each}" for each in range(dice.randint(1, 5))]
                try:
                    # every other writer has the store commit by itself, as most endpoints do
                    nested = writer % 2 == 0
                    with transaction.atomic() if nested else nullcontext():
                        # a new conversation: its row is written before the events are
                        bot = {"cdata": [{"type": "Conversation", "id": mids[0]}]}
                        events = [
                            answer(each, mid=mid, context=bot) for each, mid in enumerate(mids)
                        ]
                        batches.append_batch(channel.id, batch(*events))
                        time.sleep(dice.choice(rest))
                        if nested and dice.random() < 0.1:
                            raise RolledBack
                except RolledBack:
                    continue
                committed.extend(mids)
        except BaseException as error:
            wrong.append(error)
        finally:
            connections.close_all()

    def read(reader: int, seen: list[str]) -> None:
        dice = random.Random(reader)
        place = START
        try:
            while True:
                last = done.is_set()
                rows = feed.fetch_page(channel.id, place, fetch_watermark(), dice.randint(1, 20))
                seen.extend(json.loads(row.payload)["mid"] for row in rows)
                place = rows[-1].position if rows else place
                if last and not rows:
                    return
        except BaseException as error:
            wrong.append(error)
        finally:
            connections.close_all()

    # when readers with pages of any size follow them
    seen: list[list[str]] = [[] for _ in range(READERS)]
    writers = [threading.Thread(target=write, args=(n,)) for n in range(WRITERS)]
    readers = [threading.Thread(target=read, args=(n, seen[n])) for n in range(READERS)]
    connection.close()
    for thread in (*writers, *readers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()

    # then none missed one, and none met one twice
    assert wrong == []
    assert len(committed) > WRITERS * BATCHES * 2
    for each in seen:
        assert Counter(each) == Counter(committed)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "moment", ["2022-03-05T10:00:00", "2022-03-05T10:00:00.000001", "2022-03-05T10:00:00.999999",
               "1970-01-01T00:00:00", "2026-12-31T23:59:59.5", "1969-12-31T23:59:59.75"],
)  # fmt: skip
def test_times_keep_microseconds(moment: str):
    at = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    channel = make_channel()
    batches.append_batch(channel.id, batch(answer(0)))
    StoredEvent.objects.update(occurred_at=at, received_at=at)
    (row,) = feed.fetch_page(channel.id, START, fetch_watermark(), 10)
    assert (row.occurred_us, row.received_us) == (to_microseconds(at), to_microseconds(at))


@pytest.mark.django_db
@pytest.mark.postgresql
def test_microseconds_are_exact_until_2106():
    # when
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), count(*) FILTER (WHERE"
            " CAST(date_part('epoch', t) * 1000000 AS bigint)"
            " <> CAST(extract(epoch FROM t) * 1000000 AS bigint)) FROM ("
            " SELECT TIMESTAMPTZ '1970-01-01 UTC' + random() * INTERVAL '136 years' AS t"
            " FROM generate_series(1, 200000)) moments"
        )
        counted, different = cursor.fetchone()

    # then
    assert (
        feed.Microseconds.template
        == "CAST(date_part('epoch', %(expressions)s) * 1000000 AS bigint)"
    )
    assert (counted, different) == (200_000, 0)
