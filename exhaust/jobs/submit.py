"""Submits, retries and cancels jobs; makes request ids."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.utils.crypto import salted_hmac

from exhaust import tracing
from exhaust.datasets import DATASETS
from exhaust.datasets.supplement import explain_gap, find_completed_job
from exhaust.delivery import http_client
from exhaust.files import encryption
from exhaust.jobs import polling, transitions
from exhaust.jobs.wakeup import enqueue_work
from exhaust.models import Callback, Job
from ingest import audit, logs
from ingest.db.clock import read_clock
from ingest.db.prepared import fetch_all
from ingest.events import RequestError
from ingest.models import Application, Channel
from ingest.privacy.encryption import encrypt

log = logs.get_logger(__name__)
# of a channel; EXHAUST_MAX_QUEUED_PER_CHANNEL bounds the waiting ones
MAX_DAILY_JOBS = 10_000
MAX_OPEN_CALLBACKS = 1_000
MAX_TRANSITIONS = 1_000  # of a job that is to run again
MAX_CONFIG_BYTES = 16 * 1024  # of datasetConfig as JSON


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
    encryption: str = ""  # the requested method; a key alone means a password
    encryption_key: str = field(default="", repr=False)


def make_request_id(
    dataset: str, tag: str, requested_by: str, channel: str, day: date, dataset_type: str | None
) -> str:
    """The request id of the Sunbird dataset API: 32 upper-case hex digits."""
    parts = [dataset, tag, requested_by, channel, day.isoformat()]
    if dataset_type is not None:
        parts.append(dataset_type)
    return _md5("|".join(parts))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest().upper()


def compute_fingerprint(submission: Submission) -> str:
    """A digest of everything that decides a file's content; the order of keys does not matter."""
    values = {
        "dataset": submission.dataset,
        "config": submission.config,
        "format": submission.output_format,
    }
    if submission.callback_url:
        values["callback"] = submission.callback_url
    if submission.encryption:
        values["encryption"] = submission.encryption
    if key := submission.encryption_key:  # keyed, so that the digest does not help to guess it
        values["key"] = salted_hmac("exhaust.encryptionKey", key, algorithm="sha256").hexdigest()
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def submit(submission: Submission, now: datetime | None = None) -> Job:
    """The job of a request: an existing one for the same request on the same day, else a new one.

    The day's first request under a tag has the classic request id; a different one has its own. A
    FAILED or CANCELLED job runs again, and so does one whose file was withdrawn. Raises
    `RequestError` (429) where too many requests or callbacks of the channel wait, or the day had
    too many, and (400) where the file cannot be encrypted as required.
    """
    method = encryption.resolve_method(
        submission.channel_id, submission.dataset, submission.encryption, submission.encryption_key
    )
    submission = replace(submission, encryption=method)
    day = (now or read_clock()).astimezone(UTC).date()
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
    if displayed_job.status == Job.Status.SUCCESS:
        _explain_age(displayed_job)
    return displayed_job


def _explain_age(job: Job) -> None:
    """Says in the answer to a repeated request, and there alone, which events its file holds."""
    since = f"{job.submitted_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    note = (
        f"This request was made at {since}, and its file has no later event. For these send it with"
        " another tag, or name it in datasetConfig.since."
    )
    job.status_message = " ".join(filter(None, (job.status_message, note)))


# fields in which a file and its supplement agree, so that together they are complete
_MUST_MATCH_SINCE = ("conversationId", "startDate", "endDate", "timezone", "types", "application")


def check_configuration(submission: Submission) -> None:
    """Raises `RequestError`: 400, 410 for an application or a `since` that the channel lacks, 413
    for a configuration of more than `MAX_CONFIG_BYTES`; 400 for a callback into a network that the
    channel may not reach."""
    config = submission.config
    if submission.callback_url:
        try:
            http_client.parse_url(submission.callback_url, submission.channel)
        except http_client.AddressNotAllowed as error:
            raise RequestError("invalid", f"request.callbackUrl: {error}") from None
    text = json.dumps(config, ensure_ascii=False, separators=(",", ":"))
    if (size := len(text.encode("utf-8", "surrogatepass"))) > MAX_CONFIG_BYTES:
        raise RequestError(
            "too_large",
            f"request.datasetConfig: Has {size:,} bytes as JSON; leave some fields or types out, so"
            f" that it has at most {MAX_CONFIG_BYTES:,}.",
            413,
        )
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
            "Names no finished request of this channel and dataset; name one with status SUCCESS,"
            " or leave it out.",
        )
    if reason := explain_gap(DATASETS[submission.dataset], job):
        raise RequestError("gone", f"request.datasetConfig.since: {reason}", 410)
    for name in _MUST_MATCH_SINCE:
        if _config_value(job.config, name) != _config_value(config, name):
            raise _field_error(
                name, "Differs from the request in since; use the same value, or leave since out."
            )


def _config_value(config: dict[str, Any], name: str) -> Any:
    value = config.get(name, "UTC" if name == "timezone" else None)
    return sorted(set(map(str, value))) if isinstance(value, list) else str(value)


def _field_error(name: str, advice: str) -> RequestError:
    return RequestError("invalid", f"request.datasetConfig.{name}: {advice}")


def _find_or_create(submission: Submission, request_id: str, fingerprint: str) -> Job:
    identity = {
        "channel_id": submission.channel_id,
        "tag": submission.tag,
        "request_id": request_id,
    }
    job = polling.fetch_job(submission.channel_id, submission.tag, request_id)
    if job is not None:
        return job
    try:
        with transaction.atomic():
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
                traceparent=tracing.current_traceparent(),
            )
            _record_audit("job.submitted", job, submission.channel)
            _enforce_limits(submission.channel_id, submission.callback_url, is_new=True)
        log.info("job.submitted", job=job)
        return job
    except IntegrityError:  # a concurrent submit was first
        return Job.objects.get(**identity)


_COUNT_SQL = """
SELECT
    (SELECT count(*) FROM (
        SELECT 1 FROM exhaust_job WHERE channel_id = %s AND status = 'SUBMITTED' LIMIT %s
    ) AS waiting),
    (SELECT submitted_at > %s FROM exhaust_job WHERE channel_id = %s
        ORDER BY submitted_at DESC, id DESC LIMIT 1 OFFSET %s)
"""


def _enforce_limits(channel_id: int, callback_url: str, *, is_new: bool = False) -> None:
    """Raises `RequestError` (429) where a job that was written just now is one too many.

    Call it last in the transaction. Its lock puts the channel's submissions in a row until the
    commit, so that each counts all before it.
    """
    list(Channel.objects.select_for_update(no_key=True).filter(pk=channel_id).values_list("pk"))
    limit = settings.EXHAUST_MAX_QUEUED_PER_CHANNEL
    a_day_ago = connection.ops.adapt_datetimefield_value(read_clock() - timedelta(days=1))
    ((waiting, is_day_full),) = fetch_all(
        _COUNT_SQL, [channel_id, limit + 1, a_day_ago, channel_id, MAX_DAILY_JOBS]
    )
    if waiting > limit:
        raise RequestError(
            "too_many_requests",
            f"This channel has {limit} requests waiting; send this one again when some are done.",
            429,
        )
    if is_new and is_day_full:
        raise RequestError(
            "too_many_requests",
            f"This channel had {MAX_DAILY_JOBS} requests within a day; send this one tomorrow.",
            429,
        )
    open_callbacks = Callback.objects.filter(channel=channel_id, status=Callback.Status.FAILING)
    if callback_url and open_callbacks.count() >= MAX_OPEN_CALLBACKS:
        raise RequestError(
            "too_many_requests",
            f"This channel has {MAX_OPEN_CALLBACKS} callbacks that no receiver accepted yet; let"
            " yours accept them, or leave callbackUrl out.",
            429,
        )


def _encrypt_key(key: str) -> bytes | None:
    return encrypt(key.encode()) if key else None


def retry(job: Job, encryption_key: str = "") -> bool:
    """Runs a FAILED or CANCELLED job again, or one whose file was withdrawn.

    A SUBMITTED job becomes due at once. False when the job is running or has its file. Raises
    `RequestError` (429) as `submit` does, and (409) where the encryption key was deleted or the job
    ran too often.
    """
    is_rerunnable = transitions.rerunnable_jobs().filter(pk=job.pk).exists()
    if is_rerunnable and job.encryption == Channel.Encryption.PASSWORD and not encryption_key:
        raise RequestError(
            "conflict",
            "Its encryptionKey was deleted when the job ended;"
            " send the request again with the key.",
            409,
        )
    if is_rerunnable and job.transitions.count() >= MAX_TRANSITIONS:
        raise RequestError(
            "conflict",
            f"This job changed its status {MAX_TRANSITIONS} times; send the request under"
            " another tag.",
            409,
        )
    with transaction.atomic():
        if job.status == Job.Status.SUBMITTED:
            won = transitions.run_now(job)
        else:
            won = transitions.resubmit(job, _encrypt_key(encryption_key))
        if won:
            _record_audit("job.retried", job)
        if won and job.status != Job.Status.SUBMITTED:
            _enforce_limits(job.channel_id, job.callback_url)
    job.refresh_from_db()
    if won:
        transaction.on_commit(partial(enqueue_work, job.priority))
    return won


def cancel(job: Job, cancelled_by: str) -> bool:
    """Cancels a job; False when it had ended."""
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
