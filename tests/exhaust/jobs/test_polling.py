"""The fast path reads the same values as the ORM."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from exhaust.api import job_bodies
from exhaust.delivery import callbacks
from exhaust.files import links
from exhaust.jobs import polling, queries, submit, transitions
from exhaust.jobs.polling import JobKey, PageKey
from exhaust.jobs.queries import Filters
from exhaust.models import Callback, File, Job, Link
from tests.conftest import make_channel
from tests.exhaust.factories import (
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
    shared = make_finished()
    links.share(shared.files.get(), 3600)
    links.create(shared.files.get(), timezone.now() + timedelta(hours=1))
    deleted = make_finished()
    File.objects.filter(job=deleted).update(deleted_at=timezone.now())
    withdrawn = make_finished()
    File.objects.filter(job=withdrawn).update(withdrawn_at=timezone.now())
    make_file(withdrawn).save()
    return [
        *waiting, delayed, running, failed, cancelled, called_back, in_parts, linked, used, shared,
        deleted, withdrawn,
    ]  # fmt: skip


def test_fetch_matches_orm() -> None:
    for job in make_every_kind():
        fast = polling.fetch_job(job.channel_id, job.tag, job.request_id)
        slow = queries.find_job(job.channel_id, job.tag, job.request_id)
        assert fast is not None
        assert slow is not None
        first = job_bodies.present_job(fast)  # it may make a link, which the next one shows
        reread = polling.fetch_job(job.channel_id, job.tag, job.request_id)
        assert reread is not None
        slow = queries.find_job(job.channel_id, job.tag, job.request_id)
        assert slow is not None
        assert first == job_bodies.present_job(slow) == job_bodies.present_job(reread)


def test_tag_pages_match_orm() -> None:
    expected = make_every_kind()
    make_job(tag="another")
    make_job(channel="ORG_002")
    make_job(dataset="uci-private-exhaust")
    filters = Filters(expected[0].channel_id, [RESPONSE], tag_or_conversation="daily")
    request_ids: list[str] = []
    cursor = None
    readers = [polling.fetch_page, queries.search_jobs]
    while True:
        fast, slow = (reader(filters, 4, cursor) for reader in readers)
        assert [job.pk for job in fast.jobs] == [job.pk for job in slow.jobs]
        assert [job_bodies.present_job(job) for job in fast.jobs] == [
            job_bodies.present_job(job) for job in queries.search_jobs(filters, 4, cursor).jobs
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
    for channel, datasets in ((other, [RESPONSE]), (job.channel_id, [])):
        filters = Filters(channel, datasets, tag_or_conversation=job.tag)
        assert polling.fetch_page(filters, 5, None).jobs == []


def read_versions(keys: Sequence[JobKey | PageKey]) -> list[list[str]]:
    async def read() -> list[list[str]]:
        reader = polling.VersionReader()
        try:
            return await reader.read(keys)
        finally:
            reader.close()

    return asyncio.run(read())


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_group_keeps_channels_apart() -> None:
    # given the same names in two channels, and a job that one of them has alone
    own, other = (
        make_finished(channel=channel, request_id="A" * 32) for channel in ("ORG_001", "ORG_002")
    )
    alone = make_job(channel="ORG_002")
    keys = [JobKey(job.channel_id, job.tag, job.request_id) for job in (own, other, own, alone)]
    foreign = JobKey(own.channel_id, alone.tag, alone.request_id)
    pages = [
        PageKey(Filters(channel, [RESPONSE], tag_or_conversation="daily"), 10)
        for channel in (own.channel_id, other.channel_id)
    ]

    # when
    jobs = polling.fetch_jobs([foreign, *keys])
    versions = read_versions([foreign, *keys, *pages])

    # then each has the rows of its own channel
    assert [job and job.pk for job in jobs] == [None, own.pk, other.pk, own.pk, alone.pk]
    assert [job and job.channel.identifier for job in jobs] == [
        None, "ORG_001", "ORG_002", "ORG_001", "ORG_002",
    ]  # fmt: skip
    assert versions[:5] == [[job.version] if job else [] for job in jobs]
    found = polling.fetch_pages(pages)
    assert [[job.pk for job in page.jobs] for page in found] == [[own.pk], [alone.pk, other.pk]]
    assert versions[5:] == [[job.version for job in page.jobs] for page in found]


CHANGES: dict[str, Callable[[Job], object]] = {
    "job": lambda job: Job.objects.filter(pk=job.pk).update(status_message="New."),
    "file": lambda job: job.files.update(deleted_at=timezone.now()),
    "link": lambda job: links.revoke(Link.objects.filter(file__job=job)),
    "second link": lambda job: links.create(job.files.get(), timezone.now() + timedelta(hours=1)),
    "expiry": lambda job: Link.objects.filter(file__job=job).update(expires_at=timezone.now()),
    "use": lambda job: Link.objects.filter(file__job=job).update(use_count=1),
    "callback": lambda job: Callback.objects.filter(job=job).update(attempt=3),
    "delivery": lambda job: job.deliveries.filter(kind="files").update(error="full"),
}


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_change_makes_another_version(change: Callable[[Job], object]) -> None:
    job = make_finished(callback_url="https://example.org/told", deliver_to="nowhere")
    callbacks.create_callback(job)
    links.create(job.files.get(), timezone.now() + timedelta(hours=1))
    keys = [JobKey(job.channel_id, job.tag, job.request_id)]
    before = read_versions(keys)

    change(job)

    assert read_versions(keys) != before


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_page_of_a_tag_reads_its_own_jobs() -> None:
    # given a channel whose jobs share their conversation, as where it has one bot
    job = make_job(tag="some", request_id="A" * 32)
    others = [
        Job(channel_id=job.channel_id, tag=f"day-{n}", request_id=f"{n:032}", dataset=RESPONSE,
            config=job.config, fingerprint=job.fingerprint, requested_by="asha")
        for n in range(3_000)
    ]  # fmt: skip
    Job.objects.bulk_create(others)
    pages = [
        PageKey(Filters(job.channel_id, [RESPONSE], tag_or_conversation=name), 10)
        for name in ("some", "day-7", "none")
    ]

    with connection.cursor() as cursor:
        cursor.execute("ANALYZE exhaust_job")
        with transaction.atomic():
            found = polling.fetch_pages(pages)
            cursor.execute(
                "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables"
                " WHERE relname = 'exhaust_job'"
            )
            rows_read = cursor.fetchone()[0]

    assert [len(page.jobs) for page in found] == [1, 1, 0]
    assert rows_read < 100


@pytest.mark.postgresql
def test_plans_of_few_values_are_kept() -> None:
    """To plan for the values of each call took ten times as long as to execute."""
    job = make_finished()
    filters = Filters(job.channel_id, [RESPONSE], tag_or_conversation=job.tag)
    for _ in range(15):  # psycopg prepares at the fifth, and PostgreSQL decides five later
        polling.fetch_job(job.channel_id, job.tag, job.request_id)
        polling.fetch_page(filters, 10, None)

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT generic_plans > 0 FROM pg_prepared_statements"
            " WHERE statement LIKE '%%WITH ORDINALITY%%'"
        )
        assert cursor.fetchall() == [(True,), (True,)]


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_shared_link_makes_no_other_version() -> None:
    job = make_finished()
    keys = [JobKey(job.channel_id, job.tag, job.request_id)]
    before = read_versions(keys)
    links.share(job.files.get())
    Link.objects.update(use_count=1)
    assert read_versions(keys) == before


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_queue_and_clock_make_other_versions() -> None:
    job = make_job()
    keys = [JobKey(job.channel_id, job.tag, job.request_id)]
    versions = [read_versions(keys)]
    make_job(submitted_at=job.submitted_at - timedelta(hours=1))
    versions.append(read_versions(keys))
    Job.objects.filter(pk=job.pk).update(due_at=timezone.now() + timedelta(hours=1))
    versions.append(read_versions(keys))

    assert [version.split(",")[2:4] for ((version,),) in versions] == [
        ["f", "1"], ["f", "2"], ["t", "2"],
    ]  # fmt: skip
