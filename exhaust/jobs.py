"""The state machine of a job; the only file that writes a job's status.

Every move is one guarded UPDATE, and the row count says who won. A claim stamps a lease and an
attempt number; every later write names that attempt, so a worker that lost its lease changes
nothing any more.
"""

import logging
import random
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from exhaust.models import File, Job
from ingest.positions import Position

log = logging.getLogger(__name__)
LEASE = timedelta(seconds=30)
ATTEMPTS = 3
_FIRST_DELAY = timedelta(seconds=10)


def due() -> QuerySet[Job]:
    """Jobs that a worker may claim now: waiting ones, and those whose lease has lapsed."""
    return Job.objects.filter(
        Q(status=Job.Status.SUBMITTED, due_at__lte=Now())
        | Q(status=Job.Status.PROCESSING, lease_until__lt=Now(), attempt__lt=F("attempt_limit"))
    )


def claim(job_id: int | None = None) -> Job | None:
    """The oldest due job (or this one) with a fresh lease and attempt; None when there is none."""
    candidates = due() if job_id is None else due().filter(pk=job_id)
    while True:
        with transaction.atomic():
            pk = (
                candidates.select_for_update(skip_locked=_skips_locked())
                .order_by("submitted_at", "id")
                .values_list("pk", flat=True)
                .first()
            )
            if pk is None:
                return None
            won = (
                due()
                .filter(pk=pk)
                .update(
                    status=Job.Status.PROCESSING,
                    attempt=F("attempt") + 1,
                    lease_until=Now() + LEASE,
                    started_at=Now(),
                    rows_done=0,
                )
            )
            if won:
                job = Job.objects.select_related("channel").get(pk=pk)
                log.info("job.claimed job=%s attempt=%s", job.pk, job.attempt)
                return job


def _skips_locked() -> bool:
    return connection.features.has_select_for_update_skip_locked


def _held(job: Job) -> QuerySet[Job]:
    return Job.objects.filter(pk=job.pk, status=Job.Status.PROCESSING, attempt=job.attempt)


def renew(job: Job, rows_done: int) -> bool:
    """A longer lease; False when this attempt is no longer the job's."""
    return bool(_held(job).update(lease_until=Now() + LEASE, rows_done=rows_done))


def mark(job: Job, watermark: int, rows_estimated: int) -> bool:
    """What every attempt at this job reads: the first attempt's watermark stays."""
    return bool(_held(job).update(watermark=watermark, rows_estimated=rows_estimated))


def publish(job: Job, files: Sequence[File], message: str) -> bool:
    """PROCESSING to SUCCESS, with its files; False when another attempt took over."""
    now = timezone.now()
    with transaction.atomic():
        won = _held(job).update(
            status=Job.Status.SUCCESS,
            status_message=message,
            lease_until=None,
            completed_at=now,
            execution_ms=_milliseconds(job, now),
            rows_done=sum(file.row_count for file in files),
            rows_estimated=sum(file.row_count for file in files),
        )
        if won:
            File.objects.bulk_create(files)
    log.info("job.published job=%s attempt=%s won=%s", job.pk, job.attempt, bool(won))
    return bool(won)


def fail(job: Job, message: str, *, permanent: bool = False) -> bool:
    """Back to SUBMITTED after a growing delay, or FAILED when it cannot help or was the last.

    False when another attempt took over.
    """
    now = timezone.now()
    if permanent or job.attempt >= job.attempt_limit:
        won = _held(job).update(
            status=Job.Status.FAILED,
            status_message=message,
            lease_until=None,
            completed_at=now,
            execution_ms=_milliseconds(job, now),
        )
    else:
        tries = ATTEMPTS - (job.attempt_limit - job.attempt)
        delay = _FIRST_DELAY * 4 ** (tries - 1) * random.uniform(0.75, 1.25)  # noqa: S311
        won = _held(job).update(
            status=Job.Status.SUBMITTED,
            status_message=message,
            lease_until=None,
            due_at=Now() + delay,
        )
    log.warning("job.failed job=%s attempt=%s permanent=%s", job.pk, job.attempt, permanent)
    return bool(won)


def hasten(job: Job) -> bool:
    """Makes a job that waits for its next attempt due now."""
    return bool(Job.objects.filter(pk=job.pk, status=Job.Status.SUBMITTED).update(due_at=Now()))


def reap() -> int:
    """Fails jobs whose last attempt died without a word; how many."""
    return Job.objects.filter(
        status=Job.Status.PROCESSING, lease_until__lt=Now(), attempt__gte=F("attempt_limit")
    ).update(
        status=Job.Status.FAILED,
        status_message="The work stopped without a result too often. Send the request again.",
        lease_until=None,
        completed_at=Now(),
    )


def resubmit(job: Job) -> bool:
    """FAILED to SUBMITTED: three more attempts, over what has arrived until now."""
    return bool(
        Job.objects.filter(pk=job.pk, status=Job.Status.FAILED).update(
            status=Job.Status.SUBMITTED,
            status_message="",
            attempt_limit=F("attempt") + ATTEMPTS,
            due_at=Now(),
            submitted_at=timezone.now(),
            submitted_xid=Position(),
            watermark=None,
            rows_estimated=None,
            rows_done=0,
            started_at=None,
            completed_at=None,
            execution_ms=None,
        )
    )


def failed_attempts(job: Job) -> int:
    """How many attempts ended without a file."""
    over = {Job.Status.SUBMITTED, Job.Status.FAILED}
    return job.attempt if job.status in over else job.attempt - 1


def _milliseconds(job: Job, now: datetime) -> int:
    return int((now - (job.started_at or now)).total_seconds() * 1000)
