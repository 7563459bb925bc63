"""Tests of destinations: one made-up document each, which a worker sends once.

No web process waits for the receiver: a test is a delivery, and its caller polls it. A channel has
one at a time. Those of destinations for files are made in `exhaust.jobs.file_delivery`.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from cryptography.fernet import InvalidToken
from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from exhaust.delivery import batches, loop, sender
from exhaust.delivery.batches import Document
from exhaust.delivery.http_client import Answer
from exhaust.delivery.kinds import kind_of
from exhaust.delivery.sender import OutboundRequest, Outcome
from exhaust.feed.documents import encode, to_epoch_ms
from exhaust.models import Delivery, Destination
from ingest import logs
from ingest.db.clock import read_clock
from ingest.events import RequestError
from ingest.feed.values import START
from ingest.models import Channel

log = logs.get_logger(__name__)
TIMEOUT_SECONDS = 10.0
MAX_KEPT = 20  # of a destination


@transaction.atomic
def request_test(destination: Destination) -> Delivery:
    """Returns the delivery that a worker makes next, or the one that waits already.

    Raises `RequestError` (404, 409): the destination is gone, or another one of the channel is
    being tested.
    """
    Channel.objects.select_for_update(no_key=True).get(pk=destination.channel_id)
    if not Destination.objects.filter(pk=destination.pk).exists():
        raise RequestError("not_found", "There is no destination of that name.", 404)
    waiting = find_waiting().filter(channel=destination.channel_id).select_related("destination")
    if (delivery := waiting.first()) is not None:
        if delivery.destination_id == destination.pk:
            return delivery
        raise RequestError(
            "conflict",
            f"“{delivery.destination}” is being tested; try again when it has ended.",
            409,
        )
    tests = find_tests(destination)
    kept = tests.values_list("pk", flat=True)[: MAX_KEPT - 1]
    tests.exclude(pk__in=list(kept)).delete()
    return Delivery.objects.create(
        channel_id=destination.channel_id,
        destination=destination,
        kind=Delivery.Kind.TEST,
        status=Delivery.Status.WAITING,
        documents=1,
    )


def find_tests(destination: Destination) -> QuerySet[Delivery]:
    """Returns the tests of a destination, the newest first."""
    return destination.deliveries.filter(kind=Delivery.Kind.TEST).order_by("-pk")


def find_waiting() -> QuerySet[Delivery]:
    """Returns the tests that have not ended."""
    return Delivery.objects.filter(status=Delivery.Status.WAITING)


def choose_task(destination: Destination) -> str:
    """Returns the task that makes the test."""
    return "exhaust.deliver_files" if destination.takes_files else "exhaust.send_tests"


# Delivering ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A claimed test, its document and its request."""

    delivery: Delivery
    destination: Destination
    document: Document
    request: OutboundRequest


class ReceiverTestQueue:
    """The tests that are due, as `loop.deliver_due` delivers them."""

    def find_due(self) -> QuerySet[Delivery]:
        of_feed = find_waiting().exclude(destination__kind__in=Destination.FILE_KINDS)
        return loop.find_claimable(of_feed).order_by("next_at", "id")

    def prefetch(self, sending: Collection[Work]) -> bool:
        return False

    def prepare(self, row: Delivery) -> Work | None:
        """Returns the request, its attempt on record; None where there is none to make."""
        if row.attempt:
            _end(row, "The worker ended before the receiver answered; test it again.")
            return None
        if not loop.claimed_row(row).update(attempt=1, attempted_at=Now()):
            return None
        try:
            return _build_work(row)
        except InvalidToken:
            _end(row, "The password or the secret cannot be decrypted; give it anew.")
        except Exception:  # the other tests do not wait for this one
            log.exception("destination.test_failed", delivery=row.pk)
            _end(row, "The test could not be made; the cause is in the service's log.")
        return None

    def record(self, work: Work, outcome: Outcome) -> None:
        if isinstance(outcome, Answer):
            error = _explain_rejection(work, outcome)
            _end(work.delivery, error, outcome.status)
        else:
            _end(work.delivery, str(outcome))


def find_due() -> QuerySet[Delivery]:
    """Returns the tests to send now, also those whose worker died."""
    return ReceiverTestQueue().find_due()


def deliver_due(seconds: float) -> bool:
    """Sends due tests, and starts no request after `seconds`.

    Returns whether more are due. Requests under way take `TIMEOUT_SECONDS` at most.
    """
    return loop.deliver_due(ReceiverTestQueue(), seconds)


def _build_work(delivery: Delivery) -> Work:
    destination = Destination.objects.select_related("channel").get(deliveries=delivery)
    identifier = f"test-{uuid4()}"
    content = encode(_make_sample(destination, identifier))
    wire_bytes = batches.frame_document(destination, identifier, content)
    document = Document(START, 0, identifier, read_clock(), wire_bytes)
    request = sender.build_batch_request(destination, identifier, [document])
    loop.claimed_row(delivery).update(byte_count=len(wire_bytes))
    return Work(delivery, destination, document, replace(request, timeout_seconds=TIMEOUT_SECONDS))


def _make_sample(destination: Destination, identifier: str) -> dict[str, Any]:
    now = to_epoch_ms(read_clock())
    if destination.resource == Destination.Resource.SESSIONS:
        return {
            "tenantId": destination.channel.identifier, "userSessionId": identifier,
            "startTime": now, "endTime": now,
            "duration": 0, "userType": "SYNTHETIC", "userActionCount": 0,
            "totalErrorCount": 0, "userActions": [], "events": [], "errors": [],
        }  # fmt: skip
    return {"id": identifier, "timestamp": now, "type": "test", "payload": {"@type": "test"}}


def _explain_rejection(work: Work, answer: Answer) -> str:
    """Returns why an answer does not accept the document; empty when it does."""
    if not 200 <= answer.status < 300:
        return f"The answer was {answer.status}."
    parse_items = kind_of(work.destination).parse_items
    if parse_items is None:
        return ""
    try:
        items = parse_items(answer.body, [work.document])
    except ValueError as error:
        return str(error)
    return next((f"{item.status} {item.reason}" for item in items if not item.is_indexed), "")


def _end(delivery: Delivery, error: str, answer: int | None = None) -> None:
    status = Delivery.Status.DEAD if error else Delivery.Status.DELIVERED
    loop.release(delivery, status=status, error=error, answer=answer, ended_at=Now())
