"""Pushes the feed to destinations, one batch at a time to each.

A destination is claimed for one batch; its cursor moves only after the receiver accepted it.
When the worker dies, the batch is sent once more.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from cryptography.fernet import InvalidToken
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from exhaust import metrics
from exhaust.delivery import batches, loop, notices, sender
from exhaust.delivery.backoff import Backoff
from exhaust.delivery.batches import Batch, Document
from exhaust.delivery.elasticsearch import ItemResult
from exhaust.delivery.http_client import AddressNotAllowed, Answer
from exhaust.delivery.kinds import kind_of
from exhaust.delivery.sender import OutboundRequest, Outcome
from exhaust.failpoints import trigger_failpoint
from exhaust.models import DeadLetter, Delivery, Destination
from ingest import logs
from ingest.audit import reads
from ingest.db.clock import read_clock
from ingest.events import format_count
from ingest.feed.reader import IsAfterPosition
from ingest.feed.values import FeedPosition
from ingest.models import Session, StoredEvent
from ingest.privacy import consent

log = logs.get_logger(__name__)
MAX_DEAD_LETTERS = 100  # of one request
# A batch that is not full is sent when its first document is so old. The rest of the time is for
# noticing and sending it.
LINGER = timedelta(seconds=settings.EXHAUST_PUSH_SECONDS) / 5
IDLE_DELAY = timedelta(seconds=1)  # after new documents that the destination does not want
PREFETCH_MAX_AGE_SECONDS = 5.0
CONSENT_LOOKBACK = timedelta(
    minutes=1
)  # more than PREFETCH_MAX_AGE_SECONDS and the clocks' difference
# The schedule of Standard Webhooks, a fifth more or less. Then the destination is disabled.
BACKOFF = Backoff(
    (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400),
    jitter=(0.8, 1.2),
    can_shorten=True,
)
# Failures in a row from which on a destination is only probed, and nothing is dead-lettered.
CIRCUIT_BREAKER_FAILURES = 5
MAX_ITEM_ATTEMPTS = 4  # of documents that the receiver rejects for now while it accepts others
SPLITTING_STATUSES = {400, 413, 422}  # one document may be at fault
HTTP_GONE = 410


def _has_rows_after_cursor(model: type[Session] | type[StoredEvent]) -> Exists:
    """Whether the feed goes on; the batch decides whether the destination wants any of it."""
    is_after = IsAfterPosition("xid", "id", OuterRef("cursor_xid"), OuterRef("cursor_id"))
    return Exists(model.objects.filter(is_after, channel=OuterRef("channel")))


_DELIVERIES = Delivery.objects.filter(destination=OuterRef("pk"), status=Delivery.Status.FAILING)
_REQUEUED = DeadLetter.objects.filter(
    destination=OuterRef("pk"), requeued_at__isnull=False, delivered_at=None
)
_HAS_WORK = (
    Q(Exists(_DELIVERIES))
    | Q(Exists(_REQUEUED))
    | Q(_has_rows_after_cursor(Session), resource=Destination.Resource.SESSIONS)
    | Q(_has_rows_after_cursor(StoredEvent), resource=Destination.Resource.EVENTS)
)


@dataclass(frozen=True)
class Work:
    """A claimed destination, its delivery and the documents that are sent now."""

    destination: Destination
    delivery: Delivery
    documents: list[Document]
    request: OutboundRequest
    has_more: bool  # after it in the feed


@dataclass(frozen=True)
class Prefetched:
    """The next batch, read while the batch before it is sent."""

    fencing_token: int
    position: FeedPosition
    batch: Batch
    read_at: float

    def is_valid_for(self, destination: Destination) -> bool:
        """Whether the claim is the next one, at the same position, and no consent was revoked."""
        return (
            destination.fencing_token == self.fencing_token
            and self.position == FeedPosition(destination.cursor_xid, destination.cursor_id)
            and monotonic() < self.read_at + PREFETCH_MAX_AGE_SECONDS
            and not consent.has_revocations_since(
                destination.channel_id, read_clock() - CONSENT_LOOKBACK
            )
        )


class PushQueue:
    """The destinations that are due, as `loop.deliver_due` delivers to them."""

    def __init__(self) -> None:
        self.prefetched: dict[int, Prefetched] = {}

    def find_due(self) -> "QuerySet[Destination]":
        running = Destination.objects.filter(paused_at=None, disabled_reason="")
        running = running.exclude(kind__in=Destination.FILE_KINDS)
        due = loop.find_claimable(running).filter(_HAS_WORK)
        return due.select_related("channel").order_by("next_at", "id")

    def prefetch(self, sending: Collection[Work]) -> bool:
        """Reads the next batch of one destination while the receivers work."""
        for work in sending:
            if work.has_more and work.destination.pk not in self.prefetched:
                position = FeedPosition(work.delivery.to_xid, work.delivery.to_id)
                started_at = monotonic()
                with suppress(Exception):  # it is read again when it is due, and fails there
                    batch = batches.read_batch(
                        work.destination, _max_documents(work.destination), position
                    )
                    self.prefetched[work.destination.pk] = Prefetched(
                        work.destination.fencing_token + 1, position, batch, started_at
                    )
                    return True
        return False

    def prepare(self, row: Destination) -> Work | None:
        try:
            return _select_batch(row, self.prefetched.pop(row.pk, None))
        except InvalidToken:
            reason = "The password or the secret cannot be decrypted; give it anew."
            if loop.release(row, disabled_reason=reason):
                notices.announce_destination(row)
        except Exception as error:  # the other destinations do not wait for this one
            log.exception("destination.reading_failed", destination=row.pk)
            loop.postpone(row, error)
        return None

    def record(self, work: Work, outcome: Outcome) -> None:
        _record_outcome(work, outcome)


def find_due() -> "QuerySet[Destination]":
    """Returns the destinations to look at now, also those whose worker died."""
    return PushQueue().find_due()


def deliver_due(seconds: float) -> bool:
    """Pushes to due destinations, and starts no request after `seconds`.

    Returns whether more are due. Requests under way take `sender.BATCH_TIMEOUT_SECONDS` at most.
    """
    return loop.deliver_due(PushQueue(), seconds)


def _max_documents(destination: Destination) -> int:
    return min(destination.batch_limit or batches.MAX_BATCH_DOCUMENTS, batches.MAX_BATCH_DOCUMENTS)


def _select_batch(destination: Destination, prefetched: Prefetched | None) -> Work | None:
    delivery = destination.deliveries.filter(status=Delivery.Status.FAILING).first()
    if delivery is not None:
        documents = batches.rebuild_documents(destination, delivery)
        if not documents:  # all rows have changed since: the feed has them again
            with transaction.atomic():
                if loop.release(destination, **_cursor_values(delivery), next_at=Now()):
                    _end_delivery(delivery, Delivery.Status.DELIVERED, error=delivery.error)
            return None
        return _start_attempt(destination, delivery, documents)
    dead_letters = destination.dead_letters.filter(requeued_at__isnull=False, delivered_at=None)
    rows = list(
        dead_letters.order_by("id").values_list("row", flat=True)[
            : min(_max_documents(destination), MAX_DEAD_LETTERS)
        ]
    )
    if rows:
        delivery = Delivery(
            channel_id=destination.channel_id,
            destination=destination,
            kind=Delivery.Kind.DEAD_LETTERS,
            pending=rows,
        )
        documents = batches.rebuild_documents(destination, delivery)
        dead_letters.filter(row__in=set(rows) - {document.row_id for document in documents}).update(
            delivered_at=Now(), reason="It has changed since, or was pruned, and is no longer sent."
        )
        if documents:
            return _start_attempt(destination, delivery, documents)
        loop.release(destination, next_at=Now())
        return None
    position = FeedPosition(destination.cursor_xid, destination.cursor_id)
    if prefetched is not None and prefetched.is_valid_for(destination):
        batch = prefetched.batch
    else:
        batch = batches.read_batch(destination, _max_documents(destination), position)
    if not batch.documents:
        loop.release(
            destination,
            cursor_xid=batch.end_position.xid,
            cursor_id=batch.end_position.id,
            next_at=Now() if batch.has_more else Now() + IDLE_DELAY,
        )
        return None
    ready_at = batch.documents[0].visible_since + LINGER
    if not batch.has_more and ready_at > read_clock():
        loop.release(destination, next_at=ready_at)
        return None
    delivery = Delivery(
        channel_id=destination.channel_id,
        destination=destination,
        from_xid=position.xid,
        from_id=position.id,
        to_xid=batch.end_position.xid,
        to_id=batch.end_position.id,
    )
    return _start_attempt(destination, delivery, batch.documents, has_more=batch.has_more)


def _start_attempt(
    destination: Destination,
    delivery: Delivery,
    documents: list[Document],
    *,
    has_more: bool = False,
) -> Work | None:
    """Records the attempt and returns it; None when the lease was lost."""
    with transaction.atomic():
        if not loop.claimed_row(destination).select_for_update().exists():
            return None
        delivery.documents = delivery.documents or len(documents)
        delivery.byte_count = delivery.byte_count or batches.total_bytes(documents)
        delivery.attempt += 1
        delivery.attempted_at = read_clock()
        delivery.save()
    return Work(
        destination,
        delivery,
        documents,
        sender.build_batch_request(destination, delivery.pk, documents),
        has_more,
    )


# Outcomes -----------------------------------------------------------------------------------------


@transaction.atomic
def _record_outcome(work: Work, outcome: Outcome) -> None:
    """Records the outcome of an attempt; nothing when the lease was lost."""
    destination, delivery = work.destination, work.delivery
    if not loop.claimed_row(destination).select_for_update().exists():
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
        parse_items = kind_of(destination).parse_items
        if parse_items is None:
            _mark_delivered(work, work.documents)
            _finish_delivery(work, is_delivered=True)
            return
        try:
            items = parse_items(outcome.body, work.documents)
        except ValueError as error:
            _schedule_retry(work, str(error), 0)
        else:
            _apply_bulk_result(work, items)
    elif outcome.status in SPLITTING_STATUSES:
        _split_or_dead_letter(work, outcome)
    else:
        _schedule_retry(work, f"The answer was {outcome.status}.", outcome.retry_after)


def _mark_delivered(work: Work, documents: list[Document]) -> None:
    """Counts delivered documents, and closes dead letters among them."""
    rows = [document.row_id for document in documents]
    DeadLetter.objects.filter(destination=work.destination, row__in=rows).update(delivered_at=Now())
    metrics.DELIVERED_DOCUMENTS.labels(work.destination.kind, "delivered").inc(len(documents))
    subject = f"{work.destination.resource} to {work.destination.name}"
    reads.count_read("feed.pushed", work.destination.channel.identifier, subject, len(documents))


def _finish_delivery(work: Work, *, is_delivered: bool) -> None:
    """Ends a delivery that is complete, and moves the cursor."""
    destination = work.destination
    _end_delivery(work.delivery, Delivery.Status.DELIVERED, error=work.delivery.error)
    values: dict[str, Any] = {"failures": destination.failures + 1}
    if is_delivered:
        limit = _max_documents(destination) * 4
        values = {
            "failures": 0,
            "batch_limit": limit if limit < batches.MAX_BATCH_DOCUMENTS else None,
            "delivered_at": Now(),
        }
        if destination.failures >= CIRCUIT_BREAKER_FAILURES:
            log.warning("destination.circuit_closed", destination=destination.pk)
    loop.release(destination, **_cursor_values(work.delivery), **values, next_at=Now())
    log.info(
        "destination.delivered",
        destination=work.destination.pk,
        delivery=work.delivery.pk,
        documents=len(work.documents),
        attempt=work.delivery.attempt,
    )


def _apply_bulk_result(work: Work, items: list[ItemResult]) -> None:
    """Takes the receiver's result of each document: delivered, retried alone or dead-lettered."""
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
        # no reason: it may repeat the document, and an erasure looks only into dead letters
        _schedule_retry(work, f"All were rejected: {rejected[0][1].status}.", 0)
        return
    _mark_delivered(work, delivered)
    _dead_letter(work, [(document, item.status, item.reason) for document, item in rejected])
    if rejected:
        delivery.error = f"Rejected and dead-lettered: {format_count(len(rejected), 'document')}."
    if retryable:
        delivery.pending = [document.row_id for document, _ in retryable]
        if delivered:
            destination.failures = 0
        _schedule_retry(
            work,
            f"Not accepted now: {format_count(len(retryable), 'document')}, with the status"
            f" {retryable[0][1].status}",
            0,
        )
    else:
        _finish_delivery(work, is_delivered=bool(delivered) or delivery.documents > len(rejected))


def _split_or_dead_letter(work: Work, outcome: Answer) -> None:
    """Finds the rejected document by smaller batches, dead-letters it and continues.

    From `CIRCUIT_BREAKER_FAILURES` on the receiver counts as failing instead.
    """
    destination, delivery = work.destination, work.delivery
    message = f"The answer was {outcome.status}."
    if len(work.documents) > 1:
        _end_delivery(
            delivery, Delivery.Status.DEAD, error=f"{message} Sent again in smaller parts."
        )
        limit = max(1, len(work.documents) // 4)
        loop.release(destination, batch_limit=limit, next_at=Now())
        return
    if destination.failures + 1 >= CIRCUIT_BREAKER_FAILURES:
        _schedule_retry(work, message, outcome.retry_after)
        return
    _dead_letter(work, [(work.documents[0], outcome.status, message)])
    delivery.error = f"{message} The document was dead-lettered."
    _finish_delivery(work, is_delivered=False)


def _dead_letter(work: Work, rejected: Sequence[tuple[Document, int, str]]) -> None:
    # an erasure that has just run does not look into dead letters again
    is_erasing = rejected and consent.is_erasing(
        work.destination.channel_id, read_clock() - CONSENT_LOOKBACK
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
                "created_at": read_clock(),
                "requeued_at": None,
                "delivered_at": None,
            },
        )
        metrics.DELIVERED_DOCUMENTS.labels(work.destination.kind, "dead_lettered").inc()


def _schedule_retry(work: Work, message: str, retry_after: int) -> None:
    """Schedules the next attempt, or disables the destination after the last one."""
    destination, delivery = work.destination, work.delivery
    failures = destination.failures + 1
    metrics.DELIVERED_DOCUMENTS.labels(destination.kind, "retried").inc(len(work.documents))
    log.info(
        "destination.delivery_failed",
        destination=destination.pk,
        delivery=delivery.pk,
        failures=failures,
    )
    if failures >= BACKOFF.max_attempts:
        _disable(work, f"{message} Given up after {failures} failures in a row.")
        return
    if failures == CIRCUIT_BREAKER_FAILURES:
        log.error("destination.circuit_opened", destination=destination.pk)
    delivery.error = message
    delivery.save()
    loop.release(
        destination, failures=failures, next_at=Now() + BACKOFF.delay(failures, retry_after)
    )


def _disable(work: Work, reason: str) -> None:
    _end_delivery(work.delivery, Delivery.Status.DEAD, error=reason)
    loop.release(work.destination, disabled_reason=reason, failures=work.destination.failures + 1)
    log.error("destination.disabled", destination=work.destination.pk)
    notices.announce_destination(work.destination)


# Rows ---------------------------------------------------------------------------------------------


def _cursor_values(delivery: Delivery) -> dict[str, int]:
    """Returns the cursor after a delivery; dead letters do not move it."""
    if delivery.kind != Delivery.Kind.FEED:
        return {}
    position = FeedPosition(delivery.to_xid, delivery.to_id)
    return {"cursor_xid": position.xid, "cursor_id": position.id}


def _end_delivery(delivery: Delivery, status: Delivery.Status, error: str) -> None:
    delivery.status, delivery.error, delivery.ended_at = status, error, read_clock()
    if delivery.pending is not None and status == Delivery.Status.DELIVERED:
        delivery.pending = []
    delivery.save()


def purge_history(before: datetime) -> None:
    """Deletes deliveries to destinations that ended before; callbacks go with their job."""
    Delivery.objects.filter(destination__isnull=False, ended_at__lt=before).delete()
