"""Callbacks: the signed POST to a job's `callbackUrl` when the job ends.

A callback is a delivery of one document. Its row is written with the end itself, and
`loop.deliver_due` delivers it until the receiver accepted it.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from cryptography.fernet import InvalidToken
from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from exhaust.delivery import loop, webhook
from exhaust.delivery.backoff import Backoff
from exhaust.delivery.http_client import AddressNotAllowed, Answer, Unreachable
from exhaust.delivery.sender import OutboundRequest, Outcome
from exhaust.models import Callback, CallbackSecret, Delivery, Job
from ingest import logs
from ingest.models import Channel
from ingest.privacy.encryption import decrypt, encrypt

log = logs.get_logger(__name__)
TIMEOUT_SECONDS = 15.0
BACKOFF = Backoff(
    (5, 30, 120, 600, 3600, 21_600, 21_600),
    jitter=(0.0, 1.0),
    can_shorten=False,
)
HTTP_GONE = 410


def create_callback(job: Job) -> Callback:
    """Writes the callback of a job that has just ended. It is due at once."""
    return Callback.objects.create(
        channel_id=job.channel_id,
        kind=Delivery.Kind.CALLBACK,
        job=job,
        job_status=job.status,
        url=job.callback_url,
        documents=1,
    )


def requeue(callbacks: QuerySet[Callback]) -> int:
    """Makes ended callbacks due again, under the ids they had. Returns how many."""
    ended = callbacks.exclude(status=Delivery.Status.FAILING)
    return ended.update(
        status=Delivery.Status.FAILING,
        attempt=0,
        answer=None,
        error="",
        ended_at=None,
        next_at=Now(),
        fencing_token=F("fencing_token") + 1,
    )


# Delivering ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A claimed callback and its request."""

    delivery: Callback
    request: OutboundRequest


class CallbackQueue:
    """The callbacks that are due, as `loop.deliver_due` delivers them."""

    def find_due(self) -> QuerySet[Callback]:
        failing = Callback.objects.filter(status=Delivery.Status.FAILING)
        due = loop.find_claimable(failing).select_related("job__channel")
        return due.order_by("attempt", "next_at", "id")  # untried ones first

    def prefetch(self, sending: Collection[Work]) -> bool:
        return False

    def prepare(self, row: Callback) -> Work | None:
        """Returns the request, its attempt on record; None where there is none to make."""
        if row.attempt >= BACKOFF.max_attempts:
            error = "The last delivery ended without a word."
            self._end(row, Delivery.Status.DEAD, error, row.answer)
            return None
        row.attempt += 1
        try:
            if not loop.claimed_row(row).update(attempt=row.attempt, attempted_at=Now()):
                return None
            work = Work(row, build_request(row))
        except InvalidToken:
            log.error("callback.secret_unreadable", callback=row)
            sentence = "The callback could not be signed; the cause is in the service's log."
            self._record(row, Unreachable(sentence))
            return None
        except Exception as error:  # the other callbacks do not wait for this one
            log.exception("callback.preparation_failed", callback=row)
            loop.postpone(row, error)
            return None
        return work

    def record(self, work: Work, outcome: Outcome) -> None:
        self._record(work.delivery, outcome)

    def _record(self, callback: Callback, outcome: Outcome) -> None:
        answer = outcome.status if isinstance(outcome, Answer) else None
        retry_after = outcome.retry_after if isinstance(outcome, Answer) else 0
        error = f"The answer was {answer}." if answer else str(outcome)
        if isinstance(outcome, Answer) and 200 <= outcome.status < 300:
            self._end(callback, Delivery.Status.DELIVERED, "", answer)
        elif (
            callback.attempt >= BACKOFF.max_attempts
            or answer == HTTP_GONE
            or isinstance(outcome, AddressNotAllowed)
        ):
            self._end(callback, Delivery.Status.DEAD, error, answer)
        else:
            delay = BACKOFF.delay(callback.attempt, retry_after)
            loop.release(callback, answer=answer, error=error, next_at=Now() + delay)
            log.info("callback.failed", callback=callback, attempt=callback.attempt, answer=answer)

    def _end(
        self, callback: Callback, status: Delivery.Status, error: str, answer: int | None = None
    ) -> None:
        loop.release(callback, status=status, answer=answer, error=error, ended_at=Now())
        if status == Delivery.Status.DELIVERED:
            log.info("callback.delivered", callback=callback, attempt=callback.attempt)
        else:
            log.info("callback.abandoned", callback=callback, answer=answer)


def find_due() -> QuerySet[Callback]:
    """Returns the callbacks to deliver now, also those whose worker died."""
    return CallbackQueue().find_due()


def deliver_due(seconds: float) -> bool:
    """Delivers due callbacks, and starts no request after `seconds`.

    Returns whether more are due. Requests under way take `TIMEOUT_SECONDS` at most.
    """
    return loop.deliver_due(CallbackQueue(), seconds)


def build_request(callback: Callback) -> OutboundRequest:
    """Returns the signed POST of a callback. Its id and body are the same at every attempt.

    Raises `cryptography.fernet.InvalidToken` when no key decrypts the channel's secrets.
    """
    job: Job = callback.job  # type: ignore[assignment] # a constraint of the table
    return OutboundRequest(
        f"msg_{job.request_id}_{callback.pk}",
        job.channel.identifier,
        "POST",
        callback.url,
        json.dumps(
            _build_payload(callback, job), ensure_ascii=False, separators=(",", ":")
        ).encode(),
        {"Content-Type": "application/json"},
        fetch_active_secrets(job.channel),
        TIMEOUT_SECONDS,
    )


def _build_payload(callback: Callback, job: Job) -> dict[str, Any]:
    """Returns the body: the end as it was, even where the job ran again since.

    It holds no link and no name: the receiver reads the request with its own key.
    """
    transitions = job.transitions.filter(
        status=callback.job_status, changed_at__lte=callback.created_at
    )
    message = transitions.order_by("-id").values_list("message", flat=True).first() or ""
    files = list(job.files.all()) if callback.job_status == Job.Status.SUCCESS else []
    is_cancelled = callback.job_status == Job.Status.CANCELLED
    return {
        "type": "dataset.request.ended",
        "timestamp": callback.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "data": {
            "requestId": job.request_id,
            "tag": job.tag,
            "dataset": job.dataset,
            "requestedChannel": job.channel.identifier,
            "status": callback.job_status,
            "statusMessage": "" if is_cancelled else message,  # it names a person
            "rows": sum(file.row_count for file in files) if files else None,
            "bytes": sum(file.byte_count for file in files) if files else None,
            "sha256": files[0].sha256 if len(files) == 1 else None,
        },
    }


# Signing secrets ----------------------------------------------------------------------------------


def fetch_active_secrets(channel: Channel) -> list[str]:
    """Returns the signing secrets of a channel, the newest first. Makes the first one.

    Raises `cryptography.fernet.InvalidToken` when no key decrypts one.
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
    """Makes a new secret beside the newest one. Both sign the callbacks."""
    Channel.objects.select_for_update(no_key=True).get(pk=channel.pk)
    retire_old_secrets(channel)
    _create_secret(channel)


def retire_old_secrets(channel: Channel) -> int:
    """Retires every secret but the newest. Returns how many."""
    old = _active_secrets(channel).order_by("-id").values_list("pk", flat=True)[1:]
    return CallbackSecret.objects.filter(pk__in=list(old)).update(retired_at=Now())


def _active_secrets(channel: Channel) -> QuerySet[CallbackSecret]:
    return CallbackSecret.objects.filter(channel=channel, retired_at=None)


def _create_secret(channel: Channel) -> None:
    CallbackSecret.objects.create(
        channel=channel, encrypted_secret=encrypt(webhook.generate_secret().encode())
    )
    log.info("callback_secret.created", channel=channel.pk)
