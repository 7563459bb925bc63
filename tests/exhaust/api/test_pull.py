"""Pull: pages behind a cursor, as Croct's clients read them, and errors."""

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.test import Client
from django.utils import timezone

from exhaust.feed import pages
from ingest.audit import reads
from ingest.auth import keys
from ingest.derive import deriver
from ingest.feed import reader
from ingest.feed.values import START
from ingest.feed.watermark import lock_positioned_tables
from ingest.models import Application, AppUser, AuditEvent, Participant, Session, StoredEvent
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.factories import FIRST_ANSWER, make_answer, send_events

# a watermark passes committed rows only
pytestmark = pytest.mark.django_db(transaction=True)
RESOURCES = ("events", "sessions", "users")


@pytest.fixture
def puller(db: None) -> Client:
    return Client(headers={"X-Api-Key": make_key("pull", "export:private")})


def pull(client: Client, resource: str = "events", **query: Any) -> Any:
    return client.get(f"/export/{resource}", query)


def read_page(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.content
    assert response["Content-Type"] == "application/json"
    page: dict[str, Any] = json.loads(response.content)
    assert isinstance(page["nextCursor"], str)
    return page


def walk_pages(client: Client, resource: str, size: int, cursor: str = "", **query: Any) -> Any:
    """Reads pages until one is empty, as generated clients do; returns the items and the cursor."""
    items: list[dict[str, Any]] = []
    while True:
        params = {"pageSize": size, **query, **({"cursor": cursor} if cursor else {})}
        page = read_page(pull(client, resource, **params))
        cursor = page["nextCursor"]
        assert len(page["items"]) <= size
        if not page["items"]:
            return items, cursor
        items += page["items"]


def message_ids(items: list[dict[str, Any]]) -> list[str]:
    return [item["payload"]["mid"] for item in items]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_events_in_order_for_any_page_size(size: int, puller: Client) -> None:
    # given seven events, not in the order of their times, and another channel's
    numbers = [5, 1, 7, 2, 6, 3, 4]
    for number in numbers:
        send_events(make_answer(number))
    send_events(make_answer(99), channel="ORG_002")

    # when / then they come as they arrived
    items, cursor = walk_pages(puller, "events", size)
    assert message_ids(items) == [f"ASSESS:{number}" for number in numbers]

    # and the cursor of the empty page goes on later
    last_page, cursor = walk_pages(puller, "events", size, cursor)
    assert last_page == []
    send_events(make_answer(8), make_answer(9))
    later, _ = walk_pages(puller, "events", size, cursor)
    assert message_ids(later) == ["ASSESS:8", "ASSESS:9"]


def test_pulls_are_in_the_audit_log(puller: Client) -> None:
    send_events(*map(make_answer, range(1, 6)))
    walk_pages(puller, "events", 3)
    puller.get(f"/export/events/{StoredEvent.objects.first().identity}")

    assert reads.roll_up() == 0  # the hour is not over
    later = timezone.now() + timedelta(hours=1)
    assert (reads.roll_up(later), reads.roll_up(later)) == (1, 0)
    entry = AuditEvent.objects.get(action="feed.pulled")
    assert (entry.actor, entry.channel, entry.subject) == ("test", "ORG_001", "events")
    assert (entry.details["calls"], entry.details["rows"], len(entry.key)) == (3, 6, 8)


@pytest.mark.parametrize("max_bytes", [1, 20_000])
def test_page_ends_at_a_number_of_bytes(
    max_bytes: int, puller: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given more events than the server sends at once
    send_events(*[make_answer(number) for number in range(250)])
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", max_bytes)

    # when / then a page is short but not the last one, and the cursor goes on
    response = pull(puller, pageSize=1000)
    page = read_page(response)
    assert response["X-Feed-End"] == "false"
    assert max_bytes <= len(response.content) < max_bytes + 2000
    rest, _ = walk_pages(puller, "events", 1000, page["nextCursor"])
    assert message_ids(page["items"] + rest) == [f"ASSESS:{number}" for number in range(250)]


def test_error_in_a_page_frees_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    send_events(*[make_answer(number) for number in range(250)])
    query = pages.FeedQuery(make_channel("ORG_001").pk, "events")
    monkeypatch.setattr(pages.documents, "encode_event", lambda row: 1 / 0)

    with pytest.raises(ZeroDivisionError) as caught:
        pages.read_page(query, START, 250)

    # a handler of the error still holds its traceback, and so the stream
    assert StoredEvent.objects.count() == 250
    del caught


def test_event_document(puller: Client) -> None:
    send_events(make_answer(1))
    page = read_page(pull(puller))
    assert set(page) == {"items", "metadata", "nextCursor"}
    assert page["metadata"] == {
        f"{level}{part}": "ORG_001"
        for level in ("organization", "workspace", "application")
        for part in ("Name", "Slug")
    }
    (event,) = page["items"]
    row = StoredEvent.objects.get()
    assert event == {
        "id": str(row.identity),
        "sessionId": "session",
        "userId": "device-1",
        "timestamp": int((FIRST_ANSWER + timedelta(minutes=1)).timestamp() * 1000),
        "type": "ASSESS",
        "dialect": "telemetry",
        "deviceId": "device-1",
        "receivedTime": int(row.received_at.timestamp() * 1000),
        "position": f"{row.xid}.{row.pk}",
        "context": None,
        "payload": {"@type": "ASSESS", **make_answer(1)},
    }

    # and by its id
    response = puller.get(f"/export/events/{event['id']}")
    assert json.loads(response.content) == {"metadata": page["metadata"], "event": event}


def test_pull_reads_every_source(puller: Client) -> None:
    send_events(make_answer(1))
    keys.create_application("my-app", make_channel())
    clickstream_event = {"event_type": "_page_view", "event_id": "e-1", "timestamp": 1648785600123,
            "device_id": "d-2", "attributes": {"_page_url": "https://shop.example/"}}  # fmt: skip
    response = Client().post(
        "/collect?appId=my-app", json.dumps([clickstream_event]), "application/json"
    )
    assert response.status_code == 200
    items, _ = walk_pages(puller, "events", 10)
    assert [item["dialect"] for item in items] == ["telemetry", "clickstream"]
    assert all(item["payload"]["@type"] == item["type"] for item in items)
    assert items[1]["context"] == {"type": "web", "metadata": {}, "url": "https://shop.example/"}


@pytest.mark.parametrize("name", ["@type", "\\u0040type", "@\\u0074ype"])
def test_payload_type_is_ours(puller: Client, name: str) -> None:
    # given
    body = json.dumps(make_answer(1)).replace('{"eid"', f'{{"{name}": {{}}, "eid"', 1)
    assert name in body
    key = {"Authorization": f"Bearer {make_key('ingest')}"}
    response = Client(headers=key).post("/v1/telemetry", body, "application/json")
    assert response.json()["result"]["stored"] == 1

    # when
    page = puller.get("/export/events").content

    # then
    pairs = json.loads(page, object_pairs_hook=list)
    (item,) = dict(pairs)["items"]
    payload = dict(item)["payload"]
    assert [value for field, value in payload if field == "@type"] == ["ASSESS"]
    assert dict(payload)["mid"] == "ASSESS:1"


def test_answer_without_consent_is_left_out(puller: Client) -> None:
    send_events(make_answer(1), make_answer(2), make_answer(3))
    for number, consent in ((1, False), (2, True)):
        Participant.objects.create(
            channel=make_channel(), device_id=f"device-{number}", consent=consent,
            updated_at=timezone.now(),
        )  # fmt: skip
    Participant.objects.create(  # the same device, and another channel's person
        channel=make_channel("ORG_002"), device_id="device-3", consent=False,
        updated_at=timezone.now(),
    )  # fmt: skip
    items, _ = walk_pages(puller, "events", 2)
    answers = {item["deviceId"]: item["payload"]["edata"]["resvalues"] for item in items}
    assert answers == {
        "device-1": [],
        "device-2": [{"ans1": "because 2"}],
        "device-3": [{"ans1": "because 3"}],
    }
    response = puller.get(f"/export/events/{items[0]['id']}")
    assert b"because 1" not in response.content


def test_event_documents_on_both_databases(puller: Client) -> None:
    # given values that a way past the ORM could change: other scripts, numbers, a rejected answer
    event = make_answer(1)
    event["edata"] |= {"uri": "https://bot.example/\u0928", "n": 1.50, "deep": [{"é": None}, []]}
    refused = make_answer(2)
    plain = {**make_answer(3), "edata": {}, "eid": 'odd "\u2028" type'}
    send_events(event, refused, plain)
    Participant.objects.create(
        channel=make_channel(), device_id="device-2", consent=False, updated_at=timezone.now()
    )
    StoredEvent.objects.update(received_at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC))
    rows = {row.payload["mid"]: row for row in StoredEvent.objects.all()}

    # when / then every field is as it was sent, on either database
    refused["edata"]["resvalues"] = []
    items, _ = walk_pages(puller, "events", 3)
    assert items == [
        {
            "id": str(rows[sent["mid"]].identity),
            "sessionId": "session",
            "userId": sent["context"]["did"],
            "timestamp": sent["ets"],
            "type": sent["eid"],
            "dialect": "telemetry",
            "deviceId": sent["context"]["did"],
            "receivedTime": 1767323045678,
            "position": f"{rows[sent['mid']].xid}.{rows[sent['mid']].pk}",
            "context": {"type": "web", "metadata": {}, "url": url} if url else None,
            "payload": {"@type": sent["eid"], **sent},
        }
        for sent, url in ((event, event["edata"]["uri"]), (refused, None), (plain, None))
    ]


# Windows and filters ------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1, 1000], ids=["seconds", "milliseconds"])
def test_window_excludes_its_end(unit: int, puller: Client) -> None:
    send_events(*(make_answer(number) for number in range(5)))
    first = int(FIRST_ANSWER.timestamp())

    def ids_between(**query: int) -> list[str]:
        return message_ids(
            walk_pages(puller, "events", 2, **{k: v * unit for k, v in query.items()})[0]
        )

    assert ids_between(start=first + 60, end=first + 180) == ["ASSESS:1", "ASSESS:2"]
    assert ids_between(start=first + 180) == ["ASSESS:3", "ASSESS:4"]
    assert ids_between(end=first + 60) == ["ASSESS:0"]


def test_event_types_are_repeated(puller: Client) -> None:
    for number, kind in enumerate(["ASSESS", "START", "END", "START"]):
        send_events({**make_answer(number), "eid": kind, "mid": f"{kind}:{number}"})
    assert message_ids(walk_pages(puller, "events", 1, events=["START"])[0]) == [
        "START:1",
        "START:3",
    ]
    both = walk_pages(puller, "events", 1, events=["END", "ASSESS"])[0]
    assert message_ids(both) == ["ASSESS:0", "END:2"]
    assert walk_pages(puller, "events", 5, events="NONE")[0] == []


def test_empty_page_moves_cursor(puller: Client) -> None:
    # given a cursor after events of other types
    send_events(*(make_answer(number) for number in range(5)))
    page = read_page(pull(puller, events="START"))
    assert page["items"] == []

    # when one arrives
    send_events({**make_answer(9), "eid": "START", "mid": "START:9"})

    # then the next page begins after these
    later = read_page(pull(puller, events="START", cursor=page["nextCursor"]))
    assert message_ids(later["items"]) == ["START:9"]


def walk_short_pages(client: Client, path: str, **query: Any) -> tuple[list[dict[str, Any]], int]:
    """Reads to the feed's end, also past empty pages; returns the items and their number."""
    items: list[dict[str, Any]] = []
    cursors = [""]
    while True:
        response = pull(client, path, cursor=cursors[-1], **query)
        page = read_page(response)
        items += page["items"]
        assert page["nextCursor"] not in cursors
        cursors.append(page["nextCursor"])
        if response["X-Feed-End"] == "true":
            return items, len(cursors) - 2


@pytest.mark.parametrize(
    ("resource", "query"),
    [
        ("events", {"events": ["RARE"]}),
        ("events", {"start": 1650000000}),
        ("events", {"application": "shop"}),
        ("sessions", {"application": "shop"}),
        ("sessions", {"start": 1650000000}),
        ("users", {"start": 1650000000}),
        ("events", {}),
    ],
)
def test_search_is_bounded(
    puller: Client, resource: str, query: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a wanted record after nine others, and a page that searches three
    shop = Application.objects.create(channel=make_channel(), identifier="shop")
    send_events(*(make_answer(number) for number in range(9)))
    send_events({**make_answer(9), "eid": "RARE", "ets": 1651000000000})
    deriver.derive_all(5)
    late = datetime.fromtimestamp(1651000000, UTC)
    for model in (StoredEvent, Session):
        model.objects.filter(device_id="device-9").update(application=shop)
    model, others = {
        "events": (StoredEvent, {"superseded_xid": 1}),
        "sessions": (Session, {}),
        "users": (AppUser, {}),
    }[resource]
    if resource == "users":
        AppUser.objects.exclude(identifier="device-9").update(modified_at=FIRST_ANSWER)
    if resource == "sessions":
        Session.objects.filter(device_id="device-9").update(closes_at=late)
    if not query:  # all were replaced
        model.objects.exclude(device_id="device-9").update(**others)
    monkeypatch.setattr(reader, "WINDOW_ROWS", 3)
    monkeypatch.setattr(pages, "SEARCH_SECONDS", 0)

    # when / then the pages before it are empty and move on
    items, moves = walk_short_pages(puller, resource, **query)
    assert len(items) == 1
    assert moves == 3

    # and one with time is full
    monkeypatch.setattr(pages, "SEARCH_SECONDS", 60)
    assert walk_short_pages(puller, resource, **query) == (items, 0)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_page_is_filled_across_windows(
    puller: Client, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        send_events({**make_answer(number), "eid": "ASSESS" if number % 3 else "START"})
    monkeypatch.setattr(reader, "WINDOW_ROWS", 2)
    page = read_page(pull(puller, pageSize=size, events=["START"]))
    assert len(page["items"]) == min(size, 4)
    items, _ = walk_pages(puller, "events", size, events=["START"])
    assert [item["deviceId"] for item in items] == [f"device-{n}" for n in (0, 3, 6, 9)]


# Sessions and users -------------------------------------------------------------------------------


def derive_all() -> None:
    deriver.derive_all(seconds=30)


def test_changed_session_comes_again(puller: Client) -> None:
    # given two sessions
    send_events(make_answer(0), make_answer(100))
    derive_all()
    items, cursor = walk_pages(puller, "sessions", 1)
    assert {item["deviceId"] for item in items} == {"device-0", "device-100"}
    (first,) = (item for item in items if item["deviceId"] == "device-0")
    started_ms = int(FIRST_ANSWER.timestamp() * 1000)
    assert first["window"] == {"start": started_ms, "end": started_ms}
    assert first["closeTime"] == started_ms + 30 * 60_000
    assert first["statistics"] == {"pageViews": 0, "events": 1, "answers": 1}
    assert (first["parentId"], first["externalUserId"]) == (None, None)
    assert puller.get(f"/export/session/{first['sessionId']}").json() == first

    # when one of them continues
    event = make_answer(1)
    event["context"]["did"] = "device-0"
    send_events(event)
    derive_all()

    # then it alone is sent again, under its id
    (changed,), cursor = walk_pages(puller, "sessions", 5, cursor)
    assert changed["sessionId"] == first["sessionId"]
    assert (changed["version"], changed["statistics"]["events"]) == (2, 2)
    assert walk_pages(puller, "sessions", 5, cursor)[0] == []


def test_joined_session_names_parent(puller: Client) -> None:
    # given two sessions of a device, and the event between them that joins them
    def answer_at(minute: int) -> dict[str, Any]:
        event = make_answer(minute)
        event["context"] |= {"did": "device", "sid": ""}
        return event

    send_events(answer_at(0), answer_at(50))
    derive_all()
    send_events(answer_at(25))
    derive_all()

    # when / then
    items = {item["sessionId"]: item for item in walk_pages(puller, "sessions", 9)[0]}
    joined = [item for item in items.values() if item["parentId"]]
    assert len(items) == 2
    assert len(joined) == 1
    parent = items[joined[0]["parentId"]]
    assert parent["statistics"]["events"] == 3


def test_session_window_is_by_close_time(puller: Client) -> None:
    send_events(make_answer(0), make_answer(100))
    derive_all()
    closes = int((FIRST_ANSWER + timedelta(minutes=30)).timestamp())
    (item,), _ = walk_pages(puller, "sessions", 9, start=closes, end=closes + 1)
    assert item["deviceId"] == "device-0"
    assert walk_pages(puller, "sessions", 9, end=closes)[0] == []


def test_changed_user_comes_again(puller: Client) -> None:
    send_events(make_answer(0), make_answer(1))
    derive_all()
    items, cursor = walk_pages(puller, "users", 1)
    users = {item["userId"]: item for item in items}
    assert set(users) == {"device-0", "device-1"}
    assert all(item["anonymous"] for item in items)
    assert puller.get("/export/user/device-0").json() == users["device-0"]

    event = make_answer(7)
    event["context"]["did"] = event["actor"]["id"] = "device-1"
    send_events(event)
    derive_all()
    (changed_user,), _ = walk_pages(puller, "users", 5, cursor)
    assert changed_user["userId"] == "device-1"
    assert changed_user["lastSeenTime"] > users["device-1"]["lastSeenTime"]

    # and the window is their last change's
    changed = AppUser.objects.get(identifier="device-1").modified_at
    since = int(changed.timestamp() * 1000)
    assert [user["userId"] for user in walk_pages(puller, "users", 5, start=since)[0]] == [
        "device-1"
    ]


@pytest.mark.parametrize("resource", ["sessions", "users"])
def test_late_derived_records_come_later(resource: str, puller: Client) -> None:
    # given a reader that was there before the deriver, twice
    send_events(make_answer(1))
    items, cursor = walk_pages(puller, resource, 5)
    assert items == []
    derive_all()
    first, cursor = walk_pages(puller, resource, 5, cursor)
    send_events(make_answer(200))
    items, cursor = walk_pages(puller, resource, 5, cursor)
    assert items == []
    derive_all()

    # then no event passed it
    second, _ = walk_pages(puller, resource, 5, cursor)
    assert [item["deviceId"] for item in first + second] == ["device-1", "device-200"]


def test_user_attributes(puller: Client) -> None:
    keys.create_application("my-app", make_channel())
    attributes = {
        "email": "a@example.org",
        "plan": {"value": "gold", "set_timestamp": 1648785600000},
    }
    event = {"event_type": "view", "event_id": "e-1", "timestamp": 1648785600123,
            "device_id": "d-1", "user_id": "u-1", "user": attributes}  # fmt: skip
    Client().post("/collect?appId=my-app", json.dumps([event]), "application/json")
    derive_all()
    (user,) = [user for user in walk_pages(puller, "users", 9)[0] if user["userId"] == "u-1"]
    assert (user["externalUserId"], user["email"]) == ("u-1", "a@example.org")
    assert user["customAttributes"] == {"email": "a@example.org", "plan": "gold"}


@pytest.mark.parametrize("resource", RESOURCES)
def test_singular_and_plural_addresses(resource: str, puller: Client) -> None:
    send_events(make_answer(0))
    derive_all()
    if resource != "events":
        single = resource.removesuffix("s")
        assert (
            read_page(pull(puller, single))["items"]
            == read_page(pull(puller, resource))["items"]
            != []
        )
    assert "metadata" in read_page(pull(puller, resource)) or resource != "events"


# Refusals -----------------------------------------------------------------------------------------


def assert_problem(response: Any, status: int) -> str:
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    problem = json.loads(response.content)
    assert problem["status"] == status
    assert problem["detail"] == problem["details"]
    sentence: str = problem["detail"]
    return sentence


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"pageSize": 0}, "pageSize"),
        ({"pageSize": 1001}, "pageSize"),
        ({"pageSize": "many"}, "pageSize"),
        ({"start": "yesterday"}, "start"),
        ({"start": -1}, "start"),
        ({"end": 10**18}, "end"),
        ({"start": 10, "end": 10}, "end"),
        ({"start": 1_700_000_000_000, "end": 1_600_000_000}, "end"),
        ({"cursor": "made up"}, "cursor"),
    ],
)
@pytest.mark.parametrize("resource", RESOURCES)
def test_invalid_query_names_field(
    resource: str, query: dict[str, Any], field: str, puller: Client
) -> None:
    assert field in assert_problem(pull(puller, resource, **query), 400)


def list_cursors(client: Client) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yields a cursor of each kind with its query."""
    for resource in RESOURCES:
        for query in ({}, {"start": 5}, {"end": 5_000_000_000}):
            yield resource, query, read_page(pull(client, resource, **query))["nextCursor"]
    yield "events", {"events": "A"}, read_page(pull(client, events="A"))["nextCursor"]


def test_cursor_is_bound_to_channel(puller: Client) -> None:
    # given cursors of all kinds, and another channel's
    send_events(make_answer(0))
    derive_all()
    make_channel("ORG_002")
    other = Client(headers=bearer(make_key("pull", "export:private", channels=("ORG_002",))))
    own_cursors = list(list_cursors(puller))
    other_cursors = list(list_cursors(other))

    # when / then each is valid for its own query only
    for resource, query, cursor in own_cursors:
        for other_resource, filters, own in own_cursors:
            response = pull(puller, other_resource, **filters, cursor=cursor)
            if own == cursor and (other_resource, filters) == (resource, query):
                assert read_page(response)["items"] == []
            else:
                assert "another query" in assert_problem(response, 400)
    for resource, query, cursor in other_cursors:
        assert "another query" in assert_problem(
            pull(puller, resource, **query, cursor=cursor), 400
        )


@pytest.mark.parametrize("resource", RESOURCES)
def test_pull_requires_scope(resource: str) -> None:
    send_events(make_answer(0))
    derive_all()
    address = f"/export/{resource}"
    ids = {
        "events": str(StoredEvent.objects.get().identity),
        "sessions": str(Session.objects.get().key),
        "users": AppUser.objects.get().identifier,
    }
    own = Client(headers=bearer(make_key("pull", "export:private")))
    other = Client(headers=bearer(make_key("pull", "export:private", channels=("ORG_002",))))
    sender = Client(headers=bearer(make_key("ingest")))
    plain = Client(headers=bearer(make_key("pull")))

    assert len(read_page(own.get(address))["items"]) == 1
    assert own.get(f"{address}/{ids[resource]}").status_code == 200
    assert read_page(other.get(address))["items"] == []
    missing = assert_problem(other.get(f"{address}/{ids[resource]}"), 404)
    assert missing == assert_problem(own.get(f"{address}/{uuid4()}"), 404)
    for address_ in (address, f"{address}/{ids[resource]}"):
        assert assert_problem(Client().get(address_), 401)
        assert "pull" in assert_problem(sender.get(address_), 403)
        if resource == "users":
            assert "export:private" in assert_problem(plain.get(address_), 403)
        else:
            assert plain.get(address_).status_code == 200


@pytest.mark.parametrize("identifier", ["nothing", "a%00b", "0", "%ED%A0%80", "x" * 300])
@pytest.mark.parametrize("resource", RESOURCES)
def test_odd_ids_are_404(resource: str, identifier: str, puller: Client) -> None:
    assert_problem(puller.get(f"/export/{resource}/{identifier}"), 404)


def test_page_headers_tell_end_and_lag(puller: Client) -> None:
    send_events(make_answer(0), make_answer(1))
    first = pull(puller, pageSize=1)
    assert first["X-Feed-End"] == "false"
    last = pull(puller, pageSize=1000)
    assert (last["X-Feed-End"], last["X-Feed-Lag"]) == ("true", "0.0")
    assert last["Cache-Control"] == "no-store"

    # and the lag of sessions is that of the derivation
    StoredEvent.objects.update(received_at=datetime.now(UTC) - timedelta(seconds=90))
    lagging = pull(puller, "sessions")
    assert 89 < float(lagging["X-Feed-Lag"]) < 120
    derive_all()
    assert pull(puller, "sessions")["X-Feed-Lag"] == "0.0"


@pytest.mark.postgresql
def test_open_transaction_holds_back_page(puller: Client) -> None:
    # given a transaction that began before an event and is open
    began, over = threading.Event(), threading.Event()

    def slow() -> None:
        with transaction.atomic():
            lock_positioned_tables()
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_current_xact_id()")
            began.set()
            over.wait(30)
        connection.close()

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        began.wait(10)
        send_events(make_answer(1))
        time.sleep(0.3)
        waiting = pull(puller)
    finally:
        over.set()
        thread.join()

    # then the event waits for it, and the headers say so
    assert read_page(waiting)["items"] == []
    assert 0.2 < float(waiting["X-Feed-Lag"]) < 30
    later = pull(puller, cursor=read_page(waiting)["nextCursor"])
    assert message_ids(read_page(later)["items"]) == ["ASSESS:1"]
    assert later["X-Feed-Lag"] == "0.0"


@pytest.mark.parametrize("resource", RESOURCES)
def test_cursor_now_skips_existing(puller: Client, resource: str):
    # given events that arrived before
    send_events(*[make_answer(number) for number in range(3)])
    deriver.derive_all(seconds=30)
    first = read_page(pull(puller, resource, cursor="now"))
    assert first["items"] == []

    # when more arrives, older by its own time
    send_events(make_answer(-5))
    deriver.derive_all(seconds=30)

    # then only that one is sent
    later = read_page(pull(puller, resource, cursor=first["nextCursor"]))
    assert len(later["items"]) >= 1
    if resource == "events":
        assert message_ids(later["items"]) == ["ASSESS:-5"]


@pytest.mark.parametrize("resource", ["events", "sessions"])
def test_pull_of_one_application(puller: Client, resource: str) -> None:
    # given events of two applications
    shop, till = (
        Application.objects.create(channel=make_channel(), identifier=identifier)
        for identifier in ("shop", "till")
    )
    send_events(*(make_answer(number) for number in range(4)))
    deriver.derive_all(5)
    for number, application in enumerate([shop, till, shop, till]):
        for model in (StoredEvent, Session):
            model.objects.filter(device_id=f"device-{number}").update(application=application)

    # when / then each has its own
    found = [
        sorted(item["deviceId"] for item in walk_pages(puller, resource, 1, application=name)[0])
        for name in ("shop", "till")
    ]
    assert found == [["device-0", "device-2"], ["device-1", "device-3"]]


def test_pull_of_unknown_application(puller: Client) -> None:
    Application.objects.create(channel=make_channel("ORG_002"), identifier="theirs")
    for resource, message in (
        ("events", "no application of that id"), ("users", "A user is of no application"),
    ):  # fmt: skip
        refused = pull(puller, resource, application="theirs")
        assert refused.status_code == 400
        assert message in refused.json()["detail"]
