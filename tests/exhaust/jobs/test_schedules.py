"""Recurring requests: days, slots, one job a slot, and permissions."""

import io
import json
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.db import connection, connections
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from exhaust import tasks
from exhaust.jobs import schedules
from exhaust.jobs import submit as submissions
from exhaust.models import Job, Schedule
from ingest.events import RequestError
from ingest.models import ApiKey, Application
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.api.test_api import assert_envelope, assert_refused
from tests.exhaust.factories import BOT, PRIVATE, RESPONSE, make_job

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
SLOT = datetime(2026, 3, 10, 6, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def make_schedule(**overrides: Any) -> Schedule:
    """One that is due at `SLOT`, every day."""
    channel = make_channel(overrides.pop("channel", "ORG_001"))
    values: dict[str, Any] = {
        "name": "daily",
        "cron": "0 6 * * *",
        "zone": "UTC",
        "dataset": RESPONSE,
        "conversation": BOT,
        "window": "yesterday",
        "tag": "{name}-{start}",
        "requested_by": "user_id",
        "next_at": SLOT,
        **overrides,
    }
    return Schedule.objects.create(channel=channel, **values)


def schedule_values(schedule: Schedule) -> dict[str, Any]:
    """Returns the schedule's row."""
    return Schedule.objects.filter(pk=schedule.pk).values().get()


def local_time(text: str, zone: str, fold: int = 0) -> datetime:
    """A wall clock's moment."""
    local_time = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return local_time.astimezone(UTC)


def next_slots(cron: str, zone: str, after: datetime, count: int) -> list[str]:
    """The next slots as the clock on the wall shows them, with its offset."""

    def walk() -> Iterator[datetime]:
        slot = after
        while True:
            slot = schedules.next_slot(cron, zone, slot)
            yield slot

    tz = ZoneInfo(zone)
    return [slot.astimezone(tz).isoformat(timespec="minutes") for slot in islice(walk(), count)]


# Which days ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "today", "first", "last"),
    [
        ("today", "2026-03-10", "2026-03-10", "2026-03-10"),
        ("yesterday", "2026-01-01", "2025-12-31", "2025-12-31"),
        ("yesterday", "2024-03-01", "2024-02-29", "2024-02-29"),
        ("yesterday", "2026-03-01", "2026-02-28", "2026-02-28"),
        ("last 1 days", "2026-01-01", "2025-12-31", "2025-12-31"),
        ("last 1 day", "2026-01-01", "2025-12-31", "2025-12-31"),
        ("last 7 days", "2026-03-03", "2026-02-24", "2026-03-02"),
        ("last 30 days", "2026-01-15", "2025-12-16", "2026-01-14"),
        ("last 366 days", "2025-01-01", "2024-01-01", "2024-12-31"),
        ("this month", "2026-03-01", "2026-03-01", "2026-03-01"),
        ("this month", "2024-02-29", "2024-02-01", "2024-02-29"),
        ("last month", "2026-01-31", "2025-12-01", "2025-12-31"),
        ("last month", "2024-03-31", "2024-02-01", "2024-02-29"),
        ("last month", "2026-03-01", "2026-02-01", "2026-02-28"),
        ("last week", "2026-01-05", "2025-12-29", "2026-01-04"),  # a Monday
        ("last week", "2026-01-04", "2025-12-22", "2025-12-28"),  # a Sunday
        ("last week", "2026-01-07", "2025-12-29", "2026-01-04"),
    ],
)
def test_window_is_whole_days_before_slot(window: str, today: str, first: str, last: str) -> None:
    day = date.fromisoformat
    assert schedules.window_dates(window, day(today)) == (day(first), day(last))


@pytest.mark.parametrize(
    ("zone", "slot", "yesterday", "this_month"),
    [
        # the same moment is another day, month and year elsewhere
        ("UTC", "2025-12-31T20:00+00:00", "2025-12-30", "2025-12-01"),
        ("Asia/Kolkata", "2025-12-31T20:00+00:00", "2025-12-31", "2026-01-01"),
        ("Pacific/Kiritimati", "2025-12-31T20:00+00:00", "2025-12-31", "2026-01-01"),
        (NEW_YORK, "2026-03-01T04:59+00:00", "2026-02-27", "2026-02-01"),
        (NEW_YORK, "2026-03-01T05:00+00:00", "2026-02-28", "2026-03-01"),
        # midnight of summer is an hour earlier: the offset is the slot's, not the year's
        (BERLIN, "2026-03-29T22:30+00:00", "2026-03-29", "2026-03-01"),
        (BERLIN, "2026-10-25T22:30+00:00", "2026-10-24", "2026-10-01"),
        (BERLIN, "2026-10-25T23:00+00:00", "2026-10-25", "2026-10-01"),
        (LORD_HOWE, "2026-04-04T13:30+00:00", "2026-04-04", "2026-04-01"),
        (LORD_HOWE, "2026-04-05T13:15+00:00", "2026-04-04", "2026-04-01"),
        (LORD_HOWE, "2026-10-04T13:15+00:00", "2026-10-04", "2026-10-01"),
    ],
)
def test_window_days_use_schedule_zone(
    zone: str, slot: str, yesterday: str, this_month: str
) -> None:
    moment = datetime.fromisoformat(slot)
    schedule = Schedule(name="n", zone=zone, tag="{start}")
    schedule.window = "yesterday"
    assert schedules.requested_window(schedule, moment).tag == yesterday
    schedule.window = "this month"
    assert schedules.requested_window(schedule, moment).tag == this_month


@pytest.mark.parametrize(
    "window",
    ["", "Yesterday", "last 0 days", "last -1 days", "last 07 days", "last 367 days", "last year",
     "last  7 days", "last 7 days ", "last ٣ days", "last 99999999 days"],
)  # fmt: skip
def test_unknown_window_is_rejected(window: str) -> None:
    with pytest.raises(ValueError, match=r"last N days|At most 366 days"):
        schedules.max_window_days(window)


def test_window_limit_holds_in_any_month(settings: Any) -> None:
    settings.EXHAUST_MAX_DAYS = 30
    for window in ("last month", "this month", "last 31 days"):
        with pytest.raises(ValueError, match="At most 30 days"):
            schedules.window_dates(window, date(2026, 3, 1))  # February would have fitted
    assert schedules.max_window_days("last 30 days") == 30


@pytest.mark.parametrize(
    ("pattern", "tag"),
    [
        ("plain", "plain"),
        ("{name}-{start}_{end}", "daily-2026-03-03_2026-03-09"),
        ("{start}{start}", "2026-03-032026-03-03"),
    ],
)
def test_tag_placeholders(pattern: str, tag: str) -> None:
    schedule = Schedule(name="daily", zone="UTC", window="last 7 days", tag=pattern)
    assert schedules.requested_window(schedule, SLOT).tag == tag


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "a b",
        "{day}",
        "{name.__class__}",
        "{start",
        "{{start}}",
        "x" * 119 + "{start}",
        "a\n",
        "..",
    ],
)
@pytest.mark.django_db
def test_invalid_tag_is_rejected(pattern: str) -> None:
    schedule = Schedule(
        name="daily",
        cron="0 6 * * *",
        dataset=RESPONSE,
        conversation=BOT,
        window="yesterday",
        tag=pattern,
    )
    assert list(schedules.find_errors(schedule)) == ["tag"]


# When ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "zone", "after", "expected"),
    [
        # the local hour stays the same across both changes of the clock
        ("0 6 * * *", BERLIN, "2026-03-28T07:00",
         ["2026-03-29T06:00+02:00", "2026-03-30T06:00+02:00"]),
        ("0 6 * * *", NEW_YORK, "2026-10-31T07:00",
         ["2026-11-01T06:00-05:00", "2026-11-02T06:00-05:00"]),
        # a skipped hour runs once, after the change
        ("30 2 * * *", BERLIN, "2026-03-28T12:00",
         ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
        ("0,30 2 * * *", NEW_YORK, "2026-03-07T12:00",
         ["2026-03-08T03:00-04:00", "2026-03-09T02:00-04:00"]),
        ("15 2 * * *", LORD_HOWE, "2026-10-03T12:00",
         ["2026-10-04T02:30+11:00", "2026-10-05T02:15+11:00"]),
        # a repeated hour runs once
        ("30 2 * * *", BERLIN, "2026-10-24T12:00",
         ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
        ("30 1 * * *", NEW_YORK, "2026-10-31T12:00",
         ["2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"]),
        ("45 1 * * *", LORD_HOWE, "2026-04-04T12:00",
         ["2026-04-05T01:45+11:00", "2026-04-06T01:45+10:30"]),
        # every half hour stays every half hour
        ("*/30 * * * *", BERLIN, "2026-10-25T01:59",
         ["2026-10-25T02:00+02:00", "2026-10-25T02:30+02:00", "2026-10-25T02:00+01:00",
          "2026-10-25T02:30+01:00", "2026-10-25T03:00+01:00"]),
        ("*/30 * * * *", NEW_YORK, "2026-03-08T01:29",
         ["2026-03-08T01:30-05:00", "2026-03-08T03:00-04:00"]),
        ("*/30 * * * *", LORD_HOWE, "2026-04-05T01:29",
         ["2026-04-05T01:30+11:00", "2026-04-05T01:30+10:30", "2026-04-05T02:00+10:30"]),
        # ends of months and years, leap days, weekdays
        ("0 0 31 * *", "UTC", "2026-01-31T00:00",
         ["2026-03-31T00:00+00:00", "2026-05-31T00:00+00:00"]),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00", ["2028-02-29T00:00+00:00"]),
        ("59 23 31 12 *", "Asia/Kolkata", "2026-12-31T23:58", ["2026-12-31T23:59+05:30"]),
        ("0 6 * * MON", "UTC", "2026-03-10T00:00", ["2026-03-16T06:00+00:00"]),
    ],
)  # fmt: skip
def test_slots_follow_wall_clock(cron: str, zone: str, after: str, expected: list[str]) -> None:
    assert next_slots(cron, zone, local_time(after, zone), len(expected)) == expected


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, LORD_HOWE])
@pytest.mark.parametrize("cron", ["45 1 * * *", "30 2 * * *", "*/20 * * * *", "5,50 1,2 * * *"])
def test_next_slot_is_always_later(cron: str, zone: str) -> None:
    # given every five minutes around both changes of the clock
    for text in (
        "2026-03-08",
        "2026-03-29",
        "2026-04-05",
        "2026-10-04",
        "2026-10-25",
        "2026-11-01",
    ):
        start = local_time(f"{text}T00:00", zone)
        slots = [start]
        while slots[-1] < start + 8 * HOUR:
            slots.append(schedules.next_slot(cron, zone, slots[-1]))
        for minutes in range(0, 8 * 60, 5):
            moment = start + minutes * MINUTE

            # when / then the next slot is the first one behind it of one fixed list
            expected = next(slot for slot in slots[1:] if slot > moment)
            assert schedules.next_slot(cron, zone, moment) == expected


@pytest.mark.parametrize(
    ("cron", "remedy"),
    [
        ("", "Not five words"),
        ("0 6 * *", "Not five words"),
        ("0 0 6 * * *", "Not five words"),  # six: seconds
        ("@daily", "Not five words"),
        ("60 6 * * *", "Bad minute"),
        ("0 24 * * *", "Bad hour"),
        ("0 6 0 * *", "Bad day-of-month"),
        ("0 6 30 2 *", "Bad day-of-month"),
        ("0 6 * 13 *", "Bad month"),
        ("0 6 * * 8", "Bad day-of-week"),
        ("0 6 * * ²L", "Bad day-of-week"),
        ("*/0 * * * *", "Bad minute"),
        ("0 6 \0 * *", "Bad day-of-month"),
    ],
)
def test_invalid_cron_is_rejected(cron: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy) as caught:
        schedules.next_slot(cron, "UTC", SLOT)
    assert "like 0 6 * * *" in str(caught.value)


# Making -------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_slot_submits_one_request() -> None:
    schedule = make_schedule(callback_url="https://example.org/told")

    assert schedules.submit_due(SLOT - timedelta(seconds=1)) == 0
    assert not Job.objects.exists()
    assert schedules.submit_due(SLOT) == 1

    job = Job.objects.get()
    assert (job.tag, job.dataset, job.requested_by) == ("daily-2026-03-09", RESPONSE, "user_id")
    assert (job.priority, job.schedule_id) == (Job.Priority.LOW, schedule.pk)
    assert (job.callback_url, job.output_format) == ("https://example.org/told", "csv")
    assert job.config == {
        "type": RESPONSE,
        "conversationId": BOT,
        "startDate": "2026-03-09",
        "endDate": "2026-03-09",
        "timezone": "UTC",
    }
    assert job.request_id == submissions.make_request_id(
        RESPONSE, job.tag, "user_id", "ORG_001", SLOT.date(), RESPONSE
    )
    assert schedule_values(schedule)["next_at"] == SLOT + DAY


@pytest.mark.django_db
def test_second_sweep_submits_nothing() -> None:
    make_schedule()
    counts = [schedules.submit_due(now) for now in (SLOT, SLOT, SLOT + MINUTE)]
    assert counts == [1, 0, 0]
    assert Job.objects.count() == 1


@pytest.mark.django_db
def test_stale_schedule_submits_nothing() -> None:
    # given two that have read the same due row
    schedule = make_schedule()
    first, second = (Schedule.objects.select_related("channel").get() for _ in range(2))

    # when both make it, the second in a cron's next minute, with another window
    assert schedules.submit_slot(first, SLOT)
    second.window = "last 7 days"  # even an unlike question must not come twice
    assert not schedules.submit_slot(second, SLOT + MINUTE)

    # then there is one job, and the slot moved once
    assert Job.objects.count() == 1
    assert schedule_values(schedule)["next_at"] == SLOT + DAY


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_parallel_sweeps_submit_once(
    enqueued_tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given twenty that have all read the due row
    make_schedule()
    read = Schedule.objects.select_related("channel")
    rows = [read.get() for _ in range(20)]
    for number, row in enumerate(rows):
        row.tag = f"{number}"  # so that the same question would not hide a second request
    barrier = threading.Barrier(20)
    won: list[bool] = []
    errors: list[BaseException] = []

    def call(row: Schedule) -> None:
        try:
            barrier.wait(20)
            won.append(schedules.submit_slot(row, SLOT))
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=call, args=[row]) for row in rows]

    # when all make it
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    # then one did, and the others neither failed nor wrote
    assert errors == []
    assert sorted(won) == [False] * 19 + [True]
    assert Job.objects.count() == 1
    assert Schedule.objects.get().last_error == ""
    assert Schedule.objects.get().next_at == SLOT + DAY


@pytest.mark.django_db(transaction=True)
def test_sweep_submits_due_schedules(enqueued_tasks: list[str]) -> None:
    make_schedule(next_at=timezone.now() - MINUTE)
    tasks.daily.run_daily()
    enqueued_tasks.clear()
    tasks.sweep()
    assert Job.objects.count() == 1
    assert enqueued_tasks == ["exhaust.work"]


@pytest.mark.django_db(transaction=True)
def test_run_jobs_submits_due_schedules(
    enqueued_tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_schedule(next_at=timezone.now() - MINUTE)
    pauses = iter([None])

    def pause(_seconds: float) -> None:
        if next(pauses, "over"):
            raise KeyboardInterrupt

    monkeypatch.setattr("exhaust.management.commands.run_jobs.sleep", pause)
    with pytest.raises(KeyboardInterrupt):
        call_command("run_jobs", "--loop", stdout=io.StringIO())
    assert Job.objects.get().status == Job.Status.SUCCESS


@pytest.mark.django_db
def test_idle_sweep_is_one_query() -> None:
    for number in range(5):
        make_schedule(name=f"later-{number}", next_at=SLOT + DAY)
        make_schedule(name=f"paused-{number}", paused_at=SLOT)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert schedules.submit_due(SLOT) == 0
    assert len(queries) == 1


@pytest.mark.parametrize(
    ("cron", "zone", "next_at", "now", "tag", "then"),
    [
        ("0 6 * * *", "UTC", SLOT, SLOT + 3 * DAY + HOUR, "2026-03-12", SLOT + 4 * DAY),
        ("0 6 * * *", "UTC", SLOT, SLOT + 400 * DAY, "2027-04-13", SLOT + 401 * DAY),
        # the slot, not the time of the run, decides on the days
        ("0 6 1 * *", "UTC", datetime(2026, 1, 1, 6, tzinfo=UTC), SLOT, "2026-02-28",
         datetime(2026, 4, 1, 6, tzinfo=UTC)),
        ("0 6 10 3 *", "UTC", SLOT, SLOT + 800 * DAY, "2028-03-09",
         datetime(2029, 3, 10, 6, tzinfo=UTC)),
        # every minute, down for two years
        ("* * * * *", "UTC", SLOT, SLOT + 730 * DAY, "2028-03-08", SLOT + 730 * DAY + 5 * MINUTE),
        ("* 0-4 * * *", "UTC", SLOT - 2 * HOUR, SLOT + 90 * DAY, "2026-06-07",
         SLOT + 90 * DAY + 18 * HOUR),
        # across a change of the clock, and a slot that was never on it
        ("0 0 * * *", BERLIN, local_time("2026-03-27T00:00", BERLIN),
         local_time("2026-03-30T00:30", BERLIN), "2026-03-29",
         local_time("2026-03-31T00:00", BERLIN)),
        ("30 2 * * *", BERLIN, local_time("2026-03-28T02:30", BERLIN),
         local_time("2026-03-29T03:00", BERLIN), "2026-03-28",
         local_time("2026-03-30T02:30", BERLIN)),
    ],
)  # fmt: skip
@pytest.mark.django_db
def test_only_latest_missed_slot_runs(
    cron: str, zone: str, next_at: datetime, now: datetime, tag: str, then: datetime
) -> None:
    schedule = make_schedule(cron=cron, zone=zone, next_at=next_at, tag="{start}")
    assert schedules.submit_due(now) == 1
    assert schedules.submit_due(now) == 0
    assert Job.objects.get().tag == tag
    assert schedule_values(schedule)["next_at"] == then


@pytest.mark.django_db
def test_latest_slot_skips_old_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = 0
    walk = schedules.CronSim.__next__

    def counting(self: Any) -> datetime:
        nonlocal counted
        counted += 1
        return walk(self)

    monkeypatch.setattr(schedules.CronSim, "__next__", counting)
    make_schedule(cron="* * * * *")
    assert schedules.submit_due(SLOT + 3650 * DAY) == 1
    assert counted < 200


@pytest.mark.django_db
def test_resume_skips_missed_slots() -> None:
    schedule = make_schedule()
    assert schedules.pause(schedule)
    assert not schedules.pause(schedule)
    assert schedules.submit_due(SLOT + 3 * DAY) == 0

    assert schedules.resume(schedule, SLOT + 3 * DAY + HOUR)
    assert not schedules.resume(schedule, SLOT + 9 * DAY)  # one that runs loses no slot

    assert schedules.submit_due(SLOT + 3 * DAY + HOUR) == 0
    assert not Job.objects.exists()
    assert schedules.submit_due(SLOT + 4 * DAY) == 1
    assert Job.objects.get().tag == "daily-2026-03-13"


@pytest.mark.django_db
def test_pause_during_sweep_submits_nothing() -> None:
    schedule = make_schedule()
    read = Schedule.objects.select_related("channel").get()
    schedules.pause(schedule)
    assert not schedules.submit_slot(read, SLOT)
    assert not Job.objects.exists()


@pytest.mark.django_db
def test_rejected_slot_is_retried(settings: Any) -> None:
    # given a channel that has as many waiting as may
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 1
    waiting = make_job(tag="waiting")
    schedule = make_schedule()

    # when it is due, after an outage of hours, and looked at for almost an hour
    later = SLOT + 5 * HOUR
    assert schedules.submit_due(later) == 0
    assert schedules.submit_due(later + 59 * MINUTE) == 0

    # then no job was made, the slot is not lost, and the error is stored
    row = schedule_values(schedule)
    assert not Job.objects.exclude(pk=waiting.pk).exists()
    assert (row["next_at"], row["failing_since"]) == (SLOT, later)
    assert "1 request waiting" in row["last_error"]

    # when there is room again
    waiting.delete()
    assert schedules.submit_due(later + 60 * MINUTE) == 0  # it is delayed
    assert schedules.submit_due(later + 69 * MINUTE) == 1

    # then the slot's job is made, and the error is cleared
    row = schedule_values(schedule)
    assert Job.objects.get().tag == "daily-2026-03-09"
    assert (row["next_at"], row["failing_since"], row["last_error"]) == (SLOT + DAY, None, "")


@pytest.mark.django_db
def test_rejected_slot_is_dropped_later(
    settings: Any,
) -> None:
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 1
    waiting = make_job(tag="waiting")
    make_job(channel="ORG_002", storage_failed_at=SLOT)  # which keeps its own slots due only
    schedule = make_schedule()
    assert schedules.submit_due(SLOT) == 0
    assert schedules.submit_due(SLOT + HOUR) == 0

    row = schedule_values(schedule)
    assert (row["next_at"], row["failing_since"], row["paused_at"]) == (SLOT + DAY, None, None)
    assert "1 request waiting" in row["last_error"]
    assert row["last_error"].endswith("Given up after an hour; due since 2026-03-10 06:00 UTC.")
    waiting.delete()
    assert schedules.submit_due(SLOT + HOUR + MINUTE) == 0
    assert schedules.submit_due(SLOT + DAY) == 1
    assert Job.objects.get(schedule=schedule).tag == "daily-2026-03-10"
    assert schedule_values(schedule)["last_error"] == ""


@pytest.mark.django_db
def test_storage_outage_keeps_slot(settings: Any) -> None:
    # given a queue that is full of jobs that wait for the storage
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 1
    waiting = make_job(tag="waiting", storage_failed_at=SLOT)
    schedule = make_schedule()
    assert schedules.submit_due(SLOT) == 0
    assert schedules.submit_due(SLOT + 5 * HOUR) == 0
    assert schedule_values(schedule)["next_at"] == SLOT

    # when the storage has taken it
    waiting.delete()

    # then the slot has its job
    assert schedules.submit_due(SLOT + 5 * HOUR + 10 * MINUTE) == 1


@pytest.mark.django_db
def test_rejected_slot_is_tried_less_often(settings: Any) -> None:
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 0
    schedule = make_schedule()
    tried_after = []
    for minute in range(60):
        if schedules.find_due(SLOT + minute * MINUTE).exists():
            tried_after.append(minute)
            schedules.submit_due(SLOT + minute * MINUTE)
    assert tried_after == [0, 1, 2, 4, 8, 16, 26, 36, 46, 56]
    assert schedule_values(schedule)["next_at"] == SLOT


@pytest.mark.django_db
def test_channels_take_turns_in_a_bounded_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a channel with many due slots, and another one with a later one
    greedy = make_channel("GREEDY")
    row = make_schedule(channel="GREEDY", name="first")
    copies = [
        Schedule(**{**schedule_values(row), "id": None, "name": f"copy-{number}"})
        for number in range(1000)
    ]
    Schedule.objects.bulk_create(copies)
    modest = make_schedule(channel="ORG_001", next_at=SLOT + 5 * MINUTE)

    # when a sweep has no time but for two
    clock = iter([0.0, 0.1, schedules.SWEEP_SECONDS + 0.1])
    monkeypatch.setattr(schedules, "monotonic", clock.__next__)
    assert schedules.submit_due(SLOT + 6 * MINUTE) == 2

    # then each channel had its turn, and the next sweep has the rest
    assert Job.objects.filter(channel=greedy).count() == 1
    assert Job.objects.filter(channel=modest.channel).count() == 1
    assert schedules.find_due(SLOT + 6 * MINUTE).count() == 1000


@pytest.mark.parametrize(
    ("cron", "is_short"),
    [
        ("* * * * *", True),
        ("*/4 * * * *", True),
        ("*/5 * * * *", False),
        ("0,3 6 1 1 *", True),
        ("2,58 * * * *", True),
        ("2,58 6 * * *", False),
        ("2,58 0,23 * * *", True),
        ("0-4 6 * * *", True),
        ("0 * * * *", False),
    ],
)
@pytest.mark.django_db
def test_slots_are_five_minutes_apart(cron: str, is_short: bool) -> None:
    schedule = make_unsaved(cron=cron)
    assert ("cron" in schedules.find_errors(schedule)) is is_short


@pytest.mark.django_db
def test_stored_short_gap_runs_every_five_minutes() -> None:
    schedule = make_schedule(cron="* * * * *", tag="often")
    assert schedules.submit_due(SLOT) == 1
    assert schedule_values(schedule)["next_at"] == SLOT + 5 * MINUTE
    assert schedules.submit_due(SLOT + 7 * MINUTE) == 1
    assert schedule_values(schedule)["next_at"] == SLOT + 12 * MINUTE


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ({"dataset": "gone"}, "dataset: There is no dataset of that name"),
        ({"window": "last 400 days"}, "window: At most 366 days"),
        ({"zone": "Mars/Base"}, "zone: Unknown time zone"),
        ({"cron": "never"}, "cron: Not five words"),
        ({"tag": "a b"}, "tag: Letters, digits"),
    ],
)
@pytest.mark.django_db
def test_invalid_schedule_stops_no_other(broken: dict[str, str], error: str) -> None:
    bad = make_schedule(name="bad", next_at=SLOT - MINUTE, **broken)
    make_schedule(name="good")
    assert schedules.submit_due(SLOT) == 1
    assert Job.objects.get().tag == "good-2026-03-09"
    assert schedule_values(bad)["last_error"].startswith(error)


@pytest.mark.parametrize("broken", [{"zone": "Mars/Base"}, {"cron": "never"}])
@pytest.mark.django_db
def test_endless_wait_pauses_schedule(broken: dict[str, str]) -> None:
    schedule = make_schedule(**broken)
    schedules.submit_due(SLOT)
    assert schedule_values(schedule)["paused_at"] is None
    schedules.submit_due(SLOT + HOUR)
    assert schedule_values(schedule)["paused_at"] == SLOT + HOUR
    with pytest.raises(RequestError, match="Save the schedule with a valid value"):
        schedules.resume(schedule)


@pytest.mark.django_db
def test_internal_error_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a submission that fails after it wrote
    bad = make_schedule(name="bad", next_at=SLOT - MINUTE)
    make_schedule(name="good")
    submit = submissions.submit

    def failing(submission: Any, now: datetime) -> Job:
        job = submit(submission, now)
        if submission.tag.startswith("bad"):
            raise RuntimeError("secret words")
        return job

    monkeypatch.setattr(submissions, "submit", failing)
    assert schedules.submit_due(SLOT) == 1
    assert [job.tag for job in Job.objects.all()] == ["good-2026-03-09"]
    row = schedule_values(bad)
    assert row["next_at"] == SLOT - MINUTE
    assert row["last_error"] == "The service failed; the cause is in its log."


@pytest.mark.django_db
def test_unknown_conversation_is_submitted() -> None:
    make_schedule(conversation="not yet")
    assert schedules.submit_due(SLOT) == 1
    assert Job.objects.get().config["conversationId"] == "not yet"


@pytest.mark.django_db
def test_same_day_slots_share_a_job() -> None:
    make_schedule(cron="0 6,18 * * *")
    assert schedules.submit_due(SLOT) == 1
    assert schedules.submit_due(SLOT + 12 * HOUR) == 1
    assert Job.objects.count() == 1


# Keeping ------------------------------------------------------------------------------------------


def make_unsaved(**changes: Any) -> Schedule:
    """A schedule that is not saved, with `make_schedule`'s words."""
    values: dict[str, Any] = {
        "name": "daily",
        "cron": "0 6 * * *",
        "zone": "UTC",
        "dataset": RESPONSE,
        "conversation": BOT,
        "window": "yesterday",
        "tag": "{name}-{start}",
        "requested_by": "user_id",
        **changes,
    }
    return Schedule(channel=make_channel(), **values)


@pytest.mark.django_db
def test_saving_unchanged_is_a_no_op() -> None:
    schedule = make_schedule(last_error="Too many.", failing_since=SLOT)
    before = schedule_values(schedule)
    schedules.save(make_unsaved(), SLOT + 2 * DAY)
    assert schedule_values(schedule) == before


@pytest.mark.django_db
def test_channel_has_a_number_of_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "MAX_SCHEDULES", 2)
    make_schedule(name="other", channel="ORG_002")
    for name in ("one", "two"):
        schedules.save(make_unsaved(name=name))
    third = make_unsaved(name="three")
    remedy = "A channel has at most 2 schedules; delete one."
    assert schedules.find_errors(third) == {"name": remedy}
    with pytest.raises(RequestError, match=remedy) as error:  # two calls came at once
        schedules.save(third)
    assert error.value.status == 409
    assert schedules.save(make_unsaved(name="two", cron="0 7 * * *")).cron == "0 7 * * *"
    assert Schedule.objects.filter(channel=third.channel_id).count() == 2


@pytest.mark.django_db
def test_only_clock_changes_move_the_slot() -> None:
    schedule = make_schedule(last_error="Too many.", failing_since=SLOT)
    schedules.save(make_unsaved(window="last 7 days"), SLOT + HOUR)
    row = schedule_values(schedule)
    assert (row["next_at"], row["last_error"], row["failing_since"]) == (SLOT, "", None)

    schedules.pause(schedule)
    schedules.save(make_unsaved(cron="30 6 * * *"), SLOT + HOUR)
    row = schedule_values(schedule)
    assert row["next_at"] == SLOT + DAY + 30 * MINUTE
    assert row["window"] == "yesterday"
    assert row["paused_at"] is not None  # a paused schedule stays paused
    assert Schedule.objects.count() == 1


@pytest.mark.django_db
def test_delete_keeps_jobs() -> None:
    schedule = make_schedule()
    schedules.submit_due(SLOT)
    schedules.delete(schedule)
    schedules.delete(schedule)
    assert Job.objects.get().schedule_id is None


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_delete_waits_for_submission(
    enqueued_tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a submission whose job is inserted but not committed
    schedule = make_schedule()
    submitted, go_on = threading.Event(), threading.Event()
    submit = submissions.submit
    errors: list[BaseException] = []

    def slow(submission: Any, now: datetime) -> Job:
        job = submit(submission, now)
        submitted.set()
        assert go_on.wait(20)
        return job

    def call(function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    monkeypatch.setattr(submissions, "submit", slow)
    making = threading.Thread(target=call, args=[schedules.submit_due, SLOT])
    deleting = threading.Thread(target=call, args=[schedules.delete, schedule])
    making.start()
    assert submitted.wait(20)

    # when the schedule is deleted meanwhile
    deleting.start()
    deleting.join(0.5)
    is_waiting = deleting.is_alive()
    go_on.set()
    making.join(20)
    deleting.join(20)

    # then both are done, one after the other
    assert is_waiting
    assert errors == []
    assert not Schedule.objects.exists()
    assert Job.objects.get().schedule_id is None


# The API ------------------------------------------------------------------------------------------

ADDRESS = "/dataset/v1/schedule"
GONE = object()


def schedule_body(**changes: Any) -> dict[str, Any]:
    request: dict[str, Any] = {
        "cron": "0 6 * * *",
        "timezone": "Asia/Kolkata",
        "dataset": RESPONSE,
        "conversationId": BOT,
        "window": "yesterday",
        "tag": "daily-{start}",
        "outputFormat": "csv",
        "requestedBy": "asha",
        "callbackUrl": "https://receiver.example/told",
        **changes,
    }
    return {"request": {name: value for name, value in request.items() if value is not GONE}}


def put_schedule(client: Client, name: str = "daily", payload: Any = None, **headers: str) -> Any:
    text = (
        payload
        if isinstance(payload, str)
        else json.dumps(schedule_body() if payload is None else payload)
    )
    return client.put(f"{ADDRESS}/{name}", text, content_type="application/json", headers=headers)


SHAPE = [
    "name", "requestedChannel", "cron", "timezone", "dataset", "conversationId", "window", "tag",
    "outputFormat", "requestedBy", "callbackUrl", "encryption", "priority", "paused", "nextRun",
    "nextWindow", "nextTag", "lastError", "jobs",
]  # fmt: skip


@pytest.mark.django_db
def test_put_and_get_schedule(asker: Client) -> None:
    saved = assert_envelope(put_schedule(asker), "schedule.save", 200, "OK")
    assert list(saved) == SHAPE
    assert {name: saved[name] for name in schedule_body()["request"]} == schedule_body()["request"]
    assert (saved["name"], saved["requestedChannel"]) == ("daily", "ORG_001")
    assert (saved["paused"], saved["lastError"], saved["jobs"]) == (False, "", [])

    # the next run is the next 06:00 of Kolkata, for the day before it there
    run = datetime.fromtimestamp(saved["nextRun"] / 1000, ZoneInfo("Asia/Kolkata"))
    assert timedelta() < run - timezone.now() <= DAY
    assert (run.hour, run.minute, run.second) == (6, 0, 0)
    day = (run.date() - DAY).isoformat()
    assert saved["nextWindow"] == {"startDate": day, "endDate": day}
    assert saved["nextTag"] == f"daily-{day}"

    # again it is the same, by the other address too
    assert assert_envelope(put_schedule(asker), "schedule.save", 200, "OK") == saved
    read = asker.get(f"/api{ADDRESS}/daily")
    assert assert_envelope(read, "schedule.read", 200, "OK") == saved
    assert Schedule.objects.count() == 1


@pytest.mark.django_db
def test_schedule_with_columns(asker: Client) -> None:
    fields = {"columns": ["Eof", "Device ID"], "timestamps": "local"}

    saved = put_schedule(asker, payload=schedule_body(**fields)).json()["result"]
    assert {name: saved[name] for name in fields} == fields
    schedules.submit_slot(Schedule.objects.get(), SLOT)
    assert Job.objects.get().config.items() >= (fields | {"timezone": "Asia/Kolkata"}).items()

    survey = {"dataset": "uci-survey-exhaust", "rows": "participant", "answers": "all"}
    saved = put_schedule(asker, "survey", schedule_body(**survey)).json()["result"]
    assert {name: saved[name] for name in survey} == survey
    assert "by" not in saved
    schedules.submit_slot(Schedule.objects.get(name="survey"), SLOT)
    config = Job.objects.get(dataset="uci-survey-exhaust").config
    assert (config["rows"], config["answers"], "by" in config) == ("participant", "all", False)

    layout = put_schedule(asker, payload=schedule_body(layout="uci-2022")).json()["result"]
    assert layout["layout"] == "uci-2022"
    assert not set(fields) & set(layout)


@pytest.mark.django_db
def test_put_applies_defaults(asker: Client) -> None:
    payload = schedule_body(timezone=GONE, outputFormat=GONE, requestedBy=GONE, callbackUrl=GONE)
    result = assert_envelope(put_schedule(asker, payload=payload), "schedule.save", 200, "OK")
    assert (result["timezone"], result["outputFormat"], result["requestedBy"]) == (
        "UTC",
        "csv",
        "test",
    )
    assert result["callbackUrl"] == ""


@pytest.mark.django_db
def test_schedule_sets_priority(asker: Client, enqueued_tasks: list[str]) -> None:
    assert put_schedule(asker).json()["result"]["priority"] == "low"
    payload = schedule_body(priority="interactive")
    assert put_schedule(asker, payload=payload).json()["result"]["priority"] == "interactive"
    schedule = Schedule.objects.get()
    schedules.submit_due(schedule.next_at)
    assert Job.objects.get().priority == Job.Priority.INTERACTIVE
    answer = put_schedule(asker, payload=schedule_body(priority="nightly"))
    assert "One of low, interactive." in assert_refused(answer, operation="schedule.save")


@pytest.mark.django_db
def test_schedule_zone_is_canonical(asker: Client) -> None:
    saved = put_schedule(asker, payload=schedule_body(timezone="Asia/Calcutta")).json()["result"]
    assert saved["timezone"] == "Asia/Kolkata"
    answer = put_schedule(asker, payload=schedule_body(timezone="localtime"))
    assert "timezone" in assert_refused(answer, operation="schedule.save")


@pytest.mark.django_db
def test_put_replaces_schedule(asker: Client) -> None:
    put_schedule(asker)
    replaced = put_schedule(
        asker, payload=schedule_body(window="last 7 days", dataset=PRIVATE)
    ).json()["result"]
    assert (replaced["window"], replaced["dataset"]) == ("last 7 days", PRIVATE)
    assert Schedule.objects.count() == 1


@pytest.mark.django_db
def test_get_shows_last_five_jobs(asker: Client) -> None:
    schedule = make_schedule()
    for number in range(7):
        schedules.submit_due(SLOT + number * DAY)
    other = make_schedule(name="other", tag="other")
    schedules.submit_due(SLOT)
    jobs = asker.get(f"{ADDRESS}/daily").json()["result"]["jobs"]
    assert [job["tag"] for job in jobs] == [f"daily-2026-03-{15 - back:02}" for back in range(5)]
    assert {job["status"] for job in jobs} == {"SUBMITTED"}
    newest = Job.objects.filter(schedule=schedule).latest("pk")
    assert jobs[0]["requestId"] == newest.request_id
    listed = asker.get(ADDRESS).json()["result"]["schedules"]
    assert [len(each["jobs"]) for each in listed] == [5, 1]
    assert listed[1]["name"] == other.name


REFUSED = [
    ({"cron": GONE}, "request.cron: This field is required."),
    ({"cron": "0 0 6 * * *"}, "request.cron: Not five words"),
    ({"cron": "61 6 * * *"}, "request.cron: Bad minute"),
    ({"cron": "0 6 31 2 *"}, "request.cron: Bad day-of-month"),
    ({"cron": "* " * 70}, "request.cron: Ensure this field has no more than 128 characters."),
    ({"cron": 5}, "request.cron: Not five words"),
    ({"timezone": "Mars/Base"}, "request.timezone: Unknown time zone; write one like UTC"),
    ({"timezone": "../etc"}, "request.timezone: Unknown time zone"),
    ({"dataset": "nothing"}, "request.dataset: There is no dataset of that name; ask for one of"),
    ({"dataset": GONE}, "request.dataset: This field is required."),
    ({"conversationId": ""}, "request.conversationId: This field is required."),
    ({"conversationId": GONE}, "request.conversationId: This field is required."),
    ({"dataset": "sessions-exhaust"}, "request.conversationId: A session belongs to a device"),
    ({"conversationId": "x" * 256}, "request.conversationId: Ensure"),
    ({"window": "last year"}, "request.window: One of today, yesterday"),
    ({"window": "last 367 days"}, "request.window: At most 366 days at once"),
    ({"tag": "a b"}, "request.tag: Letters, digits"),
    ({"tag": "{other}"}, "request.tag: Letters, digits"),
    ({"outputFormat": "exe"}, "request.outputFormat: One of csv"),
    ({"requestedBy": "x" * 256}, "request.requestedBy: Ensure"),
    ({"callbackUrl": "ftp://example.org"}, "request.callbackUrl: "),
    ({"callbackUrl": "http://169.254.169.254/x"}, "request.callbackUrl: "),
    ({"colour": "red"}, "request.colour: Unknown field; there are cron"),
    ({"datasetConfig": {}}, "request.datasetConfig: Unknown field"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
@pytest.mark.django_db
def test_put_names_invalid_fields(asker: Client, changes: dict[str, Any], sentence: str) -> None:
    answer = put_schedule(asker, payload=schedule_body(**changes))
    assert assert_refused(answer, operation="schedule.save").startswith(sentence)
    assert not Schedule.objects.exists()


@pytest.mark.parametrize("body", ["{}", "[]", '{"request": []}', '{"request": null}', "{", "7"])
@pytest.mark.django_db
def test_put_rejects_malformed_bodies(asker: Client, body: str) -> None:
    assert assert_refused(put_schedule(asker, payload=body), operation="schedule.save")
    assert not Schedule.objects.exists()


@pytest.mark.parametrize("name", ["a b", "a%00b", "x" * 129, "ä", "..", "."])
@pytest.mark.django_db
def test_invalid_name_is_rejected(asker: Client, name: str) -> None:
    answer = put_schedule(asker, name, schedule_body(tag="plain"))
    assert assert_refused(answer, operation="schedule.save").startswith("name: Letters, digits")
    response = asker.get(f"{ADDRESS}/{name}")
    assert_refused(response, 404, "RESOURCE_NOT_FOUND", "schedule.read")


def call_each_operation(client: Client, name: str) -> dict[str, Any]:
    """Every call about one schedule, by its operation, the deadly one last."""
    return {
        "schedule.read": client.get(f"{ADDRESS}/{name}"),
        "schedule.pause": client.post(f"{ADDRESS}/{name}/pause"),
        "schedule.resume": client.post(f"{ADDRESS}/{name}/resume"),
        "schedule.delete": client.delete(f"{ADDRESS}/{name}"),
    }


@pytest.mark.django_db
def test_foreign_schedule_is_404(asker: Client) -> None:
    other = make_schedule(channel="ORG_002")
    before = schedule_values(other)
    for operation, answer in call_each_operation(asker, "daily").items():
        sentence = assert_refused(answer, 404, "RESOURCE_NOT_FOUND", operation)
        missing = call_each_operation(asker, "missing")[operation]
        assert assert_refused(missing, 404, "RESOURCE_NOT_FOUND", operation) == sentence
    assert asker.get(ADDRESS).json()["result"]["schedules"] == []

    # and a schedule of that name in the own channel is another one
    assert put_schedule(asker).status_code == 200
    assert schedule_values(other) == before
    assert Schedule.objects.count() == 2


@pytest.mark.django_db
def test_header_selects_channel() -> None:
    client = Client(headers=bearer(make_key("export:response", channels=("ORG_001", "ORG_002"))))
    assert_refused(put_schedule(client), 403, "FORBIDDEN", "schedule.save")
    created = put_schedule(client, **{"X-Channel-ID": "ORG_002"})
    assert created.json()["result"]["requestedChannel"] == "ORG_002"
    answer = client.get(f"{ADDRESS}/daily", headers={"X-Channel-ID": "ORG_001"})
    assert_refused(answer, 404, "RESOURCE_NOT_FOUND", "schedule.read")
    assert_refused(
        put_schedule(client, **{"X-Channel-ID": "ORG_003"}), 403, "FORBIDDEN", "schedule.save"
    )


@pytest.mark.parametrize(
    ("scopes", "dataset", "missing"),
    [
        (("export:response",), PRIVATE, "export:private"),
        (("export:private",), RESPONSE, "export:response"),
        (("ingest",), RESPONSE, "export:response"),
    ],
)
@pytest.mark.django_db
def test_calls_require_dataset_scope(scopes: tuple[str, ...], dataset: str, missing: str) -> None:
    schedule = make_schedule(dataset=dataset)
    before = schedule_values(schedule)
    client = Client(headers=bearer(make_key(*scopes)))
    answers = call_each_operation(client, "daily") | {
        "schedule.save": put_schedule(client, "new", schedule_body(dataset=dataset)),
    }
    for operation, answer in answers.items():
        assert missing in assert_refused(answer, 403, "FORBIDDEN", operation)
    assert schedule_values(schedule) == before
    assert Schedule.objects.count() == 1
    assert client.get(ADDRESS).json()["result"]["schedules"] == []


@pytest.mark.django_db
def test_scope_limits_replacement() -> None:
    schedule = make_schedule(dataset=PRIVATE)
    client = Client(headers=bearer(make_key("export:response")))
    assert_refused(put_schedule(client), 403, "FORBIDDEN", "schedule.save")
    assert schedule_values(schedule)["dataset"] == PRIVATE


@pytest.mark.django_db
def test_calls_require_valid_key(client: Client, asker: Client) -> None:
    for operation, answer in (
        call_each_operation(client, "daily") | {"schedule.list": client.get(ADDRESS)}
    ).items():
        assert_refused(answer, 401, "UNAUTHORIZED", operation)
    ApiKey.objects.update(revoked_at=timezone.now())
    assert_refused(put_schedule(asker), 401, "UNAUTHORIZED", "schedule.save")


@pytest.mark.django_db
def test_pause_and_resume(asker: Client) -> None:
    running = put_schedule(asker).json()["result"]
    for _ in range(2):  # again it is no error
        answer = asker.post(f"{ADDRESS}/daily/pause")
        paused = assert_envelope(answer, "schedule.pause", 200, "OK")
        assert paused == running | {
            "paused": True, "nextRun": None, "nextWindow": None, "nextTag": None,
        }  # fmt: skip
    assert put_schedule(asker).json()["result"]["paused"] is True
    for _ in range(2):
        answer = asker.post(f"{ADDRESS}/daily/resume")
        assert assert_envelope(answer, "schedule.resume", 200, "OK") == running
    assert asker.get(f"{ADDRESS}/daily/pause").status_code == 405


@pytest.mark.django_db
def test_resume_of_invalid_schedule_is_409(asker: Client) -> None:
    make_schedule(dataset=RESPONSE, window="last 400 days", paused_at=SLOT)
    answer = asker.post(f"{ADDRESS}/daily/resume")
    sentence = assert_refused(answer, 409, "CONFLICT", "schedule.resume")
    assert sentence.startswith("window: At most 366 days")
    assert asker.get(f"{ADDRESS}/daily").json()["result"]["paused"] is True


@pytest.mark.django_db
def test_last_error_is_shown(asker: Client, settings: Any) -> None:
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 1
    make_job(tag="waiting")
    make_schedule()
    schedules.submit_due(SLOT)
    read = asker.get(f"{ADDRESS}/daily").json()["result"]
    assert "1 request waiting" in read["lastError"]
    assert read["nextRun"] == int(SLOT.timestamp() * 1000)  # still due
    assert read["nextTag"] == "daily-2026-03-09"


@pytest.mark.django_db
def test_invalid_schedule_can_be_read(asker: Client, settings: Any) -> None:
    put_schedule(asker, payload=schedule_body(window="last 60 days"))
    settings.EXHAUST_MAX_DAYS = 30
    read = assert_envelope(asker.get(f"{ADDRESS}/daily"), "schedule.read", 200, "OK")
    assert (read["nextWindow"], read["nextTag"]) == (None, None)
    assert read["nextRun"] is not None


@pytest.mark.django_db
def test_delete_schedule(asker: Client) -> None:
    put_schedule(asker)
    answer = asker.delete(f"{ADDRESS}/daily")
    assert assert_envelope(answer, "schedule.delete", 200, "OK") == {"name": "daily"}
    assert not Schedule.objects.exists()
    assert_refused(asker.delete(f"{ADDRESS}/daily"), 404, "RESOURCE_NOT_FOUND", "schedule.delete")


@pytest.mark.django_db
def test_list_continues_from_cursor(asker: Client) -> None:
    names = [f"s-{number}" for number in range(5)]
    for name in reversed(names):
        make_schedule(name=name)
    make_schedule(name="s-2", channel="ORG_002")
    names_read: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = assert_envelope(asker.get(ADDRESS, query), "schedule.list", 200, "OK")
        assert page["count"] == len(page["schedules"]) <= 2
        names_read += [each["name"] for each in page["schedules"]]
        cursor = page["nextCursor"]
    assert names_read == names
    assert list(page["schedules"][0]) == SHAPE


@pytest.mark.django_db
def test_list_query_count_is_constant(asker: Client) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert asker.get(ADDRESS).status_code == 200
        return len(captured)

    make_schedule(name="s-0")
    asker.get(ADDRESS)  # the key's last use is written once
    few = queries()
    for number in range(1, 9):
        make_schedule(name=f"s-{number}")
    assert queries() == few


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"limit": 0}, "limit: "),
        ({"limit": 1001}, "limit: "),
        ({"limit": "x"}, "limit: "),
        ({"cursor": "altered"}, "cursor: was altered"),
    ],
)
@pytest.mark.django_db
def test_invalid_page_is_rejected(asker: Client, query: dict[str, Any], sentence: str) -> None:
    answer = asker.get(ADDRESS, query)
    assert assert_refused(answer, operation="schedule.list").startswith(sentence)


@pytest.mark.django_db
def test_cursor_belongs_to_one_list(asker: Client) -> None:
    for number in range(2):
        make_schedule(name=f"s-{number}")
        make_schedule(name=f"s-{number}", channel="ORG_002")
    cursor = asker.get(ADDRESS, {"limit": 1}).json()["result"]["nextCursor"]
    for key in (
        make_key("export:response"),
        make_key("export:response", channels=("ORG_002",)),
        make_key("export:response", "export:private", channels=("ORG_002",)),
    ):
        answer = Client(headers=bearer(key)).get(ADDRESS, {"cursor": cursor})
        sentence = assert_refused(answer, operation="schedule.list")
        assert sentence.startswith("cursor: belongs to another query")
    jobs = asker.get("/dataset/v1/request/list/daily", {"cursor": cursor})
    assert jobs.status_code == 400


# The admin ----------------------------------------------------------------------------------------

PAGES = "/admin/exhaust/schedule"


@pytest.fixture
def operator(client: Client, db: None) -> Client:
    client.force_login(get_user_model().objects.create_superuser("operator", password="x"))
    return client


def form_data(**changes: Any) -> dict[str, Any]:
    return {
        "channel": make_channel().pk,
        "name": "daily",
        "cron": "0 6 * * *",
        "zone": "Asia/Kolkata",
        "dataset": RESPONSE,
        "conversation": BOT,
        "window": "yesterday",
        "tag": "daily-{start}",
        "callback_url": "https://receiver.example/told",
        "output_format": "csv",
        **changes,
    }


def test_admin_form_saves_like_api(operator: Client, asker: Client) -> None:
    answer = operator.post(f"{PAGES}/add/", form_data())
    assert answer.status_code == 302, answer.context["errors"]
    by_form = schedule_values(Schedule.objects.get())
    assert by_form["requested_by"] == "operator"
    Schedule.objects.all().delete()
    put_schedule(asker, payload=schedule_body(requestedBy="operator"))
    by_api = schedule_values(Schedule.objects.get())
    own = ("id", "created_at")
    assert {k: v for k, v in by_form.items() if k not in own} == {
        k: v for k, v in by_api.items() if k not in own
    }


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"cron": "0 0 6 * * *"}, "cron", "Not five words"),
        ({"zone": "Mars/Base"}, "zone", "Unknown time zone"),
        ({"window": "last 367 days"}, "window", "At most 366 days"),
        ({"tag": "{other}"}, "tag", "Letters, digits"),
        ({"name": "a b"}, "name", "Letters, digits"),
        ({"dataset": "nothing"}, "dataset", "nothing"),
        ({"output_format": "exe"}, "output_format", "exe"),
        ({"conversation": ""}, "conversation", "required"),
        ({"callback_url": "http://169.254.169.254/x"}, "callback_url", "not public"),
    ],
)
def test_admin_form_rejects_like_api(
    operator: Client, changes: dict[str, str], field: str, message: str
) -> None:
    answer = operator.post(f"{PAGES}/add/", form_data(**changes))
    assert answer.status_code == 200
    errors = answer.context["adminform"].form.errors
    assert list(errors) == [field]
    assert message in str(errors[field])
    assert not Schedule.objects.exists()


def test_admin_form_keeps_names_unique(operator: Client) -> None:
    schedule = make_schedule()
    before = schedule_values(schedule)
    answer = operator.post(f"{PAGES}/add/", form_data(window="last 7 days"))
    assert answer.status_code == 200
    assert "already exists" in answer.content.decode()
    assert schedule_values(schedule) == before


def test_admin_form_changes_schedule(operator: Client) -> None:
    schedule = make_schedule(last_error="Too many.", paused_at=SLOT)
    address = f"{PAGES}/{schedule.pk}/change/"
    answer = operator.post(address, form_data(name="other", zone="UTC", window="last 7 days"))
    assert answer.status_code == 302
    row = schedule_values(schedule)
    assert (row["name"], row["window"], row["last_error"]) == ("daily", "last 7 days", "")
    assert (row["requested_by"], row["next_at"], row["paused_at"]) == ("user_id", SLOT, SLOT)
    bad = operator.post(address, form_data(cron="never"))
    assert list(bad.context["adminform"].form.errors) == ["cron"]
    assert schedule_values(schedule) == row


def test_admin_shows_next_run_and_jobs(operator: Client) -> None:
    schedule = make_schedule()
    schedules.submit_due(SLOT)
    job = Job.objects.get()
    page = operator.get(f"{PAGES}/{schedule.pk}/change/").content.decode()
    assert "2026-03-10 to 2026-03-10 as daily-2026-03-10" in page
    assert (
        f'<a href="/admin/exhaust/job/{job.pk}/change/">daily-2026-03-09 {job.request_id}' in page
    )
    assert 'name="next_at' not in page
    schedules.pause(schedule)
    paused = operator.get(f"{PAGES}/{schedule.pk}/change/").content.decode()
    assert "None while it is paused." in paused


@pytest.mark.parametrize(
    ("query", "expected_names"),
    [
        ("", {"daily", "private", "paused"}),
        ("?q=priv", {"private"}),
        (f"?dataset={PRIVATE}", {"private"}),
        ("?paused_at__isempty=0", {"paused"}),
    ],
)
def test_admin_search_and_filters(operator: Client, query: str, expected_names: set[str]) -> None:
    make_schedule(tag="one")
    make_schedule(name="private", dataset=PRIVATE, tag="two")
    make_schedule(name="paused", paused_at=SLOT, tag="three")
    answer = operator.get(f"{PAGES}/{query}")
    assert {row.name for row in answer.context["cl"].result_list} == expected_names


def run_admin_action(client: Client, action: str, *rows: Schedule) -> str:
    data = {"action": action, "_selected_action": [row.pk for row in rows]}
    answer = client.post(f"{PAGES}/", data, follow=True)
    return " ".join(str(message) for message in answer.context["messages"])


def test_admin_bulk_actions(operator: Client) -> None:
    good = make_schedule()
    bad = make_schedule(name="bad", window="last year")
    assert run_admin_action(operator, "pause", good, bad) == "2 schedules paused."
    assert Schedule.objects.filter(paused_at=None).count() == 0
    messages = run_admin_action(operator, "resume", good, bad)
    assert "bad: window: One of today" in messages
    assert "1 schedule resumed." in messages
    assert schedule_values(good)["paused_at"] is None
    assert schedule_values(good)["next_at"] > timezone.now()

    schedules.submit_due(schedule_values(good)["next_at"])
    deletion = {"action": "delete_selected", "_selected_action": [good.pk], "post": "yes"}
    operator.post(f"{PAGES}/", deletion)
    operator.post(f"{PAGES}/{bad.pk}/delete/", {"post": "yes"})
    assert not Schedule.objects.exists()
    assert Job.objects.get().schedule_id is None


def test_admin_pause_requires_role(client: Client, db: None) -> None:
    viewer = get_user_model().objects.create_user("viewer", password="x", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="change_schedule"))
    client.force_login(viewer)
    schedule = make_schedule()
    assert client.get(f"{PAGES}/").status_code == 403
    assert client.get(f"{PAGES}/{schedule.pk}/change/").status_code in {302, 403}
    data = {"action": "pause", "_selected_action": [schedule.pk]}
    assert client.post(f"{PAGES}/", data).status_code == 403
    assert schedule_values(schedule)["paused_at"] is None
    assert client.get(f"{PAGES}/add/").status_code == 403
    assert client.post(f"{PAGES}/{schedule.pk}/change/", form_data()).status_code in {302, 403}


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rows": "participant"}, "rows: uci-response-exhaust takes none"),
        ({"dataset": "uci-survey-exhaust", "rows": "page"}, "rows: One of session, participant."),
        ({"dataset": "uci-summary-exhaust", "by": "hour"}, "by: One of range, day."),
        ({"types": ["A"]}, "types: "),
        ({"application": "shop"}, "application: "),
    ],
)
def test_filters_of_schedule_are_checked(asker: Client, fields: dict[str, Any], named: str) -> None:
    answer = put_schedule(asker, payload=schedule_body(**fields))
    sentence = assert_refused(answer, operation="schedule.save")
    assert named in sentence
    assert not Schedule.objects.exists()


@pytest.mark.django_db
def test_schedule_of_one_application(admin_client: Client) -> None:
    # given a schedule from the admin's form
    channel = make_channel()
    form = {
        "channel": str(channel.pk), "name": "shop", "cron": "0 6 * * *", "zone": "UTC",
        "dataset": "events-exhaust", "window": "yesterday", "tag": "shop-{start}",
        "output_format": "csv", "priority": "interactive", "types": '["A", "B"]', "columns": "",
        "application": "shop",
    }  # fmt: skip
    page = admin_client.post("/admin/exhaust/schedule/add/", form)
    errors = page.context["adminform"].form.errors
    assert errors == {
        "application": ["This channel has no application of that id; name one it has."]
    }
    application = Application.objects.create(channel=channel, identifier="shop")
    assert admin_client.post("/admin/exhaust/schedule/add/", form).status_code == 302

    # when it runs, then its request has them
    schedule = Schedule.objects.get()
    assert schedules.submit_slot(schedule, schedule.next_at)
    job = Job.objects.get()
    assert (job.config["application"], job.config["types"]) == ("shop", ["A", "B"])
    assert job.priority == Job.Priority.INTERACTIVE

    # and without the application it says so and submits nothing
    application.delete()
    schedule.refresh_from_db()
    assert not schedules.submit_slot(schedule, schedule.next_at + DAY)
    assert "no application of that id" in schedule_values(schedule)["last_error"]
