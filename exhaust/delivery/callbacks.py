"""Tells the receiver of a job's `callbackUrl` that the job has ended, until it took it.

A notice is a row, written with the end itself. A claim is one guarded UPDATE that pushes `due_at`
ahead: until then nobody else delivers it, and should the worker die it is due again by itself.
"""

import json
import logging
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
from exhaust.delivery.http_client import AddressRefused, Answer, Unreachable
from exhaust.models import CallbackSecret, Job, Notice
from ingest.models import Channel
from ingest.privacy.encryption import seal, unseal

log = logging.getLogger(__name__)
LEASE = timedelta(seconds=60)  # well over what a delivery may take
ATTEMPTS = 8
DELAYS = (5, 30, 120, 600, 3600, 21_600, 21_600)  # seconds at most, before each further attempt
GONE = 410
AT_ONCE = 8  # so that one receiver that hangs does not hold up the others
Outcome = Answer | AddressRefused | Unreachable


# Delivering ---------------------------------------------------------------------------------------


def due() -> QuerySet[Notice]:
    """Notices to deliver now, also those whose deliverer died."""
    return Notice.objects.filter(delivered_at=None, given_up_at=None, due_at__lte=Now())


def deliver_due(seconds: float) -> bool:
    """Delivers what is due, and begins nothing new after `seconds`; whether more is due.

    What has begun by then takes `http.SECONDS` at most.
    """
    until = monotonic() + seconds
    _give_up_the_dead()
    with ThreadPoolExecutor(AT_ONCE) as senders:
        while claimed := _claim():
            messages = [_message(notice) for notice in claimed]
            for notice, outcome in zip(claimed, senders.map(_send, messages), strict=True):
                _record(notice, outcome)
            if monotonic() >= until:
                return due().exists()
    return False


def again(notices: QuerySet[Notice]) -> int:
    """Makes those that were delivered or given up due anew; how many."""
    closed = notices.exclude(delivered_at=None, given_up_at=None)
    return closed.update(
        delivered_at=None, given_up_at=None, attempt=0, due_at=Now(), answer=None, error=""
    )


def _claim() -> list[Notice]:
    """The next notices for this worker alone; those that were never tried before the others."""
    found = due().filter(attempt__lt=ATTEMPTS).select_related("job__channel")
    claimed = []
    for notice in found.order_by("attempt", "due_at", "id")[:AT_ONCE]:
        seen = due().filter(pk=notice.pk, attempt=notice.attempt)
        if seen.update(attempt=F("attempt") + 1, due_at=Now() + LEASE):
            notice.attempt += 1
            claimed.append(notice)
    return claimed


def _give_up_the_dead() -> None:
    due().filter(attempt__gte=ATTEMPTS).update(
        given_up_at=Now(), error="The last delivery ended without a word."
    )


@dataclass(frozen=True)
class _Message:
    """What is sent, read from the database beforehand: the threads that send have no connection."""

    notice_id: int
    url: str
    id: str
    body: bytes
    secrets: list[str]


def _message(notice: Notice) -> _Message:
    job = notice.job
    try:
        secrets = live_secrets(job.channel)
    except InvalidToken:
        log.error("notice.secret_unreadable channel=%s", job.channel_id)
        secrets = []
    return _Message(
        notice.pk,
        notice.url,
        f"msg_{job.request_id}_{notice.pk}",  # the same at every attempt
        json.dumps(_told(notice), ensure_ascii=False, separators=(",", ":")).encode(),
        secrets,
    )


def _told(notice: Notice) -> dict[str, Any]:
    """The body: the end as it was then, though the job may have been run again since.

    No link and nobody's name: the receiver reads the request with its own key.
    """
    job = notice.job
    then = job.transitions.filter(status=notice.status, at__lte=notice.created_at)
    message = then.order_by("-id").values_list("message", flat=True).first() or ""
    files = list(job.files.all()) if notice.status == Job.Status.SUCCESS else []
    cancelled = notice.status == Job.Status.CANCELLED
    return {
        "type": "dataset.request.ended",
        "timestamp": notice.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "data": {
            "requestId": job.request_id,
            "tag": job.tag,
            "dataset": job.dataset,
            "requestedChannel": job.channel.identifier,
            "status": notice.status,
            "statusMessage": "" if cancelled else message,  # it names who cancelled
            "rows": sum(file.row_count for file in files) if files else None,
            "bytes": sum(file.byte_count for file in files) if files else None,
            "sha256": files[0].sha256 if len(files) == 1 else None,
        },
    }


def _send(message: _Message) -> Outcome:
    if not message.secrets:
        return Unreachable("The notice could not be signed; the cause is in the service's log.")
    try:
        return webhook.send(message.url, message.id, message.body, message.secrets, timezone.now())
    except (AddressRefused, Unreachable) as error:
        return error
    except Exception:  # of one receiver; the others' outcomes are to be recorded
        log.exception("notice.delivery_broke notice=%s", message.notice_id)
        return Unreachable("The delivery broke; the cause is in the service's log.")


def _record(notice: Notice, outcome: Outcome) -> None:
    """What came of this attempt; nothing when another one has begun since."""
    answer = outcome.status if isinstance(outcome, Answer) else None
    values: dict[str, Any] = {"answer": answer, "error": ""}
    if isinstance(outcome, Answer) and 200 <= outcome.status < 300:
        values["delivered_at"] = Now()
    else:
        values["error"] = f"The answer was {answer}." if answer else str(outcome)
        if notice.attempt >= ATTEMPTS or answer == GONE or isinstance(outcome, AddressRefused):
            values["given_up_at"] = Now()
        else:
            values["due_at"] = Now() + _delay(notice.attempt, outcome)
    held = Notice.objects.filter(
        pk=notice.pk, attempt=notice.attempt, delivered_at=None, given_up_at=None
    )
    won = held.update(**values)
    log.info(
        "notice.%s notice=%s attempt=%s answer=%s won=%s",
        "delivered" if "delivered_at" in values else "failed",
        notice.pk,
        notice.attempt,
        answer,
        won,
    )


def _delay(attempt: int, outcome: Outcome) -> timedelta:
    """Full jitter, or as long as the receiver asks for."""
    asked = outcome.retry_after if isinstance(outcome, Answer) else 0
    drawn = random.uniform(0, DELAYS[attempt - 1])  # noqa: S311
    return timedelta(seconds=max(drawn, min(asked, DELAYS[-1])))


# What they are signed with ------------------------------------------------------------------------


def live_secrets(channel: Channel) -> list[str]:
    """A channel's signing secrets, the newest first; the first one is made here.

    Raises `cryptography.fernet.InvalidToken` when no key of ours opens one.
    """
    if not _live(channel).exists():
        with transaction.atomic():
            Channel.objects.select_for_update(no_key=True).get(pk=channel.pk)
            if not _live(channel).exists():
                _make_secret(channel)
    return [unseal(row.sealed).decode() for row in _live(channel).order_by("-id")]


@transaction.atomic
def rotate_secret(channel: Channel) -> None:
    """A new secret beside the newest one; notices carry the signatures of both."""
    Channel.objects.select_for_update(no_key=True).get(pk=channel.pk)
    retire_old_secrets(channel)
    _make_secret(channel)


def retire_old_secrets(channel: Channel) -> int:
    """Nothing is signed any more with any but the newest; how many were retired."""
    old = _live(channel).order_by("-id").values_list("pk", flat=True)[1:]
    return CallbackSecret.objects.filter(pk__in=list(old)).update(retired_at=Now())


def _live(channel: Channel) -> QuerySet[CallbackSecret]:
    return CallbackSecret.objects.filter(channel=channel, retired_at=None)


def _make_secret(channel: Channel) -> None:
    CallbackSecret.objects.create(channel=channel, sealed=seal(webhook.new_secret().encode()))
    log.info("callback_secret.made channel=%s", channel.pk)
