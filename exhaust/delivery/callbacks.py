"""Tells the receiver of a job's `callbackUrl` that the job has ended, until it took it.

A callback is a row, written with the end itself. A claim is one guarded UPDATE that pushes `due_at`
ahead: until then nobody else delivers it, and should the worker die it is due again by itself.
"""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, timedelta
from time import monotonic
from typing import Any

from cryptography.fernet import InvalidToken
from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from exhaust.delivery import webhook
from exhaust.delivery.http_client import AddressNotAllowed, Answer, Unreachable
from exhaust.models import Callback, CallbackSecret, Job
from ingest import logs
from ingest.models import Channel
from ingest.privacy.encryption import decrypt, encrypt

log = logs.get_logger(__name__)
LEASE = timedelta(seconds=60)  # well over what a delivery may take
MAX_ATTEMPTS = 8
RETRY_DELAYS_SECONDS = (
    5,
    30,
    120,
    600,
    3600,
    21_600,
    21_600,
)  # seconds at most, before each further attempt
HTTP_GONE = 410
CONCURRENCY = 8  # so that one receiver that hangs does not hold up the others
Outcome = Answer | AddressNotAllowed | Unreachable


# Delivering ---------------------------------------------------------------------------------------


def find_due() -> QuerySet[Callback]:
    """Notices to deliver now, also those whose deliverer died."""
    return Callback.objects.filter(delivered_at=None, abandoned_at=None, due_at__lte=Now())


def deliver_due(seconds: float) -> bool:
    """Delivers what is due, and begins nothing new after `seconds`; whether more is due.

    What has begun by then takes `http.SECONDS` at most.
    """
    until = monotonic() + seconds
    _give_up_exhausted()
    with ThreadPoolExecutor(CONCURRENCY) as senders:
        while claimed := _claim_batch():
            messages = [_build_request(callback) for callback in claimed]
            for callback, outcome in zip(claimed, senders.map(_send, messages), strict=True):
                _record_outcome(callback, outcome)
            if monotonic() >= until:
                return find_due().exists()
    return False


def requeue(callbacks: QuerySet[Callback]) -> int:
    """Makes those that were delivered or given up due anew; how many."""
    ended = callbacks.exclude(delivered_at=None, abandoned_at=None)
    return ended.update(
        delivered_at=None, abandoned_at=None, attempt=0, due_at=Now(), answer=None, error=""
    )


def _claim_batch() -> list[Callback]:
    """The next callbacks for this worker alone; those that were never tried before the others."""
    candidates = find_due().filter(attempt__lt=MAX_ATTEMPTS).select_related("job__channel")
    claimed = []
    for callback in candidates.order_by("attempt", "due_at", "id")[:CONCURRENCY]:
        guarded_row = find_due().filter(pk=callback.pk, attempt=callback.attempt)
        if guarded_row.update(attempt=F("attempt") + 1, due_at=Now() + LEASE):
            callback.attempt += 1
            claimed.append(callback)
    return claimed


def _give_up_exhausted() -> None:
    find_due().filter(attempt__gte=MAX_ATTEMPTS).update(
        abandoned_at=Now(), error="The last delivery ended without a word."
    )


@dataclass(frozen=True)
class _CallbackRequest:
    """What is sent, read from the database beforehand: the threads that send have no connection."""

    callback_id: int
    url: str
    id: str
    body: bytes
    secrets: list[str]


def _build_request(callback: Callback) -> _CallbackRequest:
    job = callback.job
    try:
        secrets = fetch_active_secrets(job.channel)
    except InvalidToken:
        log.error("callback.secret_unreadable", channel=job.channel_id)
        secrets = []
    return _CallbackRequest(
        callback.pk,
        callback.url,
        f"msg_{job.request_id}_{callback.pk}",  # the same at every attempt
        json.dumps(_build_payload(callback), ensure_ascii=False, separators=(",", ":")).encode(),
        secrets,
    )


def _build_payload(callback: Callback) -> dict[str, Any]:
    """The body: the end as it was then, though the job may have been run again since.

    No link and nobody's name: the receiver reads the request with its own key.
    """
    job = callback.job
    transitions = job.transitions.filter(status=callback.status, at__lte=callback.created_at)
    message = transitions.order_by("-id").values_list("message", flat=True).first() or ""
    files = list(job.files.all()) if callback.status == Job.Status.SUCCESS else []
    is_cancelled = callback.status == Job.Status.CANCELLED
    return {
        "type": "dataset.request.ended",
        "timestamp": callback.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "data": {
            "requestId": job.request_id,
            "tag": job.tag,
            "dataset": job.dataset,
            "requestedChannel": job.channel.identifier,
            "status": callback.status,
            "statusMessage": "" if is_cancelled else message,  # it names who cancelled
            "rows": sum(file.row_count for file in files) if files else None,
            "bytes": sum(file.byte_count for file in files) if files else None,
            "sha256": files[0].sha256 if len(files) == 1 else None,
        },
    }


def _send(message: _CallbackRequest) -> Outcome:
    if not message.secrets:
        return Unreachable("The callback could not be signed; the cause is in the service's log.")
    try:
        return webhook.send(message.url, message.id, message.body, message.secrets, timezone.now())
    except (AddressNotAllowed, Unreachable) as error:
        return error
    except Exception:  # of one receiver; the others' outcomes are to be recorded
        log.exception("callback.delivery_crashed", callback=message.callback_id)
        return Unreachable("The delivery broke; the cause is in the service's log.")


def _record_outcome(callback: Callback, outcome: Outcome) -> None:
    """What came of this attempt; nothing when another one has begun since."""
    answer = outcome.status if isinstance(outcome, Answer) else None
    values: dict[str, Any] = {"answer": answer, "error": ""}
    if isinstance(outcome, Answer) and 200 <= outcome.status < 300:
        values["delivered_at"] = Now()
    else:
        values["error"] = f"The answer was {answer}." if answer else str(outcome)
        if (
            callback.attempt >= MAX_ATTEMPTS
            or answer == HTTP_GONE
            or isinstance(outcome, AddressNotAllowed)
        ):
            values["abandoned_at"] = Now()
        else:
            values["due_at"] = Now() + _retry_delay(callback.attempt, outcome)
    claimed = Callback.objects.filter(
        pk=callback.pk, attempt=callback.attempt, delivered_at=None, abandoned_at=None
    )
    updated = claimed.update(**values)
    log.info(
        "callback.delivered" if "delivered_at" in values else "callback.failed",
        callback=callback.pk,
        attempt=callback.attempt,
        answer=answer,
        won=updated,
    )


def _retry_delay(attempt: int, outcome: Outcome) -> timedelta:
    """Full jitter, or as long as the receiver asks for."""
    requested = outcome.retry_after if isinstance(outcome, Answer) else 0
    jittered = random.uniform(0, RETRY_DELAYS_SECONDS[attempt - 1])  # noqa: S311
    return timedelta(seconds=max(jittered, min(requested, RETRY_DELAYS_SECONDS[-1])))


# What they are signed with ------------------------------------------------------------------------


def fetch_active_secrets(channel: Channel) -> list[str]:
    """A channel's signing secrets, the newest first; the first one is made here.

    Raises `cryptography.fernet.InvalidToken` when no key of ours opens one.
    """
    if not _active_secrets(channel).exists():
        with transaction.atomic():
            Channel.objects.select_for_update(no_key=True).get(pk=channel.pk)
            if not _active_secrets(channel).exists():
                _create_secret(channel)
    return [
        decrypt(row.encrypted_secret).decode() for row in _active_secrets(channel).order_by("-id")
    ]


@transaction.atomic
def rotate_secret(channel: Channel) -> None:
    """A new secret beside the newest one; callbacks carry the signatures of both."""
    Channel.objects.select_for_update(no_key=True).get(pk=channel.pk)
    retire_old_secrets(channel)
    _create_secret(channel)


def retire_old_secrets(channel: Channel) -> int:
    """Nothing is signed any more with any but the newest; how many were retired."""
    old = _active_secrets(channel).order_by("-id").values_list("pk", flat=True)[1:]
    return CallbackSecret.objects.filter(pk__in=list(old)).update(retired_at=Now())


def _active_secrets(channel: Channel) -> QuerySet[CallbackSecret]:
    return CallbackSecret.objects.filter(channel=channel, retired_at=None)


def _create_secret(channel: Channel) -> None:
    CallbackSecret.objects.create(
        channel=channel, encrypted_secret=encrypt(webhook.generate_secret().encode())
    )
    log.info("callback_secret.created", channel=channel.pk)
