"""The charts of a channel and of a conversation: their drawings, tables, CSV and JSON."""

import csv
import io
import json
import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from exhaust.console import conversation_charts, conversations, insights, svg
from exhaust.console.charts import Chart, DayRange
from exhaust.jobs import transitions
from exhaust.models import Job
from ingest.models import Conversation, RejectedEvent, StoredEvent
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.console.test_console import C, read_html, sign_in
from tests.exhaust.datasets.surveys import MEALS, choose, list_options, reply, store
from tests.exhaust.datasets.test_datasets import store_participant
from tests.exhaust.factories import (
    BOT,
    PRIVATE,
    make_answer,
    make_finished,
    make_job,
    send_events,
)

pytestmark = pytest.mark.django_db
MARCH = DayRange(date(2022, 3, 1), date(2022, 3, 31))
IN_MARCH = "startDate=2022-03-01&endDate=2022-03-31"
NOON = datetime(2022, 3, 5, 12, tzinfo=UTC)


@pytest.fixture
def asha() -> Client:
    return sign_in(submit_response=True)


def read_csv(browser: Client, page: str, name: str, more: str = "") -> list[list[str]]:
    answer = browser.get(f"{C}/{page}{'&' if '?' in page else '?'}{IN_MARCH}&csv={name}{more}")
    assert answer.status_code == 200
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    assert f'filename="{name}-2022-03-01-2022-03-31.csv"' in answer["Content-Disposition"]
    return list(csv.reader(io.StringIO(answer.content.decode(), newline="")))


def make_data() -> None:
    """Four answers, a finished and a private export, and a rejected event of one noon."""
    send_events(*(make_answer(number) for number in range(4)))
    StoredEvent.objects.update(received_at=NOON)
    Conversation.objects.update(name="Lunch bot")
    finished = make_finished()
    Job.objects.filter(pk=finished.pk).update(
        submitted_at=NOON, completed_at=NOON + timedelta(seconds=90)
    )
    sender = Client(headers=bearer(make_key("ingest")))
    sender.post("/v1/telemetry", json.dumps({"events": ["x"]}), content_type="application/json")
    RejectedEvent.objects.update(received_at=NOON)
    transitions.cancel(make_job(dataset=PRIVATE, submitted_at=NOON), "x")


def test_charts_have_tables(asha: Client) -> None:
    make_data()
    html = read_html(asha.get(f"{C}/charts?{IN_MARCH}"))
    assert html.count("<svg") == html.count('role="img"') == html.count("<table") == 6
    assert '<th scope="row">5 Mar 2022</th><td class="number" data-label="telemetry">4</td>' in html
    assert '<th scope="row">Lunch bot</th><td class="number" data-label="Count">4</td>' in html
    values = {"Exports": "1"} | dict.fromkeys(
        ("Median", "90th percentile", "Slowest"), "1 min 30 s"
    )
    cells = "".join(
        f'<td class="number" data-label="{label}">{value}</td>' for label, value in values.items()
    )
    assert f'<th scope="row">Whole period</th>{cells}' in html
    assert f'<th scope="row">5 Mar 2022</th>{cells}' in html
    assert (
        '<th scope="row">Not a JSON object</th><td class="number" data-label="Count">1</td>' in html
    )
    assert "Cancelled" not in html  # a job of personal data is not counted without the permission
    assert "Destination" not in html
    assert f"conversations/one?id={BOT}&amp;{IN_MARCH.replace('&', '&amp;')}" in html


def test_page_has_values_as_json(asha: Client) -> None:
    make_data()
    html = read_html(asha.get(f"{C}/charts?{IN_MARCH}"))
    plots = {
        name: json.loads(text)
        for name, text in re.findall(
            r'<script id="(\w+)-data" type="application/json">(.*?)</script>', html
        )
    }
    assert set(plots) == {"events_by_source", "exports_by_outcome", "time_to_export"}
    events = plots["events_by_source"]
    assert (events["kind"], events["days"][4], events["before"]) == ("columns", "2022-03-05", None)
    assert events["series"] == [{"name": "telemetry", "values": [0] * 4 + [4] + [0] * 26}]
    assert plots["time_to_export"]["series"][0]["values"][3:6] == [None, 90.0, None]
    assert len(html) < 200_000


def test_long_table_is_a_page_of_its_own(asha: Client) -> None:
    make_data()
    days = "startDate=2022-01-01&endDate=2022-12-31"
    page = read_html(asha.get(f"{C}/charts?{days}"))
    assert (
        '<th scope="row">5 Mar 2022</th><td class="number" data-label="telemetry">4</td>'
        not in page
    )
    assert '<th scope="row">Lunch bot</th>' in page  # a short one is in the page
    (address,) = re.findall(r'href="([^"]+table=events_by_source)"', page)
    table = read_html(asha.get(f"{C}/charts{address.replace('&amp;', '&')}"))
    assert "<details open>" in table
    assert table.count('<th scope="row">') == 365
    assert (
        '<th scope="row">5 Mar 2022</th><td class="number" data-label="telemetry">4</td>' in table
    )
    assert table.count("<svg") == 1
    assert asha.get(f"{C}/charts?table=nothing").status_code == 404


def test_events_by_day_of_event(asha: Client) -> None:
    send_events(make_answer(1))  # occurred in March 2022, arrives now
    by_arrival = read_csv(asha, "charts", "events_by_source")
    by_event = read_csv(asha, "charts", "events_by_source", "&dayOf=event")
    assert by_arrival == []
    assert by_event[0] == ["Day", "telemetry"]
    assert by_event[5] == ["2022-03-05", "1"]


def test_days_are_utc_in_any_zone(asha: Client) -> None:
    make_data()
    StoredEvent.objects.update(received_at=datetime(2022, 3, 5, 23, tzinfo=UTC))
    with timezone.override("Asia/Kolkata"):
        assert read_csv(asha, "charts", "events_by_source")[5] == ["2022-03-05", "4"]


def test_compare_with_period_before(asha: Client) -> None:
    make_data()
    send_events(make_answer(10))
    february = NOON - timedelta(days=31)
    late = StoredEvent.objects.order_by("-pk").first()
    assert late is not None
    StoredEvent.objects.filter(pk=late.pk).update(received_at=february, occurred_at=february)
    html = read_html(asha.get(f"{C}/charts?{IN_MARCH}&compare=1"))
    assert "The period before had 1 (+300% since)." in html
    assert "The median of the period before: no export." in html
    assert '<polyline class="before"' in html
    assert 'class="mark"' in html
    rows = read_csv(asha, "charts", "events_by_source", "&compare=1")
    assert rows[0] == ["Day", "telemetry", "Period before"]
    assert rows[5] == ["2022-03-05", "4", "1"]  # the same place in both periods
    bars = read_csv(asha, "charts", "answers_by_conversation", "&compare=1")
    assert bars == [["Conversation", "Count", "Period before"], ["Lunch bot", "4", "1"]]


def test_csv_has_plain_values(asha: Client) -> None:
    make_data()
    Conversation.objects.update(name="=1+1")
    assert read_csv(asha, "charts", "answers_by_conversation")[1] == ["'=1+1", "4"]
    times = read_csv(asha, "charts", "time_to_export")
    assert times[0][2:] == [
        "Median (seconds)", "90th percentile (seconds)", "Slowest (seconds)",
    ]  # fmt: skip
    assert times[2] == ["2022-03-05", "1", "90.000", "90.000", "90.000"]
    for page in (f"charts?{IN_MARCH}", f"conversations/one?id={BOT}"):
        assert asha.get(f"{C}/{page}&csv=nothing").status_code == 404


def test_csv_needs_the_same_rights() -> None:
    make_data()
    auditor = sign_in("usha", audit=True)
    assert auditor.get(f"{C}/charts?csv=events_by_source").status_code == 403
    stranger = sign_in("bela", "ORG_002", submit_response=True)
    for page in ("charts?", f"conversations/one?id={BOT}&"):
        assert stranger.get(f"{C}/{page}csv=events_by_source").status_code == 404


def test_invalid_period_is_reported(asha: Client) -> None:
    for query in ("startDate=soon", "startDate=2022-02-01&endDate=2022-01-01", "preset=ever",
                  "startDate=2020-01-01&endDate=2022-01-01"):  # fmt: skip
        assert 'role="alert"' in read_html(asha.get(f"{C}/charts?{query}"))
    for query in ("preset=last+month", "startDate=1970-01-01&endDate=1970-12-31&compare=1"):
        assert 'role="alert"' not in read_html(asha.get(f"{C}/charts?{query}"))


def test_charts_switch_to_own_channels(asha: Client) -> None:
    make_channel("ORG_003")
    sign_in("asha", "ORG_002", submit_response=True)
    to = asha.get(f"{C}/charts?channel=ORG_002&preset=yesterday")
    assert to["Location"] == "/console/ORG_002/charts?preset=yesterday"
    assert asha.get(to["Location"]).status_code == 200
    for channel in ("", "a/b", "ORG_003", "nobodys", "%00"):
        assert asha.get(f"{C}/charts?channel={channel}").status_code == 404


def test_slow_chart_says_so(asha: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(*_: Any) -> Chart:
        raise TimeoutError

    title, _ = insights.CHARTS["events_by_source"]
    monkeypatch.setitem(insights.CHARTS, "events_by_source", (title, time_out))
    html = read_html(asha.get(f"{C}/charts"))
    assert "Counting took too long. Choose fewer days." in html
    assert html.count("<section") == len(insights.CHARTS)


@pytest.mark.postgresql
@pytest.mark.parametrize("column", ["received_at", "occurred_at"])
def test_days_are_found_by_index(column: str) -> None:
    make_data()
    rows = StoredEvent.objects.filter(**{f"{column}__gte": NOON, f"{column}__lt": NOON})
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off")
        assert f"storedevent_{column.removesuffix('_at')}_brin" in rows.explain()


def test_charts_read_a_few_queries(asha: Client) -> None:
    make_data()
    asha.get(f"{C}/charts?{IN_MARCH}")
    with CaptureQueriesContext(connection) as queries:
        asha.get(f"{C}/charts?{IN_MARCH}")
    assert len([each for each in queries if "GROUP BY" in each["sql"]]) == 4


def test_funnel_counts_drop_off(asha: Client) -> None:
    events = []
    for device in range(4):
        for world in range(3 if device < 2 else 2 if device < 3 else 1):
            event = make_answer(device * 10 + world)
            event["context"] |= {"did": f"d-{device}", "sid": f"s-{device}"}
            event["context"]["rollup"] = {"l3": f"/q{world}", "l4": str(world == 2).lower()}
            event["edata"]["item"]["title"] = f"Question {world}"
            events.append(event)
    send_events(*events)
    chart = conversation_charts.draw_funnel(Conversation.objects.get().pk, MARCH)
    assert chart.caption == "4 sessions of 4 participants. 2 ended before the last question."
    assert [list(row) for row in chart.rows] == [
        ["Question 0", "/q0", 4, 1.0, 1],
        ["Question 1", "/q1", 3, 0.75, 1],
        ["Question 2", "/q2", 2, 0.5, 0],
    ]
    page = f"conversations/one?id={BOT}"
    html = read_html(asha.get(f"{C}/{page}&{IN_MARCH}"))
    assert '<th scope="row">Question 1</th><td class="number" data-label="Path">/q1</td>' in html
    assert '<td class="number" data-label="Share">75%</td>' in html
    assert read_csv(asha, page, "funnel")[2] == ["Question 1", "/q1", "3", "0.7500", "1"]
    for identifier in ("none", "%00"):
        assert asha.get(f"{C}/conversations/one?id={identifier}").status_code == 404


def test_charts_of_many_responses_come_after_the_page(
    asha: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MAX_AT_ONCE", 2)
    page = f"{C}/conversations/one?id={BOT}&{IN_MARCH}"
    send_events(*(make_answer(number) for number in range(2)))
    assert "<svg" in read_html(asha.get(page))
    send_events(make_answer(3))
    waiting = read_html(asha.get(page))
    assert "Counting 3 responses…" in waiting
    assert "<svg" not in waiting
    (address,) = re.findall(r'<noscript><a class="button" href="([^"]+)"', waiting)
    assert f'hx-get="{address}"' in waiting
    assert "<svg" in read_html(asha.get(f"{C}/conversations/one{address.replace('&amp;', '&')}"))
    assert asha.get(f"{page}&csv=funnel")["Content-Type"] == "text/csv; charset=utf-8"


def draw_answers(*order: str) -> tuple[list[Chart], str]:
    days = DayRange(date(2022, 4, 1), date(2022, 4, 1))
    return conversation_charts.draw_answers(make_channel().pk, BOT, days, order)


def test_answers_are_counted_by_option(asha: Client) -> None:
    store(
        choose(1, "1"),
        choose(2, "2", device="bela"),
        choose(3, "2", "3", device="chand"),
        choose(4, "2", device="dev"),  # refuses below
        reply(5, "my name is Asha", question="meal", item={"params": list_options(MEALS)}),
        choose(6, "1", question="first", options={"1": "हाँ"}, title="शुरू?"),
    )
    store_participant(device_id="dev", consent=False)

    charts, hint = draw_answers("/data/first")

    assert hint == ""
    assert [(chart.title, chart.caption) for chart in charts] == [
        ("शुरू?", "1 answer"), ("meal?", "4 answers"),
    ]  # fmt: skip
    assert list(charts[1].rows) == [
        ("Rice", "1", 1, 0.25), ("Lentils", "2", 2, 0.5), ("Bread", "3", 1, 0.25),
        ("Free text", "", 1, 0.25),
    ]  # fmt: skip
    page = f"conversations/one?id={BOT}&startDate=2022-04-01&endDate=2022-04-01"
    html = read_html(asha.get(f"{C}/{page}"))
    assert '<th scope="row">Lentils</th><td class="number" data-label="Key">2</td>' in html
    assert "Asha" not in html.replace("asha", "")
    assert "Lentils,2,2,0.5000" in asha.get(f"{C}/{page}&csv=answers-1").content.decode()


def test_languages_of_an_option_are_one() -> None:
    hindi = {**MEALS, "1": "चावल"}
    store(
        choose(1, "1"),
        choose(2, "1", device="bela", options=hindi),
        choose(3, "1", device="chand", options=hindi),
    )
    charts, _ = draw_answers()
    assert charts[0].rows[0] == ("चावल", "1", 3, 1.0)


def test_many_questions_and_options_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_charts, "MAX_ANSWER_CHARTS", 1)
    monkeypatch.setattr(conversation_charts, "MAX_OPTIONS", 2)
    monkeypatch.setattr(conversation_charts, "MAX_COUNTED_ANSWERS", 3)
    store(
        choose(1, "1", question="old"),
        choose(2, "3", device="bela"),
        choose(3, "2", device="chand"),
        choose(4, "1", question="why"),
    )
    charts, hint = draw_answers("/data/meal")
    assert len(charts) == 1
    assert hint == (
        "Counted from the newest 3 responses."
        " 1 further question is in the dataset uci-summary-exhaust."
    )
    assert list(charts[0].rows) == [
        ("Lentils", "2", 1, 0.5), ("Bread", "3", 1, 0.5), ("1 other option", "", 0, 0.0),
    ]  # fmt: skip


def test_drawings_are_escaped() -> None:
    drawing = svg.draw_bars([("<script>alert(1)</script>", 3, "three")], [1])
    assert "<script" not in drawing
    assert 'class="mark"' in drawing
    assert "<rect" not in svg.draw_columns([], [])


def test_lines_have_gaps() -> None:
    drawing = svg.draw_lines(["1", "2", "3", "4"], [[5.0, 7.0, None, 90.0]])
    assert drawing.count("<polyline") == drawing.count("<circle") == 1
    assert ">1 min 30 s<" in drawing or ">1 min<" in drawing
