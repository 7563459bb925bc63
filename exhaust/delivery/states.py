"""What destinations have done and have to do: their state, lag and last deliveries."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic

from django.db.models import Count, IntegerField, Min, OuterRef, Subquery

from exhaust.delivery import batches, pump
from exhaust.feed.pages import fetch_current_position
from exhaust.models import DeadLetter, Delivery, Destination
from ingest.db.clock import read_clock
from ingest.feed.values import FeedPosition


@dataclass(frozen=True)
class Lag:
    """The documents, or the exports, that a destination has not got yet."""

    documents: int  # up to `batches.MAX_COUNTED`
    seconds: float  # since then the first one waits


@dataclass(frozen=True)
class Facts:
    """What a destination has done and has to do."""

    lag: Lag
    dead_letter_count: int
    deliveries: list[Delivery]  # the last ones, the newest first


class _CountRows(Subquery):
    """The number of a subquery's rows, which its limit bounds."""

    template = "(SELECT COUNT(*) FROM (%(subquery)s) counted)"
    output_field = IntegerField()


def add_facts(
    rows: Sequence[Destination], delivery_count: int = 5, without: Sequence[Delivery.Kind] = ()
) -> None:
    """Sets `facts` of destinations, by as many statements for fifty of them as for one.

    Those that lag take some more each, for `batches.COUNT_ALL_SECONDS` together.
    """
    deliveries = _fetch_last_deliveries(rows, delivery_count, without)
    counts = count_dead_letters(rows)
    for row, lag in zip(rows, measure_lags(rows), strict=True):
        row.facts = Facts(lag, counts.get(row.pk, 0), deliveries.get(row.pk, []))


def _fetch_last_deliveries(
    rows: Sequence[Destination], count: int, without: Sequence[Delivery.Kind]
) -> dict[int, list[Delivery]]:
    own = Delivery.objects.filter(destination=OuterRef("pk"))
    last = own.exclude(kind__in=without).order_by("-pk")
    keys = Destination.objects.filter(pk__in=[row.pk for row in rows]).values_list(
        "pk", *(Subquery(last.values("pk")[place : place + 1]) for place in range(count))
    )
    keys_by_row = {pk: [key for key in found if key is not None] for pk, *found in keys}
    deliveries = Delivery.objects.in_bulk([key for found in keys_by_row.values() for key in found])
    return {
        pk: [deliveries[key] for key in found if key in deliveries]
        for pk, found in keys_by_row.items()
    }


def count_dead_letters(rows: Sequence[Destination]) -> dict[int, int]:
    """Returns by primary key how many documents a receiver rejected for good, up to
    `batches.MAX_COUNTED`; of one for files, how many exports it never got."""
    letters = DeadLetter.objects.filter(destination=OuterRef("pk"), delivered_at=None)
    files = Delivery.objects.filter(
        destination=OuterRef("pk"), kind=Delivery.Kind.FILES, status=Delivery.Status.DEAD
    )
    counts: dict[int, int] = {}
    for takes_files, dead in ((False, letters), (True, files)):
        if wanted := [row.pk for row in rows if row.takes_files == takes_files]:
            count = _CountRows(dead.values("pk")[: batches.MAX_COUNTED])
            found = Destination.objects.filter(pk__in=wanted).values_list("pk", count)
            counts.update(found)
    return counts


def measure_lags(rows: Sequence[Destination]) -> list[Lag]:
    """Returns the lags of destinations. One at the end of its feed takes no query of its own."""
    deadline = monotonic() + batches.COUNT_ALL_SECONDS
    ends: dict[tuple[int, str], FeedPosition] = {}
    files = (
        Delivery.objects.filter(
            destination__in=[row.pk for row in rows if row.takes_files],
            kind=Delivery.Kind.FILES,
            status=Delivery.Status.FAILING,
        )
        .values_list("destination")
        .annotate(Count("pk"), Min("created_at"))
    )
    waiting: dict[int, tuple[int, datetime | None]] = {
        pk: (count, since) for pk, count, since in files
    }
    for row in rows:
        if row.takes_files:
            continue
        feed = row.channel_id, row.resource
        if feed not in ends:
            ends[feed] = fetch_current_position(*feed)
        if ends[feed] > FeedPosition(row.cursor_xid, row.cursor_id):
            seconds = min(batches.COUNT_SECONDS, deadline - monotonic())
            waiting[row.pk] = batches.count_waiting(row, seconds)
    now = read_clock()
    lags = []
    for row in rows:
        count, since = waiting.get(row.pk, (0, None))
        age = (now - since).total_seconds() if since else 0.0
        lags.append(Lag(count, max(0.0, age)))
    return lags


def determine_state(destination: Destination) -> str:
    """Returns disabled, paused, circuit_open (probed only), failing or working."""
    if destination.disabled_reason:
        return "disabled"
    if destination.paused_at is not None:
        return "paused"
    if destination.failures >= pump.CIRCUIT_BREAKER_FAILURES and not destination.takes_files:
        return "circuit_open"
    return "failing" if destination.failures else "working"
