"""The fast path reads the same values as the ORM."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from exhaust.api import response_bodies
from exhaust.delivery import callbacks
from exhaust.files import links
from exhaust.jobs import polling, queries, submit, transitions
from exhaust.jobs.queries import Filters
from exhaust.models import Callback, File, Job, Link
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


def make_every_kind() -> list[Job]:
    """Jobs of a tag in every state that an answer shows."""
    waiting = [make_job(), make_job(priority=Job.Priority.NIGHTLY), make_job()]
    delayed = make_job(due_at=timezone.now() + timedelta(hours=1), status_message="Storage failed.")
    running = make_claimed()
    Job.objects.filter(pk=running.pk).update(rows_done=5, rows_estimated=10)
    failed = make_claimed()
    transitions.fail(failed, "No such sheet.", permanent=True)
    cancelled = make_job(encryption="publickey")
    submit.cancel(cancelled, "asha")
    called_back = make_finished(callback_url="https://example.org/told")
    callbacks.create_callback(called_back)
    Callback.objects.filter(job=called_back).update(attempt=2, answer=500)
    in_parts = make_finished()
    for part in (3, 2):
        make_file(in_parts, part=part).save()
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
    return [
        *waiting, delayed, running, failed, cancelled, called_back, in_parts, linked, used, deleted,
        withdrawn,
    ]  # fmt: skip


def test_fetch_matches_orm() -> None:
    for job in make_every_kind():
        fast = polling.fetch_job(job.channel_id, job.tag, job.request_id)
        slow = queries.find_job(job.channel_id, job.tag, job.request_id)
        assert fast is not None
        assert slow is not None
        first = response_bodies.present_job(fast)  # it may make a link, which the next one shows
        reread = polling.fetch_job(job.channel_id, job.tag, job.request_id)
        assert reread is not None
        slow = queries.find_job(job.channel_id, job.tag, job.request_id)
        assert slow is not None
        assert first == response_bodies.present_job(slow) == response_bodies.present_job(reread)


def test_tag_pages_match_orm() -> None:
    expected = make_every_kind()
    make_job(tag="another")
    make_job(channel="ORG_002")
    make_job(dataset="uci-private-exhaust")
    filters = Filters(expected[0].channel_id, [RESPONSE], tag="daily")
    request_ids: list[str] = []
    cursor = None
    readers = [polling.fetch_tag_page, queries.search_jobs]
    while True:
        fast, slow = (reader(filters, 4, cursor) for reader in readers)
        assert [job.pk for job in fast.jobs] == [job.pk for job in slow.jobs]
        assert [response_bodies.present_job(job) for job in fast.jobs] == [
            response_bodies.present_job(job) for job in queries.search_jobs(filters, 4, cursor).jobs
        ]
        request_ids += [job.request_id for job in fast.jobs]
        readers.reverse()
        cursor = slow.cursor
        if cursor is None:
            break
    assert request_ids == [job.request_id for job in reversed(expected)]


def test_fetch_of_foreign_job_is_none() -> None:
    job = make_job()
    other = make_channel("ORG_002").pk
    assert polling.fetch_job(other, job.tag, job.request_id) is None
    assert polling.fetch_job(job.channel_id, "another", job.request_id) is None
    assert polling.fetch_job(job.channel_id, job.tag, "0" * 32) is None
    assert polling.fetch_tag_page(Filters(other, [RESPONSE], tag=job.tag), 5, None).jobs == []
    assert polling.fetch_tag_page(Filters(job.channel_id, [], tag=job.tag), 5, None).jobs == []


def get_page(address: str, key: str, **headers: str) -> Any:
    return Client(headers={**bearer(key), **headers}).get(address)


def test_fast_read_matches_full_view() -> None:
    key = make_key("export:response")
    job = make_finished(config={**CONFIG, "more": [10**30, 1.5, "\u2028"]})
    for address in (
        f"/dataset/v1/request/read/daily?requestId={job.request_id}",
        "/dataset/v1/request/read/daily?requestId=none",
        "/dataset/v1/request/list/daily",
        "/dataset/v1/request/list/daily?limit=0",
        "/dataset/v1/request/list/daily?limit=1&cursor=x",
    ):
        get_page(address, key)  # makes the link
        for token in (key, "exh_wrong"):
            # DRF's own negotiation reads this header, the fast path does not
            fast, slow = (
                get_page(address, token, Accept=accept)
                for accept in ("*/*", "application/json;q=0.9")
            )
            assert fast.status_code == slow.status_code
            fast_body, slow_body = fast.json(), slow.json()
            for envelope in (fast_body, slow_body):
                assert envelope.pop("ts")
                assert envelope["params"].pop("resmsgid")
            assert fast_body == slow_body
            changing = {"X-Request-ID", "RateLimit"}
            assert {name: value for name, value in fast.items() if name not in changing} == {
                name: value for name, value in slow.items() if name not in changing
            } | {"Content-Length": fast["Content-Length"]}
    refused = get_page("/dataset/v1/request/list/daily", key, Accept="text/html")
    assert refused.status_code == 406
