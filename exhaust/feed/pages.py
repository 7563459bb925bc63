"""Pages of the feed: what stands behind a position, and the position behind that."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db.models import Q

from exhaust.feed import documents
from ingest.derive import deriver
from ingest.feed import pruning, reader, values
from ingest.feed.values import Place
from ingest.feed.watermark import oldest_writer, watermark
from ingest.models import AppUser, Session, StoredEvent

LAST_ID = 2**63 - 1


@dataclass(frozen=True)
class Question:
    """What of a channel is read: the moments are [start, end), of the resource's own time."""

    channel_id: int
    resource: str  # events, sessions or users
    start: datetime | None = None
    end: datetime | None = None
    types: tuple[str, ...] = ()


def bound(question: Question) -> list[Any]:
    """What a cursor belongs to."""
    return [
        "feed",
        question.channel_id,
        question.resource,
        question.start.isoformat() if question.start else None,
        question.end.isoformat() if question.end else None,
        list(question.types),
    ]


class Page(NamedTuple):
    """Documents in the feed's order."""

    items: list[bytes]
    place: Place  # behind the last one, or as far as everything was read
    ended: bool  # nothing more is there now


def read(question: Question, place: Place, limit: int) -> Page:
    """Up to `limit` documents behind a place. Raises `Refused` (410) where some were pruned."""
    mark = watermark()
    if question.resource == "events" and place == values.START:
        place = pruning.place(pruning.of(question.channel_id))
        found = _events(question, place, mark, limit)
    else:
        found = _READERS[question.resource](question, place, mark, limit)
        if question.resource == "events":
            pruning.require(question.channel_id, place)
    if len(found) == limit:
        return Page([item for _, item in found], found[-1][0], ended=False)
    # all below the watermark was looked at; nothing will ever be added there
    return Page([item for _, item in found], max(place, Place(mark - 1, LAST_ID)), ended=True)


def now() -> Place:
    """Behind all that has arrived."""
    return Place(watermark() - 1, LAST_ID)


def lag(question: Question) -> timedelta:
    """For how long what arrived may not have been readable: open writers, or the deriver."""
    if question.resource == "events":
        return oldest_writer()
    return deriver.lag(question.channel_id).age


Found = list[tuple[Place, bytes]]


def _events(question: Question, place: Place, mark: int, limit: int) -> Found:
    rows = StoredEvent.objects.filter(
        Q(superseded_xid__isnull=True) | Q(superseded_xid__gte=mark),
        channel_id=question.channel_id,
    )
    rows = _within(rows, "occurred_at", question)
    if question.types:
        rows = rows.filter(type__in=question.types)
    found = reader.arrived(reader.after(rows, place, mark)[:limit])
    return [(row.place, documents.event(row)) for row in found]


def _sessions(question: Question, place: Place, mark: int, limit: int) -> Found:
    rows = Session.objects.filter(channel_id=question.channel_id).select_related("parent")
    rows = _within(rows, "closes_at", question).defer("pieces")
    return [
        (Place(row.xid, row.pk), documents.session(row))
        for row in reader.in_order(reader.after(rows, place, mark)[:limit])
    ]


def _users(question: Question, place: Place, mark: int, limit: int) -> Found:
    rows = AppUser.objects.filter(channel_id=question.channel_id)
    rows = _within(rows, "modified_at", question)
    return [
        (Place(row.xid, row.pk), documents.user(row))
        for row in reader.in_order(reader.after(rows, place, mark)[:limit])
    ]


def _within(rows: Any, field: str, question: Question) -> Any:
    if question.start is not None:
        rows = rows.filter(**{f"{field}__gte": question.start})
    if question.end is not None:
        rows = rows.filter(**{f"{field}__lt": question.end})
    return rows


_READERS = {"events": _events, "sessions": _sessions, "users": _users}
