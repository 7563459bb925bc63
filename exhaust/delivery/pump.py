"""Pushes the feed to sinks: a batch at a time to each, and its cursor moves only after a yes.

A claim is one guarded UPDATE that leases the sink for one batch; should the pump die, the sink is
free again by itself and gets the batch once more. Every later write names the claim's turn, so
whoever was overtaken, by another pump or an operator's order, changes nothing. The threads that
send have no connection to the database.
"""

import logging
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
from exhaust.delivery.elasticsearch import Item
from exhaust.delivery.http_client import AddressRefused, Answer
from exhaust.delivery.sender import Message, Outcome
from exhaust.failpoints import failpoint
from exhaust.models import DeadLetter, Delivery, Sink
from ingest.feed.values import Place
from ingest.privacy import consent

log = logging.getLogger(__name__)
AT_ONCE = 8
LETTERS = 100  # dead letters at once
LEASE = timedelta(seconds=120)  # well over what reading and sending a batch may take
QUIET = timedelta(seconds=30)  # what is no full batch is sent when its first one waited so long
IDLE = timedelta(seconds=5)
AHEAD = 5.0  # seconds for which a batch that was read ahead is worth sending
ENDED = timedelta(minutes=1)  # well over AHEAD and what clocks differ by
# Standard Webhooks' schedule: seconds before each further attempt; then the sink is switched off
DELAYS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
BREAKER = 5  # failures in a row after which a sink is probed, and nothing is set aside any more
ITEM_ATTEMPTS = 4  # for documents that the receiver cannot take now while it takes others
NARROWING = {400, 413, 422}  # may be the fault of one document
GONE = 410


@dataclass(frozen=True)
class Work:
    """A claimed sink, its delivery and what is sent of it now."""

    sink: Sink
    delivery: Delivery
    documents: list[Document]
    message: Message
    more: bool  # behind it in the feed


@dataclass(frozen=True)
class Ahead:
    """What comes next, if the sink says yes to what it is being sent."""

    turn: int
    place: Place
    batch: Batch
    read_at: float

    def serves(self, sink: Sink) -> bool:
        """Whether the sink was claimed for just that, and nobody spoke against it since."""
        return (
            sink.turn == self.turn
            and self.place == Place(sink.xid, sink.place_id)
            and monotonic() < self.read_at + AHEAD
            and not consent.ended(sink.channel_id, timezone.now() - ENDED)
        )


def due() -> "QuerySet[Sink]":
    """Sinks to look at now, also those whose pump died."""
    running = Sink.objects.filter(paused_at=None, switched_off="", next_at__lte=Now())
    return running.filter(Q(lease_until=None) | Q(lease_until__lt=Now()))


def run(seconds: float) -> bool:
    """Pumps whatever sink is due, and begins nothing new after `seconds`; whether more is due.

    What has begun by then takes `courier.SECONDS` at most.
    """
    until = monotonic() + seconds
    with ThreadPoolExecutor(AT_ONCE) as senders:
        sending: dict[Future[Outcome], Work] = {}
        ahead: dict[int, Ahead] = {}
        while True:
            while len(sending) < AT_ONCE and monotonic() < until and (sink := _claim()):
                if (work := _prepared(sink, ahead.pop(sink.pk, None))) is not None:
                    sending[senders.submit(sender.send, work.message)] = work
            if not sending:
                return monotonic() >= until and due().exists()
            worked = monotonic() < until and _read_ahead(sending.values(), ahead)
            for future in wait(sending, 0 if worked else 0.2, FIRST_COMPLETED).done:
                work = sending.pop(future)
                try:
                    _record(work, future.result())
                except Exception:  # of one sink: its lease will lapse
                    log.exception("sink.record_broke sink=%s", work.sink.pk)


def _claim() -> Sink | None:
    for sink in due().select_related("channel").order_by("next_at", "id")[:AT_ONCE]:
        won = due().filter(pk=sink.pk, turn=sink.turn)
        if won.update(turn=F("turn") + 1, lease_until=Now() + LEASE):
            sink.turn += 1
            return sink
    return None


def _read_ahead(sending: Iterable[Work], ahead: dict[int, Ahead]) -> bool:
    """The next batch of one of those that are being sent to, while the receivers work."""
    for work in sending:
        if work.more and work.sink.pk not in ahead:
            place = Place(work.delivery.to_xid, work.delivery.to_id)
            begun = monotonic()
            with suppress(Exception):  # then it is read in its turn, and its failure told
                batch = batches.read(work.sink, work.sink.batch_limit, place)
                ahead[work.sink.pk] = Ahead(work.sink.turn + 1, place, batch, begun)
                return True
    return False


def _prepared(sink: Sink, ahead: Ahead | None = None) -> Work | None:
    """What is to be sent to a claimed sink; None, and the sink free again, when nothing is."""
    try:
        return _next(sink, ahead)
    except InvalidToken:
        _release(sink, switched_off="The password or the secret cannot be decrypted; give it anew.")
    except Exception:  # of one sink; the others are not to wait for it
        log.exception("sink.reading_broke sink=%s", sink.pk)
        _release(sink, next_at=Now() + LEASE)
    return None


def _next(sink: Sink, ahead: Ahead | None) -> Work | None:
    delivery = sink.deliveries.filter(status=Delivery.Status.FAILING).first()
    if delivery is not None:
        documents = batches.again(sink, delivery)
        if not documents:  # all of it has changed since, and comes by itself
            with transaction.atomic():
                if _release(sink, **_moved(delivery), next_at=Now()):
                    _end(delivery, Delivery.Status.DELIVERED, error=delivery.error)
            return None
        return _begun(sink, delivery, documents)
    letters = sink.dead_letters.filter(again_at__isnull=False, taken_at=None)
    rows = list(
        letters.order_by("id").values_list("row", flat=True)[: min(sink.batch_limit, LETTERS)]
    )
    if rows:
        delivery = Delivery(sink=sink, kind=Delivery.Kind.LETTERS, pending=rows)
        documents = batches.again(sink, delivery)
        letters.filter(row__in=set(rows) - {document.row for document in documents}).update(
            taken_at=Now(), reason="It has changed since, or was pruned, and is no longer sent."
        )
        if documents:
            return _begun(sink, delivery, documents)
        _release(sink, next_at=Now())
        return None
    place = Place(sink.xid, sink.place_id)
    if ahead is not None and ahead.serves(sink):
        batch = ahead.batch
    else:
        batch = batches.read(sink, sink.batch_limit, place)
    if not batch.documents:
        _release(sink, xid=batch.place.xid, place_id=batch.place.id, next_at=Now() + IDLE)
        return None
    if not batch.full and batch.documents[0].since > timezone.now() - QUIET:
        _release(sink, next_at=Now() + IDLE)
        return None
    delivery = Delivery(
        sink=sink,
        from_xid=place.xid,
        from_id=place.id,
        to_xid=batch.place.xid,
        to_id=batch.place.id,
    )
    return _begun(sink, delivery, batch.documents, more=batch.full)


def _begun(
    sink: Sink, delivery: Delivery, documents: list[Document], *, more: bool = False
) -> Work | None:
    """The attempt on record, before it is made."""
    with transaction.atomic():
        if not _own(sink).select_for_update().exists():
            return None
        delivery.documents = delivery.documents or len(documents)
        delivery.byte_count = delivery.byte_count or batches.size(documents)
        delivery.attempt += 1
        delivery.tried_at = timezone.now()
        delivery.save()
    return Work(sink, delivery, documents, sender.message(sink, delivery.pk, documents), more)


# What came of it ----------------------------------------------------------------------------------


@transaction.atomic
def _record(work: Work, outcome: Outcome) -> None:
    """Nothing, when the sink has been claimed or told otherwise since."""
    sink, delivery = work.sink, work.delivery
    if not _own(sink).select_for_update().exists():
        log.info("sink.overtaken sink=%s delivery=%s", sink.pk, delivery.pk)
        return
    failpoint("push.taken", sink.pk)
    delivery.answer = outcome.status if isinstance(outcome, Answer) else None
    if isinstance(outcome, AddressRefused):
        _switch_off(work, str(outcome))
    elif not isinstance(outcome, Answer):
        _failed(work, str(outcome), 0)
    elif outcome.status == GONE:
        _switch_off(work, "The receiver answered 410: it is gone.")
    elif 200 <= outcome.status < 300:
        if sink.kind == Sink.Kind.WEBHOOK:
            _taken(work, work.documents)
            _finish(work, yes=True)
            return
        try:
            items = elasticsearch.items(outcome.body, work.documents)
        except ValueError as error:
            _failed(work, str(error), 0)
        else:
            _sorted(work, items)
    elif outcome.status in NARROWING:
        _refused(work, outcome)
    else:
        _failed(work, f"The answer was {outcome.status}.", outcome.retry_after)


def _taken(work: Work, documents: list[Document]) -> None:
    """These were; of a letter among them nobody speaks any more."""
    rows = [document.row for document in documents]
    DeadLetter.objects.filter(sink=work.sink, row__in=rows).update(taken_at=Now())
    metrics.PUSHED.labels(work.sink.kind, "taken").inc(len(documents))


def _finish(work: Work, *, yes: bool) -> None:
    """The delivery has nothing left to be sent: the cursor moves behind it."""
    sink = work.sink
    _end(work.delivery, Delivery.Status.DELIVERED, error=work.delivery.error)
    values: dict[str, Any] = {"failures": sink.failures + 1}
    if yes:
        limit = min(sink.batch_limit * 4, batches.DOCUMENTS)
        values = {"failures": 0, "batch_limit": limit, "delivered_at": Now()}
        if sink.failures >= BREAKER:
            log.warning("sink.recovered sink=%s", sink.pk)
    _release(sink, **_moved(work.delivery), **values, next_at=Now())
    log.info(
        "sink.delivered sink=%s delivery=%s documents=%s attempt=%s",
        work.sink.pk,
        work.delivery.pk,
        len(work.documents),
        work.delivery.attempt,
    )


def _sorted(work: Work, items: list[Item]) -> None:
    """Elasticsearch's word on each: taken, tried again alone, or set aside."""
    sink, delivery = work.sink, work.delivery
    pairs = list(zip(work.documents, items, strict=True))
    taken = [document for document, item in pairs if item.taken]
    wait_on = [(document, item) for document, item in pairs if not item.taken and item.passing]
    refused = [(document, item) for document, item in pairs if not item.taken and not item.passing]
    others_were_taken = taken or delivery.documents > len(work.documents)
    if wait_on and others_were_taken and delivery.attempt >= ITEM_ATTEMPTS:
        refused, wait_on = [*refused, *wait_on], []
    if not taken and refused and sink.failures + 1 >= BREAKER:
        # without the reason: it may repeat the document, and an erasure looks for it in letters
        _failed(work, f"All were refused: {refused[0][1].status}.", 0)
        return
    _taken(work, taken)
    _set_aside(work, [(document, item.status, item.reason) for document, item in refused])
    if refused:
        delivery.error = f"{len(refused)} documents were refused and set aside."
    if wait_on:
        delivery.pending = [document.row for document, _ in wait_on]
        if taken:
            sink.failures = 0
        _failed(work, f"{len(wait_on)} documents could not be taken now: {wait_on[0][1].status}", 0)
    else:
        _finish(work, yes=bool(taken) or delivery.documents > len(refused))


def _refused(work: Work, outcome: Answer) -> None:
    """Finds the document at fault by smaller batches, sets it aside and goes on.

    Not for ever: a receiver that refuses whatever comes is one that fails.
    """
    sink, delivery = work.sink, work.delivery
    said = f"The answer was {outcome.status}."
    if len(work.documents) > 1:
        _end(delivery, Delivery.Status.DEAD, error=f"{said} Sent again in smaller parts.")
        limit = max(1, len(work.documents) // 4)
        _release(sink, batch_limit=limit, next_at=Now())
        return
    if sink.failures + 1 >= BREAKER:
        _failed(work, said, outcome.retry_after)
        return
    _set_aside(work, [(work.documents[0], outcome.status, said)])
    delivery.error = f"{said} The document was set aside."
    _finish(work, yes=False)


def _set_aside(work: Work, refused: Sequence[tuple[Document, int, str]]) -> None:
    # whose documents these are may be erased by now, and an erasure looks no more
    is_erasing = refused and consent.is_erasing(work.sink.channel_id, timezone.now() - ENDED)
    for document, status, reason in refused:
        DeadLetter.objects.update_or_create(
            sink=work.sink,
            row=document.row,
            defaults={
                "xid": document.place.xid,
                "document_id": "erased" if is_erasing else document.id,
                "answer": status,
                "reason": "erased" if is_erasing else reason,
                "created_at": timezone.now(),
                "again_at": None,
                "taken_at": None,
            },
        )
        metrics.PUSHED.labels(work.sink.kind, "set aside").inc()


def _failed(work: Work, sentence: str, retry_after: int) -> None:
    """Due again later; switched off behind the last attempt, the cursor where it was."""
    sink, delivery = work.sink, work.delivery
    failures = sink.failures + 1
    metrics.PUSHED.labels(sink.kind, "to be tried again").inc(len(work.documents))
    log.info("sink.failed sink=%s delivery=%s failures=%s", sink.pk, delivery.pk, failures)
    if failures > len(DELAYS):
        _switch_off(work, f"{sentence} Given up after {failures} failures in a row.")
        return
    if failures == BREAKER:
        log.error("sink.opened sink=%s", sink.pk)
    delivery.error = sentence
    delivery.save()
    _release(sink, failures=failures, next_at=Now() + delay(failures, retry_after))


def delay(failures: int, retry_after: int) -> timedelta:
    """As long as the receiver asks for, a day at most; else the schedule's, a fifth about it."""
    drawn = DELAYS[failures - 1] * random.uniform(0.8, 1.2)  # noqa: S311
    return timedelta(seconds=min(retry_after, DELAYS[-1]) if retry_after else drawn)


def _switch_off(work: Work, reason: str) -> None:
    _end(work.delivery, Delivery.Status.DEAD, error=reason)
    _release(work.sink, switched_off=reason, failures=work.sink.failures + 1)
    log.error("sink.switched_off sink=%s", work.sink.pk)


# Rows ---------------------------------------------------------------------------------------------


def _own(sink: Sink) -> "QuerySet[Sink]":
    return Sink.objects.filter(pk=sink.pk, turn=sink.turn)


def _release(sink: Sink, **values: Any) -> int:
    return _own(sink).update(lease_until=None, **values)


def _moved(delivery: Delivery) -> dict[str, int]:
    """The cursor behind a delivery; of dead letters it stays."""
    if delivery.kind != Delivery.Kind.FEED:
        return {}
    place = Place(delivery.to_xid, delivery.to_id)
    return {"xid": place.xid, "place_id": place.id}


def _end(delivery: Delivery, status: Delivery.Status, error: str) -> None:
    delivery.status, delivery.error, delivery.ended_at = status, error, timezone.now()
    if delivery.pending is not None and status == Delivery.Status.DELIVERED:
        delivery.pending = []
    delivery.save()


def forget(before: datetime) -> None:
    """Deliveries that ended before; dead letters stay."""
    Delivery.objects.filter(ended_at__lt=before).delete()


def fault(sink: Sink, answer: Answer, documents: list[Document]) -> str:
    """Why an answer is no yes to all of what was sent; empty when it is one."""
    if not 200 <= answer.status < 300:
        return f"The answer was {answer.status}."
    if sink.kind == Sink.Kind.WEBHOOK:
        return ""
    try:
        items = elasticsearch.items(answer.body, documents)
    except ValueError as error:
        return str(error)
    return next((f"{item.status} {item.reason}" for item in items if not item.taken), "")
