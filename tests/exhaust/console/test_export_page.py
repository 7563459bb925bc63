"""The page of one export: its links, timeline, remedies, tabs and deletion."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from exhaust.console import export_page
from exhaust.files import links, storage
from exhaust.jobs import submit, transitions, withdrawal
from exhaust.models import File, Job, Link
from ingest.models import AuditEvent, Channel
from tests.exhaust.console.test_console import C, job_path, read_html, sign_in
from tests.exhaust.factories import (
    CONFIG,
    PRIVATE,
    make_claimed,
    make_file,
    make_finished,
    make_job,
    make_submission,
    stored_paths,
)

pytestmark = pytest.mark.django_db
ACT = f"{C}/exports/act"


@pytest.fixture
def asha() -> Client:
    """May request responses only."""
    return sign_in(submit_response=True)


# Sharing ------------------------------------------------------------------------------------------


def test_share_link_lifecycle(asha: Client) -> None:
    job = make_finished()
    form = {"seconds": "3600", "uses": "10"}
    assert asha.post(job_path(job, "/files/1/link"), form)["Location"] == job_path(job) + "#link-1"
    first = Link.objects.get()
    page = read_html(asha.get(job_path(job)))
    assert links.build_url(first) in page
    assert 'data-expires="' in page
    assert "downloads: 0 of 10" in page
    assert "by asha" in page

    # when it has expired, then its address is gone and another one can be made
    Link.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    page = read_html(asha.get(job_path(job)))
    assert links.build_url(first) not in page
    assert '<span class="pill">Expired</span>' in page
    asha.post(job_path(job, "/files/1/link"))
    asha.post(job_path(job, "/files/1/link"))
    second, third = Link.objects.order_by("pk")[1:]

    # when one is revoked, then the other one still works
    revoked = asha.post(job_path(job, "/files/1/revoke"), {"link": second.pk}, follow=True)
    page = read_html(revoked)
    assert "Link revoked." in page
    assert '<span class="pill">Revoked</span>' in page
    assert links.build_url(third) in page
    read_html(asha.post(job_path(job, "/files/1/revoke"), follow=True))  # all of them
    assert "no link to revoke" in read_html(
        asha.post(job_path(job, "/files/1/revoke"), {"link": third.pk}, follow=True)
    )


def test_used_up_link_says_so(asha: Client) -> None:
    job = make_finished()
    asha.post(job_path(job, "/files/1/link"), {"uses": "1"})
    path = links.build_url(Link.objects.get()).removeprefix(settings.EXHAUST_PUBLIC_URL)
    assert b"".join(Client().get(path)) == b"a,b\n1,2\n"

    page = read_html(asha.get(job_path(job)))

    assert '<span class="pill">Used up</span>' in page
    assert "downloads: 1 of 1" in page


def test_links_of_a_file_are_limited(asha: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_SHARED", 2)
    monkeypatch.setattr(links, "MAX_UNUSABLE", 1)
    job = make_finished()
    for _ in range(2):
        asha.post(job_path(job, "/files/1/link"))
    refused = asha.post(job_path(job, "/files/1/link"), follow=True)
    assert "has 2 links that work; revoke one first" in read_html(refused)
    assert Link.objects.count() == 2

    Link.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    asha.post(job_path(job, "/files/1/link"))
    assert Link.objects.count() == 2  # the newest expired one, and the new one


def test_link_of_other_file_is_kept(asha: Client) -> None:
    job, other = make_finished(), make_finished(tag="other")
    link = links.get_or_create(other.files.get())
    assert link is not None

    asha.post(job_path(job, "/files/1/revoke"), {"link": link.pk})
    asha.post(job_path(job, "/files/1/revoke"), {"link": "9" * 30})

    link.refresh_from_db()
    assert link.revoked_at is None


# Files that are gone ------------------------------------------------------------------------------


def test_withdrawn_file_is_remade_on_retry(asha: Client) -> None:
    job = make_finished()
    File.objects.update(withdrawn_at=timezone.now())
    Job.objects.update(status_message=withdrawal.WITHDRAWN_MESSAGE)
    page = read_html(asha.get(job_path(job)))
    assert "withdrew consent" in page
    assert "Retry the export for a new file" in page
    assert asha.get(job_path(job, "/files/1")).status_code == 404
    assert "Withdrawn" in read_html(asha.get(f"{C}/exports"))
    assert "Export queued again" in read_html(asha.post(job_path(job, "/retry"), follow=True))


def test_expired_file_says_so(asha: Client) -> None:
    job = make_finished()
    File.objects.update(deleted_at=timezone.now())
    page = read_html(asha.get(job_path(job)))
    assert "We deleted this file" in page
    assert "/files/1" not in page
    assert asha.get(job_path(job, "/files/1")).status_code == 410
    asha.post(job_path(job, "/files/1/link"))
    assert Link.objects.count() == 0
    assert "Expired" in read_html(asha.get(f"{C}/exports"))


def test_delete_asks_first(asha: Client, files: Path) -> None:
    job = make_finished()
    form = {"job": job.pk, "page": "1", "act": "delete"}

    page = read_html(asha.post(ACT, form))

    assert "Delete the files of this export?" in page
    assert stored_paths(files) != []
    assert File.objects.get().is_available


def test_delete_files(asha: Client, files: Path) -> None:
    # given an export with a link
    job = make_finished()
    link = links.get_or_create(job.files.get())
    assert link is not None
    path = links.build_url(link).removeprefix(settings.EXHAUST_PUBLIC_URL)

    # when its files are deleted
    form = {"job": job.pk, "page": "1", "act": "delete", "confirmed": "1"}
    page = read_html(asha.post(ACT, form, follow=True))

    # then the bytes and the link are gone, the record says who did it, and a retry makes another
    assert "The files of 1 export are deleted." in page
    assert "Deleted by asha" in page
    assert stored_paths(files) == []
    assert "deleted" in read_html(Client().get(path), 410)
    event = AuditEvent.objects.get(action="file.deleted")
    assert (event.actor, event.channel, event.subject) == ("asha", "ORG_001", job.request_id)
    assert event.details == {"dataset": job.dataset, "job": job.pk, "count": 1}
    assert "Deleted" in read_html(asha.get(f"{C}/exports"))
    again = read_html(asha.post(ACT, form, follow=True))
    assert "1 export is unchanged: The export has no file to delete." in again
    assert "Export queued again" in read_html(asha.post(job_path(job, "/retry"), follow=True))


def test_deleted_export_runs_again_if_requested(asha: Client) -> None:
    job = submit.submit(make_submission())
    assert transitions.claim(job.pk)
    job.refresh_from_db()
    transitions.publish(job, [make_file(job)], "")

    asha.post(ACT, {"job": job.pk, "act": "delete", "confirmed": "1"})

    repeated = submit.submit(make_submission())
    assert (repeated.pk, repeated.status, repeated.is_existing) == (job.pk, "SUBMITTED", False)


def test_storage_outage_keeps_deletion_due(
    asha: Client, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_finished()

    def fail(*_: Any) -> None:
        raise storage.StorageOutage("no storage")

    monkeypatch.setattr(type(storage.get_storage()), "delete", fail)
    asha.post(ACT, {"job": job.pk, "act": "delete", "confirmed": "1"})

    file = File.objects.get()
    assert file.withdrawn_at is not None
    assert file.deleted_at is None  # the sweep deletes it
    assert asha.get(job_path(job, "/files/1")).status_code == 404


def test_delete_needs_the_right(asha: Client) -> None:
    make_finished(dataset=PRIVATE)
    make_finished(channel="ORG_002")

    for job in Job.objects.all():
        page = asha.post(ACT, {"job": job.pk, "act": "delete", "confirmed": "1"}, follow=True)
        assert "Choose at least one export." in read_html(page)

    assert not File.objects.exclude(withdrawn_at=None).exists()


# Status and remedies ------------------------------------------------------------------------------


def test_failed_export_says_what_to_do(asha: Client) -> None:
    # an attempt that another one would repeat
    job = make_claimed()
    transitions.fail(job, "The rows do not go into one sheet.", permanent=True)
    page = read_html(asha.get(job_path(job)))
    assert "Export failed: The rows do not go into one sheet." in page
    assert "Duplicate the export and change what the reason names" in page
    assert "Retry" in page

    # the last of all attempts
    job = make_job(tag="tried", status="FAILED", attempt=3, status_message="No answer.")
    page = read_html(asha.get(job_path(job)))
    assert "send your administrator this request ID" in page
    assert f'data-copy="{job.request_id}"' in page

    # a password that nobody kept
    Job.objects.update(encryption="password")
    page = read_html(asha.get(job_path(job)))
    assert "type the password again" in page
    assert "/retry" not in page


def test_timeline_has_seconds_and_durations(asha: Client) -> None:
    job = make_finished()
    submitted_at = timezone.now() - timedelta(seconds=90)
    Job.objects.update(submitted_at=submitted_at)
    started, ended = job.transitions.order_by("pk")
    started.changed_at, ended.changed_at = (
        submitted_at + timedelta(seconds=2.5),
        submitted_at + timedelta(seconds=85),
    )
    started.save(), ended.save()

    page = read_html(asha.get(job_path(job)))

    assert "data-seconds" in page
    assert "after 2.5 s" in page
    assert "after 1 min 22 s" in page


def test_timeline_of_a_retried_export() -> None:
    job = make_claimed()
    transitions.fail(job, "No.", permanent=True)
    transitions.resubmit(job)
    job.refresh_from_db()

    first, *others = export_page.list_steps(job)

    assert first.at is None  # the retry moved it
    assert [step.label for step in others] == ["Running", "Failed", "Queued"]


# Tabs ---------------------------------------------------------------------------------------------


def test_columns_tab_describes_the_file(asha: Client) -> None:
    job = make_finished(config=CONFIG | {"columns": ["Timestamp", "Device ID"]})
    page = read_html(asha.get(job_path(job, "?tab=columns")))
    assert re.findall('<th scope="row">([^<]*)', page) == ["Timestamp", "Device ID"]
    assert ">time</td>" in page
    assert ">yes</td>" in page

    job = make_finished(tag="survey", dataset="uci-survey-exhaust")
    assert "further columns" in read_html(asha.get(job_path(job, "?tab=columns")))
    assert asha.get(job_path(make_job(tag="x"), "?tab=lost")).status_code == 404


def test_downloads_tab_needs_audit(asha: Client) -> None:
    job, other = make_finished(), make_finished(tag="other")
    link = links.get_or_create(job.files.get())
    assert link is not None
    path = links.build_url(link).removeprefix(settings.EXHAUST_PUBLIC_URL)
    b"".join(Client().get(path))
    for each in (job, other):
        b"".join(asha.get(job_path(each, "/files/1")))
    assert "?tab=downloads" not in read_html(asha.get(job_path(job)))
    assert asha.get(job_path(job, "?tab=downloads")).status_code == 404

    auditor = sign_in("uma", submit_response=True, audit=True)
    page = read_html(auditor.get(job_path(job, "?tab=downloads")))

    assert page.count(">127.0.0.0/24</td>") == 2
    assert ">asha</td>" in page
    assert "A share link of" in page


def test_programs_tab_has_no_password(asha: Client) -> None:
    job = make_job(encryption="password", callback_url="https://example.org/x")
    page = read_html(asha.get(job_path(job, "?tab=api")))
    assert "$EXHAUST_KEY" in page
    assert page.count("EXHAUST_FILE_PASSWORD") > 2
    assert Channel.objects.get().identifier in page
