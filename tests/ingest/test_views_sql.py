import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from ingest.adapters import read_context
from ingest.derive import users
from ingest.events import Batch, Event, event_identity
from ingest.feed.reader import fetch_page
from ingest.feed.values import START
from ingest.models import Application, StoredEvent
from ingest.store import batches
from tests.conftest import make_channel
from tests.ingest.telemetry_samples import DEVICE, answer, batch

pytestmark = pytest.mark.django_db

AT = datetime(2026, 3, 2, 12, 0, 0, 250_000, tzinfo=UTC)
RECEIVED_AT = AT + timedelta(seconds=3)
CLICK: dict[str, Any] = {
    "event_type": "add_to_cart",
    "event_id": "e-1",
    "device_id": "d-1",
    "unique_id": "u-1",
    "platform": "Web",
    "screen_width": 1920,
    "screen_height": 1080,
    "zone_offset": -3_600_000,
    "sdk_name": "aws-solution-clickstream-sdk",
    "user": {"_user_id": {"value": "asha", "set_timestamp": 1}, "city": {"value": "Pune"}},
    "attributes": {
        "_session_id": "s-1",
        "_session_number": 3,
        "_page_url": "https://shop/1",
        "price": 9.5,
        "sent": True,
        "name": "Tea",
        "tags": ["a"],
        "nothing": None,
    },
    "items": [
        {"id": "i-1", "name": "Tea", "brand": "B", "category": "drinks", "price": 9.5,
         "quantity": 2, "colour": "green"},
        {"id": "i-2", "price": "cheap"},
        5,
    ],
}  # fmt: skip


def view_name(name: str) -> str:
    return ("clickstream." if connection.vendor == "postgresql" else "clickstream_") + name


def select(name: str, columns: str, rest: str = "") -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {columns} FROM {view_name(name)} {rest}")
        return cursor.fetchall()


def store_event(payload: dict[str, Any], source: str = "clickstream", **overrides: Any) -> None:
    channel = make_channel()
    application, _ = Application.objects.get_or_create(channel=channel, identifier="shop")
    event = Event(
        **{
            "identity": event_identity(None, json.dumps(payload.get("event_id") or payload)),
            "type": payload.get("event_type", "x"),
            "occurred_at": AT,
            "device_id": "d-1",
            "session_id": "s-1",
            "conversation": "",
            "is_answer": False,
            "payload": json.dumps(payload).encode(),
            **overrides,
        }
    )
    batches.append_batch(
        channel.id, Batch(source, RECEIVED_AT, [event], [], application.id, last_wins=True)
    )


def test_event_view_shows_sent_fields():
    store_event(CLICK)

    assert select(
        "event",
        "channel, app_id, dialect, event_id, event_name, event_time_msec, ingest_time_msec,"
        " user_pseudo_id, user_id, device_vendor_id, platform, device_screen_width,"
        " device_time_zone_offset, session_id, session_number, page_view_page_url, sdk_name",
    ) == [
        (
            "ORG_001", "shop", "clickstream", "e-1", "add_to_cart", 1_772_452_800_250,
            1_772_452_803_250, "u-1", "asha", "d-1", "Web", 1920, -3_600_000, "s-1", 3,
            "https://shop/1", "aws-solution-clickstream-sdk",
        )
    ]  # fmt: skip


def test_parameter_view_has_a_row_each():
    store_event(CLICK)

    rows = select(
        "event_parameter",
        "event_id, event_name, event_param_key, event_param_string_value, event_param_int_value,"
        " event_param_double_value, event_param_float_value, user_pseudo_id, user_id",
        "ORDER BY event_param_key",
    )
    assert {row[:2] + row[7:] for row in rows} == {("e-1", "add_to_cart", "u-1", "asha")}
    assert {row[2]: row[3:7] for row in rows} == {
        "_session_id": ("s-1", None, None, None),
        "_session_number": (None, 3, None, None),
        "_page_url": ("https://shop/1", None, None, None),
        "price": (None, None, 9.5, 9.5),
        "sent": ("true", None, None, None),
        "name": ("Tea", None, None, None),
        "tags": ('["a"]', None, None, None),
        "nothing": (None, None, None, None),
    }


def test_item_view_has_a_row_each():
    store_event(CLICK)

    rows = select(
        "item",
        "channel, event_id, item_id, name, brand, category, category2, price, quantity,"
        " custom_parameters",
        "ORDER BY item_id",
    )
    assert [row[:-1] for row in rows] == [
        ("ORG_001", "e-1", "i-1", "Tea", "B", "drinks", None, 9.5, 2),
        ("ORG_001", "e-1", "i-2", None, None, None, None, None, None),
    ]
    assert [json.loads(row[-1]) for row in rows] == [{"colour": "green"}, {}]


def test_event_view_has_every_source():
    batches.append_batch(make_channel().id, batch(answer(1), answer(2, actor={"id": "asha"})))
    store_event({"identity": {"email": "a@b.c"}, "eventId": "sk-1"}, "skalin", type="login")
    store_event({"userId": "asha", "n": 1}, "desk", type="session")
    store_event({"anything": 1}, "something new", type="x")

    rows = select("event", "dialect, event_name, event_id, user_pseudo_id, user_id")
    living = StoredEvent.objects.get(source="something new").identity
    assert sorted(row for row in rows if row[0] != "desk") == [
        ("skalin", "login", "sk-1", "d-1", "a@b.c"),
        ("something new", "x", str(living), "d-1", None),
        ("telemetry", "ASSESS", answer(1)["mid"], DEVICE, None),
        ("telemetry", "ASSESS", answer(2)["mid"], DEVICE, "asha"),
    ]
    assert [row[4] for row in rows if row[0] == "desk"] == ["asha"]
    keys = select("event_parameter", "DISTINCT event_param_key", "WHERE event_name = 'ASSESS'")
    assert {key for (key,) in keys} == {"item", "pass", "score", "resvalues", "duration"}


def test_view_shows_only_current_version():
    store_event(CLICK)
    store_event({**CLICK, "attributes": {"_session_number": 4}})

    assert StoredEvent.objects.count() == 2
    assert select("event", "event_id, session_number") == [("e-1", 4)]
    assert len(select("event_parameter", "event_id")) == 1
    assert len(select("item", "event_id")) == 2


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"attributes": 5, "user": "x", "items": {"id": 1}, "screen_width": "wide"},
        {"attributes": [1], "user": {"_user_id": {"value": 5}}, "items": ["a", None, [1], 1.5]},
        {"attributes": {"a": 1e300, "b": -5e-324, "c": 10**30}, "screen_width": 1e300},
        {"attributes": {"_value": 5e-324, "_session_number": 1e19, "": 0, "a b": "\u2028"}},
        {"attributes": None, "user": None, "items": None, "user_id": 7, "event_id": {"a": 1}},
    ],
    ids=range(6),
)
def test_any_payload_keeps_views_working(payload: dict[str, Any]):
    store_event(payload)
    store_event(CLICK)

    assert len(select("event", "*")) == 2
    assert len(select("event_parameter", "*")) >= 8
    assert len(select("item", "*")) == 2


def test_user_view_shows_properties():
    store_event(CLICK)
    channel = make_channel()
    rows = fetch_page(channel.id, START, 2**62, 10)
    users.derive(channel.id, [(row, read_context(row)) for row in rows], 1)

    found = select(
        "app_user", "channel, user_pseudo_id, user_id, first_touch_time_msec, user_properties"
    )

    assert [row[:4] for row in found] == [("ORG_001", "d-1", "asha", 1_772_452_800_250)]
    assert json.loads(found[0][4]) == {
        "city": {"value": "Pune", "set_timestamp": 1_772_452_800_250}
    }


def test_arrival_is_one_query():
    store_event(CLICK)

    assert (
        len(
            select(
                "event",
                "ingest_timestamp, event_timestamp, event_name, event_id, user_id, process_info",
                "WHERE channel = 'ORG_001' ORDER BY arrival DESC LIMIT 20",
            )
        )
        == 1
    )


@pytest.mark.django_db(transaction=True)
def test_views_are_reversible():
    try:
        call_command("migrate", "ingest", "0001", verbosity=0)
        tables = connection.introspection.table_names(include_views=True)
        assert not [name for name in tables if name.startswith("clickstream")]
    finally:
        call_command("migrate", verbosity=0)  # the later migrations were reversed too
    assert select("event", "*") == []
