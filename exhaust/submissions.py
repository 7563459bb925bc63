"""Requests: submit, find, list; and the request id."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from exhaust import jobs
from exhaust.models import Job

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submission:
    """A validated request."""

    channel_id: int
    channel: str
    tag: str
    dataset: str
    config: dict[str, Any]
    requested_by: str
    output_format: str = "csv"


def request_id(
    dataset: str, tag: str, requested_by: str, channel: str, day: date, kind: str | None
) -> str:
    """The classic id, as the followed system makes it: 32 upper-case hex digits."""
    parts = [dataset, tag, requested_by, channel, day.isoformat()]
    if kind is not None:
        parts.append(kind)
    return _md5("|".join(parts))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest().upper()


def fingerprint(submission: Submission) -> str:
    """The same for the same question, whatever the order of its words."""
    said = {
        "dataset": submission.dataset,
        "config": submission.config,
        "format": submission.output_format,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def submit(submission: Submission, now: datetime | None = None) -> Job:
    """The job of a request: the same one for the same question on a day, else a new one.

    The day's first question under a tag has the classic request id; another question has its
    own. A FAILED job runs again.
    """
    from exhaust.tasks import wake  # tasks import the runner, which the web has no need of

    day = (now or timezone.now()).astimezone(UTC).date()
    kind = submission.config.get("type")
    classic = request_id(
        submission.dataset, submission.tag, submission.requested_by, submission.channel, day, kind
    )
    print_ = fingerprint(submission)
    job = None
    for candidate in (classic, _md5(f"{classic}|{print_}")):
        job = _find_or_create(submission, candidate, print_)
        if job.fingerprint == print_:
            break
    assert job is not None  # noqa: S101
    if job.status == Job.Status.FAILED:
        retry(job)
    elif job.status == Job.Status.SUBMITTED:
        transaction.on_commit(wake)
    return job


def _find_or_create(submission: Submission, candidate: str, print_: str) -> Job:
    identity = {
        "channel_id": submission.channel_id,
        "tag": submission.tag,
        "request_id": candidate,
    }
    job = Job.objects.select_related("channel").filter(**identity).first()
    if job is not None:
        return job
    try:
        with transaction.atomic():
            job = Job.objects.create(
                **identity,
                dataset=submission.dataset,
                config=submission.config,
                output_format=submission.output_format,
                fingerprint=print_,
                requested_by=submission.requested_by,
            )
        log.info("job.submitted job=%s", job.pk)
        return job
    except IntegrityError:  # another submit of the same moment was first
        return Job.objects.select_related("channel").get(**identity)


def retry(job: Job) -> bool:
    """Runs a FAILED job again; False when it is not FAILED."""
    from exhaust.tasks import wake

    won = jobs.resubmit(job)
    job.refresh_from_db()
    if won:
        transaction.on_commit(wake)
    return won


def find(channel_id: int, tag: str, request_id: str) -> Job | None:
    if "\0" in tag + request_id:  # PostgreSQL would not even look
        return None
    return (
        Job.objects.select_related("channel")
        .prefetch_related("files__links")
        .filter(channel_id=channel_id, tag=tag, request_id=request_id)
        .first()
    )


def by_tag(channel_id: int, tag: str, datasets: Sequence[str], limit: int) -> list[Job]:
    """The newest first."""
    if "\0" in tag:
        return []
    return list(
        Job.objects.select_related("channel")
        .prefetch_related("files__links")
        .filter(channel_id=channel_id, tag=tag, dataset__in=datasets)
        .order_by("-submitted_at", "-id")[:limit]
    )
