"""Pushes the feed to destinations: a batch at a time to each, and its cursor moves only after a yes.

A claim is one guarded UPDATE that leases the destination for one batch; should the pump die, the destination is
free again by itself and gets the batch once more. Every later write names the claim's turn, so
whoever was overtaken, by another pump or an operator's order, changes nothing. The threads that
send have no connection to the database.
"""

import random
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from cryptography.fernet import InvalidToken
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from exhaust import metrics
from exhaust.delivery import batches, elasticsearch, sender
from exhaust.delivery.batches import Batch, Document
from exhaust.delivery.elasticsearch import ItemResult
from exhaust.delivery.http_client import AddressNotAllowed, Answer
from exhaust.delivery.sender import OutboundRequest, Outcome
from exhaust.failpoints import trigger_failpoint
from exhaust.models import DeadLetter, Delivery, Destination
from ingest import logs
from ingest.feed.values import FeedPosition
from ingest.privacy import consent

log = logs.get_logger(__name__)
CONCURRENCY = 8
DEAD_LETTER_BATCH = 100  # dead letters at once
LEASE = timedelta(seconds=120)  # well over what reading and sending a batch may take
LINGER = timedelta(seconds=30)  # what is no full batch is sent when its first one waited so long
IDLE_DELAY = timedelta(seconds=5)
PREFETCH_MAX_AGE_SECONDS = 5.0  # seconds for which a batch that was read ahead is worth sending
CONSENT_LOOKBACK = timedelta(minutes=1)  # well over AHEAD and what clocks differ by
# Standard Webhooks' schedule: seconds before each further attempt; then the destination is switched off
RETRY_DELAYS_SECONDS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
CIRCUIT_BREAKER_FAILURES = (
    5  # failures in a row after which a destination is probed, and nothing is set aside any more
)
MAX_ITEM_ATTEMPTS = 4  # for documents that the receiver cannot take now while it takes others
SPLITTING_STATUSES = {400, 413, 422}  # may be the fault of one document
HTTP_GONE = 410


@dataclass(frozen=True)
class Work:
    """A claimed destination, its delivery and what is sent of it now."""

    destination: Destination
    delivery: Delivery
    documents: list[Document]
    request: OutboundRequest
    has_more: bool  # behind it in the feed


@dataclass(frozen=True)
class Prefetched:
    """What comes next, if the destination says yes to what it is being sent."""

    fencing_token: int
    position: FeedPosition
    batch: Batch
    read_at: float

    def is_valid_for(self, destination: Destination) -> bool:
        """Whether the destination was claimed for just that, and nobody spoke against it since."""
        return (
            destination.turn == self.fencing_token
            and self.position == FeedPosition(destination.xid, destination.cursor_id)
            and monotonic() < self.read_at + PREFETCH_MAX_AGE_SECONDS
            and not consent.has_revocations_since(
                destination.channel_id, timezone.now() - CONSENT_LOOKBACK
            )
        )


def find_due() -> "QuerySet[Destination]":
    """Destinations to look at now, also those whose pump died."""
    running = Destination.objects.filter(paused_at=None, disabled_reason="", next_at__lte=Now())
    return running.filter(Q(lease_until=None) | Q(lease_until__lt=Now()))


def deliver_due(seconds: float) -> bool:
    """Pumps whatever destination is due, and begins nothing new after `seconds`; whether more is due.

    What has begun by then takes `courier.SECONDS` at most.
    """
    deadline = monotonic() + seconds
    with ThreadPoolExecutor(CONCURRENCY) as senders:
        sending: dict[Future[Outcome], Work] = {}
        prefetched: dict[int, Prefetched] = {}
        while True:
            while (
                len(sending) < CONCURRENCY
                and monotonic() < deadline
                and (destination := _claim_destination())
            ):
                if (
                    work := _prepare_work(destination, prefetched.pop(destination.pk, None))
                ) is not None:
                    sending[senders.submit(sender.send, work.request)] = work
            if not sending:
                return monotonic() >= deadline and find_due().exists()
            is_progress = monotonic() < deadline and _prefetch_batch(sending.values(), prefetched)
            for future in wait(sending, 0 if is_progress else 0.2, FIRST_COMPLETED).done:
                work = sending.pop(future)
                try:
                    _record_outcome(work, future.result())
                except Exception:  # of one destination: its lease will lapse
                    log.exception("destination.recording_failed", destination=work.destination.pk)


def _claim_destination() -> Destination | None:
    for destination in find_due().select_related("channel").order_by("next_at", "id")[:CONCURRENCY]:
        claimed = find_due().filter(pk=destination.pk, turn=destination.turn)
        if claimed.update(turn=F("turn") + 1, lease_until=Now() + LEASE):
            destination.turn += 1
            return destination
    return None


def _prefetch_batch(sending: Iterable[Work], prefetched: dict[int, Prefetched]) -> bool:
    """The next batch of one of those that are being sent to, while the receivers work."""
    for work in sending:
        if work.has_more and work.destination.pk not in prefetched:
            position = FeedPosition(work.delivery.to_xid, work.delivery.to_id)
            started_at = monotonic()
            with suppress(Exception):  # then it is read in its turn, and its failure told
                batch = batches.read_batch(work.destination, work.destination.batch_limit, position)
                prefetched[work.destination.pk] = Prefetched(
                    work.destination.turn + 1, position, batch, started_at
                )
                return True
    return False


def _prepare_work(destination: Destination, prefetched: Prefetched | None = None) -> Work | None:
    """What is to be sent to a claimed destination; None, and the destination free again, when nothing is."""
    try:
        return _select_batch(destination, prefetched)
    except InvalidToken:
        _release_claim(
            destination,
            disabled_reason="The password or the secret cannot be decrypted; give it anew.",
        )
    except Exception:  # of one destination; the others are not to wait for it
        log.exception("destination.reading_failed", destination=destination.pk)
        _release_claim(destination, next_at=Now() + LEASE)
    return None


def _select_batch(destination: Destination, prefetched: Prefetched | None) -> Work | None:
    delivery = destination.deliveries.filter(status=Delivery.Status.FAILING).first()
    if delivery is not None:
        documents = batches.rebuild_documents(destination, delivery)
        if not documents:  # all of it has changed since, and comes by itself
            with transaction.atomic():
                if _release_claim(destination, **_cursor_values(delivery), next_at=Now()):
                    _end_delivery(delivery, Delivery.Status.DELIVERED, error=delivery.error)
            return None
        return _start_attempt(destination, delivery, documents)
    dead_letters = destination.dead_letters.filter(requeued_at__isnull=False, delivered_at=None)
    rows = list(
        dead_letters.order_by("id").values_list("row", flat=True)[
            : min(destination.batch_limit, DEAD_LETTER_BATCH)
        ]
    )
    if rows:
        delivery = Delivery(destination=destination, kind=Delivery.Kind.DEAD_LETTERS, pending=rows)
        documents = batches.rebuild_documents(destination, delivery)
        dead_letters.filter(row__in=set(rows) - {document.row_id for document in documents}).update(
            delivered_at=Now(), reason="It has changed since, or was pruned, and is no longer sent."
        )
        if documents:
            return _start_attempt(destination, delivery, documents)
        _release_claim(destination, next_at=Now())
        return None
    position = FeedPosition(destination.xid, destination.cursor_id)
    if prefetched is not None and prefetched.is_valid_for(destination):
        batch = prefetched.batch
    else:
        batch = batches.read_batch(destination, destination.batch_limit, position)
    if not batch.documents:
        _release_claim(
            destination,
            xid=batch.end_position.xid,
            cursor_id=batch.end_position.id,
            next_at=Now() + IDLE_DELAY,
        )
        return None
    if not batch.is_full and batch.documents[0].visible_since > timezone.now() - LINGER:
        _release_claim(destination, next_at=Now() + IDLE_DELAY)
        return None
    delivery = Delivery(
        destination=destination,
        from_xid=position.xid,
        from_id=position.id,
        to_xid=batch.end_position.xid,
        to_id=batch.end_position.id,
    )
    return _start_attempt(destination, delivery, batch.documents, has_more=batch.is_full)


def _start_attempt(
    destination: Destination,
    delivery: Delivery,
    documents: list[Document],
    *,
    has_more: bool = False,
) -> Work | None:
    """The attempt on record, before it is made."""
    with transaction.atomic():
        if not _claimed_row(destination).select_for_update().exists():
            return None
        delivery.documents = delivery.documents or len(documents)
        delivery.byte_count = delivery.byte_count or batches.total_bytes(documents)
        delivery.attempt += 1
        delivery.attempted_at = timezone.now()
        delivery.save()
    return Work(
        destination,
        delivery,
        documents,
        sender.build_request(destination, delivery.pk, documents),
        has_more,
    )


# What came of it ----------------------------------------------------------------------------------


@transaction.atomic
def _record_outcome(work: Work, outcome: Outcome) -> None:
    """Nothing, when the destination has been claimed or told otherwise since."""
    destination, delivery = work.destination, work.delivery
    if not _claimed_row(destination).select_for_update().exists():
        log.info("destination.lease_lost", destination=destination.pk, delivery=delivery.pk)
        return
    trigger_failpoint("push.accepted", destination.pk)
    delivery.answer = outcome.status if isinstance(outcome, Answer) else None
    if isinstance(outcome, AddressNotAllowed):
        _disable(work, str(outcome))
    elif not isinstance(outcome, Answer):
        _schedule_retry(work, str(outcome), 0)
    elif outcome.status == HTTP_GONE:
        _disable(work, "The receiver answered 410: it is gone.")
    elif 200 <= outcome.status < 300:
        if destination.kind == Destination.Kind.WEBHOOK:
            _mark_delivered(work, work.documents)
            _finish_delivery(work, is_delivered=True)
            return
        try:
            items = elasticsearch.parse_item_results(outcome.body, work.documents)
        except ValueError as error:
            _schedule_retry(work, str(error), 0)
        else:
            _apply_bulk_result(work, items)
    elif outcome.status in SPLITTING_STATUSES:
        _split_or_dead_letter(work, outcome)
    else:
        _schedule_retry(work, f"The answer was {outcome.status}.", outcome.retry_after)


def _mark_delivered(work: Work, documents: list[Document]) -> None:
    """These were; of a letter among them nobody speaks any more."""
    rows = [document.row_id for document in documents]
    DeadLetter.objects.filter(destination=work.destination, row__in=rows).update(delivered_at=Now())
    metrics.DELIVERED_DOCUMENTS.labels(work.destination.kind, "delivered").inc(len(documents))


def _finish_delivery(work: Work, *, is_delivered: bool) -> None:
    """The delivery has nothing left to be sent: the cursor moves behind it."""
    destination = work.destination
    _end_delivery(work.delivery, Delivery.Status.DELIVERED, error=work.delivery.error)
    values: dict[str, Any] = {"failures": destination.failures + 1}
    if is_delivered:
        limit = min(destination.batch_limit * 4, batches.MAX_DOCUMENTS)
        values = {"failures": 0, "batch_limit": limit, "delivered_at": Now()}
        if destination.failures >= CIRCUIT_BREAKER_FAILURES:
            log.warning("destination.circuit_closed", destination=destination.pk)
    _release_claim(destination, **_cursor_values(work.delivery), **values, next_at=Now())
    log.info(
        "destination.delivered",
        destination=work.destination.pk,
        delivery=work.delivery.pk,
        documents=len(work.documents),
        attempt=work.delivery.attempt,
    )


def _apply_bulk_result(work: Work, items: list[ItemResult]) -> None:
    """Elasticsearch's word on each: taken, tried again alone, or set aside."""
    destination, delivery = work.destination, work.delivery
    pairs = list(zip(work.documents, items, strict=True))
    delivered = [document for document, item in pairs if item.is_indexed]
    retryable = [
        (document, item) for document, item in pairs if not item.is_indexed and item.is_retryable
    ]
    rejected = [
        (document, item)
        for document, item in pairs
        if not item.is_indexed and not item.is_retryable
    ]
    has_delivered_others = delivered or delivery.documents > len(work.documents)
    if retryable and has_delivered_others and delivery.attempt >= MAX_ITEM_ATTEMPTS:
        rejected, retryable = [*rejected, *retryable], []
    if not delivered and rejected and destination.failures + 1 >= CIRCUIT_BREAKER_FAILURES:
        # without the reason: it may repeat the document, and an erasure looks for it in letters
        _schedule_retry(work, f"All were refused: {rejected[0][1].status}.", 0)
        return
    _mark_delivered(work, delivered)
    _dead_letter(work, [(document, item.status, item.reason) for document, item in rejected])
    if rejected:
        delivery.error = f"{len(rejected)} documents were refused and set aside."
    if retryable:
        delivery.pending = [document.row_id for document, _ in retryable]
        if delivered:
            destination.failures = 0
        _schedule_retry(
            work, f"{len(retryable)} documents could not be taken now: {retryable[0][1].status}", 0
        )
    else:
        _finish_delivery(work, is_delivered=bool(delivered) or delivery.documents > len(rejected))


def _split_or_dead_letter(work: Work, outcome: Answer) -> None:
    """Finds the document at fault by smaller batches, sets it aside and goes on.

    Not for ever: a receiver that refuses whatever comes is one that fails.
    """
    destination, delivery = work.destination, work.delivery
    message = f"The answer was {outcome.status}."
    if len(work.documents) > 1:
        _end_delivery(
            delivery, Delivery.Status.DEAD, error=f"{message} Sent again in smaller parts."
        )
        limit = max(1, len(work.documents) // 4)
        _release_claim(destination, batch_limit=limit, next_at=Now())
        return
    if destination.failures + 1 >= CIRCUIT_BREAKER_FAILURES:
        _schedule_retry(work, message, outcome.retry_after)
        return
    _dead_letter(work, [(work.documents[0], outcome.status, message)])
    delivery.error = f"{message} The document was set aside."
    _finish_delivery(work, is_delivered=False)


def _dead_letter(work: Work, rejected: Sequence[tuple[Document, int, str]]) -> None:
    # whose documents these are may be erased by now, and an erasure looks no more
    is_erasing = rejected and consent.is_erasing(
        work.destination.channel_id, timezone.now() - CONSENT_LOOKBACK
    )
    for document, status, reason in rejected:
        DeadLetter.objects.update_or_create(
            destination=work.destination,
            row=document.row_id,
            defaults={
                "xid": document.position.xid,
                "document_id": "erased" if is_erasing else document.id,
                "answer": status,
                "reason": "erased" if is_erasing else reason,
                "created_at": timezone.now(),
                "requeued_at": None,
                "delivered_at": None,
            },
        )
        metrics.DELIVERED_DOCUMENTS.labels(work.destination.kind, "dead_lettered").inc()


def _schedule_retry(work: Work, message: str, retry_after: int) -> None:
    """Due again later; switched off behind the last attempt, the cursor where it was."""
    destination, delivery = work.destination, work.delivery
    failures = destination.failures + 1
    metrics.DELIVERED_DOCUMENTS.labels(destination.kind, "retried").inc(len(work.documents))
    log.info(
        "destination.delivery_failed",
        destination=destination.pk,
        delivery=delivery.pk,
        failures=failures,
    )
    if failures > len(RETRY_DELAYS_SECONDS):
        _disable(work, f"{message} Given up after {failures} failures in a row.")
        return
    if failures == CIRCUIT_BREAKER_FAILURES:
        log.error("destination.circuit_opened", destination=destination.pk)
    delivery.error = message
    delivery.save()
    _release_claim(
        destination, failures=failures, next_at=Now() + retry_delay(failures, retry_after)
    )


def retry_delay(failures: int, retry_after: int) -> timedelta:
    """As long as the receiver asks for, a day at most; else the schedule's, a fifth about it."""
    jittered = RETRY_DELAYS_SECONDS[failures - 1] * random.uniform(0.8, 1.2)  # noqa: S311
    return timedelta(
        seconds=min(retry_after, RETRY_DELAYS_SECONDS[-1]) if retry_after else jittered
    )


def _disable(work: Work, reason: str) -> None:
    _end_delivery(work.delivery, Delivery.Status.DEAD, error=reason)
    _release_claim(work.destination, disabled_reason=reason, failures=work.destination.failures + 1)
    log.error("destination.disabled", destination=work.destination.pk)


# Rows ---------------------------------------------------------------------------------------------


def _claimed_row(destination: Destination) -> "QuerySet[Destination]":
    return Destination.objects.filter(pk=destination.pk, turn=destination.turn)


def _release_claim(destination: Destination, **values: Any) -> int:
    return _claimed_row(destination).update(lease_until=None, **values)


def _cursor_values(delivery: Delivery) -> dict[str, int]:
    """The cursor behind a delivery; of dead letters it stays."""
    if delivery.kind != Delivery.Kind.FEED:
        return {}
    position = FeedPosition(delivery.to_xid, delivery.to_id)
    return {"xid": position.xid, "cursor_id": position.id}


def _end_delivery(delivery: Delivery, status: Delivery.Status, error: str) -> None:
    delivery.status, delivery.error, delivery.ended_at = status, error, timezone.now()
    if delivery.pending is not None and status == Delivery.Status.DELIVERED:
        delivery.pending = []
    delivery.save()


def purge_history(before: datetime) -> None:
    """Deliveries that ended before; dead letters stay."""
    Delivery.objects.filter(ended_at__lt=before).delete()


def explain_rejection(destination: Destination, answer: Answer, documents: list[Document]) -> str:
    """Why an answer is no yes to all of what was sent; empty when it is one."""
    if not 200 <= answer.status < 300:
        return f"The answer was {answer.status}."
    if destination.kind == Destination.Kind.WEBHOOK:
        return ""
    try:
        items = elasticsearch.parse_item_results(answer.body, documents)
    except ValueError as error:
        return str(error)
    return next((f"{item.status} {item.reason}" for item in items if not item.is_indexed), "")
