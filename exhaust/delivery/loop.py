"""The loop that delivers: claim a row, send its request, record the outcome.

A claim is one guarded UPDATE that leases the row and raises its fencing token. Every later write
names the token, so a worker that lost its lease, to another worker or to an operator's order,
changes nothing. When a worker dies, its lease expires and the row is claimed again.
The threads that send have no connection to the database.

A silent receiver costs its own channel only: a channel has few sockets, and a host that several
requests of a channel got no answer from is left alone for a while.
"""

from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from django.db.models import Count, F, Q, QuerySet
from django.db.models.functions import Now

from exhaust.delivery import sender
from exhaust.delivery.http_client import NoAnswer
from exhaust.delivery.sender import OutboundRequest, Outcome
from exhaust.models import Callback, Delivery, Destination, Notice
from ingest import logs
from ingest.db import outages
from ingest.db.prepared import retry_if_lost

log = logs.get_logger(__name__)
CONCURRENCY = 16  # requests at once
CHANNEL_CONCURRENCY = 4  # of one channel, in all processes
LEASE = timedelta(seconds=120)  # well over the time that reading and sending a batch may take


class HostBreaker:
    """Which hosts were silent of late, for which channel. Each process learns it for itself."""

    def __init__(self, failures: int = 3, seconds: float = 30.0) -> None:
        self._max_failures = failures
        self._seconds = seconds
        self._failures: dict[tuple[int, str], int] = {}  # in a row
        self._open_until: dict[tuple[int, str], float] = {}

    def seconds_left(self, channel_id: int, url: str) -> float:
        """Returns for how long to leave the host alone; 0 for a request that may be sent.

        After that time one request is let through, and the others wait for its outcome.
        """
        host = (channel_id, urlsplit(url).netloc)
        if self._failures.get(host, 0) < self._max_failures:
            return 0.0
        now = monotonic()
        if (left := self._open_until[host] - now) > 0:
            return left
        self._open_until[host] = now + self._seconds
        return 0.0

    def record(self, channel_id: int, url: str, outcome: Outcome) -> None:
        """Counts silence, and forgets it with any other outcome."""
        host = (channel_id, urlsplit(url).netloc)
        if not isinstance(outcome, NoAnswer):
            self._failures.pop(host, None)
            self._open_until.pop(host, None)
            return
        self._open_until[host] = monotonic() + self._seconds
        self._failures[host] = self._failures.get(host, 0) + 1
        if self._failures[host] == self._max_failures:
            log.warning("host.silent", channel=channel_id)


breaker = HostBreaker()


class Work(Protocol):
    """A claimed row's delivery, and the request that is sent for it."""

    @property
    def delivery(self) -> Delivery | Notice: ...

    @property
    def request(self) -> OutboundRequest: ...


RowT = TypeVar("RowT", Destination, Callback, Delivery, Notice)
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

    The first round prepares `CONCURRENCY` rows in any case. Requests under way take their own
    timeout at most.
    """
    deadline = monotonic() + seconds
    rows_left = CONCURRENCY  # of the first round
    with ThreadPoolExecutor(CONCURRENCY) as senders:
        sending: dict[Future[Outcome], WorkT] = {}
        while True:
            while len(sending) < CONCURRENCY and (rows_left > 0 or monotonic() < deadline):
                row = retry_if_lost(lambda: claim(queue.find_due()))
                if row is None:
                    break
                if wait_seconds := breaker.seconds_left(row.channel_id, row.url):
                    release(row, next_at=Now() + timedelta(seconds=wait_seconds))
                    continue
                rows_left -= 1
                if (work := queue.prepare(row)) is not None:
                    sending[senders.submit(sender.send, work.request)] = work
            rows_left = 0
            if not sending:
                return monotonic() >= deadline and queue.find_due().exists()
            has_read = monotonic() < deadline and queue.prefetch(sending.values())
            for future in wait(sending, 0 if has_read else 0.2, FIRST_COMPLETED).done:
                work, outcome = sending.pop(future), future.result()
                breaker.record(work.delivery.channel_id, work.request.url, outcome)
                try:
                    retry_if_lost(partial(queue.record, work, outcome))
                except Exception:  # the other rows go on; this one's lease expires
                    log.exception("delivery.recording_failed", delivery=work.delivery.pk)


# Claims -------------------------------------------------------------------------------------------


def find_claimable(
    rows: QuerySet[RowT], channel_limit: int = CHANNEL_CONCURRENCY
) -> QuerySet[RowT]:
    """Returns those of the rows that are due and that no worker leases.

    Leaves out channels with `channel_limit` leased rows: they may be silent receivers.
    """
    leased = rows.filter(lease_until__gte=Now()).order_by().values("channel")
    busy_channels = leased.annotate(leased=Count("pk")).filter(leased__gte=channel_limit)
    return rows.filter(Q(lease_until=None) | Q(lease_until__lt=Now()), next_at__lte=Now()).exclude(
        channel__in=busy_channels.values("channel")
    )


def claim(due: QuerySet[RowT], lease: timedelta = LEASE) -> RowT | None:
    """Leases the first due row that no other worker claims meanwhile. Returns None for none."""
    for row in due[:CONCURRENCY]:
        guarded = due.order_by().filter(pk=row.pk, fencing_token=row.fencing_token)
        if guarded.update(fencing_token=F("fencing_token") + 1, lease_until=Now() + lease):
            row.fencing_token += 1
            return row
    return None


def claimed_row(row: RowT) -> QuerySet[RowT]:
    """Returns the row as a query, which is empty once the lease was lost or released."""
    return type(row)._default_manager.filter(
        pk=row.pk, fencing_token=row.fencing_token, lease_until__isnull=False
    )


def release(row: RowT, **values: Any) -> bool:
    """Ends the lease and writes the values. Returns False when the lease was lost before."""
    return bool(claimed_row(row).update(lease_until=None, **values))


def postpone(row: RowT, error: Exception) -> None:
    """Releases a row that could not be prepared. Only a lost database lets it be due at once."""
    delay = timedelta(0) if outages.is_lost(error) else LEASE
    retry_if_lost(lambda: release(row, next_at=Now() + delay))
