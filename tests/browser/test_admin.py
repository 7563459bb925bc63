"""An operator in a browser: submits a request, downloads the file, runs a failed job again."""

import csv
import io
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client

from exhaust.demo import conversations
from exhaust.models import Job
from ingest.models import Conversation
from tests.conftest import bearer, make_key
from tests.exhaust.factories import make_claimed, make_job

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def signed_in(page: Any, live_server: Any, settings: Any) -> Any:
    settings.EXHAUST_PUBLIC_URL = live_server.url
    get_user_model().objects.create_superuser("operator", password="a long enough one")
    page.goto(f"{live_server.url}/admin/")
    page.fill("#id_login", "operator")
    page.fill("#id_password", "a long enough one")
    page.click("button.main")
    return page


def send(count: int) -> None:
    events = list(
        conversations.generate_answers(count, 5, start=date(2026, 1, 1), days=3, channel="x")
    )
    sender = Client(headers=bearer(make_key("ingest")))
    answer = sender.post("/v1/telemetry", {"events": events}, content_type="application/json")
    assert answer.json()["result"]["stored"] == count


def test_submit_and_download(signed_in: Any, live_server: Any) -> None:
    send(50)
    page = signed_in

    page.goto(f"{live_server.url}/admin/exhaust/job/add/")
    page.select_option("#id_dataset", "uci-response-exhaust")
    page.select_option("#id_conversation", index=1)
    page.fill("#id_first_day", "2026-01-01")
    page.fill("#id_last_day", "2026-01-03")
    page.fill("#id_tag", "by-hand")
    page.click("input[name=_save]")

    job = Job.objects.get()
    assert (job.status, job.tag, job.requested_by) == ("SUBMITTED", "by-hand", "operator")
    call_command("run_jobs")
    page.goto(f"{live_server.url}/admin/exhaust/file/")
    page.click("#result_list tbody a")
    with page.expect_download() as downloading:
        page.click(".field-download a")
    path = Path(downloading.value.path())
    assert len(list(csv.reader(io.StringIO(path.read_text(), newline="")))) == 51
    today = f"{datetime.now(UTC):%Y%m%d}"
    name = f"{conversations.CONVERSATION_ID}_response_{today}.csv"
    assert downloading.value.suggested_filename == name


def test_submit_says_what_is_wrong(signed_in: Any, live_server: Any) -> None:
    send(5)
    page = signed_in

    page.goto(f"{live_server.url}/admin/exhaust/job/add/")
    page.select_option("#id_conversation", index=1)
    page.fill("#id_first_day", "2026-01-03")
    page.fill("#id_last_day", "2026-01-01")
    page.fill("#id_zone", "Nowhere/At-All")
    page.fill("#id_tag", "by-hand")
    page.click("input[name=_save]")

    html = page.inner_text("#content")
    assert "From the first to the last day, at most 366 days." in html
    assert "Unknown time zone; write one like UTC or Asia/Kolkata." in html
    assert Job.objects.count() == 0


def test_retry_runs_failed_jobs_again(signed_in: Any, live_server: Any) -> None:
    send(5)
    asker = Client(headers=bearer(make_key("export:response")))
    dates = {"startDate": "2026-01-01", "endDate": "2026-01-03"}
    config = {"conversationId": conversations.CONVERSATION_ID, **dates}
    request = {"tag": "t", "dataset": "uci-response-exhaust", "datasetConfig": config}
    asker.post("/dataset/v1/request/submit", {"request": request}, "application/json")
    Job.objects.update(status="FAILED", attempt=3, status_message="The file could not be made.")
    page = signed_in

    page.goto(f"{live_server.url}/admin/exhaust/job/")
    page.check("#action-toggle")
    page.select_option("select[name=action]", "retry")
    page.click("button[name=index]")

    assert "1 job will run again." in page.inner_text(".messagelist")
    job = Job.objects.get()
    assert (job.status, job.attempt, job.uncounted_attempts) == ("SUBMITTED", 3, 3)


def test_cancel_shows_history(signed_in: Any, live_server: Any) -> None:
    # given a job at work, and one that is done
    send(5)
    job, finished = make_claimed(tag="working"), make_job(tag="done", status="SUCCESS")
    page = signed_in

    # when both are cancelled
    page.goto(f"{live_server.url}/admin/exhaust/job/")
    page.check("#action-toggle")
    page.select_option("select[name=action]", "cancel")
    page.click("button[name=index]")

    # then one was sent, and its outcome can be read
    html = page.inner_text(".messagelist")
    assert "1 job is cancelled." in html
    assert "1 was left alone: it ended already." in html
    page.goto(f"{live_server.url}/admin/exhaust/job/{job.pk}/change/")
    history = page.inner_text("#transitions-group")
    assert "Cancelled by" in history
    assert "PROCESSING" in history.upper()
    finished.refresh_from_db()
    assert finished.status == "SUCCESS"


def test_full_queue_is_a_form_error(signed_in: Any, live_server: Any, settings: Any) -> None:
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 1
    send(5)
    make_job(channel=Conversation.objects.get().channel.identifier)
    page = signed_in
    page.goto(f"{live_server.url}/admin/exhaust/job/add/")
    page.select_option("#id_conversation", index=1)
    page.fill("#id_first_day", "2026-01-01")
    page.fill("#id_last_day", "2026-01-03")
    page.fill("#id_tag", "one-more")
    page.click("input[name=_save]")
    assert "1 request waiting" in page.inner_text(".messagelist")
    assert not Job.objects.filter(tag="one-more").exists()


@pytest.mark.parametrize(
    "model",
    ["ingest/channel", "ingest/conversation", "ingest/apikey", "ingest/storedevent",
     "ingest/rejectedevent", "ingest/participant", "exhaust/job", "exhaust/file", "exhaust/link"],
)  # fmt: skip
def test_every_model_lists_and_searches(signed_in: Any, live_server: Any, model: str) -> None:
    send(5)
    answer = signed_in.goto(f"{live_server.url}/admin/{model}/?q=a")
    assert answer.status == 200
    assert signed_in.locator("#changelist-search").count() == 1


def test_admin_pages_keep_csp(page: Any, live_server: Any, request: pytest.FixtureRequest) -> None:
    # given a listener for what the browser blocks
    refused: list[str] = []
    page.on("console", lambda html: refused.append(html.text) if _POLICY in html.text else None)
    page = request.getfixturevalue("signed_in")
    send(5)
    make_job()

    # when pages with scripts of the admin are used: a date's picker, a filter, a popup, an action
    for path in (
        "", "ingest/role/add/", "ingest/storedevent/", "exhaust/job/", "exhaust/schedule/add/",
        "auth/user/add/", "auth/group/add/", "ingest/auditevent/", "exhaust/destination/add/",
        "password_change/",
    ):  # fmt: skip
        assert page.goto(f"{live_server.url}/admin/{path}").status == 200
    person = get_user_model().objects.get()
    page.goto(f"{live_server.url}/admin/auth/user/{person.pk}/change/")
    page.click(".field-last_login .datetimeshortcuts a >> nth=0")
    page.click("#toggle-nav-sidebar")

    # then the browser blocked nothing, and would block an inline script
    assert refused == []
    page.evaluate(
        "() => { const s = document.createElement('script');"
        " s.textContent = 'window.ran = 1'; document.body.append(s) }"
    )
    assert page.evaluate("window.ran") is None
    assert len(refused) == 1


_POLICY = "Content Security Policy"
