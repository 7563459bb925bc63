"""The state machine of a job; the only file that writes a job's status.

Every move is one guarded UPDATE, and the row count says who won. A claim stamps a lease and an
attempt number; every later write names that attempt, so a worker that lost its lease changes
nothing any more. A move that won is recorded in its own transaction, and an end is told.
"""

import os
import random
import socket
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models import Case, Count, Exists, F, Min, OuterRef, Q, QuerySet, Subquery, When
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Greatest, Now
from django.utils import timezone
from psycopg.errors import LockNotAvailable

from exhaust import metrics
from exhaust.failpoints import trigger_failpoint
from exhaust.jobs import wakeup
from exhaust.models import Callback, File, Job, Transition
from ingest import logs
from ingest.models import Channel
from ingest.models.fields import CurrentPosition

log = logs.get_logger(__name__)
Status = Job.Status
LEASE = timedelta(seconds=30)
MAX_ATTEMPTS = 3
_FIRST_RETRY_DELAY = timedelta(seconds=10)
_CLAIM_LOCK_TIMEOUT_MS = 2000
_CLAIM_IDLE_TIMEOUT_MS = 5000
TERMINAL_STATUSES = (Status.SUCCESS, Status.FAILED, Status.CANCELLED)


# Whose turn it is ---------------------------------------------------------------------------------


def claimable_jobs() -> QuerySet[Job]:
    """Jobs that a worker may claim now: waiting ones, and those whose lease has lapsed.

    Not those of a channel that has as many running as `EXHAUST_MAX_RUNNING_PER_CHANNEL`.
    """
    return _due_jobs().exclude(channel__in=_channels_at_limit())


def _due_jobs() -> QuerySet[Job]:
    return Job.objects.filter(
        Q(status=Status.SUBMITTED, due_at__lte=Now())
        | Q(status=Status.PROCESSING, lease_until__lt=Now(), attempt__lt=_attempt_limit())
    )


def _attempt_limit() -> CombinedExpression:
    """The number of a job's last attempt, as SQL."""
    return F("uncounted_attempts") + MAX_ATTEMPTS


def _running_jobs() -> QuerySet[Job]:
    return Job.objects.filter(status=Status.PROCESSING, lease_until__gte=Now())


def _channels_at_limit() -> QuerySet[Any]:
    return (
        _running_jobs()
        .values("channel")
        .annotate(running=Count("pk"))
        .filter(running__gte=settings.EXHAUST_MAX_RUNNING_PER_CHANNEL)
        .values("channel")
    )


def queue_wait(lowest_priority: int = Job.Priority.NIGHTLY) -> timedelta:
    """How long the job that has waited longest for a worker has been waiting; zero for none.

    Of those down to that priority.
    """
    waiting_since = Case(
        When(status=Status.PROCESSING, then="lease_until"),
        default=Greatest("due_at", "submitted_at"),
    )
    oldest = (
        claimable_jobs()
        .filter(priority__lte=lowest_priority)
        .aggregate(since=Min(waiting_since))["since"]
    )
    return max(timezone.now() - oldest, timedelta()) if oldest else timedelta()


def format_worker_id(pid: int) -> str:
    """Who holds a job: a worker as a whole, by the process that its children belong to."""
    return f"{socket.gethostname()}:{pid}"


def claim(
    job_id: int | None = None, lowest_priority: int = Job.Priority.NIGHTLY, worker_id: str = ""
) -> Job | None:
    """The next due job (or this one) with a fresh lease and attempt; None when there is none.

    Interactive ones first, down to the lowest priority asked for; then the channel that was served
    longest ago; of it the oldest. `holder` is who may `release` it, by default this process.
    """
    worker_id = worker_id or format_worker_id(os.getpid())
    tried_channels: set[int] = set()
    candidates = (
        _due_jobs().filter(pk=job_id)
        if job_id is not None
        else claimable_jobs().filter(priority__lte=lowest_priority)
    )
    while (channel_id := _next_channel(candidates, tried_channels)) is not None:
        try:
            pk = _claim_in_channel(channel_id, candidates, worker_id)
        except OperationalError as error:
            if not isinstance(error.__cause__, LockNotAvailable):
                raise
            log.warning("channel.lock_timed_out", channel=channel_id)
            pk = None
        if pk is None:
            tried_channels.add(channel_id)
            continue
        trigger_failpoint("claim.after", pk)
        job = Job.objects.select_related("channel").get(pk=pk)
        log.info("job.claimed", job=job.pk, attempt=job.attempt)
        return job
    return None


def _claim_in_channel(channel_id: int, candidates: QuerySet[Job], worker_id: str) -> int | None:
    """Claims the channel's next of the candidates."""
    with transaction.atomic():
        _set_claim_timeouts()
        # claims of one channel go one by one, so that its running jobs are counted right
        Channel.objects.select_for_update(no_key=True).get(pk=channel_id)
        row = (
            candidates.filter(channel_id=channel_id)
            .order_by("priority", "submitted_at", "id")
            .select_for_update(no_key=True, skip_locked=True)  # one is being published: let it
            .values_list("pk", "status", "worker_id", "dataset")
            .first()
        )
        if row is None:
            return None
        pk, status, previous_worker, dataset = row
        if not _transition(
            pk,
            _due_jobs(),
            status=Status.PROCESSING,
            attempt=F("attempt") + 1,
            lease_until=Now() + LEASE,
            worker_id=worker_id,
            started_at=Now(),
            rows_done=0,
        ):
            return None
        trigger_failpoint("claim.before", pk)
    if status == Status.PROCESSING:
        metrics.LEASE_TAKEOVERS.labels(
            dataset, "worker_lost" if previous_worker else "released"
        ).inc()
    return int(pk)


def _set_claim_timeouts() -> None:
    """A claim takes milliseconds. A process that is stopped in the middle of one must not keep its
    channel from everybody: the server ends its transaction, and the others wait no longer."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('lock_timeout', %s, true),"
                " set_config('idle_in_transaction_session_timeout', %s, true)",
                [str(_CLAIM_LOCK_TIMEOUT_MS), str(_CLAIM_IDLE_TIMEOUT_MS)],
            )


def _next_channel(candidates: QuerySet[Job], tried_channels: set[int]) -> int | None:
    """The channel whose turn it is."""
    jobs_of_channel = Job.objects.filter(channel=OuterRef("pk"))
    last_started = (
        jobs_of_channel.filter(started_at__isnull=False)
        .order_by("-started_at")
        .values("started_at")
    )
    priorities = candidates.filter(channel=OuterRef("pk")).order_by("priority").values("priority")
    return (
        Channel.objects.filter(pk__in=candidates.values("channel"))
        .exclude(pk__in=tried_channels)
        .annotate(
            best_priority=Subquery(priorities[:1]), last_started_at=Subquery(last_started[:1])
        )
        .order_by("best_priority", F("last_started_at").asc(nulls_first=True), "pk")
        .values_list("pk", flat=True)
        .first()
    )


# The moves ----------------------------------------------------------------------------------------


def _transition(pk: int, eligible_jobs: QuerySet[Job], **values: Any) -> bool:
    """The guarded UPDATE, its history, and at an end its callback; False when the guard held."""
    if values["status"] in TERMINAL_STATUSES:
        values["encrypted_key"] = None
    with transaction.atomic():
        if not eligible_jobs.filter(pk=pk).update(**values):
            return False
        job = Job.objects.get(pk=pk)
        Transition.objects.create(
            job=job, status=job.status, attempt=job.attempt, message=job.status_message
        )
        if job.callback_url and job.status in TERMINAL_STATUSES:
            Callback.objects.create(job=job, status=job.status, url=job.callback_url)
            transaction.on_commit(_enqueue_callbacks)
    return True


def _enqueue_callbacks() -> None:
    wakeup.enqueue("exhaust.deliver_callbacks")


def _owned_job(job: Job) -> QuerySet[Job]:
    return Job.objects.filter(
        status=Status.PROCESSING, attempt=job.attempt, worker_id=job.worker_id
    )


def renew(job: Job, rows_done: int) -> bool:
    """A longer lease; False when this attempt is no longer the job's."""
    owned_job = _owned_job(job).filter(pk=job.pk)
    return bool(owned_job.update(lease_until=Now() + LEASE, rows_done=rows_done))


def set_watermark(job: Job, watermark: int, rows_estimated: int) -> bool:
    """What every attempt at this job reads: the first attempt's watermark stays."""
    owned_job = _owned_job(job).filter(pk=job.pk)
    return bool(owned_job.update(watermark=watermark, rows_estimated=rows_estimated))


def publish(
    job: Job, files: Sequence[File], message: str, precondition: Callable[[], None] = lambda: None
) -> bool:
    """PROCESSING to SUCCESS, with its files; False when another attempt took over.

    What `require` raises in the same transaction keeps them from it.
    """
    now = timezone.now()
    rows = sum(file.row_count for file in files)
    with transaction.atomic():
        precondition()
        won = _transition(
            job.pk,
            _owned_job(job),
            status=Status.SUCCESS,
            status_message=message,
            lease_until=None,
            completed_at=now,
            execution_ms=_execution_ms(job, now),
            rows_done=rows,
            rows_estimated=rows,
        )
        if won:
            File.objects.bulk_create(files)
        trigger_failpoint("publish.before", job.pk)
    trigger_failpoint("publish.after", job.pk)
    if won:
        metrics.record_publication(job, now, rows, sum(file.byte_count for file in files))
    log.info("job.published", job=job.pk, attempt=job.attempt, won=won)
    return won


def fail(job: Job, message: str, *, permanent: bool = False) -> bool:
    """Back to SUBMITTED after a growing delay, or FAILED when it cannot help or was the last.

    False when another attempt took over.
    """
    now = timezone.now()
    failure_count = job.attempt - job.uncounted_attempts
    is_final = permanent or failure_count >= MAX_ATTEMPTS
    if is_final:
        won = _transition(
            job.pk,
            _owned_job(job),
            status=Status.FAILED,
            status_message=message,
            lease_until=None,
            completed_at=now,
            execution_ms=_execution_ms(job, now),
        )
    else:
        delay = _FIRST_RETRY_DELAY * 4 ** (failure_count - 1) * random.uniform(0.75, 1.25)  # noqa: S311
        won = _transition(
            job.pk,
            _owned_job(job),
            status=Status.SUBMITTED,
            status_message=message,
            lease_until=None,
            due_at=Now() + delay,
        )
    log.warning("job.failed", job=job.pk, attempt=job.attempt, permanent=permanent)
    if won:
        outcome = "failed" if is_final else "retried"
        metrics.ATTEMPTS_ENDED.labels(job.dataset, outcome).inc()
    return won


def run_now(job: Job) -> bool:
    """Makes a job that waits for its next attempt due now."""
    return bool(Job.objects.filter(pk=job.pk, status=Status.SUBMITTED).update(due_at=Now()))


def cancel(job: Job, message: str) -> bool:
    """SUBMITTED or PROCESSING to CANCELLED; False when the job has ended already.

    A worker at it learns so at its next renewal, stops, and takes away what it stored. The lease
    stays on the row: until it lapses a worker may still be busy with that.
    """
    won = _transition(
        job.pk,
        Job.objects.filter(status__in=(Status.SUBMITTED, Status.PROCESSING)),
        status=Status.CANCELLED,
        status_message=message,
        completed_at=Now(),
    )
    log.info("job.cancelled", job=job.pk, won=won)
    if won:
        metrics.ATTEMPTS_ENDED.labels(job.dataset, "cancelled").inc()
    return won


def fail_expired() -> list[int]:
    """Fails jobs whose last attempt died without a word; which."""
    expired_jobs = Job.objects.filter(
        status=Status.PROCESSING, lease_until__lt=Now(), attempt__gte=_attempt_limit()
    )
    failed_ids = []
    for pk in expired_jobs.values_list("pk", flat=True):
        with transaction.atomic():
            # one whose row is held may be in the middle of its publication
            unlocked_job = expired_jobs.filter(pk=pk).select_for_update(
                no_key=True, skip_locked=True
            )
            if unlocked_job.first() and _transition(
                pk,
                expired_jobs,
                status=Status.FAILED,
                status_message=_WORKERS_LOST_MESSAGE,
                lease_until=None,
                completed_at=Now(),
            ):
                failed_ids.append(pk)
    return failed_ids


_WORKERS_LOST_MESSAGE = "The work stopped without a result too often. Send the request again."


def release_all(worker_id: str) -> list[int]:
    """Gives back what a worker that was told to stop has not finished; their priorities.

    Another worker takes it over at once, and it counts as no failure; what still runs is fenced.
    """
    owned_jobs = Job.objects.filter(status=Status.PROCESSING, worker_id=worker_id)
    priorities = []
    for pk, priority in owned_jobs.values_list("pk", "priority"):
        is_released = owned_jobs.filter(pk=pk).update(
            worker_id="", lease_until=Now(), uncounted_attempts=F("uncounted_attempts") + 1
        )
        if is_released:
            log.info("job.released", job=pk)
            priorities.append(priority)
    return priorities


def set_message(job: Job, message: str) -> None:
    """What has become of a job's file, in its message and its history; its status stays."""
    Job.objects.filter(pk=job.pk).update(status_message=message)
    Transition.objects.create(job=job, status=job.status, attempt=job.attempt, message=message)


def rerunnable_jobs() -> QuerySet[Job]:
    """Jobs that may run again: without a file, or with none that anybody may have."""
    files = File.objects.filter(job=OuterRef("pk"))
    is_withdrawn = Exists(files.exclude(withdrawn_at=None)) & ~Exists(
        files.filter(withdrawn_at=None)
    )
    return Job.objects.filter(
        Q(is_withdrawn, status=Status.SUCCESS) | Q(status__in=(Status.FAILED, Status.CANCELLED))
    )


def resubmit(job: Job, encrypted_key: bytes | None = None) -> bool:
    """One of `again` to SUBMITTED: three more attempts, over what has arrived until now."""
    return _transition(
        job.pk,
        rerunnable_jobs(),
        encrypted_key=encrypted_key,
        status=Status.SUBMITTED,
        status_message="",
        uncounted_attempts=F("attempt"),
        due_at=Now(),
        lease_until=None,
        submitted_at=timezone.now(),
        submitted_xid=CurrentPosition(),
        watermark=None,
        rows_estimated=None,
        rows_done=0,
        started_at=None,
        completed_at=None,
        execution_ms=None,
    )


def count_failed_attempts(job: Job) -> int:
    """How many attempts ended without a file. One that was cancelled did not fail."""
    if job.status == Status.CANCELLED:
        return job.attempt - (job.lease_until is not None)
    ended_statuses = {Status.SUBMITTED, Status.FAILED}
    return job.attempt if job.status in ended_statuses else job.attempt - 1


def _execution_ms(job: Job, now: datetime) -> int:
    return int((now - (job.started_at or now)).total_seconds() * 1000)
