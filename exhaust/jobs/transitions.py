"""The state machine of a job; the only file that writes a job's status.

Every move is one guarded UPDATE, and the row count says who won. A claim stamps a lease and an
attempt number; every later write names that attempt, so a worker that lost its lease changes
nothing any more. A move that won is recorded in its own transaction, and an end is told.
"""

import logging
import os
import random
import socket
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models import Case, Count, Exists, F, Min, OuterRef, Q, QuerySet, Subquery, When
from django.db.models.functions import Greatest, Now
from django.utils import timezone
from psycopg.errors import LockNotAvailable

from exhaust import metrics
from exhaust.failpoints import failpoint
from exhaust.jobs import wakeup
from exhaust.models import File, Job, Notice, Transition
from ingest.models import Channel
from ingest.models.fields import Position

log = logging.getLogger(__name__)
Status = Job.Status
LEASE = timedelta(seconds=30)
ATTEMPTS = 3
_FIRST_DELAY = timedelta(seconds=10)
_CLAIM_WAITS_MS = 2000
_CLAIM_STALLS_MS = 5000
ENDS = (Status.SUCCESS, Status.FAILED, Status.CANCELLED)


# Whose turn it is ---------------------------------------------------------------------------------


def due() -> QuerySet[Job]:
    """Jobs that a worker may claim now: waiting ones, and those whose lease has lapsed.

    Not those of a channel that has as many running as `EXHAUST_RUNNING_PER_CHANNEL`.
    """
    return _due().exclude(channel__in=_full())


def _due() -> QuerySet[Job]:
    return Job.objects.filter(
        Q(status=Status.SUBMITTED, due_at__lte=Now())
        | Q(status=Status.PROCESSING, lease_until__lt=Now(), attempt__lt=F("attempt_limit"))
    )


def _running() -> QuerySet[Job]:
    return Job.objects.filter(status=Status.PROCESSING, lease_until__gte=Now())


def _full() -> QuerySet[Any]:
    return (
        _running()
        .values("channel")
        .annotate(running=Count("pk"))
        .filter(running__gte=settings.EXHAUST_RUNNING_PER_CHANNEL)
        .values("channel")
    )


def oldest_due(lowest: int = Job.Priority.NIGHTLY) -> timedelta:
    """How long the job that has waited longest for a worker has been waiting; zero for none.

    Of those down to that priority.
    """
    waits = Case(
        When(status=Status.PROCESSING, then="lease_until"),
        default=Greatest("due_at", "submitted_at"),
    )
    since = due().filter(priority__lte=lowest).aggregate(since=Min(waits))["since"]
    return max(timezone.now() - since, timedelta()) if since else timedelta()


def holder_named(pid: int) -> str:
    """Who holds a job: a worker as a whole, by the process that its children belong to."""
    return f"{socket.gethostname()}:{pid}"


def claim(
    job_id: int | None = None, lowest: int = Job.Priority.NIGHTLY, holder: str = ""
) -> Job | None:
    """The next due job (or this one) with a fresh lease and attempt; None when there is none.

    Interactive ones first, down to the lowest priority asked for; then the channel that was served
    longest ago; of it the oldest. `holder` is who may `release` it, by default this process.
    """
    holder = holder or holder_named(os.getpid())
    seen: set[int] = set()
    wanted = _due().filter(pk=job_id) if job_id is not None else due().filter(priority__lte=lowest)
    while (channel_id := _turn(wanted, seen)) is not None:
        try:
            pk = _claim_of(channel_id, wanted, holder)
        except OperationalError as error:
            if not isinstance(error.__cause__, LockNotAvailable):
                raise
            log.warning("channel.locked channel=%s", channel_id)
            pk = None
        if pk is None:
            seen.add(channel_id)
            continue
        failpoint("claim.after", pk)
        job = Job.objects.select_related("channel").get(pk=pk)
        log.info("job.claimed job=%s attempt=%s", job.pk, job.attempt)
        return job
    return None


def _claim_of(channel_id: int, candidates: QuerySet[Job], holder: str) -> int | None:
    """Claims the channel's next of the candidates."""
    with transaction.atomic():
        _be_brief()
        # claims of one channel go one by one, so that its running jobs are counted right
        Channel.objects.select_for_update(no_key=True).get(pk=channel_id)
        found = (
            candidates.filter(channel_id=channel_id)
            .order_by("priority", "submitted_at", "id")
            .select_for_update(no_key=True, skip_locked=True)  # one is being published: let it
            .values_list("pk", "status", "holder", "dataset")
            .first()
        )
        if found is None:
            return None
        pk, status, before, dataset = found
        if not _move(
            pk,
            _due(),
            status=Status.PROCESSING,
            attempt=F("attempt") + 1,
            lease_until=Now() + LEASE,
            holder=holder,
            started_at=Now(),
            rows_done=0,
        ):
            return None
        failpoint("claim.before", pk)
    if status == Status.PROCESSING:
        metrics.TAKEOVERS.labels(dataset, "silent" if before else "given back").inc()
    return int(pk)


def _be_brief() -> None:
    """A claim takes milliseconds. A process that is stopped in the middle of one must not keep its
    channel from everybody: the server ends its transaction, and the others wait no longer."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('lock_timeout', %s, true),"
                " set_config('idle_in_transaction_session_timeout', %s, true)",
                [str(_CLAIM_WAITS_MS), str(_CLAIM_STALLS_MS)],
            )


def _turn(wanted: QuerySet[Job], seen: set[int]) -> int | None:
    """The channel whose turn it is."""
    own = Job.objects.filter(channel=OuterRef("pk"))
    served = own.filter(started_at__isnull=False).order_by("-started_at").values("started_at")
    best = wanted.filter(channel=OuterRef("pk")).order_by("priority").values("priority")
    return (
        Channel.objects.filter(pk__in=wanted.values("channel"))
        .exclude(pk__in=seen)
        .annotate(best=Subquery(best[:1]), served=Subquery(served[:1]))
        .order_by("best", F("served").asc(nulls_first=True), "pk")
        .values_list("pk", flat=True)
        .first()
    )


# The moves ----------------------------------------------------------------------------------------


def _move(pk: int, guard: QuerySet[Job], **values: Any) -> bool:
    """The guarded UPDATE, its history, and at an end its notice; False when the guard held."""
    if values["status"] in ENDS:
        values["sealed_key"] = None
    with transaction.atomic():
        if not guard.filter(pk=pk).update(**values):
            return False
        job = Job.objects.get(pk=pk)
        Transition.objects.create(
            job=job, status=job.status, attempt=job.attempt, message=job.status_message
        )
        if job.callback_url and job.status in ENDS:
            Notice.objects.create(job=job, status=job.status, url=job.callback_url)
            transaction.on_commit(_tell)
    return True


def _tell() -> None:
    wakeup.wake("exhaust.notify")


def _held(job: Job) -> QuerySet[Job]:
    return Job.objects.filter(status=Status.PROCESSING, attempt=job.attempt, holder=job.holder)


def renew(job: Job, rows_done: int) -> bool:
    """A longer lease; False when this attempt is no longer the job's."""
    held = _held(job).filter(pk=job.pk)
    return bool(held.update(lease_until=Now() + LEASE, rows_done=rows_done))


def mark(job: Job, watermark: int, rows_estimated: int) -> bool:
    """What every attempt at this job reads: the first attempt's watermark stays."""
    held = _held(job).filter(pk=job.pk)
    return bool(held.update(watermark=watermark, rows_estimated=rows_estimated))


def publish(
    job: Job, files: Sequence[File], message: str, require: Callable[[], None] = lambda: None
) -> bool:
    """PROCESSING to SUCCESS, with its files; False when another attempt took over.

    What `require` raises in the same transaction keeps them from it.
    """
    now = timezone.now()
    rows = sum(file.row_count for file in files)
    with transaction.atomic():
        require()
        won = _move(
            job.pk,
            _held(job),
            status=Status.SUCCESS,
            status_message=message,
            lease_until=None,
            completed_at=now,
            execution_ms=_milliseconds(job, now),
            rows_done=rows,
            rows_estimated=rows,
        )
        if won:
            File.objects.bulk_create(files)
        failpoint("publish.before", job.pk)
    failpoint("publish.after", job.pk)
    if won:
        metrics.published(job, now, rows, sum(file.byte_count for file in files))
    log.info("job.published job=%s attempt=%s won=%s", job.pk, job.attempt, won)
    return won


def fail(job: Job, message: str, *, permanent: bool = False) -> bool:
    """Back to SUBMITTED after a growing delay, or FAILED when it cannot help or was the last.

    False when another attempt took over.
    """
    now = timezone.now()
    if permanent or job.attempt >= job.attempt_limit:
        won = _move(
            job.pk,
            _held(job),
            status=Status.FAILED,
            status_message=message,
            lease_until=None,
            completed_at=now,
            execution_ms=_milliseconds(job, now),
        )
    else:
        tries = ATTEMPTS - (job.attempt_limit - job.attempt)
        delay = _FIRST_DELAY * 4 ** (tries - 1) * random.uniform(0.75, 1.25)  # noqa: S311
        won = _move(
            job.pk,
            _held(job),
            status=Status.SUBMITTED,
            status_message=message,
            lease_until=None,
            due_at=Now() + delay,
        )
    log.warning("job.failed job=%s attempt=%s permanent=%s", job.pk, job.attempt, permanent)
    if won:
        outcome = "failed" if permanent or job.attempt >= job.attempt_limit else "retried"
        metrics.JOBS.labels(job.dataset, outcome).inc()
    return won


def hasten(job: Job) -> bool:
    """Makes a job that waits for its next attempt due now."""
    return bool(Job.objects.filter(pk=job.pk, status=Status.SUBMITTED).update(due_at=Now()))


def cancel(job: Job, message: str) -> bool:
    """SUBMITTED or PROCESSING to CANCELLED; False when the job has ended already.

    A worker at it learns so at its next renewal, stops, and takes away what it stored. The lease
    stays on the row: until it lapses a worker may still be busy with that.
    """
    won = _move(
        job.pk,
        Job.objects.filter(status__in=(Status.SUBMITTED, Status.PROCESSING)),
        status=Status.CANCELLED,
        status_message=message,
        completed_at=Now(),
    )
    log.info("job.cancelled job=%s won=%s", job.pk, won)
    if won:
        metrics.JOBS.labels(job.dataset, "cancelled").inc()
    return won


def reap() -> list[int]:
    """Fails jobs whose last attempt died without a word; which."""
    dead = Job.objects.filter(
        status=Status.PROCESSING, lease_until__lt=Now(), attempt__gte=F("attempt_limit")
    )
    reaped = []
    for pk in dead.values_list("pk", flat=True):
        with transaction.atomic():
            # one whose row is held may be in the middle of its publication
            free = dead.filter(pk=pk).select_for_update(no_key=True, skip_locked=True)
            if free.first() and _move(
                pk,
                dead,
                status=Status.FAILED,
                status_message=_DEAD,
                lease_until=None,
                completed_at=Now(),
            ):
                reaped.append(pk)
    return reaped


_DEAD = "The work stopped without a result too often. Send the request again."


def release(holder: str) -> list[int]:
    """Gives back what a worker that was told to stop has not finished; their priorities.

    Another worker takes it over at once, and it counts as no failure; what still runs is fenced.
    """
    held = Job.objects.filter(status=Status.PROCESSING, holder=holder)
    released = []
    for pk, priority in held.values_list("pk", "priority"):
        freed = held.filter(pk=pk).update(
            holder="", lease_until=Now(), attempt_limit=F("attempt_limit") + 1
        )
        if freed:
            log.info("job.released job=%s", pk)
            released.append(priority)
    return released


def tell(job: Job, message: str) -> None:
    """What has become of a job's file, in its message and its history; its status stays."""
    Job.objects.filter(pk=job.pk).update(status_message=message)
    Transition.objects.create(job=job, status=job.status, attempt=job.attempt, message=message)


def again() -> QuerySet[Job]:
    """Jobs that may run again: without a file, or with none that anybody may have."""
    files = File.objects.filter(job=OuterRef("pk"))
    withdrawn = Exists(files.exclude(withdrawn_at=None)) & ~Exists(files.filter(withdrawn_at=None))
    return Job.objects.filter(
        Q(withdrawn, status=Status.SUCCESS) | Q(status__in=(Status.FAILED, Status.CANCELLED))
    )


def resubmit(job: Job, sealed_key: bytes | None = None) -> bool:
    """One of `again` to SUBMITTED: three more attempts, over what has arrived until now."""
    return _move(
        job.pk,
        again(),
        sealed_key=sealed_key,
        status=Status.SUBMITTED,
        status_message="",
        attempt_limit=F("attempt") + ATTEMPTS,
        due_at=Now(),
        lease_until=None,
        submitted_at=timezone.now(),
        submitted_xid=Position(),
        watermark=None,
        rows_estimated=None,
        rows_done=0,
        started_at=None,
        completed_at=None,
        execution_ms=None,
    )


def failed_attempts(job: Job) -> int:
    """How many attempts ended without a file. One that was cancelled did not fail."""
    if job.status == Status.CANCELLED:
        return job.attempt - (job.lease_until is not None)
    over = {Status.SUBMITTED, Status.FAILED}
    return job.attempt if job.status in over else job.attempt - 1


def _milliseconds(job: Job, now: datetime) -> int:
    return int((now - (job.started_at or now)).total_seconds() * 1000)
