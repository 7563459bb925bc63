"""Submits, retries and cancels jobs; makes request ids."""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.utils.crypto import salted_hmac

from exhaust import tracing
from exhaust.datasets.base import Dataset
from exhaust.datasets.layout import COLUMN_FIELDS
from exhaust.datasets.own import require_dataset
from exhaust.datasets.supplement import explain_gap, find_completed_job
from exhaust.datasets.zones import find_zone_name
from exhaust.delivery import destinations, http_client
from exhaust.feed.pages import explain_unknown_application
from exhaust.files import encryption
from exhaust.jobs import polling, transitions
from exhaust.jobs.wakeup import enqueue_work
from exhaust.models import Delivery, Job
from ingest import audit, logs
from ingest.db.clock import read_clock
from ingest.db.prepared import fetch_all, insert
from ingest.events import RequestError, format_count
from ingest.models import Channel
from ingest.privacy.encryption import encrypt

log = logs.get_logger(__name__)
# of a channel; EXHAUST_MAX_QUEUED_PER_CHANNEL bounds those that wait for a worker, and those that
# wait for their time
MAX_DAILY_JOBS = 10_000
MAX_OPEN_CALLBACKS = 1_000
MAX_OPEN_FILE_DELIVERIES = 1_000
MAX_TRANSITIONS = 1_000  # of a job that is to run again
MAX_CONFIG_BYTES = 16 * 1024  # of datasetConfig as JSON
MAX_DELAY = timedelta(days=31)  # of notBefore


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
    not_before: datetime | None = None
    force_new: bool = False  # even if the same request has a job today
    callback_url: str = ""
    deliver_to: str = ""  # a destination for files
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


def compute_fingerprint(submission: Submission, definition: Any = None) -> str:
    """A digest of everything that decides a file's content; the order of keys does not matter.

    `definition` is that of an own dataset.
    """
    values = {
        "dataset": submission.dataset,
        "config": submission.config,
        "format": submission.output_format,
    }
    if definition is not None:
        values["definition"] = definition
    if submission.callback_url:
        values["callback"] = submission.callback_url
    if submission.deliver_to:
        values["deliverTo"] = submission.deliver_to
    if submission.encryption:
        values["encryption"] = submission.encryption
    if key := submission.encryption_key:  # keyed, so that the digest does not help to guess it
        values["key"] = salted_hmac("exhaust.encryptionKey", key, algorithm="sha256").hexdigest()
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def submit(submission: Submission, now: datetime | None = None) -> Job:
    """The job of a request: an existing one for the same request on the same day, else a new one.

    The day's first request under a tag has the classic request id; a different one has its own. A
    FAILED or CANCELLED job runs again, and so does one whose file was withdrawn. Its `is_existing`
    tells whether it was there and is left as it is. Raises
    `RequestError` (429) where too many requests or callbacks of the channel wait, or the day had
    too many, and (400) where the file cannot be encrypted as required. Those that wait for a worker
    and those that wait for their time are counted apart.
    """
    dataset = require_dataset(submission.channel_id, submission.dataset)
    method = encryption.resolve_method(
        submission.channel_id, dataset.is_private, submission.encryption, submission.encryption_key
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
    fingerprint = compute_fingerprint(submission, dataset.definition)
    job = None
    for candidate in (classic_id, _md5(f"{classic_id}|{fingerprint}")):
        job = _find_or_create(submission, candidate, fingerprint, dataset)
        if job.fingerprint == fingerprint:
            break
    assert job is not None  # noqa: S101
    if job.is_existing and submission.force_new:
        job = _find_or_create(submission, uuid4().hex.upper(), fingerprint, dataset)
    is_existing = job.is_existing
    if job.status == Job.Status.SUBMITTED:
        if is_existing:
            with transaction.atomic():
                if transitions.hasten(job, submission.not_before, submission.priority):
                    _enforce_limits(job)
        transaction.on_commit(partial(enqueue_work, min(job.priority, submission.priority)))
    elif transitions.rerunnable_jobs().filter(pk=job.pk).exists():
        is_existing = not retry(job, submission.encryption_key, submission.not_before)
    displayed_job = polling.fetch_job(submission.channel_id, submission.tag, job.request_id)
    assert displayed_job is not None  # noqa: S101
    displayed_job.is_existing = is_existing
    return displayed_job


# fields in which a file and its supplement agree, so that together they are complete
_MUST_MATCH_SINCE = (
    "conversationId", "startDate", "endDate", "timezone", "types", "application", *COLUMN_FIELDS
)  # fmt: skip


def check_configuration(submission: Submission) -> None:
    """Raises `RequestError`: 400, 410 for an application or a `since` that the channel lacks, 413
    for a configuration of more than `MAX_CONFIG_BYTES`; 400 for a callback into a network that the
    channel may not reach, and for a destination that cannot get the files."""
    config = submission.config
    if submission.callback_url:
        try:
            http_client.parse_url(submission.callback_url, submission.channel)
        except http_client.AddressNotAllowed as error:
            raise RequestError("invalid", f"request.callbackUrl: {error}") from None
    dataset = require_dataset(submission.channel_id, submission.dataset)
    if submission.deliver_to and (
        remedy := destinations.explain_unusable(
            submission.channel_id, submission.deliver_to, dataset.name, dataset.own_scope
        )
    ):
        raise RequestError("invalid", f"request.deliverTo: {remedy}")
    text = json.dumps(config, ensure_ascii=False, separators=(",", ":"))
    if (size := len(text.encode("utf-8", "surrogatepass"))) > MAX_CONFIG_BYTES:
        raise RequestError(
            "too_large",
            f"request.datasetConfig: Has {size:,} bytes as JSON; leave some fields or types out, so"
            f" that it has at most {MAX_CONFIG_BYTES:,}.",
            413,
        )
    application = config.get("application")
    if application is not None and (
        remedy := explain_unknown_application(submission.channel_id, str(application))
    ):
        raise _field_error("application", remedy)
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
    if reason := explain_gap(dataset, job):
        raise RequestError("gone", f"request.datasetConfig.since: {reason}", 410)
    if job.definition != dataset.definition:
        raise _field_error(
            "since", "The definition of the dataset has changed since that request; leave it out."
        )
    for name in _MUST_MATCH_SINCE:
        if _config_value(job.config, name) != _config_value(config, name):
            raise _field_error(
                name, "Differs from the request in since; use the same value, or leave since out."
            )


_CONFIG_DEFAULTS = {"timezone": "UTC", "timestamps": "utc"}


def _config_value(config: dict[str, Any], name: str) -> Any:
    value = config.get(name, _CONFIG_DEFAULTS.get(name))
    if name == "timezone":
        with suppress(ValueError):  # an earlier version stored the name as it was sent
            return find_zone_name(str(value))
    if not isinstance(value, list):
        return str(value)
    texts = list(map(str, value))
    return texts if name == "columns" else sorted(set(texts))


def _field_error(name: str, advice: str) -> RequestError:
    return RequestError("invalid", f"request.datasetConfig.{name}: {advice}")


_EXISTS_SQL = """
SELECT 1 FROM exhaust_job
WHERE channel_id = %s AND tag = %s AND request_id = %s
"""


def _find_or_create(
    submission: Submission, request_id: str, fingerprint: str, dataset: Dataset
) -> Job:
    if fetch_all(_EXISTS_SQL, [submission.channel_id, submission.tag, request_id]):
        return _fetch_existing(submission, request_id)
    try:
        with transaction.atomic():
            job = Job(
                channel_id=submission.channel_id,
                tag=submission.tag,
                request_id=request_id,
                dataset=submission.dataset,
                definition=dataset.definition,
                own_scope=dataset.own_scope,
                config=submission.config,
                output_format=submission.output_format,
                encryption=submission.encryption,
                encrypted_key=_encrypt_key(submission.encryption_key),
                fingerprint=fingerprint,
                requested_by=submission.requested_by,
                priority=submission.priority,
                **({"due_at": submission.not_before} if submission.not_before else {}),
                callback_url=submission.callback_url,
                deliver_to=submission.deliver_to,
                schedule_id=submission.schedule_id,
                traceparent=tracing.current_traceparent(),
            )
            insert(job)
            _record_audit("job.submitted", job, submission.channel)
            _enforce_limits(job, is_new=True)
        log.info("job.submitted", job=job)
        return job
    except IntegrityError:  # a concurrent submit was first
        return _fetch_existing(submission, request_id)


def _fetch_existing(submission: Submission, request_id: str) -> Job:
    job = Job.objects.get(
        channel_id=submission.channel_id, tag=submission.tag, request_id=request_id
    )
    job.is_existing = True
    return job


# one that waits for the night, or for its time; a retry waits for a worker
_IS_DEFERRED = (
    f"(priority = {Job.Priority.NIGHTLY:d} OR due_at > %(now)s"
    " AND attempt = uncounted_attempts AND storage_failed_at IS NULL)"
)
_WAITING = "SELECT 1 FROM exhaust_job WHERE channel_id = %(channel)s AND status = 'SUBMITTED'"
_LOCK_SQL = "SELECT id FROM ingest_channel WHERE id = %s FOR NO KEY UPDATE"
_COUNT_SQL = f"""
SELECT
    (SELECT {_IS_DEFERRED} FROM exhaust_job WHERE id = %(job)s),
    (SELECT count(*) FROM ({_WAITING} AND {_IS_DEFERRED} LIMIT %(limit)s) AS deferred),
    (SELECT count(*) FROM ({_WAITING} AND NOT {_IS_DEFERRED} LIMIT %(limit)s) AS waiting),
    (SELECT submitted_at > %(a_day_ago)s FROM exhaust_job WHERE channel_id = %(channel)s
        ORDER BY submitted_at DESC, id DESC LIMIT 1 OFFSET %(day_jobs)s)
"""  # noqa: S608


def _enforce_limits(job: Job, *, is_new: bool = False) -> None:
    """Raises `RequestError` (429) where a job that was written just now is one too many.

    Call it last in the transaction. Its lock puts the channel's submissions in a row until the
    commit, so that each counts all before it.
    """
    channel_id = job.channel_id
    if connection.features.has_select_for_update:
        fetch_all(_LOCK_SQL, [channel_id])
    limit = settings.EXHAUST_MAX_QUEUED_PER_CHANNEL
    adapt, now = connection.ops.adapt_datetimefield_value, read_clock()
    ((is_deferred, deferred, waiting, is_day_full),) = fetch_all(
        _COUNT_SQL,
        {
            "channel": channel_id,
            "job": job.pk,
            "now": adapt(now),
            "limit": limit + 1,
            "a_day_ago": adapt(now - timedelta(days=1)),
            "day_jobs": MAX_DAILY_JOBS,
        },
    )
    if is_deferred and deferred > limit:
        raise RequestError(
            "too_many_requests",
            f"This channel has {format_count(limit, 'request')} waiting for the night or for"
            " notBefore; send this one again when some are done, or let it run now.",
            429,
        )
    if not is_deferred and waiting > limit:
        raise RequestError(
            "too_many_requests",
            f"This channel has {format_count(limit, 'request')} waiting; send this one again when"
            " some are done.",
            429,
        )
    if is_new and is_day_full:
        raise RequestError(
            "too_many_requests",
            f"This channel had {MAX_DAILY_JOBS} requests within a day; send this one tomorrow.",
            429,
        )
    if job.deliver_to and _count_open(job, Delivery.Kind.FILES) >= MAX_OPEN_FILE_DELIVERIES:
        raise RequestError(
            "too_many_requests",
            f"This channel has {MAX_OPEN_FILE_DELIVERIES} exports that their destinations did not"
            " take yet; mend or delete these, or leave deliverTo out.",
            429,
        )
    if job.callback_url and _count_open(job, Delivery.Kind.CALLBACK) >= MAX_OPEN_CALLBACKS:
        raise RequestError(
            "too_many_requests",
            f"This channel has {MAX_OPEN_CALLBACKS} callbacks that no receiver accepted yet; let"
            " yours accept them, or leave callbackUrl out.",
            429,
        )


def _count_open(job: Job, kind: str) -> int:
    return Delivery.objects.filter(
        channel=job.channel_id, kind=kind, status=Delivery.Status.FAILING
    ).count()


def _encrypt_key(key: str) -> bytes | None:
    return encrypt(key.encode()) if key else None


def retry(job: Job, encryption_key: str = "", not_before: datetime | None = None) -> bool:
    """Runs a FAILED or CANCELLED job again, or one whose file was withdrawn.

    It runs at `not_before` at the earliest, by default now. A SUBMITTED job becomes due at once.
    False when the job is running or has its file. Raises `RequestError` (429) as `submit` does, and
    (409) where the encryption key was deleted or the job ran too often.
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
            won = transitions.resubmit(job, _encrypt_key(encryption_key), not_before)
        if won:
            _record_audit("job.retried", job)
            _enforce_limits(job)
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
    if job.deliver_to:
        details["destination"] = job.deliver_to
    audit.record(
        action,
        channel=channel or job.channel.identifier,
        subject=job.request_id,
        dataset=job.dataset,
        job=job.pk,
        **details,
    )
