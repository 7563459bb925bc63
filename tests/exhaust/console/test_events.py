"""The event explorer."""

import json
import re
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from exhaust.console import events
from ingest.adapters.desk.parser import SOURCE as DESK
from ingest.events import Profile
from ingest.feed import reader
from ingest.models import AuditEvent, ReadCount, StoredEvent
from ingest.privacy import erasure
from ingest.store.participants import store_participants
from tests.conftest import make_channel
from tests.exhaust.console.test_console import C, read_html, sign_in
from tests.exhaust.factories import make_answer, send_events

pytestmark = pytest.mark.django_db


def list_types(client: Client, query: str = "") -> list[str]:
    html = read_html(client.get(f"{C}/events{query}"))
    return re.findall(r'data-label="Type">([^<]*)<', html)


@pytest.fixture
def bela() -> Client:
    """May see personal data."""
    return sign_in("bela", submit_private=True)


def test_newest_come_first(bela: Client) -> None:
    for kind in ("START", "ASSESS", "END"):
        send_events(make_answer(ord(kind[0])) | {"eid": kind})
    send_events(make_answer(1) | {"eid": "OTHER"}, channel="ORG_002")
    assert list_types(bela) == ["END", "ASSESS", "START"]
    assert list_types(bela, "?type=ASSESS") == ["ASSESS"]
    assert list_types(bela, "?source=telemetry&type=LOG") == []


def test_pages_go_back_to_the_first(bela: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PER_PAGE", 2)
    send_events(*(make_answer(number) | {"eid": f"T{number}"} for number in range(5)))
    found: list[str] = []
    query = ""
    while True:
        html = read_html(bela.get(f"{C}/events{query}"))
        found += re.findall(r'data-label="Type">([^<]*)<', html)
        more = re.search(r'href="(\?[^"]*cursor=[^"]*)"', html)
        if not more:
            break
        query = more[1].replace("&amp;", "&")
    assert sorted(found) == ["T0", "T1", "T2", "T3", "T4"]
    assert len(found) == 5


def test_search_goes_on_past_its_window(bela: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WINDOW_ROWS", 3)
    send_events(make_answer(0) | {"eid": "RARE"})
    send_events(*(make_answer(number) for number in range(1, 4)))
    html = read_html(bela.get(f"{C}/events?type=RARE"))
    assert "None of the 3 events that were searched matches" in html
    more = re.search(r'href="(\?[^"]*cursor=[^"]*)"', html)
    assert more is not None
    assert list_types(bela, more[1].replace("&amp;", "&")) == ["RARE"]


def test_cursor_of_other_channel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PER_PAGE", 1)
    cora = sign_in("cora", submit_private=True)
    sign_in("cora", channel="ORG_002", submit_private=True)
    for channel in ("ORG_001", "ORG_002"):
        send_events(make_answer(1), make_answer(2), channel=channel)
    html = read_html(cora.get("/console/ORG_002/events"))
    more = re.search(r'href="(\?[^"]*cursor=[^"]*)"', html)
    assert more is not None

    html = read_html(cora.get(f"{C}/events{more[1].replace('&amp;', '&')}"))

    assert "This page of the list has expired." in html


def test_device_is_found_in_each_source(bela: Client) -> None:
    send_events(make_answer(1))
    desk = StoredEvent.objects.get()  # one index has its source, another one the others
    desk.pk, desk.identity, desk.source, desk.device_id = None, uuid4(), DESK, "desk-1"
    desk.save()
    for row in StoredEvent.objects.exclude(device_id=""):
        html = read_html(bela.get(f"{C}/events", {"device": row.device_id}))
        assert row.device_id in html
        assert f'href="{C}/events/{row.pk}"' in html
    assert {DESK, "telemetry"} <= set(StoredEvent.objects.values_list("source", flat=True))


def test_device_needs_permission() -> None:
    send_events(make_answer(1))
    device = StoredEvent.objects.get().device_id
    asha = sign_in(submit_response=True)
    html = read_html(asha.get(f"{C}/events", {"device": device}))
    assert "to search by device ID" in html
    assert device not in html.replace(f"device={device}", "")
    assert 'id="f-device"' not in html


def test_payload_needs_permission(bela: Client) -> None:
    send_events(make_answer(1, text="Asha's words"))
    row = StoredEvent.objects.get()
    html = read_html(sign_in(submit_response=True).get(f"{C}/events/{row.pk}"))
    assert "Hidden, because" in html
    assert row.device_id not in html
    assert "Asha" not in html
    assert "Asha&#x27;s words" in read_html(bela.get(f"{C}/events/{row.pk}"))


def test_refused_answer_is_left_out(bela: Client) -> None:
    send_events(make_answer(1, text="Asha's words"))
    row = StoredEvent.objects.get()
    refusal = Profile(row.device_id, None, None, False, timezone.now())
    store_participants(row.channel_id, timezone.now(), [refusal])
    assert "words" not in read_html(bela.get(f"{C}/events/{row.pk}"))


def test_erased_event_says_so(bela: Client) -> None:
    send_events(make_answer(1))
    row = StoredEvent.objects.get()
    erasure.erase(row.channel_id, row.device_id, 60)
    assert "person of this event was erased" in read_html(bela.get(f"{C}/events/{row.pk}"))


def test_other_channels_event_is_hidden(bela: Client) -> None:
    send_events(make_answer(1), channel="ORG_002")
    pk = StoredEvent.objects.get().pk
    assert bela.get(f"{C}/events/{pk}").status_code == 404
    assert bela.get(f"{C}/events/{2**70}").status_code == 404


def test_reads_are_counted_as_pulls(bela: Client) -> None:
    send_events(make_answer(1), make_answer(2))
    bela.get(f"{C}/events")
    bela.get(f"{C}/events/{StoredEvent.objects.first().pk}")  # type: ignore[union-attr]
    count = ReadCount.objects.get()
    assert (count.action, count.actor, count.subject) == ("feed.pulled", "bela", "events")
    assert (count.call_count, count.row_count) == (2, 3)
    assert not AuditEvent.objects.filter(action="feed.pulled").exists()  # within its hour


def test_watching_counts_new_rows_once(bela: Client) -> None:
    send_events(make_answer(1), make_answer(2))
    html = read_html(bela.get(f"{C}/events?live=1"))
    assert 'hx-trigger="every 5s"' in html
    again = re.search(r'hx-get="([^"]*)"', html)
    assert again is not None
    send_events(make_answer(3))
    bela.get(f"{C}/events{again[1].replace('&amp;', '&')}", headers={"X-Poll": "1"})
    assert ReadCount.objects.get().row_count == 3


@pytest.mark.parametrize("query", ["seen=z", "seen=z&live=1", "{live}&cursor=x", "{seen}"])
def test_no_read_is_left_uncounted(bela: Client, query: str) -> None:
    # given what the page gave to someone who looks on
    send_events(make_answer(1), make_answer(2))
    html = read_html(bela.get(f"{C}/events?live=1"))
    (live,) = re.findall(r'hx-get="\?([^"]*)"', html)
    live = live.replace("&amp;", "&")
    ReadCount.objects.all().delete()

    # when / then a look at anything else counts all that it shows
    seen = live.replace("live=1&", "").replace("live=1", "")
    bela.get(f"{C}/events?{query.format(live=live, seen=seen)}")
    assert ReadCount.objects.get().row_count == 2


def test_page_at_rest_does_not_poll(bela: Client) -> None:
    assert "hx-trigger" not in read_html(bela.get(f"{C}/events"))


@pytest.mark.parametrize("query", ["?cursor=x", "?device=%00", "?type=%00&source=no"])
def test_odd_query_is_answered(bela: Client, query: str) -> None:
    send_events(make_answer(1))
    assert read_html(bela.get(f"{C}/events{query}"))


def test_slow_search_says_so(bela: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch_slowly(*_: Any) -> Any:
        raise TimeoutError

    monkeypatch.setattr(events, "fetch_newest", fetch_slowly)
    assert "Remove a filter" in read_html(bela.get(f"{C}/events?type=A"))


def test_shown_document_is_the_pulled_one(bela: Client) -> None:
    send_events(make_answer(1))
    row = StoredEvent.objects.get()
    page = bela.get(f"{C}/events/{row.pk}").content.decode()
    shown = re.search(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)
    assert shown is not None
    document = json.loads(shown[1].replace("&quot;", '"').replace("&#x27;", "'"))
    assert document["position"] == f"{row.xid}.{row.pk}"
    assert document["deviceId"] == row.device_id
    assert make_channel().pk == row.channel_id


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("filters", "indexes"),
    [
        ({}, {"storedevent_arrival"}),
        ({"type": "RARE"}, {"storedevent_arrival"}),
        ({"device": "d-77"}, {"storedevent_device", "storedevent_desk_device"}),
    ],
)
def test_newest_use_indexes(filters: dict[str, str], indexes: set[str]) -> None:
    channel = make_channel()
    with connection.cursor() as cursor:
        cursor.execute(_FILL, [channel.pk])
        cursor.execute("ANALYZE ingest_storedevent")
    with CaptureQueriesContext(connection) as queries:
        events.fetch_newest(channel.pk, filters, "")
    plans = []
    for query in queries.captured_queries:
        if "ingest_storedevent" in query["sql"]:
            with connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN {query['sql']}")
                plans.append("\n".join(line for (line,) in cursor.fetchall()))
    assert plans
    for plan in plans:
        assert "Seq Scan on ingest_storedevent" not in plan
        assert set(re.findall(r"storedevent_\w+", plan)) & indexes, plan


_FILL = """
INSERT INTO ingest_storedevent (xid, occurred_at, received_at, channel_id, is_answer, identity,
    source, type, device_id, session_id, note, payload)
SELECT n::text::xid8, now(), now(), %s, false, gen_random_uuid(),
    CASE WHEN n %% 2 = 0 THEN 'desk' ELSE 'telemetry' END, 'ASSESS', 'd-' || n, '', '', '{}'
FROM generate_series(1, 20000) AS n
"""
