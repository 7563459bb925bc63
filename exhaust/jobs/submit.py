"""Requests: submit, find, list, search, cancel, retry; and the request id."""

import hashlib
import json
from dataclasses import dataclass, replace
from dataclasses import field as also
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.crypto import salted_hmac

from exhaust.datasets import DATASETS
from exhaust.datasets.supplement import explain_gap, find_completed_job
from exhaust.files import encryption
from exhaust.jobs import polling, transitions
from exhaust.jobs.wakeup import enqueue_work
from exhaust.models import Job
from ingest import audit, logs
from ingest.events import RequestError
from ingest.models import Application, Channel
from ingest.privacy.encryption import encrypt

log = logs.get_logger(__name__)


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
    priority: int = Job.Priority.INTERACTIVE
    callback_url: str = ""
    schedule_id: int | None = None
    encryption: str = ""  # as asked for; a key alone asks for a password's
    encryption_key: str = also(default="", repr=False)


def make_request_id(
    dataset: str, tag: str, requested_by: str, channel: str, day: date, kind: str | None
) -> str:
    """The classic id, as the followed system makes it: 32 upper-case hex digits."""
    parts = [dataset, tag, requested_by, channel, day.isoformat()]
    if kind is not None:
        parts.append(kind)
    return _md5("|".join(parts))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest().upper()


def compute_fingerprint(submission: Submission) -> str:
    """The same for the same question, whatever the order of its words."""
    values = {
        "dataset": submission.dataset,
        "config": submission.config,
        "format": submission.output_format,
    }
    if submission.callback_url:
        values["callback"] = submission.callback_url
    if submission.encryption:
        values["encryption"] = submission.encryption
    if key := submission.encryption_key:  # under our own key, or it could be guessed from this
        values["key"] = salted_hmac("exhaust.encryptionKey", key, algorithm="sha256").hexdigest()
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def submit(submission: Submission, now: datetime | None = None) -> Job:
    """The job of a request: the same one for the same question on a day, else a new one.

    The day's first question under a tag has the classic request id; another question has its
    own. A FAILED or CANCELLED job runs again, and one whose file was withdrawn. Raises `Refused`
    (429) where the channel has too many waiting, (400) where the file cannot be sealed as it must.
    """

    chosen = encryption.resolve_method(
        submission.channel_id, submission.dataset, submission.encryption, submission.encryption_key
    )
    submission = replace(submission, encryption=chosen)

    day = (now or timezone.now()).astimezone(UTC).date()
    dataset_type = submission.config.get("type")
    classic_id = make_request_id(
        submission.dataset,
        submission.tag,
        submission.requested_by,
        submission.channel,
        day,
        dataset_type,
    )
    fingerprint = compute_fingerprint(submission)
    job = None
    for candidate in (classic_id, _md5(f"{classic_id}|{fingerprint}")):
        job = _find_or_create(submission, candidate, fingerprint)
        if job.fingerprint == fingerprint:
            break
    assert job is not None  # noqa: S101
    if job.status == Job.Status.SUBMITTED:
        transaction.on_commit(partial(enqueue_work, job.priority))
    elif transitions.rerunnable_jobs().filter(pk=job.pk).exists():
        retry(job, submission.encryption_key)
    displayed_job = polling.fetch_job(submission.channel_id, submission.tag, job.request_id)
    assert displayed_job is not None  # noqa: S101
    return displayed_job


# what a file and its supplement must have asked alike, or the two were not the whole
_MUST_MATCH_SINCE = ("conversationId", "startDate", "endDate", "timezone", "types", "application")


def check_configuration(submission: Submission) -> None:
    """Raises `Refused` (400) where a valid configuration names what the channel does not have."""
    config = submission.config
    application = config.get("application")
    applications = Application.objects.filter(channel=submission.channel_id)
    if application is not None and not applications.filter(identifier=application).exists():
        raise _field_error(
            "application", "This channel has no application of that id; name one it has."
        )
    since = config.get("since")
    if since is None:
        return
    job = find_completed_job(submission.dataset, submission.channel_id, str(since))
    if job is None:
        raise _field_error(
            "since",
            "Names no request of this channel and dataset that has its file; name one that says"
            " SUCCESS, or leave it out.",
        )
    if reason := explain_gap(DATASETS[submission.dataset], job):
        raise RequestError("gone", f"request.datasetConfig.since: {reason}", 410)
    for field in _MUST_MATCH_SINCE:
        if _config_value(job.config, field) != _config_value(config, field):
            raise _field_error(
                field, "Differs from what the request in since said; say the same, or leave since."
            )


def _config_value(config: dict[str, Any], field: str) -> Any:
    value = config.get(field, "UTC" if field == "timezone" else None)
    return sorted(set(map(str, value))) if isinstance(value, list) else str(value)


def _field_error(name: str, advice: str) -> RequestError:
    return RequestError("invalid", f"request.datasetConfig.{name}: {advice}")


def _find_or_create(submission: Submission, request_id: str, fingerprint: str) -> Job:
    identity = {
        "channel_id": submission.channel_id,
        "tag": submission.tag,
        "request_id": request_id,
    }
    job = Job.objects.filter(**identity).first()
    if job is not None:
        return job
    try:
        with transaction.atomic():
            _enforce_queue_limit(submission.channel_id)
            job = Job.objects.create(
                **identity,
                dataset=submission.dataset,
                config=submission.config,
                output_format=submission.output_format,
                encryption=submission.encryption,
                encrypted_key=_encrypt_key(submission.encryption_key),
                fingerprint=fingerprint,
                requested_by=submission.requested_by,
                priority=submission.priority,
                callback_url=submission.callback_url,
                schedule_id=submission.schedule_id,
            )
            _record_audit("job.submitted", job, submission.channel)
        log.info("job.submitted", job=job.pk)
        return job
    except IntegrityError:  # another submit of the same moment was first
        return Job.objects.get(**identity)


def _enforce_queue_limit(channel_id: int) -> None:
    """Raises `Refused` (429) where as many of the channel's requests wait as may."""
    Channel.objects.select_for_update(no_key=True).get(pk=channel_id)  # counted one by one
    limit = settings.EXHAUST_MAX_QUEUED_PER_CHANNEL
    if Job.objects.filter(channel_id=channel_id, status=Job.Status.SUBMITTED).count() >= limit:
        raise RequestError(
            "too_many_requests",
            f"This channel has {limit} requests waiting; send this one again when some are done.",
            429,
        )


def _encrypt_key(key: str) -> bytes | None:
    return encrypt(key.encode()) if key else None


def retry(job: Job, encryption_key: str = "") -> bool:
    """Runs a FAILED or CANCELLED job again, or one whose file was withdrawn; lets one that waits
    for its next attempt wait no more.

    False when it is at work or has its file. Raises `Refused` (429) as `submit` does, and (409)
    where the file was to be sealed under a key that is forgotten.
    """

    is_rerunnable = transitions.rerunnable_jobs().filter(pk=job.pk).exists()
    if is_rerunnable and job.encryption == Channel.Encryption.PASSWORD and not encryption_key:
        raise RequestError(
            "conflict",
            "Its encryptionKey was forgotten when it ended; send the request again, with it.",
            409,
        )
    with transaction.atomic():
        if job.status == Job.Status.SUBMITTED:
            won = transitions.run_now(job)
        else:
            _enforce_queue_limit(job.channel_id)
            won = transitions.resubmit(job, _encrypt_key(encryption_key))
        if won:
            _record_audit("job.retried", job)
    job.refresh_from_db()
    if won:
        transaction.on_commit(partial(enqueue_work, job.priority))
    return won


def cancel(job: Job, cancelled_by: str) -> bool:
    """Stops a job that has not ended; False when it has."""
    with transaction.atomic():
        won = transitions.cancel(job, f"Cancelled by {cancelled_by}.")
        if won:
            _record_audit("job.cancelled", job)
    job.refresh_from_db()
    return won


def _record_audit(action: str, job: Job, channel: str = "") -> None:
    details = {"schedule": job.schedule.name} if job.schedule is not None else {}
    audit.record(
        action,
        channel=channel or job.channel.identifier,
        subject=job.request_id,
        dataset=job.dataset,
        job=job.pk,
        **details,
    )


# Reading ------------------------------------------------------------------------------------------
