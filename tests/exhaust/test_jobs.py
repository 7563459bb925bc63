"""The state machine: each move from each state, who wins, and when it tries again."""

import random
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from exhaust import jobs
from exhaust.models import File, Job
from tests.exhaust.factories import make_claimed, make_file, make_job, row_of

HOUR = timedelta(hours=1)


def _state(job: Job, **values: Any) -> Job:
    Job.objects.filter(pk=job.pk).update(**values)
    job.refresh_from_db()
    return job


# Each state a job can stand in, as a row, and who holds it.
STATES: dict[str, Callable[[], Job]] = {
    "waiting": make_job,
    "delayed": lambda: _state(make_job(), due_at=timezone.now() + HOUR, attempt=1),
    "working": make_claimed,
    "lapsed": lambda: _state(make_claimed(), lease_until=timezone.now() - HOUR),
    "exhausted": lambda: _state(make_claimed(), lease_until=timezone.now() - HOUR, attempt=3),
    "done": lambda: _state(make_claimed(), status="SUCCESS", lease_until=None),
    "failed": lambda: _state(make_claimed(), status="FAILED", lease_until=None, attempt=3),
}
MOVES: dict[str, Callable[[Job], Any]] = {
    "claim": lambda job: jobs.claim(job.pk),
    "renew": lambda job: jobs.renew(job, 5),
    "mark": lambda job: jobs.mark(job, 77, 9),
    "publish": lambda job: jobs.publish(job, [make_file(job)], "made"),
    "fail": lambda job: jobs.fail(job, "cause"),
    "fail for ever": lambda job: jobs.fail(job, "cause", permanent=True),
    "reap": lambda _job: jobs.reap(),
    "resubmit": jobs.resubmit,
    "hasten": jobs.hasten,
}
# The legal moves and where they lead; every other pair changes nothing.
LEGAL: dict[tuple[str, str], str] = {
    ("claim", "waiting"): "PROCESSING",
    ("claim", "lapsed"): "PROCESSING",
    # a lease that nobody took over is still its holder's
    **{
        (move, state): "PROCESSING"
        for move in ("renew", "mark")
        for state in ("working", "lapsed", "exhausted")
    },
    **{("publish", state): "SUCCESS" for state in ("working", "lapsed", "exhausted")},
    ("fail", "working"): "SUBMITTED",
    ("fail", "lapsed"): "SUBMITTED",
    ("fail", "exhausted"): "FAILED",
    **{("fail for ever", state): "FAILED" for state in ("working", "lapsed", "exhausted")},
    ("reap", "exhausted"): "FAILED",
    ("resubmit", "failed"): "SUBMITTED",
    ("hasten", "waiting"): "SUBMITTED",
    ("hasten", "delayed"): "SUBMITTED",
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.django_db
def test_moves(move: str, state: str) -> None:
    # given a job in a state
    job = STATES[state]()
    before = row_of(job)

    # when
    answer = MOVES[move](job)

    # then a legal move leads where it should, and any other changes nothing
    after = row_of(job)
    if (move, state) in LEGAL:
        assert answer
        assert after["status"] == LEGAL[move, state]
        assert after != before
    else:
        assert not answer
        assert after == before
    published = move == "publish" and (move, state) in LEGAL
    assert File.objects.count() == (1 if published else 0)


@pytest.mark.parametrize("move", ["renew", "mark", "publish", "fail", "fail for ever"])
@pytest.mark.django_db
def test_a_zombie_changes_nothing(move: str) -> None:
    # given an attempt whose lease lapsed and was taken over
    zombie = _state(make_claimed(), lease_until=timezone.now() - HOUR)
    heir = jobs.claim(zombie.pk)
    assert heir is not None
    assert (zombie.attempt, heir.attempt) == (1, 2)
    before = row_of(heir)

    # when the first one wakes up
    answer = MOVES[move](zombie)

    # then it is refused, and the heir goes on
    assert answer is False
    assert row_of(heir) == before
    assert File.objects.count() == 0
    assert jobs.publish(heir, [make_file(heir)], "")
    assert File.objects.count() == 1


@pytest.mark.parametrize("ending", ["publish", "fail", "fail for ever"])
@pytest.mark.django_db
def test_an_ending_happens_once(ending: str) -> None:
    # given an attempt that ended
    job = make_claimed()
    assert MOVES[ending](job)
    before = row_of(job)

    # when it ends again, in any way
    answers = [MOVES[move](job) for move in ("publish", "fail", "fail for ever", "renew")]

    # then nothing changes any more
    assert answers == [False] * 4
    assert row_of(job) == before
    assert File.objects.count() == (1 if ending == "publish" else 0)


@pytest.mark.django_db
def test_claim_stamps_attempt_and_lease() -> None:
    # given a job that got some way in an earlier attempt
    job = _state(make_job(), rows_done=40)

    # when
    claimed = jobs.claim()

    # then
    assert claimed is not None
    assert claimed.pk == job.pk
    assert (claimed.status, claimed.attempt, claimed.rows_done) == ("PROCESSING", 1, 0)
    assert claimed.started_at is not None
    assert claimed.lease_until is not None
    left = (claimed.lease_until - timezone.now()).total_seconds()
    assert 25 < left <= 30


@pytest.mark.django_db
def test_claim_takes_the_oldest_due() -> None:
    # given one not due, and two due of which the newer was made first
    now = timezone.now()
    make_job(submitted_at=now - 3 * HOUR, due_at=now + HOUR)
    newer = make_job(submitted_at=now - HOUR)
    older = make_job(submitted_at=now - 2 * HOUR)

    # when all that is due is claimed
    claimed = [jobs.claim(), jobs.claim(), jobs.claim()]

    # then it goes by age, and the one that is not due stays
    assert [job.pk for job in claimed if job] == [older.pk, newer.pk]
    assert claimed[2] is None


@pytest.mark.django_db
def test_claim_of_nothing_is_none() -> None:
    assert jobs.claim() is None
    assert jobs.claim(12345) is None


@pytest.mark.django_db
def test_a_lease_not_lapsed_is_not_taken_over() -> None:
    # given a job in work, its lease running
    job = _state(make_claimed(), lease_until=timezone.now() + timedelta(seconds=3))

    # when / then
    assert jobs.claim() is None
    assert not jobs.due().exists()

    # and once it lapsed it is
    _state(job, lease_until=timezone.now() - timedelta(seconds=1))
    heir = jobs.claim()
    assert heir is not None
    assert (heir.pk, heir.attempt) == (job.pk, 2)


@pytest.mark.django_db
def test_renew_lengthens_the_lease_and_tells_the_rows() -> None:
    # given a lease with a second left
    job = _state(make_claimed(), lease_until=timezone.now() + timedelta(seconds=1))

    # when
    assert jobs.renew(job, 1234)

    # then
    job.refresh_from_db()
    assert job.rows_done == 1234
    assert job.lease_until is not None
    assert 25 < (job.lease_until - timezone.now()).total_seconds() <= 30


@pytest.mark.django_db
def test_three_attempts_and_then_failed() -> None:
    # given a job
    job = make_job()

    # when every attempt fails
    statuses = []
    for _ in range(3):
        jobs.hasten(job)
        claimed = jobs.claim(job.pk)
        assert claimed is not None
        assert jobs.fail(claimed, "The file could not be stored.")
        statuses.append(row_of(job)["status"])

    # then the third is the last
    assert statuses == ["SUBMITTED", "SUBMITTED", "FAILED"]
    jobs.hasten(job)
    assert jobs.claim(job.pk) is None
    after = row_of(job)
    assert (after["attempt"], after["status_message"]) == (3, "The file could not be stored.")
    assert after["completed_at"] is not None
    assert after["lease_until"] is None


@pytest.mark.parametrize(
    ("attempt", "limit", "seconds"), [(1, 3, 10), (2, 3, 40), (4, 6, 10), (5, 6, 40)]
)
@pytest.mark.parametrize("chance", ["least", "most", "any"])
@pytest.mark.django_db
def test_delay_grows_within_its_bounds(
    attempt: int, limit: int, seconds: int, chance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an attempt, and luck at either end
    if chance != "any":
        monkeypatch.setattr(random, "uniform", lambda low, high: low if chance == "least" else high)
    job = _state(make_claimed(), attempt=attempt, attempt_limit=limit)

    # when it fails
    assert jobs.fail(job, "cause")

    # then the next one waits that long, give or take a quarter
    job.refresh_from_db()
    waits = (job.due_at - timezone.now()).total_seconds()
    low, high = {"least": (0.75, 0.75), "most": (1.25, 1.25), "any": (0.75, 1.25)}[chance]
    assert seconds * low - 2 < waits <= seconds * high
    assert jobs.claim(job.pk) is None


@pytest.mark.django_db
def test_permanent_fails_at_the_first_attempt() -> None:
    # given a job in its first attempt
    job = make_claimed()

    # when it fails in a way that another attempt cannot help
    assert jobs.fail(job, "There is no dataset x any more.", permanent=True)

    # then it is over
    after = row_of(job)
    assert (after["status"], after["attempt"]) == ("FAILED", 1)
    assert after["status_message"] == "There is no dataset x any more."
    assert not jobs.due().exists()


@pytest.mark.django_db
def test_reap_fails_what_died_in_its_last_attempt_only() -> None:
    # given one of each state
    made = {name: make() for name, make in STATES.items()}
    before = {name: row_of(job) for name, job in made.items()}

    # when / then it is one, and only once
    assert jobs.reap() == 1
    assert jobs.reap() == 0
    changed = {name for name, job in made.items() if row_of(job) != before[name]}
    assert changed == {"exhausted"}
    after = row_of(made["exhausted"])
    assert after["status_message"] == (
        "The work stopped without a result too often. Send the request again."
    )
    assert after["completed_at"] is not None


@pytest.mark.django_db
def test_publish_counts_rows_and_time() -> None:
    # given an attempt that began two seconds ago
    job = _state(make_claimed(), started_at=timezone.now() - timedelta(seconds=2))

    # when it publishes two files
    parts = [make_file(job, row_count=3), make_file(job, row_count=4, part=2)]
    assert jobs.publish(job, parts, "")

    # then
    after = row_of(job)
    assert (after["status"], after["rows_done"], after["rows_estimated"]) == ("SUCCESS", 7, 7)
    assert 2000 <= after["execution_ms"] < 10_000
    assert after["lease_until"] is None
    assert list(File.objects.order_by("part").values_list("row_count", flat=True)) == [3, 4]


@pytest.mark.parametrize(
    ("state", "attempt", "shown"),
    [
        ("SUBMITTED", 0, 0),
        ("PROCESSING", 1, 0),
        ("SUCCESS", 1, 0),
        ("SUBMITTED", 1, 1),
        ("PROCESSING", 2, 1),
        ("SUCCESS", 3, 2),
        ("FAILED", 1, 1),
        ("FAILED", 3, 3),
    ],
)
def test_attempts_as_shown_are_those_without_a_file(state: str, attempt: int, shown: int) -> None:
    assert jobs.failed_attempts(Job(status=state, attempt=attempt)) == shown


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_eight_workers_claim_two_hundred_jobs_once_each() -> None:
    # given two hundred jobs
    for _ in range(200):
        make_job()
    assert Job.objects.count() == 200
    claimed: list[tuple[int, int]] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while job := jobs.claim():
                claimed.append((job.pk, job.attempt))
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    # when eight workers claim until nothing is due
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    # then every job was claimed once
    assert errors == []
    assert len(claimed) == 200
    assert len({pk for pk, _ in claimed}) == 200
    assert {attempt for _, attempt in claimed} == {1}
