"""Orphans of dead and overtaken attempts are removed; every other object stays."""

from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from exhaust.files import orphans, storage
from exhaust.jobs import transitions
from exhaust.models import File, Job
from tests.exhaust.factories import (
    leave_orphan,
    make_claimed,
    make_finished,
    make_job,
    stored_paths,
    unfinished_key,
)

pytestmark = pytest.mark.django_db


def test_only_orphans_are_removed(files: Path) -> None:
    # given a finished job, one at work in its second attempt, and one that failed
    done = make_finished()
    working = make_claimed()
    Job.objects.filter(pk=working.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
    heir = transitions.claim(working.pk)
    assert heir is not None
    over = make_job(status="FAILED", attempt=3)
    expected_paths = {
        File.objects.get(job=done).key,
        leave_orphan(heir, 2),
        unfinished_key(heir, 2),
    }

    # and objects and drafts of other attempts, in both areas
    for job, attempt in ((done, 1), (heir, 1), (over, 3), (over, 1)):
        leave_orphan(job, attempt)
        unfinished_key(job, attempt)
        leave_orphan(job, attempt, area="private")
    leave_orphan(Job(pk=heir.pk + 1000), 1)

    # when
    removed = sum(orphans.remove_all())

    # then
    assert set(stored_paths(files)) == expected_paths
    assert removed == 13
    assert sum(orphans.remove_all()) == 0


def test_remove_for_jobs_spares_others(files: Path) -> None:
    first, second = make_job(status="FAILED"), make_job(status="FAILED")
    leave_orphan(first, 1)
    other = leave_orphan(second, 1)
    # the number of one is the beginning of the other's
    longer = leave_orphan(Job(pk=int(f"{first.pk}0")), 1)

    assert orphans.remove_for_jobs(first.pk) == 1
    assert set(stored_paths(files)) == {other, longer}


def test_foreign_objects_stay(files: Path) -> None:
    # given files that no attempt can have made
    foreign = ["response/notes.txt", "response/12/readme.csv", "other/1/1-abc.csv", "response/1/x"]
    for name in foreign:
        path = files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("somebody's")

    assert sum(orphans.remove_all()) == 0
    assert stored_paths(files) == sorted(foreign)


def test_expired_file_left_behind_is_removed(files: Path) -> None:
    job = make_finished()
    File.objects.filter(job=job).update(deleted_at=timezone.now())
    assert sum(orphans.remove_all()) == 1
    assert stored_paths(files) == []


def test_empty_storage_has_no_orphans() -> None:
    assert list(storage.get_storage().list_keys("response/")) == []
    assert sum(orphans.remove_all()) == 0
