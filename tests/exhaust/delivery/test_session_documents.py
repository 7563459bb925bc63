"""Pushed sessions: the fields of Dynatrace's, and the same sessions by all other ways."""

import json
from datetime import date, timedelta
from typing import Any

import pytest
from django.utils import timezone

from exhaust.console import charts, conversation_charts
from exhaust.datasets import DATASETS
from exhaust.datasets.resolve import resolve_selection
from exhaust.delivery import batches, session_documents
from exhaust.feed import pages
from exhaust.feed.pages import FeedQuery
from ingest.adapters import clickstream, desk, skalin
from ingest.events import Call
from ingest.feed import values
from ingest.feed.watermark import fetch_watermark
from ingest.models import Application, Conversation, Session
from ingest.store import batches as store
from tests.conftest import make_channel
from tests.exhaust.destinations import derive_sessions, emit_sessions, make_destination
from tests.exhaust.factories import BOT, FIRST_ANSWER, make_answer, send_events
from tests.ingest.adapters.test_desk import bare

pytestmark = pytest.mark.django_db(transaction=True)
# the fields of the published sample that no payload of another source has
UNKNOWN_PLACE = {"geolocationContinentName", "geolocationRegionName", "geolocationCityName"}
SAMPLE_FIELDS = {
    "tenantId", "userSessionId", "startTime", "endTime", "duration", "internalUserId", "userType",
    "applicationType", "bounce", "newUser", "userActionCount", "totalErrorCount", "ip",
    "geolocationContinentName", "geolocationCountryName", "geolocationRegionName",
    "geolocationCityName", "osFamilyName", "osVersionName", "manufacturer", "device", "userId",
    "screenHeight", "screenWidth", "screenOrientation", "displayResolution", "hasCrash", "isp",
    "stringTags", "numTags", "dateTags", "userActions", "events", "errors",
}  # fmt: skip


def build_documents() -> list[dict[str, Any]]:
    """Returns the pushed documents of all sessions, by start."""
    rows = session_documents.fetch_sessions(Session.objects.order_by("started_at", "id"))
    return [json.loads(line) for _, line in session_documents.build_documents("ORG_001", rows)]


def send(parse: Any, sent: Any) -> None:
    channel = make_channel()
    application, _ = Application.objects.get_or_create(channel=channel, identifier="shop")
    call = Call(
        channel.identifier, timezone.now(), "application/json", "shop", application.pk,
        {"appId": "shop"},
    )  # fmt: skip
    batch = parse(json.dumps(sent).encode(), call)
    assert not batch.rejections, batch.rejections
    store.append_batch(channel.pk, batch)
    derive_sessions(channel)


def tap(number: int, session: str = "one", **fields: Any) -> dict[str, Any]:
    """A Clickstream event, a minute after the one before."""
    return {
        "event_type": "tap",
        "event_id": f"e-{number}",
        "app_id": "shop",
        "device_id": "phone-1",
        "timestamp": 1_648_785_600_000 + number * 60_000,
        "attributes": {"_session_id": session, "_session_number": 1},
        **fields,
    }


def test_sample_fields_are_filled() -> None:
    phone = {
        "platform": "Android", "os_version": "12.1", "make": "Samsung", "model": "Galaxy S22",
        "carrier": "CDMA", "country_code": "US", "screen_height": 1920, "screen_width": 1080,
        "user": {"_user_id": {"value": "asha"}},
    }  # fmt: skip
    send(clickstream.parse, [tap(0, **phone), tap(1, event_type="_app_exception", **phone)])
    (document,) = build_documents()
    assert SAMPLE_FIELDS - document.keys() == UNKNOWN_PLACE | {"ip"}
    lists = ("userActions", "events", "errors")
    assert {name: value for name, value in document.items() if name not in lists} == {
        "tenantId": "ORG_001",
        "userSessionId": str(Session.objects.get().key),
        "startTime": 1_648_785_600_000,
        "endTime": 1_648_785_660_000,
        "duration": 60_000,
        "internalUserId": "phone-1",
        "userId": "asha",
        "userType": "REAL_USER",
        "bounce": True,
        "userActionCount": 1,
        "totalErrorCount": 1,
        "senderSessionId": "one",
        "version": 1,
        "applicationType": "MOBILE_APPLICATION",
        "osFamilyName": "Android",
        "osVersionName": "12.1",
        "manufacturer": "Samsung",
        "device": "Galaxy S22",
        "isp": "CDMA",
        "geolocationCountryName": "US",
        "screenHeight": 1920,
        "screenWidth": 1080,
        "screenOrientation": "PORTRAIT",
        "displayResolution": "FHD",
        "newUser": True,
        "hasCrash": True,
        "stringTags": {},
        "numTags": {},
        "dateTags": {},
    }
    assert SAMPLE_FIELDS - UNKNOWN_PLACE - document.keys() == {"ip"}


def test_address_of_skalin_is_filled() -> None:
    feature = {"name": "f", "identity": {"id": "c-1"}, "visitId": "v-1", "cip": "2001:db8::1"}
    send(skalin.parse, {"features": [feature]})
    (document,) = build_documents()
    assert (document["ip"], document["hasCrash"]) == ("2001:db8::1", False)
    assert "newUser" not in document


@pytest.mark.parametrize(
    ("sent", "duration"),
    [(1_500, 1_500), (-1, 0), ("soon", 0), (True, 0), (1e300, 0), (None, 0)],
)
def test_duration_of_action(sent: Any, duration: int) -> None:
    attributes = {"_session_id": "one", "_engagement_time_msec": sent}
    send(clickstream.parse, [tap(0, attributes=attributes)])
    (document,) = build_documents()
    (action,) = document["userActions"]
    assert action["duration"] == duration
    assert action["endTime"] - action["startTime"] == duration


def test_duration_in_seconds() -> None:
    send_events(make_answer(0))
    derive_sessions(make_channel())
    (document,) = build_documents()
    assert [action["duration"] for action in document["userActions"]] == [12_000]


def test_sessions_of_a_device_list_their_own() -> None:
    send(clickstream.parse, [tap(n, "even" if n % 2 == 0 else "odd") for n in range(6)])
    send(clickstream.parse, [tap(9, attributes={})])
    even, odd, unnamed = build_documents()
    assert [len(each["userActions"]) for each in (even, odd, unnamed)] == [3, 3, 1]
    assert [each["userActionCount"] for each in (even, odd, unnamed)] == [3, 3, 1]
    assert (even["senderSessionId"], odd["senderSessionId"]) == ("even", "odd")
    starts = [action["startTime"] for action in odd["userActions"]]
    assert starts == [tap(n)["timestamp"] for n in (1, 3, 5)]


def test_events_read_of_a_device_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_documents, "MAX_DEVICE_EVENTS", 4)
    send(clickstream.parse, [tap(n, "one" if n % 2 == 0 else "two") for n in range(10)])
    assert [len(each["userActions"]) for each in build_documents()] == [2, 2]


def test_older_session_lists_all_its_events() -> None:
    send(clickstream.parse, [tap(0, "one"), tap(1, "one")])
    # as an earlier release made it of two visits
    session = Session.objects.get()
    Session.objects.update(key=session.key.int.to_bytes(16)[::-1].hex())
    send(clickstream.parse, [tap(2, "two"), tap(0.5, "two")])  # type: ignore[arg-type]
    older = build_documents()[0]
    assert len(older["userActions"]) == 3


def test_older_names_are_replaced() -> None:
    older = {
        "visitId": "V-1", "visitorId": "1394", "visitType": "REAL_USER",
        "startTime": 1_511_441_593_539, "endTime": 1_511_441_716_896,
    }  # fmt: skip
    send(desk.parser.parse, older)
    session = Session.objects.get()
    assert (session.sender_session_id, session.device_id) == ("V-1", "1394")
    (document,) = build_documents()
    assert document == {
        "userSessionId": "V-1", "internalUserId": "1394", "userType": "REAL_USER",
        "startTime": 1_511_441_593_539, "endTime": 1_511_441_716_896,
    }  # fmt: skip


def test_present_name_wins_over_older() -> None:
    send(desk.parser.parse, bare(visitId="other"))
    (document,) = build_documents()
    assert (document["userSessionId"], document["visitId"]) == ("1394_1008", "other")


# By application -----------------------------------------------------------------------------------


def test_destination_of_one_application() -> None:
    send(clickstream.parse, [tap(0), tap(1)])
    send_events(make_answer(0))
    derive_sessions(make_channel())
    for resource in ("sessions", "events"):
        ours = make_destination(name="ours", resource=resource, application="shop")
        every = make_destination(name="every", resource=resource)
        gone = make_destination(name="gone", resource=resource)
        gone.application = "closed"  # deleted since
        counts = [
            len(batches.read_batch(each, 100, values.START).documents)
            for each in (ours, every, gone)
        ]
        assert counts == ([1, 2, 0] if resource == "sessions" else [2, 3, 0])


# All ways -----------------------------------------------------------------------------------------


def test_all_ways_have_the_same_sessions() -> None:
    """Two visits within half an hour, answers without a session, and one of Dynatrace."""
    events = []
    for number, (minute, sid) in enumerate(
        [
            (0, "one"),
            (10, "two"),
            (20, "two"),
            (30, "one"),
            (190, "one"),
            (0, ""),
            (20, ""),
            (80, ""),
        ]
    ):
        answer = make_answer(number)
        answer["ets"] = int((FIRST_ANSWER + timedelta(minutes=minute)).timestamp() * 1000)
        answer["context"] |= {"did": "device-1", "sid": sid}
        events.append(answer)
    send_events(*events)
    channel = make_channel()
    derive_sessions(channel)

    chart = conversation_charts.draw_funnel(
        Conversation.objects.get(identifier=BOT).pk,
        charts.DayRange(date(2022, 3, 1), date(2022, 3, 31)),
    )
    assert chart.caption.startswith("4 sessions of 1 participant.")

    emit_sessions(1)
    page = pages.read_page(FeedQuery(channel.pk, "sessions"), values.START, 100)
    pulled = [json.loads(item) for item in page.items]
    assert sorted(each["senderSessionId"] or "" for each in pulled) == [
        "", "", "1394_1009", "one", "two",
    ]  # fmt: skip
    pushed = batches.read_batch(make_destination(), 100, values.START).documents
    dataset = DATASETS["sessions-exhaust"]
    config = {"startDate": "2017-01-01", "endDate": "2022-12-31"}
    selection = resolve_selection(dataset, channel.pk, config, fetch_watermark())
    headers = [column.header for column in dataset.columns]
    rows = [dict(zip(headers, row, strict=True)) for row in dataset.iterate_rows(selection)]
    assert {row["Position"] for row in rows} == {each["position"] for each in pulled}
    assert {f"{each.position.xid}.{each.position.id}" for each in pushed} == {
        each["position"] for each in pulled
    }
    assert {row["Session ID"] for row in rows} == {each["sessionId"] for each in pulled}
