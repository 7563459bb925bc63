"""A session that its sender names is that session, in whatever order its events arrive."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import structs

from ingest.adapters import ADAPTERS, clickstream, desk, skalin, telemetry
from ingest.derive import deriver
from ingest.derive.sessions import make_session_key
from ingest.events import Batch, Call
from ingest.models import Application, Channel, DerivationState, Session, StoredEvent
from ingest.privacy import erasure
from ingest.store import batches as store
from tests.conftest import make_channel
from tests.ingest.derive.test_sessions import (
    MINUTE,
    NOON,
    RECEIVED_AT,
    arrive,
    derive,
    event,
    resend,
    spans,
)

pytestmark = pytest.mark.django_db(transaction=True)
HOUR_MS = 3_600_000
FIRST_MS = int(datetime(2026, 3, 2, tzinfo=UTC).timestamp() * 1000)


@pytest.fixture
def channel(db: None) -> Channel:
    made = make_channel()
    DerivationState.objects.create(channel=made)
    return made


def list_names() -> list[tuple[str, int]]:
    """Returns the sender's id and the number of events of each session that has some."""
    rows = Session.objects.filter(event_count__gt=0)
    return sorted(rows.values_list("sender_session_id", "event_count"))


def test_two_visits_are_two_sessions(channel: Channel):
    arrive(channel, *(event(n, session_id="one" if n < 10 else "two") for n in (0, 5, 10, 15)))
    derive(channel)
    assert spans() == [(0, 5, 2), (10, 15, 2)]
    assert list_names() == [("one", 2), ("two", 2)]


def test_visit_goes_on_after_a_pause(channel: Channel):
    arrive(channel, event(0, session_id="one"))
    derive(channel)
    arrive(channel, event(120, session_id="one"), event(60))  # another that names none
    derive(channel)
    assert spans() == [(0, 120, 2), (60, 60, 1)]


def test_long_visit_is_not_split(channel: Channel):
    arrive(channel, *(event(20 * n, session_id="one") for n in range(72)))
    derive(channel, limit=10)
    (session,) = Session.objects.all()
    assert (session.event_count, len(session.buckets)) == (72, 1)
    assert session.ended_at - session.started_at == 71 * 20 * MINUTE


def test_session_key_is_the_same_anywhere(channel: Channel):
    arrive(channel, event(0, session_id="one"))
    derive(channel)
    assert Session.objects.get().key == make_session_key(None, "device-1", "one")
    keys = {make_session_key(*owner) for owner in ((1, "d", "s"), (None, "d", "s"), (1, "ds", ""))}
    assert len(keys) == 3


def test_late_event_reopens_named_session(channel: Channel):
    arrive(channel, event(0, session_id="one"))
    derive(channel)
    Session.objects.update(closed=True)
    batch = Batch("test", NOON + 300 * MINUTE, [event(290, session_id="one")], [])
    store.append_batch(channel.pk, batch)
    derive(channel)
    session = Session.objects.get()
    assert (session.closed, session.version, session.event_count) == (False, 2, 2)
    assert session.closes_at == NOON + 320 * MINUTE


def test_resent_event_changes_its_session(channel: Channel):
    first = event(0, session_id="one")
    arrive(channel, first, event(1, session_id="two"), last_wins=True)
    derive(channel)
    arrive(channel, resend(first, session_id="two", payload=b'{"v": 2}'), last_wins=True)
    derive(channel)
    assert list_names() == [("two", 2)]
    emptied = Session.objects.get(event_count=0)
    assert (emptied.sender_session_id, emptied.version, emptied.buckets) == ("one", 2, [])

    arrive(channel, resend(first, session_id="one", payload=b'{"v": 3}'), last_wins=True)
    derive(channel)
    assert list_names() == [("one", 1), ("two", 1)]
    emptied.refresh_from_db()
    assert emptied.version == 3


def test_event_moved_before_derivation_leaves_none(channel: Channel):
    first = event(0, session_id="one")
    arrive(channel, first, last_wins=True)
    arrive(channel, resend(first, session_id="two", payload=b'{"v": 2}'), last_wins=True)
    derive(channel)
    assert list(Session.objects.values_list("sender_session_id", "event_count")) == [("two", 1)]


def test_erased_session_begins_anew(channel: Channel):
    page = b'{"attributes": {"_page_url": "https://a"}, "make": "Nokia"}'
    arrive(channel, event(0, session_id="one", payload=page), source="clickstream")
    derive(channel)
    erasure.erase(channel.pk, "device-1", 20)
    erased = Session.objects.get()
    assert (erased.device_id, erased.sender_session_id, erased.details) == ("", "", {})
    assert erased.buckets == []

    later = event(5, session_id="one")
    StoredEvent.objects.all().delete()
    arrive(channel, later)
    derive(channel)
    session = Session.objects.get()
    assert (session.key, session.version) == (erased.key, erased.version + 1)
    assert (session.device_id, session.sender_session_id, session.landing_url) == (
        "device-1",
        "one",
        "",
    )
    assert session.event_count == 1


def test_older_session_stays_as_it_is(channel: Channel):
    """One that an earlier release made of two visits, by the pause between them."""
    arrive(channel, event(0), event(10))
    derive(channel)
    Session.objects.update(sender_session_id="one")
    arrive(channel, event(12, session_id="two"), event(14))
    derive(channel)
    assert spans() == [(0, 10, 2), (12, 12, 1), (14, 14, 1)]


# Details ------------------------------------------------------------------------------------------


def test_first_details_by_time(channel: Channel):
    def sent(minutes: float, **fields: Any) -> Any:
        return event(minutes, session_id="one", payload=json.dumps(fields).encode())

    arrive(channel, sent(5, make="Nokia", screen_height=1920), source="clickstream")
    derive(channel)
    arrive(channel, sent(9, make="Other", model="L-930"), source="clickstream")
    arrive(channel, sent(1, platform="Android", screen_height=[]), source="clickstream")
    derive(channel)
    assert Session.objects.get().details == {
        "applicationType": "MOBILE_APPLICATION",
        "osFamilyName": "Android",
        "manufacturer": "Nokia",
        "device": "L-930",
        "screenHeight": 1920,
    }


@pytest.mark.parametrize(
    ("source", "type_", "payload", "details"),
    [
        ("telemetry", "START", {"edata": {"dspec": {"os": "Android 9", "make": "A50"}}},
         {"osFamilyName": "Android 9", "manufacturer": "A50"}),
        ("telemetry", "START", {"edata": {"dspec": 5, "uaspec": {"system": "Mac OS"}}},
         {"osFamilyName": "Mac OS"}),
        ("telemetry", "ERROR", {"edata": {"errtype": "CRASH"}}, {"hasCrash": True}),
        ("clickstream", "_app_exception", {}, {"hasCrash": True}),
        ("clickstream", "_first_open", {}, {"newUser": True}),
        ("clickstream", "x", {"attributes": {"_session_number": 1}}, {"newUser": True}),
        ("clickstream", "x", {"attributes": {"_session_number": 2}}, {"newUser": False}),
        ("clickstream", "x", {"platform": "Web", "carrier": "x" * 300, "screen_width": 2**40},
         {"applicationType": "WEB_APPLICATION"}),
        ("skalin", "feature", {"cip": "127.0.0.1"}, {"ip": "127.0.0.1"}),
    ],
)  # fmt: skip
def test_details_of_source(
    channel: Channel, source: str, type_: str, payload: Any, details: dict[str, Any]
):
    sent = event(0, type=type_, session_id="one", payload=json.dumps(payload).encode())
    arrive(channel, sent, source=source)
    derive(channel)
    found = Session.objects.get().details
    assert found == details


# Many sources -------------------------------------------------------------------------------------


def make_calls(numbers: random.Random, total: int) -> Iterator[tuple[str, str, bytes, str, Any]]:
    """Yields bodies of about `total` events: source, application, body, device and session.

    A device is in up to four sessions at once, which last up to fourteen hours with pauses.
    """
    for number in range(total):
        source = numbers.choice(["telemetry", "clickstream", "skalin", "skalin", "desk"])
        application = numbers.choice(["shop", "school"])
        device = f"device-{numbers.randrange(max(4, total // 60))}"
        name = f"{source}-{numbers.randrange(4)}"
        at = FIRST_MS + int(14 * HOUR_MS * numbers.random())
        if source == "telemetry":
            sent: Any = {"eid": "IMPRESSION", "ets": at, "mid": f"m-{number}", "ver": "3.0",
                         "context": {"did": device, "sid": name}, "edata": {}}  # fmt: skip
        elif source == "clickstream":
            sent = [{"event_type": "tap", "event_id": f"e-{number}", "timestamp": at,
                     "app_id": application, "device_id": device,
                     "attributes": {"_session_id": name}}]  # fmt: skip
        elif source == "skalin":
            ts = datetime.fromtimestamp(at // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            sent = {"features": [{"eventId": f"s-{number}", "name": "f", "visitId": name,
                                  "identity": {"id": device}, "ts": ts}]}  # fmt: skip
        else:  # a session of Dynatrace has one start
            name = f"{device}-{name}"
            action = {"name": f"a-{number}", "startTime": at}
            sent = {"userSessionId": name, "internalUserId": device, "startTime": FIRST_MS,
                    "endTime": at, "userActions": [action]}  # fmt: skip
        yield source, application, json.dumps(sent).encode(), device, name


def send_and_derive(channel: Channel, numbers: random.Random, total: int, runs: int) -> set[Any]:
    """Sends bodies in any order, over several runs. Returns the names that were sent."""
    applications = {
        name: Application.objects.create(channel=channel, identifier=name)
        for name in ("shop", "school")
    }
    calls = list(make_calls(numbers, total))
    numbers.shuffle(calls)
    sent = set()
    for start in range(0, total, -(-total // runs)):
        groups: dict[tuple[str, str], list[Batch]] = {}
        for source, application, body, device, name in calls[start : start + -(-total // runs)]:
            call = Call(
                channel.identifier, RECEIVED_AT, "application/json", application,
                applications[application].pk,
            )  # fmt: skip
            batch = ADAPTERS[source].parse(body, call)
            assert not batch.rejections, batch.rejections
            groups.setdefault((source, application), []).append(batch)
            sent.add((batch.application_id, device, name))  # telemetry has a key in place of one
        for batches in groups.values():
            for first in range(0, len(batches), 500):
                events = [each for batch in batches[first : first + 500] for each in batch.events]
                store.append_batch(channel.pk, structs.replace(batches[0], events=events))
        derive(channel)
    return sent


def test_sessions_are_the_sent_names(channel: Channel):
    sent = send_and_derive(channel, random.Random(43), 5_000, runs=7)

    rows = Session.objects.values_list("application_id", "device_id", "sender_session_id")
    assert Counter(rows) == Counter(sent)
    current = StoredEvent.objects.filter(superseded_xid=None)
    total = current.exclude(source="desk").count()
    assert sum(Session.objects.filter(is_client_session=False).values_list(
        "event_count", flat=True)) == total  # fmt: skip
    assert {clickstream.ADAPTER.name, desk.ADAPTER.name, skalin.ADAPTER.name,
            telemetry.ADAPTER.name} == set(current.values_list("source", flat=True))  # fmt: skip
    assert deriver.measure_lag(channel.pk).events == 0
