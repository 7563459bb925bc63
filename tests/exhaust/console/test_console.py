"""The console's pages: permissions, actions, and the texts of empty pages."""

import csv
import html
import io
import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from exhaust.console import snippets
from exhaust.files import links
from exhaust.models import Job, Link
from ingest.models import Application, AuditEvent, Role
from tests.conftest import make_channel
from tests.exhaust.factories import (
    BOT,
    CONFIG,
    PRIVATE,
    RESPONSE,
    make_answer,
    make_claimed,
    make_file,
    make_finished,
    make_job,
    send_events,
)

pytestmark = pytest.mark.django_db
C = "/console/ORG_001"
DAYS = {"startDate": "2022-03-01", "endDate": "2022-04-01"}


def sign_in(name: str = "asha", channel: str = "ORG_001", **rights: bool) -> Client:
    """A client signed in as a person with these rights in the channel."""
    user, _ = User.objects.get_or_create(username=name)
    if rights:
        group, _ = Group.objects.get_or_create(name=f"{name} of {channel}")
        group.user_set.add(user)
        Role.objects.create(group=group, channel=make_channel(channel), **rights)
    client = Client()
    client.handler.load_middleware()  # a server has it before anyone signs in
    client.force_login(user)
    return client


@pytest.fixture
def asha() -> Client:
    """May request responses only."""
    return sign_in(submit_response=True)


def export_form(**values: str) -> dict[str, str]:
    return {
        "dataset": RESPONSE,
        "conversationId": BOT,
        "startDate": "2022-03-01",
        "endDate": "2022-04-01",
        "timezone": "UTC",
        "outputFormat": "csv",
        "tag": "by-hand",
        "act": "send",
        **values,
    }


def read_html(answer: Any, status: int = 200) -> str:
    assert answer.status_code == status, answer.content[:2000]
    page = " ".join(answer.content.decode().split())
    return re.sub(r'(name="csrfmiddlewaretoken" value=")\w+', r"\1", page)  # new at each look


def job_path(job: Job, more: str = "") -> str:
    return f"/console/{job.channel.identifier}/exports/{job.tag}/{job.request_id}{more}"


# Signing in ---------------------------------------------------------------------------------------


def test_sign_in_returns_to_requested_page() -> None:
    User.objects.create_user("asha", password="a long enough one")
    browser = Client()
    response = browser.get(f"{C}/exports?status=FAILED")
    assert response.status_code == 302
    assert (
        response["Location"] == "/console/sign-in?next=/console/ORG_001/exports%3Fstatus%3DFAILED"
    )
    values = {"login": "asha", "password": "wrong", "next": "/console/ORG_001/exports"}
    assert "The user name or the password is wrong." in read_html(
        browser.post("/console/sign-in", values)
    )
    signed_in = browser.post("/console/sign-in", {**values, "password": "a long enough one"})
    assert signed_in["Location"] == "/console/ORG_001/exports"
    # a part of a page sends the whole page to sign in
    part = Client().get(f"{C}/exports", headers={"HX-Request": "true"})
    assert (part.status_code, part["HX-Refresh"]) == (204, "true")
    assert browser.post("/console/sign-out")["Location"] == "/console/sign-in"
    assert browser.get(f"{C}/exports").status_code == 302


def test_lockout_page_says_how_long() -> None:
    values = {"login": "nobody", "password": "wrong"}
    answers = [Client().post("/console/sign-in", values) for _ in range(10)]
    assert "for fifteen minutes" in read_html(answers[-1], 429)


def test_single_channel_opens_directly(asha: Client) -> None:
    assert asha.get("/console/")["Location"] == f"{C}/"
    assert "<h1>ORG_001</h1>" in read_html(asha.get(f"{C}/"))


def test_choose_among_channels(asha: Client) -> None:
    sign_in(channel="ORG_002", submit_private=True)
    make_channel("ORG_003")
    values = read_html(asha.get("/console/"))
    assert "ORG_001" in values
    assert "ORG_002" in values
    assert "ORG_003" not in values
    assert "<h1>ORG_002</h1>" in read_html(asha.get("/console/ORG_002/"))


def test_no_role_explains_next_step() -> None:
    make_channel()
    assert "none of your groups has a permission" in read_html(sign_in().get("/console/"))


def test_inactive_user_sees_nothing(asha: Client) -> None:
    User.objects.update(is_active=False)
    assert asha.get(f"{C}/exports").status_code == 302


# Walls --------------------------------------------------------------------------------------------


def test_other_channel_job_is_not_found(asha: Client) -> None:
    other_job = make_finished(channel="ORG_002")
    unknown = asha.get(f"{C}/exports/{other_job.tag}/{other_job.request_id}")
    assert "Page not found" in read_html(unknown, 404)
    for more in ("", "/files/1"):
        assert "Page not found" in read_html(asha.get(job_path(other_job, more)), 404)
    for more in ("/cancel", "/retry", "/files/1/link"):
        assert "Page not found" in read_html(asha.post(job_path(other_job, more)), 404)
        assert "Page not found" in read_html(
            asha.post(f"{C}/exports/{other_job.tag}/{other_job.request_id}{more}"), 404
        )
    assert read_html(asha.get("/console/ORG_002/exports"), 404) == read_html(
        asha.get("/console/NOPE/exports"), 404
    )
    assert Link.objects.count() == 0


def test_private_dataset_needs_permission(asha: Client) -> None:
    private_job = make_finished(dataset=PRIVATE, tag="people")
    make_finished(tag="answers")
    values = read_html(asha.get(f"{C}/exports"))
    assert "answers" in values
    assert "people" not in values
    assert PRIVATE not in values
    for more in ("", "/files/1"):
        assert asha.get(job_path(private_job, more)).status_code == 404
    for more in ("/cancel", "/retry", "/files/1/link"):
        assert asha.post(job_path(private_job, more)).status_code == 404
    assert PRIVATE not in read_html(asha.get(f"{C}/exports/new"))
    refused = read_html(asha.post(f"{C}/exports/new", export_form(dataset=PRIVATE)), 400)
    assert "You may not export this dataset here" in refused
    assert "You may not export this dataset here" in read_html(
        asha.post(f"{C}/exports/new/preview", export_form(dataset=PRIVATE))
    )
    assert Job.objects.count() == 2
    # and a person with that right alone sees no other page
    other_user = sign_in("usha", submit_private=True)
    values = read_html(other_user.get(f"{C}/exports"))
    assert "people" in values
    assert "answers" not in values


# Asking -------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)  # what is read was committed
def test_create_run_and_download_export(asha: Client, enqueued_tasks: list[str]) -> None:
    send_events(*(make_answer(number) for number in range(3)))
    response = asha.post(f"{C}/exports/new", export_form())
    job = Job.objects.get()
    assert response["Location"] == job_path(job)
    assert (job.tag, job.requested_by, job.dataset) == ("by-hand", "asha", RESPONSE)
    assert job.config == {
        "type": RESPONSE,
        "conversationId": BOT,
        "startDate": "2022-03-01",
        "endDate": "2022-04-01",
        "timezone": "UTC",
    }
    assert enqueued_tasks == ["exhaust.work"]
    queued = read_html(asha.get(job_path(job)))
    assert "Export queued." in queued
    assert "first in queue" in queued
    assert 'hx-trigger="every 1s"' in queued
    call_command("run_jobs")
    finished_page = read_html(asha.get(job_path(job)))
    assert "every 1s" not in finished_page
    assert "Download csv" in finished_page
    assert "3 rows" in finished_page
    answer = asha.get(job_path(job, "/files/1"))
    body = b"".join(answer.streaming_content)  # type: ignore[attr-defined]
    assert len(list(csv.reader(io.StringIO(body.decode(), newline="")))) == 4


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        ({"startDate": ""}, "startDate", "Choose the first day."),
        ({"startDate": "2022-04-02"}, "endDate", "Must not lie before startDate."),
        ({"endDate": "2024-04-02"}, "endDate", "At most 366 days at once; ask in parts."),
        ({"conversationId": ""}, "conversationId", "Choose a conversation."),
        ({"tag": "a b"}, "tag", "Letters, digits"),
        ({"tag": ""}, "tag", "Enter a tag"),
        ({"timezone": "Mars/Base"}, "timezone", "Unknown time zone"),
        ({"outputFormat": "pdf"}, "outputFormat", "One of csv"),
        ({"since": "ABC"}, "since", "Names no finished request of this channel"),
        ({"callbackUrl": "http://127.0.0.1/"}, "callbackUrl", "Name a host"),
        ({"dataset": "nothing"}, "dataset", "There is no dataset"),
        ({"tag": "x\0y"}, "tag", "Letters, digits"),
        ({f"columns.{RESPONSE}": "\0"}, "columns", "Number 1 is no column"),
        ({"layout": "uci-1999"}, "layout", "One of uci-2022."),
        ({"timestamps": "now"}, "timestamps", "One of utc, local."),
    ],
)
def test_form_errors_keep_typed_values(
    asha: Client, changes: dict[str, str], field: str, sentence: str
) -> None:
    send_events(make_answer(1))
    values = read_html(
        asha.post(f"{C}/exports/new", export_form(**{"tag": "kept-as-typed", **changes})), 400
    )
    assert f'<a href="#f-{field}">{sentence}' in values
    assert f'id="e-{field}">{sentence}' in values
    assert f'id="f-{field}"' in values
    if "tag" not in changes:
        assert 'value="kept-as-typed"' in values
    assert Job.objects.count() == 0


@pytest.mark.django_db(transaction=True)  # what is read was committed
def test_events_filters_and_callback() -> None:
    bela = sign_in("bela", submit_private=True)
    send_events(make_answer(1), make_answer(2) | {"eid": "END"}, make_answer(3) | {"eid": "LOG"})
    Application.objects.create(channel=make_channel(), identifier="our-app", name="Our app")
    Application.objects.create(channel=make_channel("ORG_002"), identifier="theirs")
    blank = read_html(bela.get(f"{C}/exports/new"))
    assert '<option value="our-app">Our app (our-app)</option>' in blank
    assert "theirs" not in blank
    values = export_form(
        dataset="events-exhaust",
        conversationId="",
        types="ASSESS\r\n END ",
        callbackUrl="https://example.org/told?x=1",
    )

    # when it is shown, then only these are counted
    assert "<strong>2 rows</strong>" in read_html(bela.post(f"{C}/exports/new/preview", values))
    assert "No rows." in read_html(
        bela.post(f"{C}/exports/new/preview", values | {"application": "our-app"})
    )
    # when it is sent, then it is the API's request
    assert bela.post(f"{C}/exports/new", values | {"application": "our-app"}).status_code == 302

    job = Job.objects.get()
    assert job.config["types"] == ["ASSESS", "END"]
    assert job.config["application"] == "our-app"
    assert job.callback_url == "https://example.org/told?x=1"
    call = json.loads(shlex.split(snippets.write_curl(job).replace("\\\n", ""))[-1])["request"]
    assert call["datasetConfig"] == job.config
    assert call["callbackUrl"] == job.callback_url
    # and it can be duplicated unchanged
    page = bela.get(job_path(job)).content.decode()
    repeated = html.unescape(re.findall(r'href="([^"]*/exports/new\?[^"]*)"', page)[0])
    filled = bela.get(repeated).content.decode()
    assert ">ASSESS\nEND</textarea>" in filled
    assert '<option value="our-app" selected>' in filled
    assert 'value="https://example.org/told?x=1"' in filled


@pytest.mark.django_db(transaction=True)  # what is read was committed
def test_export_with_checked_columns(asha: Client) -> None:
    send_events(make_answer(1))
    form = export_form(timezone="Asia/Kolkata", timestamps="local")
    form |= {f"columns.{RESPONSE}": ["Timestamp", "Eof"], f"columns.{PRIVATE}": ["User Name"]}

    preview = read_html(asha.post(f"{C}/exports/new/preview", form))
    assert re.findall('<th scope="col">([^<]*)', preview) == ["Timestamp", "Eof"]
    assert "+05:30</td>" in preview
    assert asha.post(f"{C}/exports/new", form).status_code == 302
    job = Job.objects.get()
    assert (job.config["columns"], job.config["timestamps"]) == (["Timestamp", "Eof"], "local")

    # and it can be duplicated in the same order
    page = asha.get(job_path(job)).content.decode()
    assert "<dt>Columns</dt><dd>Timestamp, Eof</dd>" in page
    repeated = html.unescape(re.findall(r'href="([^"]*/exports/new\?[^"]*)"', page)[0])
    filled = asha.get(repeated).content.decode()
    checked = re.findall(f'name="columns.{RESPONSE}" value="([^"]*)" checked', filled)
    assert checked == ["Timestamp", "Eof"]
    assert '<option value="local" selected>' in filled


@pytest.mark.django_db(transaction=True)  # answers that are read were committed
def test_export_as_table(asha: Client) -> None:
    send_events(make_answer(1))
    form = export_form(dataset="uci-survey-exhaust", rows="participant", answers="all", by="")

    preview = read_html(asha.post(f"{C}/exports/new/preview", form))
    assert re.findall('<th scope="col">([^<]*)', preview)[2:] == [
        "Device ID", "First Answer", "Last Answer", "Why?",
    ]  # fmt: skip
    assert asha.post(f"{C}/exports/new", form).status_code == 302
    job = Job.objects.get()
    assert {"rows": "participant", "answers": "all"}.items() <= job.config.items()
    assert "by" not in job.config

    # and it can be duplicated unchanged, but no schedule has such fields
    page = asha.get(job_path(job)).content.decode()
    assert "<dt>Table</dt><dd>participant all" in page
    assert "Schedule this" not in page
    repeated = html.unescape(re.findall(r'href="([^"]*/exports/new\?[^"]*)"', page)[0])
    filled = asha.get(repeated).content.decode()
    assert '<option value="participant" selected>' in filled
    assert '<option value="all" selected>' in filled


def test_response_export_rejects_types(asha: Client) -> None:
    send_events(make_answer(1))
    assert "Event types" not in read_html(asha.get(f"{C}/exports/new"))
    values = read_html(asha.post(f"{C}/exports/new", export_form(types="ASSESS")), 400)
    assert "uci-response-exhaust takes none; leave it out." in values
    assert Job.objects.count() == 0


def test_schedule_link_keeps_filters() -> None:
    admin = sign_in("bela", submit_private=True, administer=True)
    job = make_job(dataset="events-exhaust", config=DAYS | {"types": ["END"]})
    assert "types=END" in read_html(admin.get(job_path(job))).partition("/schedules/new?")[2]
    job = make_job(dataset="events-exhaust", config=DAYS, tag="all", callback_url="https://a.org/b")
    values = read_html(admin.get(job_path(job)))
    assert "Schedule this" in values
    assert "callbackUrl=https%3A%2F%2Fa.org%2Fb" in values


def test_existing_export_tells_its_age(asha: Client) -> None:
    # given an export that is ready
    send_events(make_answer(1))
    assert asha.post(f"{C}/exports/new", export_form()).status_code == 302
    first = Job.objects.get()
    call_command("run_jobs")

    # when it is created again, then it is the same one, and a checked box makes another
    again = asha.post(f"{C}/exports/new", export_form(), follow=True)
    assert "This export exists already. Its file holds the events until" in read_html(again)
    assert Job.objects.get() == first
    forced = asha.post(f"{C}/exports/new", export_form(forceNew="true"), follow=True)
    assert "Export queued." in read_html(forced)
    assert Job.objects.count() == 2


def test_export_at_night_says_when(asha: Client) -> None:
    send_events(make_answer(1))
    assert "Tonight, from 02:00 UTC" in read_html(asha.get(f"{C}/exports/new"))
    page = asha.post(f"{C}/exports/new", export_form(priority="nightly"), follow=True)
    assert re.search(r"starts at <time[^>]*>\d+ \w+ \d+, 02:00 UTC", read_html(page))
    late = export_form(tag="late", notBefore="2200-01-01T00:00")
    assert "At most 31 days from now" in read_html(asha.post(f"{C}/exports/new", late), 400)


def test_participants_of_all_days() -> None:
    bela = sign_in("bela", submit_private=True)
    send_events(make_answer(1))
    values = export_form(dataset=PRIVATE, startDate="", endDate="")
    page = read_html(bela.post(f"{C}/exports/new", values, follow=True))
    assert "All days, whole days in UTC" in page
    assert Job.objects.get().config.keys() == {"type", "conversationId", "timezone"}
    assert "All days" in read_html(bela.get(f"{C}/exports"))


def test_unread_fields_are_shown(asha: Client) -> None:
    job = make_job(config=CONFIG | {"batchFilter": ["x"]})
    assert "request.datasetConfig.batchFilter: Unknown field" in read_html(asha.get(job_path(job)))


def test_search_exports(asha: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    make_job(tag="april", request_id="AB12")
    make_job(tag="may")
    for text in ("APR", "ab1"):
        page = read_html(asha.get(f"{C}/exports?text={text}"))
        assert ("april" in page, "may" in page) == (True, False)
    assert "No matching exports" in read_html(asha.get(f"{C}/exports?text=june"))

    def time_out(*_: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr("exhaust.jobs.queries.search_jobs", time_out)
    assert "took too long" in read_html(asha.get(f"{C}/exports?text=a"), 400)


def test_full_queue_keeps_form(asha: Client, settings: Any) -> None:
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 1
    send_events(make_answer(1))
    make_job()
    values = read_html(asha.post(f"{C}/exports/new", export_form(tag="one-more")), 429)
    assert "1 request waiting" in values
    assert 'value="one-more"' in values


@pytest.mark.django_db(transaction=True)  # what is read was committed
def test_preview_creates_no_job(asha: Client) -> None:
    send_events(*(make_answer(number) for number in range(5)))
    part = read_html(asha.post(f"{C}/exports/new/preview", export_form()))
    assert "<strong>5 rows</strong>" in part
    assert "because" not in part  # masked
    page = read_html(asha.post(f"{C}/exports/new", export_form(act="preview")))
    assert "<strong>5 rows</strong>" in page
    assert 'value="by-hand"' in page
    assert Job.objects.count() == 0
    empty = read_html(asha.post(f"{C}/exports/new/preview", export_form(endDate="2022-03-02")))
    assert "No rows." in empty
    assert "Choose the first day." in read_html(
        asha.post(f"{C}/exports/new/preview", export_form(startDate=""))
    )


def test_slow_conversation_search_gives_a_hint(
    asha: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def time_out(seconds: float) -> Iterator[None]:
        yield
        raise TimeoutError

    send_events(make_answer(1))
    monkeypatch.setattr("ingest.db.time_limit.limit_query_seconds", time_out)
    for page in ("exports/new/conversations", "conversations"):
        page_html = read_html(asha.get(f"{C}/{page}?q=some"))
        assert "Type the whole ID" in page_html
        assert BOT not in page_html
        page_html = read_html(asha.get(f"{C}/{page}?q={BOT}"))
        assert "Type the whole ID" in page_html
        assert page_html.count(BOT) > 1


def test_presets_and_search_without_script(asha: Client) -> None:
    send_events(make_answer(1))
    values = read_html(
        asha.post(f"{C}/exports/new", export_form(preset="yesterday", startDate="", tag="kept"))
    )
    yesterday = (timezone.now() - timedelta(days=1)).date().isoformat()
    assert values.count(f'value="{yesterday}"') == 2
    assert 'value="kept"' in values
    assert f'value="{BOT}"' in read_html(
        asha.post(f"{C}/exports/new", export_form(act="search", q="c63b"))
    )
    no_match = read_html(
        asha.post(f"{C}/exports/new", export_form(act="search", q="nobody", conversationId=""))
    )
    assert "No conversation" in no_match
    assert f'value="{BOT}"' in read_html(asha.get(f"{C}/exports/new/conversations?q=C63B"))
    assert "No conversation" in read_html(asha.get(f"{C}/exports/new/conversations?q=%00"))


# The list -----------------------------------------------------------------------------------------


def test_nul_in_address_is_not_found(asha: Client) -> None:
    for page in (
        "/console/%00/exports",
        f"{C}/exports/%00/x",
        f"{C}/exports/x/%00",
        f"{C}/keys/%00/revoke",
    ):
        assert asha.get(page).status_code == 404
    assert "No matching exports" in read_html(asha.get(f"{C}/exports?tagPrefix=%00"))


def test_empty_list_says_what_to_do(asha: Client) -> None:
    assert "No exports in this channel" in read_html(asha.get(f"{C}/exports"))
    assert "No matching exports" in read_html(asha.get(f"{C}/exports?status=FAILED"))


def test_filter_and_page_exports(asha: Client) -> None:
    for number in range(5):
        make_job(tag=f"a-{number}")
    make_finished(tag="b-done")
    values = read_html(asha.get(f"{C}/exports?tagPrefix=a-&limit=2"))
    assert "a-4" in values
    assert "a-2" not in values
    older = values.split('href="')[-1].split('"')[0].replace("&amp;", "&")
    assert "cursor=" in older
    assert "a-2" in read_html(asha.get(older))
    assert "b-done" in read_html(asha.get(f"{C}/exports?status=SUCCESS"))
    tomorrow = (timezone.now() + timedelta(days=1)).date().isoformat()
    assert "No matching exports" in read_html(asha.get(f"{C}/exports?requestedFrom={tomorrow}"))
    assert "a-0" in read_html(asha.get(f"{C}/exports?requestedTo={tomorrow}"))


@pytest.mark.parametrize(
    "query", ["status=WHAT", "requestedFrom=soon", "cursor=x", "limit=x", "dataset=nothing"]
)
def test_invalid_filter_is_reported(asha: Client, query: str) -> None:
    assert "Please fix 1 problem" in read_html(asha.get(f"{C}/exports?{query}"), 400)


def test_only_unfinished_jobs_are_polled(asha: Client) -> None:
    make_finished(tag="done")
    assert "hx-trigger" not in read_html(asha.get(f"{C}/exports"))
    job = make_claimed(tag="going")
    Job.objects.filter(pk=job.pk).update(
        rows_done=500, rows_estimated=2000, started_at=timezone.now() - timedelta(seconds=30)
    )
    values = read_html(asha.get(f"{C}/exports"))
    assert 'hx-trigger="every 2s"' in values
    parts = ",".join(f"#job-{job.pk}{part}" for part in ("", "-expiry", "-actions"))
    assert f'hx-select-oob="{parts}"' in values
    assert '<progress max="100" value="25"' in values
    assert "500 of about 2,000 rows · about 1 min 30 s left" in values


def test_hundred_exports_take_few_queries(asha: Client) -> None:
    for number in range(101):
        job = make_job(
            tag=f"t-{number}",
            callback_url="https://example.org/x",
            status="SUCCESS" if number % 2 else "SUBMITTED",
        )
        if number % 2:
            make_file(job).save()
            Link.objects.create(file=job.files.get(), expires_at=timezone.now())
    asha.get(f"{C}/exports")  # writes down, once a minute, that the session is in use
    with CaptureQueriesContext(connection) as queries:
        values = read_html(asha.get(f"{C}/exports?limit=100"))
    assert values.count('type="checkbox" name="job"') == 100
    assert len(queries) <= 12, [query["sql"][:200] for query in queries]


# One job ------------------------------------------------------------------------------------------


def test_download_makes_no_link() -> None:
    bela = sign_in("bela", submit_private=True)
    job = make_finished(dataset=PRIVATE)
    bela.head(job_path(job, "/files/1"))

    answer = bela.get(job_path(job, "/files/1"), HTTP_RANGE="bytes=1-")

    assert (answer.status_code, b"".join(answer)) == (206, b",b\n1,2\n")
    assert "no-store" in answer["Cache-Control"]
    assert answer["Content-Disposition"].startswith("attachment")
    assert not Link.objects.exists()
    entry = AuditEvent.objects.get(action="file.downloaded")
    assert (entry.actor, entry.channel, entry.subject) == ("bela", "ORG_001", job.request_id)
    assert Client().get(job_path(job, "/files/1"))["Location"].startswith("/console/sign-in")


def test_private_share_link_is_short() -> None:
    bela = sign_in("bela", submit_private=True)
    job = make_finished(dataset=PRIVATE)
    assert '<option value="3600" selected>' in read_html(bela.get(job_path(job)))
    bela.post(job_path(job, "/files/1/link"), {"seconds": "3600", "uses": "1"})
    link = Link.objects.get()
    assert (link.max_uses, link.created_by) == (1, "bela")
    assert link.expires_at - link.issued_at < timedelta(seconds=3660)
    path = links.build_url(link).removeprefix(settings.EXHAUST_PUBLIC_URL)
    assert b"".join(Client().get(path)) == b"a,b\n1,2\n"
    assert Client().get(path).status_code == 410


def test_cancel_and_retry_export(asha: Client) -> None:
    job = make_job()
    assert "Cancel export" in read_html(asha.get(job_path(job)))
    assert "Export cancelled" in read_html(asha.post(job_path(job, "/cancel"), follow=True))
    values = read_html(asha.post(job_path(job, "/cancel"), follow=True))
    assert "had finished already" in values
    assert "Cancelled by asha." in values
    assert "Export queued again" in read_html(asha.post(job_path(job, "/retry"), follow=True))
    job = make_finished(tag="done")
    assert "You can retry only" in read_html(asha.post(job_path(job, "/retry"), follow=True))
    assert asha.get(job_path(job, "/cancel")).status_code == 405


def test_next_steps_are_prefilled(asha: Client, files: Path) -> None:
    send_events(make_answer(1))
    asha.post(f"{C}/exports/new", export_form())
    call_command("run_jobs")
    job = Job.objects.get()
    values = asha.get(job_path(job)).content.decode()
    assert "Schedule this" not in values  # asha does not administer
    since = next(
        part.split('"')[0].replace("&amp;", "&")
        for part in values.split('href="')
        if f"since={job.request_id}" in part.split('"')[0]
    )
    filled = read_html(asha.get(since))
    assert f'value="{job.request_id}"' in filled
    assert 'value="2022-03-01"' in filled
    assert (
        asha.post(f"{C}/exports/new", export_form(since=job.request_id, tag="more")).status_code
        == 302
    )


def test_sender_text_is_escaped(asha: Client) -> None:
    script = "<script>alert(1)</script>{{ 7000|add:77 }}"
    evil = make_answer(1, script)
    evil["edata"]["item"]["title"] = script
    send_events(evil)
    make_job(tag="t", requested_by=script)
    for address in (f"{C}/exports", job_path(Job.objects.get())):
        html = read_html(asha.get(address))
        assert "<script>alert" not in html
        assert "7077" not in html
    assert "{{ 7000|add:77 }}" in html
    assert "<script>alert" not in read_html(asha.post(f"{C}/exports/new/preview", export_form()))


def test_pages_have_no_inline_code(asha: Client) -> None:
    make_finished()
    address: Callable[[str], str] = lambda page: read_html(asha.get(page))  # noqa: E731
    for page in (
        f"{C}/exports",
        f"{C}/exports/new",
        job_path(Job.objects.get()),
        "/console/sign-in",
    ):
        values = address(page) if page != "/console/sign-in" else read_html(Client().get(page))
        assert " style=" not in values
        assert "<style" not in values
        assert " onclick=" not in values
        assert "hx-on" not in values
        for part in values.split("<script")[1:]:  # data for a script is none
            assert "src=" in part.split(">")[0] or 'type="application/json"' in part.split(">")[0]
