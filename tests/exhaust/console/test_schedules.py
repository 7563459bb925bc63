"""Schedules in the console: the picker, the next runs, run now, the history."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from exhaust.console import schedules as pages
from exhaust.jobs import schedules
from exhaust.models import Job, Schedule
from ingest.models import AuditEvent
from tests.conftest import make_channel
from tests.exhaust.console.test_console import C, read_html, sign_in
from tests.exhaust.console.test_pages import schedule_form
from tests.exhaust.factories import BOT, PRIVATE, RESPONSE, make_answer, make_job, send_events

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin() -> Client:
    send_events(make_answer(1))
    return sign_in(administer=True, submit_response=True)


def make_schedule(name: str = "every-day", **overrides: Any) -> Schedule:
    values: dict[str, Any] = {
        "dataset": RESPONSE, "conversation": BOT, "cron": "0 6 * * *", "window": "yesterday",
        "tag": "{name}-{start}", "requested_by": "asha", **overrides,
    }  # fmt: skip
    return schedules.save(Schedule(channel=make_channel(), name=name, **values))


@pytest.mark.parametrize(
    ("fields", "cron", "words"),
    [
        ({"repeat": "daily", "time": "06:00"}, "0 6 * * *", "every day at 06:00"),
        ({"repeat": "daily", "time": "23:59"}, "59 23 * * *", "every day at 23:59"),
        ({"repeat": "weekly", "time": "7:05", "weekday": "0"}, "5 7 * * 0",
         "every week on Sunday at 07:05"),
        ({"repeat": "monthly", "time": "00:00", "day": "28"}, "0 0 28 * *",
         "every month on day 28 at 00:00"),
        ({"repeat": "monthly", "time": "00:30", "day": "L"}, "30 0 L * *",
         "every month on the last day at 00:30"),
        ({"repeat": "custom", "cron": "*/10 * * * 1-5"}, "*/10 * * * 1-5", "*/10 * * * 1-5"),
        ({"cron": "0 6 1 1 *"}, "0 6 1 1 *", "0 6 1 1 *"),
    ],
)  # fmt: skip
def test_picker_and_cron_agree(fields: dict[str, str], cron: str, words: str) -> None:
    assert pages.build_cron(fields) == (cron, {})
    assert pages.describe_cron(cron) == words
    again = pages.parse_cron(cron)
    assert pages.build_cron({**again, "cron": cron}) == (cron, {})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"repeat": "daily", "time": "soon"}, "time"),
        ({"repeat": "daily", "time": "24:00"}, "time"),
        ({"repeat": "weekly", "time": "06:00", "weekday": "9"}, "weekday"),
        ({"repeat": "monthly", "time": "06:00", "day": "31"}, "day"),
        ({"repeat": "hourly", "time": "06:00"}, "repeat"),
    ],
)
def test_picker_errors_name_the_field(admin: Client, fields: dict[str, str], field: str) -> None:
    html = read_html(admin.post(f"{C}/schedules/new", schedule_form(**fields)), 400)
    assert f'id="e-{field}"' in html
    assert 'id="e-cron"' not in html
    assert not Schedule.objects.exists()


def test_picked_schedule_is_saved(admin: Client) -> None:
    form = schedule_form(repeat="weekly", time="07:30", weekday="5", cron="")
    page = read_html(admin.post(f"{C}/schedules/new", form, follow=True))
    assert Schedule.objects.get().cron == "30 7 * * 5"
    assert "every week on Friday at 07:30 (Asia/Kolkata)" in page
    edited = read_html(admin.get(f"{C}/schedules/one/every-day/edit"))
    for text in ('<option value="weekly" selected>', '<option value="5" selected>',
                 'name="time" type="time" value="07:30"'):  # fmt: skip
        assert text in edited


def test_next_three_runs_are_shown(admin: Client) -> None:
    form = schedule_form(repeat="daily", time="06:00", act="next")
    html = read_html(admin.post(f"{C}/schedules/new", form))
    runs = re.findall(r"<li>(\w+ \d+ \w+ \d+ \d\d:\d\d) <span", html)
    assert len(runs) == 3
    assert all(run.endswith("06:00") for run in runs)
    assert not Schedule.objects.exists()
    html = read_html(admin.post(f"{C}/schedules/new", {**form, "timezone": "Mars"}))
    assert "Enter valid times" in html


def test_failing_schedules_come_first(admin: Client) -> None:
    for name in ("a", "b", "c"):
        make_schedule(name)
    Schedule.objects.filter(name="c").update(last_error="No such conversation.")
    html = read_html(admin.get(f"{C}/schedules"))
    assert re.findall(r'class="name"[^>]*>(\w)<', html) == ["c", "a", "b"]
    assert "Failing" in html


@pytest.mark.django_db(transaction=True)  # a worker is woken after the commit
def test_run_now(admin: Client, enqueued_tasks: list[str]) -> None:
    schedule = make_schedule()
    before = schedule.next_at
    page = admin.post(f"{C}/schedules/one/every-day/run")
    job = Job.objects.get()
    assert page["Location"] == f"{C}/exports/{job.tag}/{job.request_id}"
    assert (job.schedule_id, job.priority) == (schedule.pk, Job.Priority.INTERACTIVE)
    schedule.refresh_from_db()
    assert schedule.next_at == before
    entry = AuditEvent.objects.get(action="job.submitted")
    assert (entry.actor, entry.details["schedule"]) == ("asha", "every-day")
    # and again the same day: the same export
    assert "exists already" in read_html(
        admin.post(f"{C}/schedules/one/every-day/run", follow=True)
    )
    assert Job.objects.count() == 1
    assert set(enqueued_tasks) == {"exhaust.work"}


def test_run_now_of_an_invalid_one(admin: Client) -> None:
    make_schedule()
    Schedule.objects.update(window="ever")
    page = admin.post(f"{C}/schedules/one/every-day/run", follow=True)
    assert "window: One of" in read_html(page)
    assert not Job.objects.exists()


def test_history_shows_results(admin: Client) -> None:
    schedule = make_schedule()
    now = timezone.now()
    for tag, status, dataset in (("one", "SUCCESS", RESPONSE), ("two", "FAILED", RESPONSE),
                                 ("people", "SUCCESS", PRIVATE)):  # fmt: skip
        make_job(tag=tag, status=status, status_message=f"{tag} message", schedule=schedule,
                 dataset=dataset, execution_ms=61_000, submitted_at=now)  # fmt: skip
    html = read_html(admin.get(f"{C}/schedules/one/every-day"))
    table = html.split("History</h2>")[1]
    assert table.index(">two<") < table.index(">one<")
    assert "two message" in table
    assert "one message" not in table
    assert "1 min 1 s" in table
    assert "people" not in table  # from before it was a schedule of another dataset


def test_paused_schedule_has_no_next_run(admin: Client) -> None:
    schedules.pause(make_schedule())
    html = read_html(admin.get(f"{C}/schedules/one/every-day"))
    assert "Next runs" not in html
    assert "Paused" in html


def test_last_exports_take_as_many_queries_for_more_rows() -> None:
    browser = sign_in("adam", administer=True, submit_response=True)

    def list_schedules(count: int) -> tuple[str, int]:
        for number in range(count):
            schedule = make_schedule(f"every-{count}-{number}")
            for job in range(number % 8):
                submitted = timezone.now() - timedelta(days=job)
                make_job(tag=f"{schedule.name}-{job}", schedule=schedule, submitted_at=submitted)
        with CaptureQueriesContext(connection) as queries:
            html = read_html(browser.get(f"{C}/schedules"))
        return html, len(queries)

    list_schedules(1)  # writes down, once a minute, that the session is in use
    few, many = list_schedules(2), list_schedules(20)
    assert many[1] == few[1]
    seven = next(row for row in schedules.fetch_page(make_channel().pk, [RESPONSE], 50).schedules
                 if row.name == "every-20-7")  # fmt: skip
    assert [job.tag for job in seven.last_jobs] == [f"every-20-7-{day}" for day in range(5)]
