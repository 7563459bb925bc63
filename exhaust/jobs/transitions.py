"""The state machine of a job; only this file writes a job's status.

Every transition is one conditional UPDATE, and its row count decides between rivals. A claim
stamps a lease and an attempt number. Every later write names that attempt, so a worker that lost
its lease changes nothing. Each successful transition writes history in the same transaction;
terminal statuses enqueue a callback.
"""

import os
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models import (
    Case,
    Count,
    Exists,
    F,
    Min,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Value,
    When,
)
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Greatest, Least, Now
from psycopg.errors import LockNotAvailable

from exhaust import metrics
from exhaust.delivery import callbacks, destinations, notices
from exhaust.failpoints import trigger_failpoint
from exhaust.jobs import backoff, wakeup
from exhaust.models import File, Job, Transition
from ingest import logs
from ingest.db.clock import read_clock
from ingest.models import Channel
from ingest.models.fields import CurrentPosition

log = logs.get_logger(__name__)
Status = Job.Status
LEASE = timedelta(seconds=30)
OUTAGE_PAUSE = timedelta(seconds=10)
OUTAGE_TRIAL = timedelta(seconds=60)  # an attempt that lasts longer says nothing of the storage
CLAIM_LOCK_TIMEOUT_MS = 2000
IDLE_TIMEOUT_MS = 5000
TERMINAL_STATUSES = (Status.SUCCESS, Status.FAILED, Status.CANCELLED)


# Which job is next --------------------------------------------------------------------------------


def claimable_jobs() -> QuerySet[Job]:
    """Jobs that a worker may claim now: due ones, and those whose lease has expired.

    Leaves out channels with `EXHAUST_MAX_RUNNING_PER_CHANNEL` running jobs. During an outage of
    the storage no job starts but one that tries it; those of lost workers are taken over.
    """
    jobs = _due_jobs().filter(Q(status=Status.PROCESSING) | _storage_admits())
    return jobs.exclude(channel__in=_channels_at_limit())


def jobs_of_outage() -> QuerySet[Job]:
    """Jobs that wait for the storage or try it; none once it has taken a file."""
    unfinished = Job.objects.filter(status__in=(Status.SUBMITTED, Status.PROCESSING))
    return unfinished.filter(storage_failed_at__isnull=False)


def _storage_admits() -> Q:
    """Without an outage always; else one job at a time, some seconds after the last failure."""
    just_failed = jobs_of_outage().filter(storage_failed_at__gt=Now() - OUTAGE_PAUSE)
    trying = _running_jobs().filter(started_at__gt=Now() - OUTAGE_TRIAL)
    return ~Exists(jobs_of_outage()) | (~Exists(just_failed) & ~Exists(trying))


def _end_outage() -> None:
    """The storage has taken a file: all that wait for it are due."""
    waiting = jobs_of_outage().filter(status=Status.SUBMITTED)
    waiting.update(storage_failed_at=None, status_message="", due_at=Now())
    jobs_of_outage().update(storage_failed_at=None)


def _due_jobs() -> QuerySet[Job]:
    return Job.objects.filter(
        Q(status=Status.SUBMITTED, due_at__lte=Now())
        | Q(status=Status.PROCESSING, lease_until__lt=Now(), attempt__lt=_attempt_limit())
    )


def _attempt_limit() -> CombinedExpression:
    """The number of a job's last attempt, as SQL."""
    return F("uncounted_attempts") + backoff.MAX_ATTEMPTS


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


def queue_wait(lowest_priority: int = Job.Priority.LOW) -> timedelta:
    """How long the oldest claimable job has waited for a worker; zero without one.

    Considers priorities down to `lowest_priority`.
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
    return max(read_clock() - oldest, timedelta()) if oldest else timedelta()


def format_worker_id(pid: int) -> str:
    """The id of a worker: its host and the process id of its parent process."""
    return f"{socket.gethostname()}:{pid}"


def claim(
    job_id: int | None = None, lowest_priority: int = Job.Priority.LOW, worker_id: str = ""
) -> Job | None:
    """Claims the next due job (or this one) with a fresh lease and attempt; None without one.

    Interactive jobs come first, then the channel that was served longest ago, then its oldest job.
    The worker with that id may release the job; the default is this process.
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
        log.info("job.claimed", job=job, attempt=job.attempt)
        return job
    return None


def _claim_in_channel(channel_id: int, candidates: QuerySet[Job], worker_id: str) -> int | None:
    """Claims the channel's next candidate; returns its primary key."""
    with transaction.atomic():
        _bound_transaction(lock_timeout_ms=CLAIM_LOCK_TIMEOUT_MS)
        # serializes claims of a channel, so that its running jobs are counted correctly
        Channel.objects.select_for_update(no_key=True).get(pk=channel_id)
        row = (
            candidates.filter(channel_id=channel_id)
            .order_by("priority", "submitted_at", "id")
            .select_for_update(no_key=True, skip_locked=True)  # a locked job is being published
            .values_list("pk", "status", "worker_id", "dataset", "own_scope")
            .first()
        )
        if row is None:
            return None
        pk, status, previous_worker, *dataset = row
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
            metrics.dataset_label(*dataset), "worker_lost" if previous_worker else "released"
        ).inc()
    return int(pk)


def _bound_transaction(lock_timeout_ms: int | None = None) -> None:
    """Bounds how long a stopped process can hold up claims of its channel, and readers of the feed.

    A claim and a publication take milliseconds. PostgreSQL ends an idle transaction, and other
    claims stop waiting.
    """
    if connection.vendor == "postgresql":
        limits = f"SET LOCAL idle_in_transaction_session_timeout = {int(IDLE_TIMEOUT_MS)}"
        if lock_timeout_ms is not None:
            limits += f"; SET LOCAL lock_timeout = {int(lock_timeout_ms)}"
        with connection.cursor() as cursor:
            cursor.execute(limits)


def _next_channel(candidates: QuerySet[Job], tried_channels: set[int]) -> int | None:
    """The channel to serve next."""
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


# Transitions --------------------------------------------------------------------------------------


def _transition(pk: int, eligible_jobs: QuerySet[Job], **values: Any) -> bool:
    """Updates the job if it is still eligible, and writes its history and deliveries."""
    if values["status"] in TERMINAL_STATUSES:
        values |= {"encrypted_key": None, "storage_failed_at": None}
    with transaction.atomic():
        if not eligible_jobs.filter(pk=pk).update(**values):
            return False
        job = Job.objects.get(pk=pk)
        Transition.objects.create(
            job=job, status=job.status, attempt=job.attempt, message=job.status_message
        )
        if job.callback_url and job.status in TERMINAL_STATUSES:
            callbacks.create_callback(job)
            transaction.on_commit(partial(wakeup.enqueue, "exhaust.deliver_callbacks"))
        if job.deliver_to and job.status == Status.SUCCESS:
            destinations.create_file_delivery(job)
            transaction.on_commit(partial(wakeup.enqueue, "exhaust.deliver_files"))
        notices.announce_job(job)
    return True


def _owned_job(job: Job) -> QuerySet[Job]:
    return Job.objects.filter(
        status=Status.PROCESSING, attempt=job.attempt, worker_id=job.worker_id
    )


def renew(job: Job, rows_done: int) -> bool:
    """Extends the lease; False when the attempt has lost it."""
    owned_job = _owned_job(job).filter(pk=job.pk)
    return bool(owned_job.update(lease_until=Now() + LEASE, rows_done=rows_done))


def set_watermark(job: Job, watermark: int, rows_estimated: int) -> bool:
    """Stores the watermark that every attempt reads below; False when the lease was lost."""
    owned_job = _owned_job(job).filter(pk=job.pk)
    return bool(owned_job.update(watermark=watermark, rows_estimated=rows_estimated))


def set_part_edges(job: Job, part_edges: list[int]) -> bool:
    """Stores where every attempt's parts begin; False when the lease was lost."""
    return bool(_owned_job(job).filter(pk=job.pk).update(part_edges=part_edges))


def publish(
    job: Job, files: Sequence[File], message: str, precondition: Callable[[], None] = lambda: None
) -> bool:
    """Moves the job from PROCESSING to SUCCESS with its files; False when the lease was lost.

    `precondition` runs in the same transaction and may raise to prevent it.
    """
    now = read_clock()
    rows = sum(file.row_count for file in files)
    with transaction.atomic():
        _bound_transaction()
        precondition()
        won = _transition(
            job.pk,
            _owned_job(job),
            status=Status.SUCCESS,
            status_message=message,
            lease_until=None,
            completed_at=Now(),
            execution_ms=_execution_ms(job, now),
            rows_done=rows,
            rows_estimated=rows,
        )
        if won:
            File.objects.bulk_create(files)
        trigger_failpoint("publish.before", job.pk)
    trigger_failpoint("publish.after", job.pk)
    if won:
        _end_outage()
        metrics.record_publication(job, now, rows, sum(file.byte_count for file in files))
    log.info("job.published", job=job, attempt=job.attempt, won=won)
    return won


def fail(job: Job, message: str, *, permanent: bool = False, counts: bool = True) -> bool:
    """Moves the job to SUBMITTED with a growing delay, or to FAILED.

    FAILED follows a permanent failure and the last attempt that counts. False when the lease was
    lost.
    """
    now = read_clock()
    # a job that makes the server crash must end
    uncounted = int(not counts and job.uncounted_attempts < backoff.MAX_UNCOUNTED)
    failure_count = job.attempt - job.uncounted_attempts - uncounted
    is_final = permanent or failure_count >= backoff.MAX_ATTEMPTS
    if is_final:
        won = _end_failed(job, message, now)
    else:
        won = _transition(
            job.pk,
            _owned_job(job),
            status=Status.SUBMITTED,
            status_message=message,
            lease_until=None,
            due_at=Now() + backoff.choose_retry_delay(max(1, failure_count)),
            uncounted_attempts=F("uncounted_attempts") + uncounted,
            storage_failed_at=None,
        )
    log.warning("job.failed", job=job, attempt=job.attempt, permanent=permanent)
    if won:
        outcome = "failed" if is_final else "retried"
        dataset = metrics.dataset_label(job.dataset, job.own_scope)
        metrics.ATTEMPTS_ENDED.labels(dataset, outcome).inc()
    return won


def _end_failed(job: Job, message: str, now: datetime, **values: Any) -> bool:
    return _transition(
        job.pk,
        _owned_job(job),
        status=Status.FAILED,
        status_message=message,
        lease_until=None,
        completed_at=Now(),
        execution_ms=_execution_ms(job, now),
        **values,
    )


def postpone(job: Job, reason: str) -> bool:
    """Moves the job to SUBMITTED until the storage is tried again; the attempt does not count.

    FAILED follows a day after the first attempt. False when the lease was lost.
    """
    row = Job.objects.annotate(now=Now()).get(pk=job.pk)
    failed_at = row.storage_failed_at
    delay = backoff.choose_outage_delay(row.due_at - failed_at if failed_at else None)
    due_at = row.now + delay
    is_final = due_at - find_first_start(row) > backoff.OUTAGE_LIMIT
    if is_final:
        message = f"{reason}, for 24 hours. Send the request again when it works."
        won = _end_failed(job, message, row.now, uncounted_attempts=F("uncounted_attempts") + 1)
    else:
        won = _transition(
            job.pk,
            _owned_job(job),
            status=Status.SUBMITTED,
            status_message=f"{reason}; next try at {due_at.astimezone(UTC):%H:%M} UTC.",
            lease_until=None,
            due_at=due_at,
            uncounted_attempts=F("uncounted_attempts") + 1,
            storage_failed_at=row.now,
        )
    if won:
        dataset = metrics.dataset_label(job.dataset, job.own_scope)
        metrics.ATTEMPTS_ENDED.labels(dataset, "failed" if is_final else "postponed").inc()
    return won


def find_first_start(job: Job) -> datetime:
    """Returns when the first attempt since the job's submission began; without one, the latter."""
    starts = job.transitions.filter(status=Status.PROCESSING, changed_at__gte=job.submitted_at)
    first: datetime | None = starts.order_by("pk").values_list("changed_at", flat=True).first()
    return first or job.submitted_at


def run_now(job: Job) -> bool:
    """Makes a SUBMITTED job due now; False for any other status."""
    return bool(Job.objects.filter(pk=job.pk, status=Status.SUBMITTED).update(due_at=Now()))


def hasten(job: Job, due_at: datetime | None, priority: int) -> bool:
    """Lets a job that no worker has tried yet run as early as another request for it wants.

    Returns whether it changed the job.
    """
    untried = Job.objects.filter(
        pk=job.pk, status=Status.SUBMITTED, attempt=F("uncounted_attempts"), storage_failed_at=None
    )
    due = Now() if due_at is None else Value(due_at)
    later = untried.filter(Q(due_at__gt=due) | Q(priority__gt=priority))
    return bool(later.update(due_at=Least("due_at", due), priority=Least("priority", priority)))


def cancel(job: Job, message: str) -> bool:
    """Moves a SUBMITTED or PROCESSING job to CANCELLED; False when it had ended.

    Its worker notices at the next renewal, stops, and deletes the objects it stored. The lease
    stays on the row because the worker may be busy until it expires.
    """
    won = _transition(
        job.pk,
        Job.objects.filter(status__in=(Status.SUBMITTED, Status.PROCESSING)),
        status=Status.CANCELLED,
        status_message=message,
        completed_at=Now(),
    )
    log.info("job.cancelled", job=job, won=won)
    if won:
        dataset = metrics.dataset_label(job.dataset, job.own_scope)
        metrics.ATTEMPTS_ENDED.labels(dataset, "cancelled").inc()
    return won


def fail_expired() -> list[int]:
    """Fails jobs whose last attempt lost its worker; returns their primary keys."""
    expired_jobs = Job.objects.filter(
        status=Status.PROCESSING, lease_until__lt=Now(), attempt__gte=_attempt_limit()
    )
    failed_ids = []
    for pk in expired_jobs.values_list("pk", flat=True):
        with transaction.atomic():
            # a locked row may belong to a job that is being published
            unlocked_job = expired_jobs.filter(pk=pk).select_for_update(
                no_key=True, skip_locked=True, of=("self",)
            )
            job = unlocked_job.select_related("channel").first()
            if job and _transition(
                pk,
                expired_jobs,
                status=Status.FAILED,
                status_message=_WORKERS_LOST_MESSAGE,
                lease_until=None,
                completed_at=Now(),
            ):
                log.warning("job.failed", job=job, attempt=job.attempt, permanent=True)
                failed_ids.append(pk)
    return failed_ids


_WORKERS_LOST_MESSAGE = (
    "Every attempt lost its worker before the file was made. Send the request again."
)


def release_all(worker_id: str) -> list[int]:
    """Releases the jobs of a worker that stops; returns their priorities.

    Other workers take them over at once. The attempt does not count, and its later writes fail.
    """
    owned_jobs = Job.objects.filter(status=Status.PROCESSING, worker_id=worker_id)
    priorities = []
    for job in owned_jobs.select_related("channel"):
        is_released = owned_jobs.filter(pk=job.pk).update(
            worker_id="", lease_until=Now(), uncounted_attempts=F("uncounted_attempts") + 1
        )
        if is_released:
            log.info("job.released", job=job)
            priorities.append(job.priority)
    return priorities


def set_message(job: Job, message: str) -> None:
    """Sets the job's message and adds it to the history; the status stays."""
    Job.objects.filter(pk=job.pk).update(status_message=message)
    Transition.objects.create(job=job, status=job.status, attempt=job.attempt, message=message)


def rerunnable_jobs() -> QuerySet[Job]:
    """Jobs that may run again: FAILED, CANCELLED, or with only withdrawn files."""
    files = File.objects.filter(job=OuterRef("pk"))
    is_withdrawn = Exists(files.exclude(withdrawn_at=None)) & ~Exists(
        files.filter(withdrawn_at=None)
    )
    return Job.objects.filter(
        Q(is_withdrawn, status=Status.SUCCESS) | Q(status__in=(Status.FAILED, Status.CANCELLED))
    )


def resubmit(job: Job, encrypted_key: bytes | None = None, due_at: datetime | None = None) -> bool:
    """Moves a rerunnable job to SUBMITTED, with new attempts and a new watermark.

    It runs at `due_at` at the earliest, by default now.
    """
    return _transition(
        job.pk,
        rerunnable_jobs(),
        encrypted_key=encrypted_key,
        status=Status.SUBMITTED,
        status_message="",
        uncounted_attempts=F("attempt"),
        due_at=due_at or Now(),
        lease_until=None,
        submitted_at=read_clock(),
        submitted_xid=CurrentPosition(),
        watermark=None,
        part_edges=None,
        rows_estimated=None,
        rows_done=0,
        started_at=None,
        completed_at=None,
        execution_ms=None,
    )


def count_failed_attempts(job: Job) -> int:
    """Returns how many attempts failed since the job was submitted.

    One that an outage or a stopping worker ended did not fail, and neither did a cancelled one.
    """
    has_lease = job.lease_until is not None and job.worker_id != ""  # a released one is uncounted
    return job.attempt - job.uncounted_attempts - (has_lease or job.status == Status.SUCCESS)


def _execution_ms(job: Job, now: datetime) -> int:
    return max(0, int((now - (job.started_at or now)).total_seconds() * 1000))
