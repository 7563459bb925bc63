"""The loop that delivers: claim a row, send its request, record the outcome.

A claim is one guarded UPDATE that leases the row and raises its fencing token. Every later write
names the token, so a worker that lost its lease, to another worker or to an operator's order,
changes nothing. When a worker dies, its lease expires and the row is claimed again.
The threads that send have no connection to the database.
"""

from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import timedelta
from time import monotonic
from typing import Any, Protocol, TypeVar

from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

from exhaust.delivery import sender
from exhaust.delivery.sender import OutboundRequest, Outcome
from exhaust.models import Claimable, Delivery
from ingest import logs

log = logs.get_logger(__name__)
CONCURRENCY = 8  # requests at once
LEASE = timedelta(seconds=120)  # well over the time that reading and sending a batch may take


class Work(Protocol):
    """A claimed row's delivery, and the request that is sent for it."""

    @property
    def delivery(self) -> Delivery: ...

    @property
    def request(self) -> OutboundRequest: ...


RowT = TypeVar("RowT", bound=Claimable)
WorkT = TypeVar("WorkT", bound=Work)


class DeliveryQueue(Protocol[RowT, WorkT]):
    """One kind of delivery: which rows are due, how to prepare and how to record an attempt."""

    def find_due(self) -> QuerySet[RowT]:
        """Returns the rows to claim now, the most urgent first."""

    def prepare(self, row: RowT) -> WorkT | None:
        """Returns the work of a claimed row; None when it has nothing to send and is released."""

    def prefetch(self, sending: Collection[WorkT]) -> bool:
        """Reads ahead while requests are under way. Returns whether it read anything."""

    def record(self, work: WorkT, outcome: Outcome) -> None:
        """Writes the outcome of an attempt, unless the lease was lost meanwhile."""


def deliver_due(queue: DeliveryQueue[RowT, WorkT], seconds: float) -> bool:
    """Delivers due rows, and starts no request after `seconds`. Returns whether more are due.

    The first round is started in any case. Requests under way take their own timeout at most.
    """
    deadline = monotonic() + seconds
    is_first_round = True
    with ThreadPoolExecutor(CONCURRENCY) as senders:
        sending: dict[Future[Outcome], WorkT] = {}
        while True:
            while len(sending) < CONCURRENCY and (is_first_round or monotonic() < deadline):
                row = claim(queue.find_due())
                if row is None:
                    break
                if (work := queue.prepare(row)) is not None:
                    sending[senders.submit(sender.send, work.request)] = work
            is_first_round = False
            if not sending:
                return monotonic() >= deadline and queue.find_due().exists()
            has_read = monotonic() < deadline and queue.prefetch(sending.values())
            for future in wait(sending, 0 if has_read else 0.2, FIRST_COMPLETED).done:
                work = sending.pop(future)
                try:
                    queue.record(work, future.result())
                except Exception:  # the other rows go on; this one's lease expires
                    log.exception("delivery.recording_failed", delivery=work.delivery.pk)


# Claims -------------------------------------------------------------------------------------------


def find_claimable(rows: QuerySet[RowT]) -> QuerySet[RowT]:
    """Returns those of the rows that are due and that no worker leases."""
    return rows.filter(Q(lease_until=None) | Q(lease_until__lt=Now()), next_at__lte=Now())


def claim(due: QuerySet[RowT]) -> RowT | None:
    """Leases the first due row that no other worker claims meanwhile. Returns None for none."""
    for row in due[:CONCURRENCY]:
        guarded = due.order_by().filter(pk=row.pk, fencing_token=row.fencing_token)
        if guarded.update(fencing_token=F("fencing_token") + 1, lease_until=Now() + LEASE):
            row.fencing_token += 1
            return row
    return None


def claimed_row(row: RowT) -> QuerySet[RowT]:
    """Returns the row as a query, which is empty once the lease was lost."""
    return type(row)._default_manager.filter(pk=row.pk, fencing_token=row.fencing_token)


def release(row: RowT, **values: Any) -> bool:
    """Ends the lease and writes the values. Returns False when the lease was lost before."""
    return bool(claimed_row(row).update(lease_until=None, **values))
