import itertools
import threading
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.models import Max
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.derive import deriver
from ingest.events import Batch, Event, event_identity
from ingest.feed import reader, values
from ingest.feed.watermark import fetch_watermark
from ingest.models import Application, AppUser, Channel, DerivationState, Session, StoredEvent
from ingest.store import batches as store
from tests.conftest import make_channel

pytestmark = pytest.mark.django_db(transaction=True)

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
RECEIVED_AT = datetime(2026, 3, 9, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
GAP = 30 * MINUTE
CAP = timedelta(hours=6)
_numbers = itertools.count()


def event(minutes: float = 0, **overrides: Any) -> Event:
    """An event so many minutes after noon."""
    occurred_at = overrides.pop("occurred_at", NOON + minutes * MINUTE)
    return Event(
        **{
            "identity": event_identity(occurred_at, str(next(_numbers))),
            "type": "_click",
            "occurred_at": occurred_at,
            "device_id": "device-1",
            "session_id": "",
            "conversation": "",
            "is_answer": False,
            "payload": b"{}",
            **overrides,
        }
    )


def arrive(channel: Channel, *events: Event, source: str = "test", **batch: Any) -> None:
    store.append_batch(channel.id, Batch(source, RECEIVED_AT, list(events), [], **batch))


def until_settled() -> None:
    """Waits until the watermark is above all rows; other writers of the cluster may hold it."""
    last = StoredEvent.objects.aggregate(last=Max("xid"))["last"] or 0
    until = time.monotonic() + 20
    while fetch_watermark() <= last:
        assert time.monotonic() < until
        time.sleep(0.01)


def derive(channel: Channel, limit: int = deriver.STEP_EVENTS) -> int:
    until_settled()
    total = 0
    while count := deriver.derive_step(channel.id, limit):
        total += count
    return total


@pytest.fixture
def channel(db: None) -> Channel:
    made = make_channel()
    DerivationState.objects.create(channel=made)
    return made


def current_sessions() -> list[Session]:
    return list(Session.objects.filter(parent=None, event_count__gt=0).order_by("started_at"))


def spans() -> list[tuple[float, float, int]]:
    """Returns minutes after noon of the first and last event, and their number."""
    return [
        ((s.started_at - NOON) / MINUTE, (s.ended_at - NOON) / MINUTE, s.event_count)
        for s in current_sessions()
    ]


def test_events_within_gap_are_one_session(channel: Channel):
    arrive(channel, event(0), event(30), event(12, is_answer=True), event(59.5, type="_view"))

    assert derive(channel) == 4

    session = Session.objects.get()
    assert (session.started_at, session.ended_at) == (NOON, NOON + 59.5 * MINUTE)
    assert session.closes_at == session.ended_at + GAP
    assert (session.event_count, session.answer_count) == (4, 1)
    assert session.types == {"_click": 3, "_view": 1}
    assert (session.device_id, session.is_client_session, session.parent) == (
        "device-1",
        False,
        None,
    )
    assert session.version == 1


def test_gap_over_thirty_minutes_splits(channel: Channel):
    arrive(channel, event(0), event(30), event(60.001))

    derive(channel)

    assert spans() == [(0, 30, 2), (pytest.approx(60.001), pytest.approx(60.001), 1)]


def test_sessions_are_per_application(channel: Channel):
    one, other = (
        Application.objects.create(channel=channel, identifier=name) for name in ("a", "b")
    )
    for application in (one, other, None):
        arrive(channel, event(0), application_id=application and application.id)
    arrive(channel, event(1, device_id="device-2"))
    arrive(channel, event(1), application_id=one.id)

    derive(channel)

    found = Session.objects.values_list("application_id", "device_id", "event_count")
    assert set(found) == {
        (one.id, "device-1", 2),
        (other.id, "device-1", 1),
        (None, "device-1", 1),
        (None, "device-2", 1),
    }


def test_event_without_device_has_no_session(channel: Channel):
    arrive(channel, event(device_id=""), event(device_id="x" * 300))

    assert derive(channel) == 2

    assert Session.objects.count() == AppUser.objects.count() == 0


def test_first_page_by_time(channel: Channel):
    def page(minutes: float, url: str) -> Event:
        payload = f'{{"attributes": {{"_page_url": "{url}"}}}}'.encode()
        return event(minutes, payload=payload)

    arrive(channel, page(9, "https://c"), source="clickstream")
    derive(channel)
    arrive(channel, page(1, "https://a"), event(0), source="clickstream")
    derive(channel)
    arrive(channel, page(5, "https://b"), source="clickstream")
    derive(channel)

    session = Session.objects.get()
    assert (session.sender_session_id, session.landing_url) == ("", "https://a")


# Late events ------------------------------------------------------------------------------------


def test_late_event_extends_session(channel: Channel):
    arrive(channel, event(40))
    derive(channel)
    before = Session.objects.get()

    arrive(channel, event(15))
    derive(channel)

    after = Session.objects.get()
    assert (after.pk, after.key, after.version) == (before.pk, before.key, 2)
    assert spans() == [(15, 40, 2)]
    assert after.xid > before.xid
    assert after.modified_at > before.modified_at


def test_late_event_inside_is_counted(channel: Channel):
    arrive(channel, event(0), event(20))
    derive(channel)

    arrive(channel, event(10))
    derive(channel)

    assert spans() == [(0, 20, 3)]


def test_late_event_merges_two_sessions(
    channel: Channel,
):
    arrive(channel, event(50, is_answer=True))
    derive(channel)
    arrive(channel, event(0))
    derive(channel)
    later, earlier = Session.objects.order_by("id")

    arrive(channel, event(25))
    derive(channel)

    assert spans() == [(0, 50, 3)]
    kept, gone = Session.objects.get(pk=earlier.pk), Session.objects.get(pk=later.pk)
    assert (kept.parent, kept.version, kept.answer_count) == (None, 2, 1)
    assert (gone.parent, gone.version) == (kept, 2)
    assert gone.xid == kept.xid > later.xid


def test_unchanged_session_is_not_written(channel: Channel):
    arrive(channel, event(0), event(500), event(0, device_id="device-2"))
    derive(channel)
    before = {s.pk: (s.xid, s.version) for s in Session.objects.all()}

    arrive(channel, event(510))
    derive(channel)

    changed = [s for s in Session.objects.all() if (s.xid, s.version) != before[s.pk]]
    assert [(s.device_id, s.started_at) for s in changed] == [("device-1", NOON + 500 * MINUTE)]


# Long chains -------------------------------------------------------------------------------------


def test_six_hours_are_one_session(channel: Channel):
    arrive(channel, *(event(90 + 30 * n) for n in range(13)))

    derive(channel)

    assert spans() == [(90, 450, 13)]


def test_longer_chain_splits_at_fixed_hours(channel: Channel):
    arrive(channel, *(event(90 + 30 * n) for n in range(14)))

    derive(channel)

    assert spans() == [(90, 330, 9), (360, 480, 5)]


def test_split_keeps_record_of_first_part(
    channel: Channel,
):
    arrive(channel, *(event(90 + 30 * n) for n in range(13)))
    derive(channel)
    before = Session.objects.get()

    arrive(channel, event(480))
    derive(channel)

    assert spans() == [(90, 330, 9), (360, 480, 5)]
    first, second = current_sessions()
    assert (first.pk, first.version) == (before.pk, 2)
    assert second.version == 1


def test_endless_device_query_count(channel: Channel):
    arrive(channel, *(event(20 * n) for n in range(72 * 5)))
    derive(channel)
    assert len(current_sessions()) == 20

    arrive(channel, event(20 * 72 * 5 - 1))
    until_settled()
    with CaptureQueriesContext(connection) as queries:
        assert deriver.derive_step(channel.id) == 1

    assert len(queries) < 20
    assert [s.version for s in current_sessions()] == [1] * 19 + [2]


# Any order --------------------------------------------------------------------------------------

Story = list[tuple[int, str, bool]]  # minutes, device, whether it is an answer


def oracle(story: Story) -> dict[tuple[str, float, float], tuple[int, int]]:
    """Returns counts of events and answers by device, first and last minute, from sorted events."""
    found: dict[tuple[str, float, float], tuple[int, int]] = {}
    devices: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    for minutes, device, is_answer in story:
        devices[device].append((minutes, is_answer))
    for device, events in devices.items():
        chains: list[list[tuple[int, bool]]] = []
        for at, is_answer in sorted(events):
            if chains and at - chains[-1][-1][0] <= 30:
                chains[-1].append((at, is_answer))
            else:
                chains.append([(at, is_answer)])
        for chain in chains:
            parts: dict[int, list[tuple[int, bool]]] = defaultdict(list)
            for at, is_answer in chain:
                parts[at // 360 if chain[-1][0] - chain[0][0] > 360 else 0].append((at, is_answer))
            for of in parts.values():
                found[device, of[0][0], of[-1][0]] = (len(of), sum(a for _, a in of))
    return found


minutes = st.one_of(
    st.integers(-1500, 1500), st.integers(-60, 60), st.integers(-50, 50).map(lambda n: n * 30)
)
stories = st.lists(
    st.lists(
        st.tuples(minutes, st.sampled_from(["a", "a", "b"]), st.booleans()), min_size=1, max_size=25
    ),
    min_size=1,
    max_size=6,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batches=stories, limit=st.sampled_from([1000, 7, 3]))
def test_sessions_ignore_arrival_order(channel: Channel, batches: list[Story], limit: int):
    clear(channel)

    for batch in batches:
        arrive(channel, *(event(m, device_id=d, is_answer=a) for m, d, a in batch))
        derive(channel, limit)

    assert all_sessions() == oracle([each for batch in batches for each in batch])
    assert_whole()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_day_without_gap_any_order(channel: Channel, data: st.DataObject):
    clear(channel)
    step = data.draw(st.sampled_from([13, 29, 30]))
    missing = data.draw(st.sets(st.integers(0, 45), max_size=4))
    story = [(n * step - 700, "a", n % 3 == 0) for n in range(46) if n not in missing]
    shuffled = data.draw(st.permutations(story))
    cuts = sorted(data.draw(st.sets(st.integers(1, 40), max_size=8)))

    for begin, end in itertools.pairwise([0, *cuts, len(shuffled)]):
        batch = shuffled[begin:end]
        arrive(channel, *(event(m, device_id=d, is_answer=a) for m, d, a in batch))
        derive(channel)

    assert all_sessions() == oracle(story)
    assert_whole()


def clear(channel: Channel) -> None:
    Session.objects.update(parent=None)
    for model in (Session, AppUser, StoredEvent):
        model.objects.all().delete()  # type: ignore[attr-defined]


def all_sessions() -> dict[tuple[str, float, float], tuple[int, int]]:
    found = {
        (s.device_id, (s.started_at - NOON) / MINUTE, (s.ended_at - NOON) / MINUTE): (
            s.event_count,
            s.answer_count,
        )
        for s in current_sessions()
    }
    assert len(found) == len(current_sessions())
    return found


def assert_whole() -> None:
    """Checks that each merged record names a current one."""
    by_pk = {s.pk: s for s in Session.objects.all()}
    for session in by_pk.values():
        root = session
        while root.parent_id:
            root = by_pk[root.parent_id]
        assert root.buckets
        if root is session:
            assert session.ended_at - session.started_at <= CAP
        else:
            assert session.buckets == []


# Resent events ----------------------------------------------------------------------------------


def resend(first: Event, **overrides: Any) -> Event:
    fields = {name: getattr(first, name) for name in first.__struct_fields__}
    return Event(**{**fields, **overrides})


def test_resent_event_is_counted_once(channel: Channel):
    first = event(0, payload=b'{"v": 1}')
    arrive(channel, first, event(5), last_wins=True)
    derive(channel)
    for version in range(2, 5):
        arrive(
            channel,
            resend(first, payload=b'{"v": %d}' % version, type="_view", is_answer=True),
            last_wins=True,
        )
        derive(channel)

    session = Session.objects.get()
    assert (session.event_count, session.answer_count) == (2, 1)
    assert session.types == {"_click": 1, "_view": 1}


def test_unread_resent_event_is_counted_once(channel: Channel):
    first = event(0, payload=b'{"v": 1}')
    for version in range(5):
        arrive(channel, resend(first, payload=b'{"v": %d}' % version), last_wins=True)

    assert derive(channel, limit=2) == 5

    assert Session.objects.get().event_count == 1


def test_versions_in_one_transaction(channel: Channel):
    first = event(0, payload=b'{"v": 0}')
    arrive(channel, first, event(3), last_wins=True)
    derive(channel)
    with transaction.atomic():
        for version in range(1, 4):
            arrive(channel, resend(first, payload=b'{"v": %d}' % version), last_wins=True)

    assert derive(channel, limit=1) == 3

    assert spans() == [(0, 3, 2)]


def test_resent_event_may_change_session(channel: Channel):
    first = event(0)
    arrive(channel, first, last_wins=True)
    derive(channel)

    arrive(
        channel,
        resend(first, occurred_at=NOON + timedelta(days=1), payload=b'{"v": 2}'),
        last_wins=True,
    )
    derive(channel)

    assert spans() == [(1440, 1440, 1)]
    emptied = Session.objects.get(event_count=0)
    assert (emptied.version, emptied.types, emptied.buckets) == (2, {}, [])


# Client sessions ---------------------------------------------------------------------------------


def desk(payload: bytes, **overrides: Any) -> Event:
    return event(0, type="session", payload=payload, device_id="", **overrides)


DOCUMENT = (
    b'{"tenantId": "t1", "userSessionId": "S1", "startTime": 1772452800000,'
    b' "endTime": 1772481600000, "userType": "REAL_USER", "internalUserId": "iu-1",'
    b' "userId": "asha", "userActionCount": 7}'
)


def test_client_session_is_stored_as_sent(channel: Channel):
    # given a session of eight hours with a gap of more than thirty minutes
    arrive(
        channel,
        desk(DOCUMENT),
        event(0, type="userAction", device_id="iu-1"),
        event(300, type="error", device_id="iu-1"),
        source="desk",
    )

    derive(channel)

    session = Session.objects.get()
    assert session.is_client_session is True
    assert session.key == StoredEvent.objects.get(type="session").identity
    assert (session.started_at, session.ended_at) == (NOON, NOON + timedelta(hours=8))
    assert session.closes_at == session.ended_at
    assert (session.sender_session_id, session.device_id) == ("S1", "iu-1")
    assert (session.user_id, session.event_count) == ("asha", 7)


def test_resent_client_session_replaces_it(channel: Channel):
    first = desk(DOCUMENT)
    arrive(channel, first, source="desk", last_wins=True)
    derive(channel)
    before = Session.objects.get()

    for count in (8, 9):
        arrive(
            channel,
            resend(first, payload=DOCUMENT.replace(b": 7", b": %d" % count)),
            source="desk",
            last_wins=True,
        )
    derive(channel)

    after = Session.objects.get()
    assert (after.pk, after.version, after.event_count) == (before.pk, 2, 9)
    assert after.xid > before.xid


@pytest.mark.parametrize(
    "payload",
    [b"{}", b"[]", b'{"startTime": "soon", "endTime": -5}', b'{"startTime": 1e300, "errors": 5}'],
)
def test_malformed_client_session_is_stored(channel: Channel, payload: bytes):
    arrive(channel, desk(payload), source="desk")

    derive(channel)

    session = Session.objects.get()
    assert (session.started_at, session.ended_at, session.event_count) == (NOON, NOON, 0)


# The deriver ------------------------------------------------------------------------------------


def test_any_step_size_reads_each_event_once(channel: Channel):
    arrive(channel, *(event(n) for n in range(10)))

    until_settled()

    counts = [deriver.derive_step(channel.id, 4) for _ in range(4)]

    assert counts == [4, 4, 2, 0]
    assert spans() == [(0, 9, 10)]


def test_failed_step_keeps_position(channel: Channel, monkeypatch: pytest.MonkeyPatch):
    arrive(channel, event(0))
    until_settled()

    def fail(*_: Any) -> int:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(deriver.users, "derive", fail)
        with pytest.raises(RuntimeError):
            deriver.derive_step(channel.id)
    assert Session.objects.count() == 0

    assert derive(channel) == 1
    assert Session.objects.count() == 1


def test_measure_lag(channel: Channel):
    assert deriver.measure_lag(channel.id) == deriver.Lag(0, timedelta())
    arrive(channel, event(0), event(1), event(2))

    lag = deriver.measure_lag(channel.id)

    assert lag.events == 3
    assert lag.age > timedelta(days=1)
    derive(channel)
    assert deriver.measure_lag(channel.id) == deriver.Lag(0, timedelta())


def test_only_channels_behind_are_queried(db: None):
    channels = [make_channel(f"ORG_{n}") for n in range(5)]
    for each in channels[1:3]:
        arrive(each, event(0))
    until_settled()

    assert deriver.derive_all(seconds=10) == 2

    assert Session.objects.count() == 2
    with CaptureQueriesContext(connection) as queries:
        assert deriver.derive_all(seconds=10) == 0
    assert len(queries) <= 4


@pytest.mark.postgresql
def test_unread_rows_come_from_the_index(channel: Channel):
    arrive(channel, *(event(n) for n in range(200)))
    until_settled()
    rows = reader.select_after(
        StoredEvent.objects.filter(channel_id=channel.id), values.START, fetch_watermark()
    )

    with CaptureQueriesContext(connection) as queries:
        assert len(reader.fetch_page(channel.id, values.START, fetch_watermark(), 10)) == 10
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(next(q["sql"] for q in queries if "SET LOCAL" in q["sql"]))
        plan = rows[:10].explain()

    assert "storedevent_arrival" in plan
    assert "Sort" not in plan


@pytest.mark.postgresql
def test_two_derivers_read_each_event_once(channel: Channel):
    devices = 20
    for number in range(30):
        arrive(
            channel,
            *(event(number, device_id=f"device-{n}", is_answer=True) for n in range(devices)),
        )
    counts: list[int] = []
    wrong: list[BaseException] = []

    def run() -> None:
        try:
            while deriver.measure_lag(channel.id).events:
                counts.append(deriver.derive_step(channel.id, 17))
        except BaseException as error:
            wrong.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert sum(counts) == 600
    assert [s.event_count for s in current_sessions()] == [30] * devices
    assert AppUser.objects.count() == devices


@pytest.mark.postgresql
def test_late_commit_is_not_skipped(channel: Channel):
    written, end = threading.Event(), threading.Event()

    def slowly() -> None:
        with transaction.atomic():
            arrive(channel, event(0))
            written.set()
            assert end.wait(20)
        connections.close_all()

    writer = threading.Thread(target=slowly)
    writer.start()
    assert written.wait(20)
    arrive(channel, event(5))
    assert deriver.derive_step(channel.id) == 0
    end.set()
    writer.join()

    assert derive(channel) == 2
    assert spans() == [(0, 5, 2)]
