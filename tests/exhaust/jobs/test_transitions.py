"""The state machine: each transition from each state, races, and retries."""

import random
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from exhaust.jobs import backoff, transitions
from exhaust.models import File, Job, Transition
from tests.exhaust.factories import fetch_job_row, make_claimed, make_file, make_job

HOUR = timedelta(hours=1)


def make_state(job: Job, **values: Any) -> Job:
    Job.objects.filter(pk=job.pk).update(**values)
    job.refresh_from_db()
    return job


# Each state of a job, as a row with its worker.
STATES: dict[str, Callable[[], Job]] = {
    "waiting": make_job,
    "delayed": lambda: make_state(make_job(), due_at=timezone.now() + HOUR, attempt=1),
    "working": make_claimed,
    "lapsed": lambda: make_state(make_claimed(), lease_until=timezone.now() - HOUR),
    "exhausted": lambda: make_state(make_claimed(), lease_until=timezone.now() - HOUR, attempt=3),
    "done": lambda: make_state(make_claimed(), status="SUCCESS", lease_until=None),
    "failed": lambda: make_state(make_claimed(), status="FAILED", lease_until=None, attempt=3),
    "cancelled": lambda: make_state(make_claimed(), status="CANCELLED"),
}
MOVES: dict[str, Callable[[Job], Any]] = {
    "claim": lambda job: transitions.claim(job.pk),
    "renew": lambda job: transitions.renew(job, 5),
    "mark": lambda job: transitions.set_watermark(job, 77, 9),
    "publish": lambda job: transitions.publish(job, [make_file(job)], "made"),
    "fail": lambda job: transitions.fail(job, "cause"),
    "fail for ever": lambda job: transitions.fail(job, "cause", permanent=True),
    "reap": lambda _job: transitions.fail_expired(),
    "resubmit": transitions.resubmit,
    "hasten": transitions.run_now,
    "cancel": lambda job: transitions.cancel(job, "Cancelled by asha."),
}
# The legal transitions and their results; every other pair changes no row.
LEGAL: dict[tuple[str, str], str] = {
    ("claim", "waiting"): "PROCESSING",
    ("claim", "lapsed"): "PROCESSING",
    # an expired lease that was not taken over is still its worker's
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
    ("resubmit", "cancelled"): "SUBMITTED",
    **{
        ("cancel", state): "CANCELLED"
        for state in ("waiting", "delayed", "working", "lapsed", "exhausted")
    },
    ("hasten", "waiting"): "SUBMITTED",
    ("hasten", "delayed"): "SUBMITTED",
}


# whether a state has history: those made by a claim have
HISTORY = {state: state not in {"waiting", "delayed"} for state in STATES}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.django_db
def test_moves(move: str, state: str) -> None:
    # given a job in a state
    job = STATES[state]()
    before = fetch_job_row(job)

    # when
    answer = MOVES[move](job)

    # then a legal transition has its result, and any other changes no row
    after = fetch_job_row(job)
    if (move, state) in LEGAL:
        assert answer
        assert after["status"] == LEGAL[move, state]
        assert after != before
    else:
        assert not answer
        assert after == before
    # and only a change of status is in the job's history
    is_changed = after["status"] != before["status"] or (move, state) == ("claim", "lapsed")
    transitions = Transition.objects.filter(job=job).values_list("status", "attempt", "message")
    new_history = [(after["status"], after["attempt"], after["status_message"])]
    assert list(transitions)[HISTORY[state] :] == (new_history if is_changed else [])
    published = move == "publish" and (move, state) in LEGAL
    assert File.objects.count() == (1 if published else 0)


@pytest.mark.parametrize("move", ["renew", "mark", "publish", "fail", "fail for ever"])
@pytest.mark.django_db
def test_stale_attempt_changes_nothing(move: str) -> None:
    # given an attempt whose lease lapsed and was taken over
    zombie = make_state(make_claimed(), lease_until=timezone.now() - HOUR)
    heir = transitions.claim(zombie.pk)
    assert heir is not None
    assert (zombie.attempt, heir.attempt) == (1, 2)
    before = fetch_job_row(heir)

    # when the first one continues
    answer = MOVES[move](zombie)

    # then no row changes, and the new attempt continues
    assert answer is False
    assert fetch_job_row(heir) == before
    assert File.objects.count() == 0
    assert transitions.publish(heir, [make_file(heir)], "")
    assert File.objects.count() == 1


@pytest.mark.parametrize("ending", ["publish", "fail", "fail for ever"])
@pytest.mark.django_db
def test_job_ends_once(ending: str) -> None:
    # given an attempt that ended
    job = make_claimed()
    assert MOVES[ending](job)
    before = fetch_job_row(job)

    # when it ends again, in any way
    answers = [MOVES[move](job) for move in ("publish", "fail", "fail for ever", "renew")]

    # then no row changes any more
    assert answers == [False] * 4
    assert fetch_job_row(job) == before
    assert File.objects.count() == (1 if ending == "publish" else 0)


@pytest.mark.django_db
def test_claim_stamps_attempt_and_lease() -> None:
    # given a job that got some way in an earlier attempt
    job = make_state(make_job(), rows_done=40)

    # when
    claimed = transitions.claim()

    # then
    assert claimed is not None
    assert claimed.pk == job.pk
    assert (claimed.status, claimed.attempt, claimed.rows_done) == ("PROCESSING", 1, 0)
    assert claimed.started_at is not None
    assert claimed.lease_until is not None
    lease_seconds = (claimed.lease_until - timezone.now()).total_seconds()
    assert 25 < lease_seconds <= 30


@pytest.mark.django_db
def test_claim_takes_oldest_due_job() -> None:
    # given one not due, and two due of which the newer was made first
    now = timezone.now()
    make_job(submitted_at=now - 3 * HOUR, due_at=now + HOUR)
    newer = make_job(submitted_at=now - HOUR)
    older = make_job(submitted_at=now - 2 * HOUR)

    # when all that is due is claimed
    claimed = [transitions.claim(), transitions.claim(), transitions.claim()]

    # then the oldest is first, and the one that is not due waits
    assert [job.pk for job in claimed if job] == [older.pk, newer.pk]
    assert claimed[2] is None


@pytest.mark.django_db
def test_interactive_worker_skips_nightly() -> None:
    # given a nightly job that is older than an interactive one
    nightly = make_job(priority=Job.Priority.NIGHTLY, due_at=timezone.now() - HOUR)
    Job.objects.update(submitted_at=timezone.now() - HOUR)
    assert transitions.queue_wait(Job.Priority.INTERACTIVE) == timedelta()
    waited_for = make_job()

    # when
    claimed = [transitions.claim(lowest_priority=Job.Priority.INTERACTIVE) for _ in range(2)]

    # then
    assert [job and job.pk for job in claimed] == [waited_for.pk, None]
    assert transitions.queue_wait() > timedelta(minutes=59)
    heir = transitions.claim()
    assert heir is not None
    assert heir.pk == nightly.pk


@pytest.mark.django_db
def test_released_job_is_claimed_at_once() -> None:
    # given a job at one worker, another at another
    make_job(priority=Job.Priority.NIGHTLY)
    make_job()
    waited_for, nightly = transitions.claim(worker_id="a:1"), transitions.claim(worker_id="b:2")
    assert waited_for is not None
    assert nightly is not None

    # when
    assert transitions.release_all("b:2") == [Job.Priority.NIGHTLY]

    # then only that one is due, with as many attempts left as before
    assert [job.pk for job in transitions.claimable_jobs()] == [nightly.pk]
    assert transitions.renew(waited_for, 1)
    assert not transitions.renew(nightly, 1)
    assert not transitions.publish(nightly, [], "")
    heir = transitions.claim(worker_id="a:1")
    assert heir is not None
    assert (heir.pk, heir.attempt - heir.uncounted_attempts) == (nightly.pk, 1)
    assert transitions.release_all("b:2") == []


@pytest.mark.django_db
def test_claim_without_due_jobs_is_none() -> None:
    assert transitions.claim() is None
    assert transitions.claim(12345) is None


@pytest.mark.django_db
def test_valid_lease_is_not_taken_over() -> None:
    # given a job in work, its lease running
    job = make_state(make_claimed(), lease_until=timezone.now() + timedelta(seconds=3))

    # when / then
    assert transitions.claim() is None
    assert not transitions.claimable_jobs().exists()

    # and once it lapsed it is
    make_state(job, lease_until=timezone.now() - timedelta(seconds=1))
    heir = transitions.claim()
    assert heir is not None
    assert (heir.pk, heir.attempt) == (job.pk, 2)


@pytest.mark.django_db
def test_renew_extends_lease_and_counts_rows() -> None:
    # given a lease with a second left
    job = make_state(make_claimed(), lease_until=timezone.now() + timedelta(seconds=1))

    # when
    assert transitions.renew(job, 1234)

    # then
    job.refresh_from_db()
    assert job.rows_done == 1234
    assert job.lease_until is not None
    assert 25 < (job.lease_until - timezone.now()).total_seconds() <= 30


@pytest.mark.django_db
def test_job_fails_after_three_attempts() -> None:
    # given a job
    job = make_job()

    # when every attempt fails
    statuses = []
    for _ in range(3):
        transitions.run_now(job)
        claimed = transitions.claim(job.pk)
        assert claimed is not None
        assert transitions.fail(claimed, "The file could not be stored.")
        statuses.append(fetch_job_row(job)["status"])

    # then the third is the last
    assert statuses == ["SUBMITTED", "SUBMITTED", "FAILED"]
    transitions.run_now(job)
    assert transitions.claim(job.pk) is None
    after = fetch_job_row(job)
    assert (after["attempt"], after["status_message"]) == (3, "The file could not be stored.")
    assert after["completed_at"] is not None
    assert after["lease_until"] is None


@pytest.mark.parametrize(
    ("attempt", "uncounted", "seconds"), [(1, 0, 10), (2, 0, 40), (4, 3, 10), (5, 3, 40)]
)
@pytest.mark.parametrize("chance", ["least", "most", "any"])
@pytest.mark.django_db
def test_retry_delay_grows_within_bounds(
    attempt: int, uncounted: int, seconds: int, chance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an attempt, and luck at either end
    if chance != "any":
        monkeypatch.setattr(random, "uniform", lambda low, high: low if chance == "least" else high)
    job = make_state(make_claimed(), attempt=attempt, uncounted_attempts=uncounted)

    # when it fails
    assert transitions.fail(job, "cause")

    # then the next one waits that long, give or take a quarter
    job.refresh_from_db()
    delay = (job.due_at - timezone.now()).total_seconds()
    low, high = {"least": (0.75, 0.75), "most": (1.25, 1.25), "any": (0.75, 1.25)}[chance]
    assert seconds * low - 2 < delay <= seconds * high
    assert transitions.claim(job.pk) is None


@pytest.mark.django_db
def test_max_attempts_has_one_home(monkeypatch: pytest.MonkeyPatch) -> None:
    # given five attempts instead of three
    monkeypatch.setattr(backoff, "MAX_ATTEMPTS", 5)
    monkeypatch.setattr(random, "uniform", lambda low, high: 1.0)
    job = make_job()

    # when every one of them fails
    delays = []
    for _ in range(5):
        claimed = transitions.claim(job.pk)
        assert claimed is not None
        assert transitions.fail(claimed, "cause")
        job.refresh_from_db()
        delays.append(round((job.due_at - timezone.now()).total_seconds()))
        transitions.run_now(job)

    # then the job fails after the fifth, and the delays begin at the first one
    assert job.status == Job.Status.FAILED
    assert delays[:4] == [10, 40, 160, 640]


@pytest.mark.django_db
def test_permanent_failure_is_not_retried() -> None:
    # given a job in its first attempt
    job = make_claimed()

    # when it fails in a way that another attempt cannot help
    assert transitions.fail(job, "There is no dataset x any more.", permanent=True)

    # then it is over
    after = fetch_job_row(job)
    assert (after["status"], after["attempt"]) == ("FAILED", 1)
    assert after["status_message"] == "There is no dataset x any more."
    assert not transitions.claimable_jobs().exists()


@pytest.mark.django_db
def test_fail_expired_spares_first_attempts() -> None:
    # given one of each state
    jobs = {name: make() for name, make in STATES.items()}
    before = {name: fetch_job_row(job) for name, job in jobs.items()}

    # when / then it is one, and only once
    assert transitions.fail_expired() == [jobs["exhausted"].pk]
    assert transitions.fail_expired() == []
    changed = {name for name, job in jobs.items() if fetch_job_row(job) != before[name]}
    assert changed == {"exhausted"}
    after = fetch_job_row(jobs["exhausted"])
    assert after["status_message"] == (
        "Every attempt lost its worker before the file was made. Send the request again."
    )
    assert after["completed_at"] is not None


@pytest.mark.django_db
def test_publish_counts_rows_and_time() -> None:
    # given an attempt that began two seconds ago
    job = make_state(make_claimed(), started_at=timezone.now() - timedelta(seconds=2))

    # when it publishes two files
    parts = [make_file(job, row_count=3), make_file(job, row_count=4, part=2)]
    assert transitions.publish(job, parts, "")

    # then
    after = fetch_job_row(job)
    assert (after["status"], after["rows_done"], after["rows_estimated"]) == ("SUCCESS", 7, 7)
    assert 2000 <= after["execution_ms"] < 10_000
    assert after["lease_until"] is None
    assert list(File.objects.order_by("part").values_list("row_count", flat=True)) == [3, 4]


@pytest.mark.parametrize(
    ("state", "attempt", "uncounted", "worker_id", "expected"),
    [
        ("SUBMITTED", 0, 0, "", 0),
        ("PROCESSING", 1, 0, "w:1", 0),
        ("SUCCESS", 1, 0, "w:1", 0),
        ("SUBMITTED", 1, 0, "w:1", 1),
        ("PROCESSING", 2, 0, "w:1", 1),
        ("SUCCESS", 3, 0, "w:1", 2),
        ("FAILED", 1, 0, "w:1", 1),
        ("FAILED", 3, 0, "w:1", 3),
        ("CANCELLED", 0, 0, "", 0),
        ("CANCELLED", 2, 0, "w:1", 1),
        # of which an outage or an earlier submission had some, or a worker gave the last one back
        ("SUBMITTED", 7, 7, "w:1", 0),
        ("SUCCESS", 8, 6, "w:1", 1),
        ("FAILED", 9, 6, "w:1", 3),
        ("PROCESSING", 2, 1, "", 1),
        ("CANCELLED", 2, 1, "", 1),
    ],
)
def test_failed_attempts_by_state(
    state: str, attempt: int, uncounted: int, worker_id: str, expected: int
) -> None:
    has_lease = state in ("PROCESSING", "CANCELLED")
    job = Job(
        status=state,
        attempt=attempt,
        uncounted_attempts=uncounted,
        worker_id=worker_id,
        lease_until=timezone.now() if has_lease else None,
    )
    assert transitions.count_failed_attempts(job) == expected


# Turns of channels --------------------------------------------------------------------------------


def claimed_tags(count: int) -> list[str]:
    """The tags of the next jobs, as workers that end at once would take them."""
    tags = []
    for _ in range(count):
        job = transitions.claim()
        assert job is not None
        tags.append(job.tag)
        assert transitions.publish(job, [], "")
    return tags


def make_queue(*names: str, **values: Any) -> None:
    """Jobs in this order of submission; a name is "channel/tag"."""
    started_at = timezone.now() - HOUR
    for number, name in enumerate(names):
        channel, _ = name.split("/")
        at = started_at + timedelta(seconds=number)
        make_job(channel=channel, tag=name.replace("/", "-"), submitted_at=at, **values)


@pytest.mark.django_db
def test_claims_alternate_between_channels() -> None:
    # given a channel with many requests, and two channels with later ones
    make_queue("A/1", "A/2", "A/3", "A/4", "B/1", "B/2", "C/1")

    # when / then no channel waits for all requests of another
    assert claimed_tags(7) == ["A-1", "B-1", "C-1", "A-2", "B-2", "A-3", "A-4"]
    assert transitions.claim() is None


@pytest.mark.django_db
def test_interactive_goes_before_nightly() -> None:
    # given nightly ones that were first
    make_queue("A/night1", "B/night1", "A/night2", priority=Job.Priority.NIGHTLY)
    make_queue("A/day1", "A/day2")

    # when / then
    assert claimed_tags(5) == ["A-day1", "A-day2", "B-night1", "A-night1", "A-night2"]


@pytest.mark.django_db
def test_channel_limit_on_running_jobs(settings: Any) -> None:
    # given a channel with as many running as may, and more waiting
    settings.EXHAUST_MAX_RUNNING_PER_CHANNEL = 2
    make_queue("A/1", "A/2", "A/3", "B/1")
    running = [transitions.claim(), transitions.claim(), transitions.claim()]
    assert [job.tag for job in running if job] == ["A-1", "B-1", "A-2"]

    # when / then its third waits, is not counted as overdue, and runs once one has ended
    assert transitions.claim() is None
    assert not transitions.claimable_jobs().exists()
    assert transitions.queue_wait() == timedelta()
    assert running[0] is not None
    assert transitions.publish(running[0], [], "")
    third = transitions.claim()
    assert third is not None
    assert third.tag == "A-3"


@pytest.mark.django_db
def test_expired_lease_is_not_counted(settings: Any) -> None:
    # given a channel whose only worker died
    settings.EXHAUST_MAX_RUNNING_PER_CHANNEL = 1
    dead = make_claimed()
    assert transitions.claim() is None
    make_state(dead, lease_until=timezone.now() - HOUR)

    # when / then the same job continues
    heir = transitions.claim()
    assert heir is not None
    assert (heir.pk, heir.attempt) == (dead.pk, 2)


@pytest.mark.django_db
def test_claim_by_id_ignores_channel_limit(settings: Any) -> None:
    settings.EXHAUST_MAX_RUNNING_PER_CHANNEL = 1
    make_claimed()
    job = make_job()
    assert transitions.claim() is None
    assert transitions.claim(job.pk) is not None


@pytest.mark.django_db
def test_queue_wait_of_oldest_due_job() -> None:
    assert transitions.queue_wait() == timedelta()
    make_job(due_at=timezone.now() + HOUR, submitted_at=timezone.now() - 9 * HOUR)
    make_claimed(submitted_at=timezone.now() - 8 * HOUR)
    make_job(due_at=timezone.now() - 2 * HOUR, submitted_at=timezone.now() - 3 * HOUR)
    make_job()
    wait = transitions.queue_wait()
    assert timedelta(0) <= wait - 2 * HOUR < timedelta(minutes=1)

    # and one whose worker died counts from the end of its lease, however old it is
    Job.objects.all().delete()
    make_state(
        make_claimed(submitted_at=timezone.now() - 8 * HOUR), lease_until=timezone.now() - HOUR
    )
    assert timedelta(0) <= transitions.queue_wait() - HOUR < timedelta(minutes=1)


def run_six_threads(work: Callable[[], None]) -> None:
    """Runs the work in six threads that begin together; none may fail."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(6)

    def run_and_close() -> None:
        try:
            barrier.wait()
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    connections.close_all()  # this thread's, or the pool of six lacks one
    threads = [threading.Thread(target=run_and_close) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_parallel_claims_keep_channel_limit(settings: Any) -> None:
    # given two channels with plenty of work, and a share of two
    settings.EXHAUST_MAX_RUNNING_PER_CHANNEL = 2
    for number in range(20):
        make_job(channel="A" if number % 2 else "B", tag=str(number))
    claimed: list[Job] = []

    def work() -> None:
        for _ in range(3):
            if job := transitions.claim():
                claimed.append(job)

    # when six workers claim at once
    run_six_threads(work)

    # then each channel runs two
    assert sorted(job.channel.identifier for job in claimed) == ["A", "A", "B", "B"]


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_parallel_claims_take_each_job_once(settings: Any) -> None:
    # given two hundred jobs that may all run
    settings.EXHAUST_MAX_RUNNING_PER_CHANNEL = 200
    for _ in range(200):
        make_job()
    assert Job.objects.count() == 200
    claimed: list[tuple[int, int]] = []

    def work() -> None:
        while job := transitions.claim():
            claimed.append((job.pk, job.attempt))

    # when six workers claim until nothing is due
    run_six_threads(work)

    # then every job was claimed once
    assert len(claimed) == 200
    assert len({pk for pk, _ in claimed}) == 200
    assert {attempt for _, attempt in claimed} == {1}
