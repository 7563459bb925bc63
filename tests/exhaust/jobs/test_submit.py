"""A request and its job: one and the same, another, and again."""

import threading
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connections

from exhaust.jobs import queries, submit, transitions
from exhaust.models import Job
from tests.exhaust.factories import (
    CONFIG,
    PRIVATE,
    RESPONSE,
    fetch_job_row,
    make_channel,
    make_submission,
)

NOON = datetime(2022, 2, 15, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expected", "dataset", "tag", "channel", "day"),
    [
        (
            "EE8031071F3F73285BA1ABDCAD3BD2DB",
            RESPONSE,
            "7ed871f7-0d5b-4bb0-86a0-a00151352701",
            "ORG_001",
            date(2022, 2, 15),
        ),
        (
            "84B26F9012D6E2E53BFC422B245C6350",
            RESPONSE,
            "7ed871f7-0d5b-4bb0-86a0-a00151352703",
            "ORG_001",
            date(2022, 4, 5),
        ),
        (
            "1E2A13DA30671FDBA10C418C9EF14A70",
            PRIVATE,
            "7ed871f7-0d5b-4bb0-86a0-a00151352707",
            "01269878797503692810",
            date(2022, 4, 6),
        ),
    ],
)
@pytest.mark.django_db
def test_request_ids_match_published_ones(
    expected: str, dataset: str, tag: str, channel: str, day: date
) -> None:
    # given a request as it was published
    submission = make_submission(
        dataset=dataset, tag=tag, channel=channel, config={**CONFIG, "type": dataset}
    )

    # when it is submitted on that day
    job = submit.submit(submission, datetime(day.year, day.month, day.day, 23, tzinfo=UTC))

    # then it has the published id
    assert job.request_id == expected
    assert submit.make_request_id(dataset, tag, "user_id", channel, day, dataset) == expected


def test_request_id_without_type() -> None:
    # given the same words with and without a type
    parts = (RESPONSE, "daily", "user_id", "ORG_001", date(2022, 2, 15))

    # when / then the id is the MD5 of the five parts alone
    assert submit.make_request_id(*parts, None) == "225FF65D30D0446E435FBBB7C6D2DD25"


@pytest.mark.django_db
def test_submit_stores_request(enqueued_tasks: list[str]) -> None:
    # when a request is submitted
    job = submit.submit(make_submission(), NOON)

    # then its row holds the request, and waits
    job.refresh_from_db()
    assert (job.tag, job.channel.identifier, job.dataset) == ("daily", "ORG_001", RESPONSE)
    assert (job.requested_by, job.output_format, job.config) == ("user_id", "csv", CONFIG)
    assert (job.status, job.attempt, job.uncounted_attempts) == (Job.Status.SUBMITTED, 0, 0)
    assert job.watermark is None


@pytest.mark.django_db(transaction=True)
def test_submit_enqueues_work(enqueued_tasks: list[str]) -> None:
    # when a request is submitted twice
    submit.submit(make_submission(), NOON)
    submit.submit(make_submission(), NOON)

    # then a wake-up is sent each time: the first one may have been lost
    assert len(enqueued_tasks) == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("status", [Job.Status.PROCESSING, Job.Status.SUCCESS])
def test_existing_job_enqueues_nothing(status: str, enqueued_tasks: list[str]) -> None:
    # given a job past its waiting
    job = submit.submit(make_submission(), NOON)
    Job.objects.filter(pk=job.pk).update(status=status)
    before = fetch_job_row(job)
    enqueued_tasks.clear()

    # when the same request is sent again
    resubmitted = submit.submit(make_submission(), NOON)

    # then it is the same job, untouched
    assert resubmitted.pk == job.pk
    assert fetch_job_row(job) == before
    assert enqueued_tasks == []


@pytest.mark.django_db
def test_same_request_is_same_job() -> None:
    # given a request in the morning
    first = submit.submit(make_submission(), NOON)

    # when it is sent again in the evening
    second = submit.submit(make_submission(), NOON + timedelta(hours=11))

    # then there is one job
    assert second.pk == first.pk
    assert Job.objects.count() == 1


@pytest.mark.django_db
def test_configuration_key_order_is_ignored() -> None:
    # given a request
    first = submit.submit(make_submission(), NOON)

    # when its configuration is sent in another order
    turned = dict(reversed(CONFIG.items()))
    assert list(turned) != list(CONFIG)
    second = submit.submit(make_submission(config=turned), NOON)

    # then it is the same job
    assert second.pk == first.pk
    assert Job.objects.count() == 1


@pytest.mark.parametrize(
    "change",
    [
        {"endDate": "2022-04-02"},
        {"startDate": "2022-03-02"},
        {"conversationId": "another"},
        {"timezone": "Asia/Kolkata"},
    ],
)
@pytest.mark.django_db
def test_changed_request_is_new_job(change: dict[str, str]) -> None:
    # given the day's first question under a tag
    first = submit.submit(make_submission(), NOON)

    # when another request is sent, twice, and then the first again
    config = {**CONFIG, **change}
    other = submit.submit(make_submission(config=config), NOON)
    other_again = submit.submit(make_submission(config=config), NOON)
    first_again = submit.submit(make_submission(), NOON)

    # then each has its own job, and finds it again
    assert other.request_id != first.request_id
    assert len(other.request_id) == 32
    assert other.request_id == other.request_id.upper()
    assert other_again.pk == other.pk
    assert first_again.pk == first.pk
    assert other.config == config
    assert Job.objects.count() == 2


@pytest.mark.django_db
def test_one_tag_holds_several_jobs() -> None:
    # when three ranges are requested on one day
    ends = ["2022-04-01", "2022-04-02", "2022-04-03"]
    submitted_jobs = [
        submit.submit(make_submission(config={**CONFIG, "endDate": end}), NOON) for end in ends
    ]

    # then none hides another
    assert len({job.request_id for job in submitted_jobs}) == 3
    assert [job.config["endDate"] for job in submitted_jobs] == ends


@pytest.mark.django_db
def test_next_day_is_a_new_job() -> None:
    # given a request in a day's last second
    last_second = datetime(2022, 2, 15, 23, 59, 59, tzinfo=UTC)
    first = submit.submit(make_submission(), last_second)

    # when it is sent a second later
    second = submit.submit(make_submission(), last_second + timedelta(seconds=1))

    # then it is another one
    assert second.pk != first.pk
    assert second.request_id != first.request_id
    assert Job.objects.count() == 2


@pytest.mark.django_db
def test_request_day_is_utc() -> None:
    # given the same moment in two zones, one of which has the next date
    moment = datetime(2022, 2, 15, 20, tzinfo=UTC)

    # when
    first = submit.submit(make_submission(), moment)
    second = submit.submit(make_submission(), moment.astimezone(ZoneInfo("Asia/Kolkata")))

    # then
    assert second.pk == first.pk


@pytest.mark.django_db(transaction=True)
def test_failed_job_gets_new_attempts(enqueued_tasks: list[str]) -> None:
    # given a job that failed three times
    job = submit.submit(make_submission(), NOON)
    for _ in range(3):
        transitions.run_now(job)
        claimed = transitions.claim(job.pk)
        assert claimed is not None
        assert transitions.set_watermark(claimed, 7, 1)
        assert transitions.fail(claimed, "The file could not be stored.")
    job.refresh_from_db()
    assert (job.status, job.attempt) == (Job.Status.FAILED, 3)
    enqueued_tasks.clear()

    # when it is sent again
    resubmitted = submit.submit(make_submission(), NOON)

    # then it is the same job, due now, without traces of the failure
    assert resubmitted.pk == job.pk
    assert resubmitted.status == Job.Status.SUBMITTED
    assert (resubmitted.status_message, resubmitted.watermark, resubmitted.completed_at) == (
        "",
        None,
        None,
    )
    assert resubmitted.uncounted_attempts == resubmitted.attempt
    assert len(enqueued_tasks) == 1
    # and it has three attempts more, and not a fourth
    for _ in range(3):
        transitions.run_now(job)
        claimed = transitions.claim(job.pk)
        assert claimed is not None
        assert transitions.fail(claimed, "Again.")
    job.refresh_from_db()
    assert (job.status, job.attempt) == (Job.Status.FAILED, 6)


@pytest.mark.parametrize(
    "change",
    [{"tag": "other"}, {"channel": "ORG_002"}, {"requested_by": "somebody"}, {"dataset": PRIVATE}],
)
@pytest.mark.django_db
def test_identity_parts_are_independent(change: dict[str, Any]) -> None:
    # given a request
    first = submit.submit(make_submission(), NOON)

    # when the same configuration is sent under another one
    second = submit.submit(make_submission(**change), NOON)

    # then it is another job
    assert second.pk != first.pk
    assert second.request_id != first.request_id
    assert Job.objects.count() == 2


def list_jobs(channel_id: int, datasets: list[str], **filters: Any) -> list[Job]:
    return queries.search_jobs(queries.Filters(channel_id, datasets, **filters), 10).jobs


@pytest.mark.django_db
def test_foreign_job_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given ids that are the same in both channels
    monkeypatch.setattr(submit, "make_request_id", lambda *_: "A" * 32)
    theirs = submit.submit(make_submission(channel="ORG_002"))

    # when
    ours = submit.submit(make_submission())

    # then
    assert (ours.pk != theirs.pk, ours.channel.identifier) == (True, "ORG_001")


@pytest.mark.django_db
def test_find_and_list_respect_tag() -> None:
    # given jobs under two tags of two channels
    submitted = submit.submit(make_submission(), NOON)
    submit.submit(make_submission(tag="other"), NOON)
    submit.submit(make_submission(channel="ORG_002"), NOON)
    own, other = make_channel("ORG_001"), make_channel("ORG_002")

    # when / then each is found under its own only
    found_job = queries.find_job(own.pk, "daily", submitted.request_id)
    assert found_job is not None
    assert found_job.pk == submitted.pk
    assert queries.find_job(own.pk, "other", submitted.request_id) is None
    assert queries.find_job(other.pk, "daily", submitted.request_id) is None
    assert list_jobs(own.pk, [RESPONSE], tag="daily") == [submitted]
    assert list_jobs(own.pk, [PRIVATE], tag="daily") == []
    assert list_jobs(own.pk, [RESPONSE], tag="unknown") == []


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_concurrent_submits_make_one_job(enqueued_tasks: list[str]) -> None:
    # given eight callers at one moment
    submission = make_submission()
    barrier = threading.Barrier(8)
    submitted_jobs: list[int] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            barrier.wait(10)
            submitted_jobs.append(submit.submit(submission, NOON).pk)
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=call) for _ in range(8)]

    # when all submit the same
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    # then there is one job, and no request failed
    assert errors == []
    assert len(submitted_jobs) == 8
    assert len(set(submitted_jobs)) == 1
    assert Job.objects.count() == 1
