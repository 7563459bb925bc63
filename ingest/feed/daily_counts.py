"""Keeps how many events each day has, so that a chart does not read them.

A step adds the events after the counted position. A reader adds those that no step has counted yet,
so its numbers are those of the rows. What deletes or changes counted events takes them off in its
own transaction. A lock on the position's row keeps these apart.

A replaced version is counted until the position reaches the replacement's transaction.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import Case, Count, F, Q, QuerySet, Sum, Value, When
from django.db.models.functions import Cast, TruncDate

from ingest.feed import reader
from ingest.feed.reader import IsAfterPosition
from ingest.feed.values import FeedPosition
from ingest.feed.watermark import fetch_end_position, fetch_watermark
from ingest.models import Channel, DailyCount, DailyCountState, StoredEvent
from ingest.models.fields import XidField

Kind = DailyCount.Kind
Key = tuple[str, date, str]  # kind, day, name
MIN_STEP_EVENTS, MAX_STEP_EVENTS = 5_000, 50_000
_TIMES = {Kind.ARRIVAL: "received_at", Kind.EVENT: "occurred_at", Kind.ANSWER: "occurred_at"}
_NAMES = {Kind.ARRIVAL: "source", Kind.EVENT: "source", Kind.ANSWER: "conversation_id"}


# Steps --------------------------------------------------------------------------------------------


def count_all() -> None:
    """Counts the waiting events of every channel."""
    for channel_id in Channel.objects.values_list("pk", flat=True):
        while count_step(channel_id):
            pass


def count_step(channel_id: int) -> int:
    """Counts the next events. Returns how many steps were made: 1 or 0.

    None is made where fewer than `MIN_STEP_EVENTS` wait, or another process makes one.
    """
    watermark = fetch_watermark()
    with transaction.atomic():
        DailyCountState.objects.bulk_create(
            [DailyCountState(channel_id=channel_id)], ignore_conflicts=True
        )
        rows = DailyCountState.objects.select_for_update(skip_locked=True)
        state = rows.filter(pk=channel_id).first()
        if state is None:
            return 0
        end = _find_end(channel_id, state, watermark)
        if end is None:
            return 0
        counted, added = _split(channel_id, state)
        added = added.filter(_is_at_most(end))
        deltas = _sum(added, end.xid)
        gone = counted.filter(superseded_xid__gte=state.xid, superseded_xid__lt=end.xid)
        deltas.subtract(_sum(gone, None, (Kind.EVENT, Kind.ANSWER)))
        _save(state, deltas, end)
    return 1


def _find_end(channel_id: int, state: DailyCountState, watermark: int) -> FeedPosition | None:
    """Returns the position of the last event of a step; None where too few wait."""
    rows = reader.select_after(
        StoredEvent.objects.filter(channel_id=channel_id),
        FeedPosition(state.xid, state.event_id),
        watermark,
    ).only("xid")
    if last := reader.fetch_ordered(rows[MAX_STEP_EVENTS - 1 : MAX_STEP_EVENTS]):
        return FeedPosition(last[0].xid, last[0].pk)
    if reader.fetch_ordered(rows[MIN_STEP_EVENTS - 1 : MIN_STEP_EVENTS]):
        return fetch_end_position("ingest_storedevent", channel_id, watermark)
    return None


def take_off(channel_id: int, events: QuerySet[StoredEvent], *kinds: DailyCount.Kind) -> None:
    """Subtracts events which this transaction deletes, or makes none of these kinds, next."""
    DailyCountState.objects.bulk_create(
        [DailyCountState(channel_id=channel_id)], ignore_conflicts=True
    )
    state = DailyCountState.objects.select_for_update().get(pk=channel_id)
    counted = events.filter(_is_at_most(FeedPosition(state.xid, state.event_id)))
    deltas: Counter[Key] = Counter()
    deltas.subtract(_sum(counted, state.xid, kinds or tuple(Kind)))
    _save(state, deltas, FeedPosition(state.xid, state.event_id))


def _save(state: DailyCountState, deltas: Counter[Key], position: FeedPosition) -> None:
    changed = {key: delta for key, delta in deltas.items() if delta}
    days = {day for _kind, day, _name in changed}
    counts: dict[Key, int] = {}
    if days:
        rows = DailyCount.objects.filter(channel=state.channel_id, day__in=days)
        counts = {
            (kind, day, name): count
            for kind, day, name, count in rows.values_list("kind", "day", "name", "count")
        }
    DailyCount.objects.bulk_create(
        [
            DailyCount(
                channel_id=state.channel_id,
                kind=kind,
                day=day,
                name=name,
                count=counts.get((kind, day, name), 0) + delta,
            )
            for (kind, day, name), delta in changed.items()
        ],
        batch_size=1000,
        update_conflicts=True,
        unique_fields=["channel", "kind", "day", "name"],
        update_fields=["count"],
    )
    DailyCountState.objects.filter(pk=state.pk).update(
        xid=position.xid, event_id=position.id, version=F("version") + 1
    )


def _is_after(position: FeedPosition) -> IsAfterPosition:
    return IsAfterPosition(
        "xid", "id", Value(position.xid, XidField()), Value(position.id, models.BigIntegerField())
    )


def _is_at_most(position: FeedPosition) -> Q:
    return Q(~Q(_is_after(position)), xid__lte=position.xid)  # the second one uses an index


def _split(
    channel_id: int, state: DailyCountState
) -> tuple[QuerySet[StoredEvent], QuerySet[StoredEvent]]:
    """Returns the events of a channel that are counted, and the others."""
    events = StoredEvent.objects.filter(channel_id=channel_id)
    position = FeedPosition(state.xid, state.event_id)
    return events.filter(_is_at_most(position)), events.filter(_is_after(position))


def _sum(
    rows: QuerySet[StoredEvent], xid: int | None, kinds: Sequence[DailyCount.Kind] = tuple(Kind)
) -> Counter[Key]:
    """Returns how many events there are by kind, day and name.

    Those that were replaced before `xid` count as arrivals only; with None there are none.
    """
    is_current = Q(superseded_xid__isnull=True)
    is_current |= Q(pk__isnull=False) if xid is None else Q(superseded_xid__gte=xid)
    groups = rows.annotate(
        arrival_day=TruncDate("received_at", tzinfo=UTC),
        event_day=TruncDate("occurred_at", tzinfo=UTC),
        answered=Case(When(is_answer=True, then=F("conversation_id"))),
        is_current=Case(When(is_current, then=Value(True)), default=Value(False)),
    ).values_list("arrival_day", "event_day", "source", "answered", "is_current")
    counts: Counter[Key] = Counter()
    for arrival_day, event_day, source, answered, is_current, count in groups.annotate(
        count=Count("pk")
    ).order_by():
        if Kind.ARRIVAL in kinds:
            counts[Kind.ARRIVAL, arrival_day, source] += count
        if is_current:
            if Kind.EVENT in kinds:
                counts[Kind.EVENT, event_day, source] += count
            if Kind.ANSWER in kinds and answered is not None:
                counts[Kind.ANSWER, event_day, str(answered)] += count
    return counts


# Readers ------------------------------------------------------------------------------------------


def count_days(
    channel_id: int, kind: DailyCount.Kind, first: date, last: date
) -> Counter[tuple[date, str]]:
    """Returns how many events of a kind each day in UTC has, by day and name."""
    return _read(channel_id, kind, first, last, ("day", "name"))


def count_names(
    channel_id: int, kind: DailyCount.Kind, first: date, last: date
) -> Counter[tuple[str]]:
    """Returns how many events of a kind the days in UTC have together, by name."""
    return _read(channel_id, kind, first, last, ("name",))


def _read(
    channel_id: int, kind: DailyCount.Kind, first: date, last: date, columns: Sequence[str]
) -> Counter[Any]:
    kept = DailyCount.objects.filter(channel=channel_id, kind=kind, day__range=(first, last))
    is_in_days: dict[str, Any] = {
        f"{_TIMES[kind]}__gte": datetime.combine(first, time.min, UTC),
        f"{_TIMES[kind]}__lt": datetime.combine(last + timedelta(days=1), time.min, UTC),
    }
    while True:
        state = DailyCountState.objects.filter(pk=channel_id).first()
        state = state or DailyCountState(channel_id=channel_id)
        counted, added = _split(channel_id, state)
        if kind == Kind.ARRIVAL:
            replaced = counted.none()
        else:
            added = added.filter(superseded_xid__isnull=True)
            replaced = counted.filter(superseded_xid__gte=state.xid)
        if kind == Kind.ANSWER:
            is_in_days |= {"is_answer": True, "conversation__isnull": False}
        versions = DailyCountState.objects.filter(pk=channel_id).annotate(
            is_count=Value(False),
            day=Value(None, models.DateField()),
            name=Value("", models.TextField()),
        )
        # one statement, so that no step comes between its parts
        parts = [
            _group(kept, columns, Sum("count")),
            *(
                _group(
                    rows.filter(**is_in_days).annotate(
                        day=TruncDate(_TIMES[kind], tzinfo=UTC),
                        name=Cast(_NAMES[kind], models.TextField()),
                    ),
                    columns,
                    total,
                )
                for rows, total in ((added, Count("pk")), (replaced, -Count("pk")))
            ),
            versions.values_list("is_count", *columns, "version").order_by(),
        ]
        counts: Counter[Any] = Counter()
        version = 0
        for is_count, *key, total in parts[0].union(*parts[1:], all=True):
            if is_count:
                counts[tuple(key)] += total or 0
            else:
                version = total
        if version == state.version:  # else a step moved the position before the statement
            return +counts


def _group(rows: "QuerySet[Any]", columns: Sequence[str], total: Any) -> "QuerySet[Any, Any]":
    marked = rows.annotate(is_count=Value(True)).values_list("is_count", *columns)
    groups: QuerySet[Any, Any] = marked.annotate(total=total).order_by()
    return groups
