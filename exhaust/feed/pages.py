"""Pages of the feed: the documents after a position, and the position after these."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db.models import Q

from exhaust.feed import documents
from ingest.derive import deriver
from ingest.feed import pruning, reader, restore, values
from ingest.feed.values import FeedPosition
from ingest.feed.watermark import (
    fetch_end_position,
    fetch_oldest_writer_age,
    fetch_watermark,
)
from ingest.models import AppUser, Session, StoredEvent

LAST_ID = 2**63 - 1
MAX_PAGE_BYTES = 8 * 1024 * 1024  # of documents; one larger document is a page


@dataclass(frozen=True)
class FeedQuery:
    """The records to read. The window is [start, end) of the resource's own time."""

    channel_id: int
    resource: str  # events, sessions or users
    start: datetime | None = None
    end: datetime | None = None
    types: tuple[str, ...] = ()


def query_fingerprint(query: FeedQuery) -> list[Any]:
    """Returns the identity of a query, to which its cursors are bound."""
    return [
        "feed",
        query.channel_id,
        query.resource,
        query.start.isoformat() if query.start else None,
        query.end.isoformat() if query.end else None,
        list(query.types),
    ]


class Page(NamedTuple):
    """Documents in the feed's order."""

    items: list[bytes]
    position: FeedPosition  # of the last one, or of the last row that was passed over
    is_at_end: bool  # whether there is no more at present


def read_page(query: FeedQuery, position: FeedPosition, limit: int) -> Page:
    """Returns up to `limit` documents and about `MAX_PAGE_BYTES` after a position.

    Raises `RequestError`: 410 if some of them are pruned, 409 if the position is not reached.
    """
    up_to = fetch_watermark()
    if position.xid >= up_to:
        restore.require_reached(position)
    if query.resource == "events" and position == values.START:
        position = pruning.get_pruned_position(pruning.fetch_prune_state(query.channel_id))
        items, is_full = _collect(_read_events(query, position, up_to, limit), limit)
    else:
        documents_read = READERS[query.resource](query, position, up_to, limit)
        items, is_full = _collect(documents_read, limit)
        if query.resource == "events":
            pruning.require_unpruned(query.channel_id, position)
    if is_full:
        return Page([item for _, item in items], items[-1][0], is_at_end=False)
    # all below the watermark was read, and nothing is ever added there
    end_position = fetch_end_position(TABLES[query.resource], query.channel_id, up_to)
    return Page([item for _, item in items], max(position, end_position), is_at_end=True)


def fetch_current_position(channel_id: int, resource: str) -> FeedPosition:
    """Returns the position of the last row that has arrived."""
    end_position = fetch_end_position(TABLES[resource], channel_id, fetch_watermark())
    if resource != "events":
        return end_position
    prune_state = pruning.fetch_prune_state(channel_id)
    return max(end_position, pruning.get_pruned_position(prune_state))


def measure_lag(query: FeedQuery) -> timedelta:
    """Returns by how much new records may be late: open transactions, or the derivation."""
    if query.resource == "events":
        return fetch_oldest_writer_age()
    return deriver.measure_lag(query.channel_id).age


PositionedDocuments = Iterator[tuple[FeedPosition, bytes]]


def _collect(
    found: PositionedDocuments, limit: int
) -> tuple[list[tuple[FeedPosition, bytes]], bool]:
    """Returns the documents of a page, and whether there may be more."""
    items = []
    size = 0
    for position, document in found:
        if size < MAX_PAGE_BYTES:  # the rest is read and dropped: to stop a stream costs more
            items.append((position, document))
            size += len(document)
    return items, len(items) == limit or size >= MAX_PAGE_BYTES


def _read_events(
    query: FeedQuery, position: FeedPosition, up_to: int, limit: int
) -> PositionedDocuments:
    rows = StoredEvent.objects.filter(
        Q(superseded_xid__isnull=True) | Q(superseded_xid__gte=up_to),
        channel_id=query.channel_id,
    )
    rows = _filter_by_time(rows, "occurred_at", query)
    if query.types:
        rows = rows.filter(type__in=query.types)
    with closing(
        reader.stream_events(reader.select_after(rows, position, up_to)[:limit])
    ) as event_rows:
        for row in event_rows:
            yield row.position, documents.encode_event(row)


def _read_sessions(
    query: FeedQuery, position: FeedPosition, up_to: int, limit: int
) -> PositionedDocuments:
    rows = Session.objects.filter(channel_id=query.channel_id).select_related("parent")
    rows = _filter_by_time(rows, "closes_at", query).defer("buckets")
    return (
        (FeedPosition(row.xid, row.pk), documents.encode_session(row))
        for row in reader.fetch_ordered(reader.select_after(rows, position, up_to)[:limit])
    )


def _read_users(
    query: FeedQuery, position: FeedPosition, up_to: int, limit: int
) -> PositionedDocuments:
    rows = AppUser.objects.filter(channel_id=query.channel_id)
    rows = _filter_by_time(rows, "modified_at", query)
    return (
        (FeedPosition(row.xid, row.pk), documents.encode_user(row))
        for row in reader.fetch_ordered(reader.select_after(rows, position, up_to)[:limit])
    )


def _filter_by_time(rows: Any, field: str, query: FeedQuery) -> Any:
    if query.start is not None:
        rows = rows.filter(**{f"{field}__gte": query.start})
    if query.end is not None:
        rows = rows.filter(**{f"{field}__lt": query.end})
    return rows


TABLES = {"events": "ingest_storedevent", "sessions": "ingest_session", "users": "ingest_appuser"}
READERS = {"events": _read_events, "sessions": _read_sessions, "users": _read_users}
