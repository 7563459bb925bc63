"""Sessions close, and each reader of the feed reads the closed session."""

import threading
import time
from datetime import datetime, timedelta

import pytest
from django.db import connection, connections
from django.utils import timezone
from msgspec import structs

from exhaust.feed import pages
from exhaust.feed.pages import FeedQuery
from ingest.derive import deriver
from ingest.events import Batch
from ingest.feed import values
from ingest.models import Channel, DerivationState, Session
from ingest.store import batches
from tests.conftest import make_channel
from tests.ingest.adapters.test_desk import CALL, desk, lines, session
from tests.ingest.derive.test_sessions import GAP, MINUTE, event, until_settled
from tests.service import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def channel(db: None) -> Channel:
    made = make_channel()
    DerivationState.objects.create(channel=made)
    return made


def arrive(channel: Channel, *minutes: float, at: datetime, device: str = "device-1") -> None:
    """Stores events of a device so many minutes after `at`, which arrive then."""
    for offset in minutes:
        occurred = at + offset * MINUTE
        events = [event(occurred_at=occurred, device_id=device)]
        batches.append_batch(channel.id, Batch("test", min(occurred, timezone.now()), events, []))


def derive(channel: Channel) -> None:
    until_settled()
    while deriver.derive_step(channel.id):
        pass


class Reader:
    """Follows a channel's sessions with its own cursor."""

    def __init__(self, channel: Channel) -> None:
        self.question = FeedQuery(channel.id, "sessions")
        self.place = values.START

    def read_documents(self, limit: int = 100) -> list[bytes]:
        until_settled()
        found: list[bytes] = []
        while True:
            page = pages.read_page(self.question, self.place, limit)
            found += page.items
            self.place = page.position
            if page.is_at_end:
                return found


def test_session_is_read_open_then_closed(channel: Channel):
    reader = Reader(channel)
    now = timezone.now()
    arrive(channel, -20, -10, at=now)
    reader.read_documents()  # at the end of the feed before the first derivation
    derive(channel)
    (met,) = reader.read_documents()
    assert b'"closed":false' in met
    assert deriver.close_sessions(channel.id) == 0
    assert reader.read_documents() == []

    assert deriver.close_sessions(channel.id, now=now + 21 * MINUTE) == 1

    (met,) = reader.read_documents()
    assert b'"closed":true' in met
    assert b'"version":2' in met
    assert deriver.close_sessions(channel.id, now=now + 21 * MINUTE) == 0
    assert reader.read_documents() == []


def test_ended_session_is_closed_on_arrival(channel: Channel):
    arrive(channel, -50, at=timezone.now())
    batch = Batch("test", timezone.now(), [event(occurred_at=timezone.now() - 2 * GAP)], [])
    batches.append_batch(channel.id, batch)
    derive(channel)
    assert list(Session.objects.values_list("closed", flat=True)) == [True]


def test_client_session_is_closed_on_arrival(channel: Channel):
    batch = desk.parse(lines(session(0)), structs.replace(CALL, application_id=None))
    batches.append_batch(channel.id, batch)
    derive(channel)
    assert Session.objects.get().closed


def test_late_event_reopens_closed_session(channel: Channel):
    reader = Reader(channel)
    now = timezone.now()
    arrive(channel, -45, at=now)
    derive(channel)
    deriver.close_sessions(channel.id)
    assert len(reader.read_documents()) == 1

    # inside of the session: changed, still closed
    late = Batch("test", now, [event(occurred_at=now - 46 * MINUTE)], [])
    batches.append_batch(channel.id, late)
    derive(channel)
    (met,) = reader.read_documents()
    assert b'"closed":true' in met

    # after its end: open again, and closed again later
    arrive(channel, -20, at=now)
    derive(channel)
    (met,) = reader.read_documents()
    assert b'"closed":false' in met
    deriver.close_sessions(channel.id, now=now + 11 * MINUTE)
    (met,) = reader.read_documents()
    assert b'"closed":true' in met


def test_unread_event_keeps_session_open(channel: Channel):
    now = timezone.now()
    arrive(channel, -45, at=now)
    derive(channel)
    Session.objects.update(closed=False)
    arrive(channel, -20, at=now)  # arrived before the close, not derived yet

    assert deriver.close_sessions(channel.id) == 0

    derive(channel)
    assert not Session.objects.get().closed


def test_ended_sessions_close_in_steps(channel: Channel):
    now = timezone.now()
    for number in range(5):
        arrive(channel, -1, at=now, device=f"device-{number}")
    derive(channel)
    later = now + 60 * MINUTE
    assert [deriver.close_sessions(channel.id, 2, later) for _ in range(4)] == [2, 2, 1, 0]


def test_derive_all_closes_sessions(channel: Channel):
    arrive(channel, -1, at=timezone.now())
    derive(channel)
    until_settled()
    Session.objects.update(closes_at=timezone.now() - timedelta(seconds=1))
    deriver.derive_all(5)
    assert Session.objects.get().closed


def test_has_work_of_any_kind(channel: Channel):
    assert not deriver.has_work()
    arrive(channel, -10, at=timezone.now())
    until_settled()
    assert deriver.has_work()  # an unread event
    derive(channel)
    assert not deriver.has_work()
    Session.objects.update(closes_at=timezone.now() - timedelta(seconds=1))
    assert deriver.has_work()
    deriver.derive_all(5)
    assert not deriver.has_work()
    make_channel("ORG_002")
    assert deriver.has_work()


def test_concurrent_readers_see_every_close(channel: Channel):
    """Readers with cursors of any age, a writer and a closer at once."""
    now = timezone.now()
    wrong: list[BaseException] = []
    done = threading.Event()
    readers = [Reader(channel) for _ in range(2)]
    met: list[set[str]] = [set(), set()]

    def closing() -> None:
        try:
            while not done.is_set():
                deriver.derive_step(channel.id, 3)
                deriver.close_sessions(channel.id, 2, now + timedelta(days=1))
                time.sleep(0.002)
        except BaseException as error:
            wrong.append(error)
        finally:
            connections.close_all()

    def reading(number: int) -> None:
        try:
            while True:
                last = done.is_set()
                page = pages.read_page(readers[number].question, readers[number].place, number + 1)
                readers[number].place = page.position
                for item in page.items:
                    if b'"closed":true' in item:
                        met[number].add(item.split(b'"sessionId":"')[1][:36].decode())
                if last and page.is_at_end:
                    return
        except BaseException as error:
            wrong.append(error)
        finally:
            connections.close_all()

    connection.close()
    threads = [threading.Thread(target=closing)]
    threads += [threading.Thread(target=reading, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for number in range(25):
        arrive(channel, -1, at=now, device=f"device-{number}")
    until(lambda: wrong or Session.objects.filter(closed=True).count() == 25, "the closing")
    until_settled()
    done.set()
    for thread in threads:
        thread.join()

    assert wrong == []
    everything = {str(key) for key in Session.objects.values_list("key", flat=True)}
    assert len(everything) == 25
    assert met == [everything, everything]
