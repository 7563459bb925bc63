"""Reads the events of pages: from files of the archive where they are in it, and else from rows."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from django.db.models import Q, QuerySet

from exhaust.feed import vocabulary
from ingest.feed import reader
from ingest.feed.reader import Window
from ingest.feed.values import EventRow, FeedPosition
from ingest.models import StoredEvent


@dataclass(frozen=True)
class EventFilter:
    """A channel's events that occurred in [start, end), each in its current version."""

    channel_id: int
    start: datetime | None = None
    end: datetime | None = None
    types: tuple[str, ...] = ()
    application_id: int | None = None  # 0 for an unknown one, None for all

    def select(self, watermark: int) -> "QuerySet[StoredEvent]":
        """Returns the events that are current at a watermark."""
        rows = StoredEvent.objects.filter(
            Q(superseded_xid__isnull=True) | Q(superseded_xid__gte=watermark),
            channel_id=self.channel_id,
        )
        if self.application_id is not None:
            rows = rows.filter(application=self.application_id)
        if self.start is not None:
            rows = rows.filter(occurred_at__gte=self.start)
        if self.end is not None:
            rows = rows.filter(occurred_at__lt=self.end)
        return rows.filter(vocabulary.select_types(self.types)) if self.types else rows


class ArchivedEvents(Protocol):
    """The archived events of a window, in order, which may end before the window does."""

    end: FeedPosition  # once all are read: they are all up to it

    def __iter__(self) -> Iterator[EventRow]: ...


# (filter, window, watermark, limit); returns None where none is archived
OpenArchive = Callable[[EventFilter, Window, int, int], ArchivedEvents | None]
_openers: list[OpenArchive] = []


def register_archive(opener: OpenArchive) -> None:
    """Has `stream_events` read the archive, which is a package above this one."""
    _openers[:] = [opener]


def stream_events(
    chosen: EventFilter, window: Window, watermark: int, limit: int
) -> Generator[EventRow]:
    """Yields the first `limit` events of a window. Run no other query until it ends."""
    for open_archive in _openers:
        archived = open_archive(chosen, window, watermark, limit)
        if archived is None:
            continue
        for row in archived:
            yield row
            limit -= 1
            if not limit:
                return
        window = window._replace(start=archived.end)
    if window.end is not None and window.start >= window.end:
        return
    rows = reader.select_window(chosen.select(watermark), window, watermark)
    with closing(reader.stream_events(rows[:limit])) as event_rows:
        yield from event_rows
