import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.adapters import read_context
from ingest.derive import users
from ingest.events import NO_CONTEXT, Batch, EventContext
from ingest.feed.values import EventRow
from ingest.models import AppUser, Channel
from ingest.store import batches as store
from ingest.times import to_microseconds
from tests.conftest import make_channel
from tests.ingest.derive.test_sessions import event

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
NOON_MS = int(NOON.timestamp() * 1000)
MINUTE = timedelta(minutes=1)
_positions = itertools.count(1)


def event_row(payload: Any = None, minutes: float = 0, **overrides: Any) -> EventRow:
    """A row of the feed so many minutes after noon, received an hour later."""
    at = NOON + minutes * MINUTE
    position = next(_positions)
    return EventRow(
        **{
            "xid": position,
            "id": position,
            "superseded_xid": None,
            "occurred_us": to_microseconds(at),
            "received_us": to_microseconds(NOON + timedelta(hours=1)),
            "application_id": None,
            "is_answer": False,
            "identity": None,
            "source": "clickstream",
            "type": "_click",
            "device_id": "device-1",
            "session_id": "",
            "is_consent_refused": None,
            "payload": json.dumps({} if payload is None else payload).encode(),
            **overrides,
        }
    )


def derive(channel: Channel, *rows: EventRow) -> int:
    return users.derive(channel.id, [(row, read_context(row)) for row in rows], next(_positions))


@pytest.fixture
def channel(db: None) -> Channel:
    return make_channel()


def attributes(identifier: str = "device-1") -> dict[str, Any]:
    found = AppUser.objects.get(identifier=identifier).attributes
    return {name: attribute["value"] for name, attribute in found.items()}


def test_anonymous_device_is_a_user(channel: Channel):
    assert derive(channel, event_row(minutes=5), event_row(minutes=1), event_row(minutes=9)) == 1

    user = AppUser.objects.get()
    assert (user.identifier, user.anonymous, user.user_id) == ("device-1", True, "")
    assert user.device_id == "device-1"
    assert (user.first_seen_at, user.last_seen_at) == (NOON + MINUTE, NOON + 9 * MINUTE)
    assert (user.version, user.attributes) == (1, {})


def test_user_id_joins_devices(channel: Channel):
    signed_in = {"user": {"_user_id": {"value": "asha", "set_timestamp": NOON_MS}}}

    derive(channel, event_row(signed_in, 7, device_id="phone"))
    derive(channel, event_row(signed_in, 3, device_id="laptop"), event_row(device_id="phone"))

    users = {(u.identifier, u.anonymous): u for u in AppUser.objects.all()}
    assert users.keys() == {("asha", False), ("phone", True)}
    assert users["asha", False].device_id == "laptop"
    assert users["asha", False].version == 2


def test_device_and_user_id_of_one_name(channel: Channel):
    derive(channel, event_row(device_id="x"), event_row({"user": {"_user_id": "x"}}))

    assert AppUser.objects.count() == 2


def test_event_without_device_makes_no_user(channel: Channel):
    assert derive(channel, event_row(device_id=""), event_row(device_id="x" * 300)) == 0
    assert AppUser.objects.count() == 0


def test_users_are_per_channel(channel: Channel):
    derive(channel, event_row())
    derive(make_channel("ORG_002"), event_row())

    assert AppUser.objects.count() == 2


def test_user_without_events_is_deleted_in_its_channel(channel: Channel):
    other = make_channel("ORG_002")
    batch = Batch("clickstream", NOON, [event(device_id="device-1")], [])
    store.append_batch(other.pk, batch)
    for each in (channel, other):
        derive(each, event_row())
    before, after = event_row(identity="one"), event_row(identity="one", device_id="device-2")

    users.delete_moved(channel.pk, [after], [before])

    assert AppUser.objects.get().channel == other


def test_known_values_change_nothing(channel: Channel):
    row = event_row({"user": {"city": {"value": "Pune", "set_timestamp": NOON_MS}}})
    derive(channel, row)
    before = AppUser.objects.values().get()

    assert derive(channel, row) == 0

    assert AppUser.objects.values().get() == before


# Attributes -------------------------------------------------------------------------------------


def test_last_set_attribute_wins(channel: Channel):
    def city(name: str, minutes: int) -> EventRow:
        set_at = NOON_MS + minutes * 60_000
        return event_row({"user": {"city": {"value": name, "set_timestamp": set_at}}})

    derive(channel, city("Pune", 5))
    derive(channel, city("Delhi", 2))
    assert attributes() == {"city": "Pune"}

    derive(channel, city("Mumbai", 6))
    assert attributes() == {"city": "Mumbai"}


def test_plain_attribute_uses_event_time(channel: Channel):
    derive(channel, event_row({"user": {"level": 2, "tags": ["a"]}}, 10))
    derive(channel, event_row({"user": {"level": 1, "city": None}}, 5))

    assert attributes() == {"level": 2, "tags": ["a"], "city": None}


def test_future_set_time_counts_as_arrival(channel: Channel):
    year_2100 = 4_102_444_800_000
    derive(channel, event_row({"user": {"city": {"value": "Pune", "set_timestamp": year_2100}}}))

    later = NOON + timedelta(hours=2)
    derive(channel, event_row({"user": {"city": "Delhi"}}, 120, received_us=to_microseconds(later)))

    assert attributes() == {"city": "Delhi"}


def test_attribute_limit_of_a_user(channel: Channel):
    derive(channel, event_row({"user": {f"a{n}": n for n in range(600)} | {"x" * 300: 1}}))

    assert len(attributes()) == users.MAX_ATTRIBUTES


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    told=st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from(["city", "level"]),
            st.one_of(st.integers(0, 2), st.text("ab", max_size=1), st.none(), st.booleans()),
            st.sampled_from(["phone", "laptop"]),
        ),
        max_size=8,
    ),
    data=st.data(),
)
def test_users_ignore_arrival_order(
    channel: Channel, told: list[tuple[int, str, Any, str]], data: st.DataObject
):
    rows = [
        event_row({"user": {"_user_id": "asha", name: value}}, minutes, device_id=device)
        for minutes, name, value, device in told
    ]
    found = []
    for order in (rows, data.draw(st.permutations(rows))):
        AppUser.objects.all().delete()
        cut = data.draw(st.integers(0, len(order)))
        derive(channel, *order[:cut])
        derive(channel, *order[cut:])
        found.append(
            list(
                AppUser.objects.values(
                    "identifier", "device_id", "first_seen_at", "last_seen_at", "attributes"
                )
            )
        )

    assert found[0] == found[1]


# Sources ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "user_id"),
    [
        ({"actor": {"id": "asha", "type": "User"}}, "asha"),
        ({"actor": {"id": 7}}, "7"),
        ({"actor": {"id": "device-1", "type": "User"}}, ""),
        ({"actor": {"id": "cron", "type": "System"}}, ""),
        ({"actor": "asha"}, ""),
        ({}, ""),
    ],
    ids=range(6),
)
def test_telemetry_user_is_the_actor(payload: dict[str, Any], user_id: str):
    assert read_context(event_row(payload, source="telemetry")) == EventContext(user_id)


def test_skalin_user_is_the_identity():
    row = event_row(
        {"identity": {"email": "a@b.c"}, "customerId": "acme", "url": "https://x"}, source="skalin"
    )

    found = read_context(row)

    assert (found.user_id, found.url) == ("a@b.c", "https://x")
    assert {name: value for name, (value, _) in found.attributes.items()} == {
        "email": "a@b.c",
        "customerId": "acme",
    }
    as_text = event_row({"identity": '{"id": 5, "email": "a@b.c"}'}, source="skalin")
    assert read_context(as_text).user_id == "5"


def test_desk_user_comes_from_the_session(channel: Channel):
    session = event_row(
        {"userId": "asha", "userType": "REAL_USER"}, source="desk", type="session", device_id="i"
    )

    derive(channel, session, event_row(source="desk", type="userAction", device_id="i"))

    assert AppUser.objects.get().identifier == "asha"
    assert attributes("asha") == {"userType": "REAL_USER"}


@pytest.mark.parametrize("source", ["telemetry", "clickstream", "skalin", "desk", "new"])
@pytest.mark.parametrize(
    "payload",
    [
        [],
        None,
        5,
        {"user": 5, "actor": [], "identity": "no json", "userId": {}},
        {"user": {"_user_id": {"value": [1]}}, "actor": {"id": {}}, "identity": [1]},
        {"user": {"a": {"value": 1, "set_timestamp": 1e300}, "_user_id": "x" * 300}},
        {"user": {"a": {"value": 1, "set_timestamp": -1}, "b": {"set_timestamp": True}}},
        {"attributes": {"_page_url": ["x"]}, "edata": {"uri": 1e308}, "url": "x" * 9999},
    ],
    ids=range(8),
)
def test_malformed_payload_has_no_context(channel: Channel, payload: Any, source: str):
    row = event_row(payload, source=source, type="session")

    derive(channel, row)

    assert AppUser.objects.get().identifier == "device-1"
    assert read_context(row).user_id == ""
    assert read_context(event_row(payload, source="new")) == NO_CONTEXT
