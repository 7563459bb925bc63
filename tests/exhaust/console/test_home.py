"""A channel's home page: its first steps, the last events by source, and what fails."""

import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from exhaust.console import home
from exhaust.delivery import destinations, states
from exhaust.jobs import transitions
from exhaust.models import Destination, Job, Schedule
from ingest.auth import keys
from ingest.models import StoredEvent
from tests.conftest import make_channel
from tests.exhaust.console.test_console import C, read_html, sign_in
from tests.exhaust.console.test_pages import reject_event
from tests.exhaust.destinations import make_destination
from tests.exhaust.factories import (
    BOT,
    PRIVATE,
    make_answer,
    make_claimed,
    make_finished,
    send_events,
)

pytestmark = pytest.mark.django_db
HOME = f"{C}/"


def test_first_steps_go_away() -> None:
    admin = sign_in(administer=True, submit_response=True)
    html = read_html(admin.get(HOME))
    assert "Set up this channel" in html
    assert f'<a href="{C}/keys">API key</a>' in html
    assert f'<a href="{C}/events">First event</a>' in html
    make_destination(channel="ORG_002")
    keys.create_application("shop", make_channel("ORG_002"))
    html = read_html(admin.get(HOME))
    assert html.count('<li class="done">') == 1  # the channel itself
    keys.create_key("bot", ["ingest"], [make_channel()])
    send_events(make_answer(1))
    assert read_html(admin.get(HOME)).count('<li class="done">') == 3
    make_finished()
    assert "Set up this channel" not in read_html(admin.get(HOME))


def test_steps_of_others_have_no_link() -> None:
    html = read_html(sign_in(submit_response=True).get(HOME))
    assert f"{C}/keys" not in html
    assert "your administrator does this" in html


def test_auditor_sees_no_data() -> None:
    send_events(make_answer(1))
    html = read_html(sign_in(audit=True).get(HOME))
    assert f'href="{C}/audit"' in html
    assert "Last events" not in html
    assert "Set up" not in html


def test_last_events_by_source() -> None:
    send_events(*(make_answer(number) for number in range(3)))
    StoredEvent.objects.filter(payload__mid__endswith="0").update(
        received_at=timezone.now() - timedelta(hours=5)
    )
    asha = sign_in(submit_response=True)
    with CaptureQueriesContext(connection) as queries:
        html = read_html(asha.get(HOME))
    assert f'<a href="{C}/events?source=telemetry">' in html
    assert "seconds ago" in html or "second ago" in html
    assert len(queries) < 40


def test_count_of_hour_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "NEWEST_EVENTS", 2)
    send_events(*(make_answer(number) for number in range(3)))
    assert ">2+</td>" in read_html(sign_in(submit_response=True).get(HOME))


def test_problems_are_listed() -> None:
    channel = make_channel()
    job = make_claimed(tag="broken")
    secret = make_claimed(tag="people", dataset=PRIVATE)
    for each in (job, secret):
        assert transitions.fail(each, "The storage is full.")
    Job.objects.update(status="FAILED", status_message="The storage is full.")
    Schedule.objects.create(
        channel=channel, name="nightly", dataset=job.dataset, cron="0 6 * * *", window="yesterday",
        tag="t", requested_by="x", next_at=timezone.now(), last_error="No such conversation.",
    )  # fmt: skip
    row = destinations.save(
        Destination(channel=channel, name="lake", url="https://a.example.org/in")
    )
    assert "All is well" not in read_html(sign_in(submit_response=True).get(HOME))
    Destination.objects.filter(pk=row.pk).update(disabled_reason="Answered 410.")
    reject_event()
    html = read_html(sign_in("bela", administer=True, submit_response=True).get(HOME))
    for text in ("broken", "The storage is full.", "No such conversation.", "Answered 410.",
                 "Not a JSON object"):  # fmt: skip
        assert text in html
    assert "people" not in html  # of a dataset that the user may not export


def test_quiet_channel_is_well() -> None:
    send_events(make_answer(1))
    keys.create_key("a sender", ["ingest"], [make_channel()])
    make_finished()
    assert "All is well" in read_html(sign_in(administer=True, submit_response=True).get(HOME))


def test_slow_section_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_slowly(*_: Any, **__: Any) -> dict[str, Any]:
        raise TimeoutError

    monkeypatch.setattr(home.queries, "search_jobs", read_slowly)
    html = read_html(sign_in(submit_response=True).get(HOME))
    assert "took too long" in html
    assert "All is well" not in html


def test_own_newest_exports() -> None:
    for number in range(4):
        make_finished(tag=f"mine-{number}", requested_by="asha")
    make_finished(tag="of-a-colleague", requested_by="bela")
    html = read_html(sign_in(submit_response=True).get(HOME))
    tags = [f"mine-{number}" for number in range(4) if f">mine-{number}<" in html]
    assert tags == ["mine-1", "mine-2", "mine-3"]
    assert html.count("/files/1") == 3  # each can be downloaded from here
    assert "of-a-colleague" not in html
    assert "Your newest exports" not in read_html(sign_in("chand", administer=True).get(HOME))


def test_responses_of_today_are_two_clicks_away() -> None:
    send_events(make_answer(1))
    asha = sign_in(submit_response=True)
    (address,) = re.findall(r'href="([^"]+preset=today[^"]*)"', read_html(asha.get(HOME)))
    form = read_html(asha.get(unescape(address)))
    today = timezone.now().date().isoformat()
    assert form.count(f'type="date" value="{today}"') == 2
    assert f'value="{BOT}" checked' in form
    assert '<option value="xlsx" selected>' in form
    assert "preset=today" not in read_html(sign_in("bela", administer=True).get(HOME))


@pytest.mark.django_db(transaction=True)
def test_destinations_that_are_up_to_date_take_no_queries() -> None:
    admin = sign_in(administer=True)
    send_events(make_answer(1))

    def count_queries(count: int) -> int:
        for number in range(count):
            name = f"warehouse-{count}-{number}"
            destination = Destination(channel=make_channel(), name=name, resource="events")
            destination.url = "https://receiver.example/events"
            destinations.save(destination)
        with CaptureQueriesContext(connection) as queries:
            read_html(admin.get(HOME))
        return len(queries)

    count_queries(1)  # writes down, once a minute, that the session is in use
    assert count_queries(2) == count_queries(20)
    Destination.objects.filter(name="warehouse-2-1").update(cursor_xid=0, cursor_id=0)
    lags = states.measure_lags(list(Destination.objects.order_by("name")))
    assert sorted(lag.documents for lag in lags) == [0] * 22 + [1]
