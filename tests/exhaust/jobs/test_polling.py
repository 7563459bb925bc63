"""What is read past the ORM is what the ORM gives."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from exhaust.api import presenters
from exhaust.files import links
from exhaust.jobs import polling, queries, submit, transitions
from exhaust.jobs.queries import Filters
from exhaust.models import File, Job, Link, Notice
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.factories import (
    CONFIG,
    RESPONSE,
    make_claimed,
    make_file,
    make_finished,
    make_job,
)

pytestmark = pytest.mark.django_db


def every_kind() -> list[Job]:
    """Jobs of a tag in every state that an answer shows."""
    waiting = [make_job(), make_job(priority=Job.Priority.NIGHTLY), make_job()]
    late = make_job(due_at=timezone.now() + timedelta(hours=1), status_message="Storage failed.")
    running = make_claimed()
    Job.objects.filter(pk=running.pk).update(rows_done=5, rows_estimated=10)
    failed = make_claimed()
    transitions.fail(failed, "No such sheet.", permanent=True)
    cancelled = make_job(sealing="publickey")
    submit.cancel(cancelled, "asha")
    told = make_finished(callback_url="https://example.org/told")
    Notice.objects.create(job=told, status="SUCCESS", url=told.callback_url, attempt=2, answer=500)
    parts = make_finished()
    for part in (3, 2):
        make_file(parts, part=part).save()
    linked = make_finished()
    links.create(linked.files.get(), timezone.now() - timedelta(hours=1))
    links.create(linked.files.get(), timezone.now() + timedelta(hours=1))
    used = make_finished()
    links.create(used.files.get(), timezone.now() + timedelta(hours=2))
    Link.objects.filter(file__job=used).update(use_count=100)
    links.create(used.files.get(), timezone.now() + timedelta(hours=1))
    deleted = make_finished()
    File.objects.filter(job=deleted).update(deleted_at=timezone.now())
    withdrawn = make_finished()
    File.objects.filter(job=withdrawn).update(withdrawn_at=timezone.now())
    make_file(withdrawn).save()
    return [*waiting, late, running, failed, cancelled, told, parts, linked, used, deleted,
            withdrawn]  # fmt: skip


def test_each_job_is_shown_alike() -> None:
    for job in every_kind():
        ours = polling.find(job.channel_id, job.tag, job.request_id)
        theirs = queries.find(job.channel_id, job.tag, job.request_id)
        assert ours is not None
        assert theirs is not None
        first = presenters.job(ours)  # it may make a link, which the next one shows
        again = polling.find(job.channel_id, job.tag, job.request_id)
        assert again is not None
        theirs = queries.find(job.channel_id, job.tag, job.request_id)
        assert theirs is not None
        assert first == presenters.job(theirs) == presenters.job(again)


def test_a_tags_jobs_are_paged_alike_by_cursors_of_either() -> None:
    made = every_kind()
    make_job(tag="another")
    make_job(channel="ORG_002")
    make_job(dataset="uci-private-exhaust")
    filters = Filters(made[0].channel_id, [RESPONSE], tag="daily")
    seen: list[str] = []
    cursor = None
    readers = [polling.page, queries.page]
    while True:
        ours, theirs = (read(filters, 4, cursor) for read in readers)
        assert [job.pk for job in ours.jobs] == [job.pk for job in theirs.jobs]
        assert [presenters.job(job) for job in ours.jobs] == [
            presenters.job(job) for job in queries.page(filters, 4, cursor).jobs
        ]
        seen += [job.request_id for job in ours.jobs]
        readers.reverse()
        cursor = theirs.cursor
        if cursor is None:
            break
    assert seen == [job.request_id for job in reversed(made)]


def test_another_channels_job_is_none() -> None:
    job = make_job()
    other = make_channel("ORG_002").pk
    assert polling.find(other, job.tag, job.request_id) is None
    assert polling.find(job.channel_id, "another", job.request_id) is None
    assert polling.find(job.channel_id, job.tag, "0" * 32) is None
    assert polling.page(Filters(other, [RESPONSE], tag=job.tag), 5, None).jobs == []
    assert polling.page(Filters(job.channel_id, [], tag=job.tag), 5, None).jobs == []


def asked(address: str, key: str, **headers: str) -> Any:
    return Client(headers={**bearer(key), **headers}).get(address)


def test_the_short_way_answers_as_the_long_one() -> None:
    key = make_key("export:response")
    job = make_finished(config={**CONFIG, "more": [10**30, 1.5, "\u2028"]})
    for address in (
        f"/dataset/v1/request/read/daily?requestId={job.request_id}",
        "/dataset/v1/request/read/daily?requestId=none",
        "/dataset/v1/request/list/daily",
        "/dataset/v1/request/list/daily?limit=0",
        "/dataset/v1/request/list/daily?limit=1&cursor=x",
    ):
        asked(address, key)  # makes the link
        for each in (key, "exh_wrong"):
            # DRF's own negotiation reads this one, ours does not
            short, long = (
                asked(address, each, Accept=said) for said in ("*/*", "application/json;q=0.9")
            )
            assert short.status_code == long.status_code
            ours, theirs = short.json(), long.json()
            for told in (ours, theirs):
                assert told.pop("ts")
                assert told["params"].pop("resmsgid")
            assert ours == theirs
            changing = {"X-Request-ID", "RateLimit"}
            assert {name: value for name, value in short.items() if name not in changing} == {
                name: value for name, value in long.items() if name not in changing
            } | {"Content-Length": short["Content-Length"]}
    refused = asked("/dataset/v1/request/list/daily", key, Accept="text/html")
    assert refused.status_code == 406
