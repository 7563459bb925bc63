"""Pages of the feed: the documents after a position, and the position after these."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from exhaust.feed import documents
from exhaust.feed.events import EventFilter, stream_events
from ingest.db.prepared import fetch_all
from ingest.derive import deriver
from ingest.feed import pruning, reader, restore, values
from ingest.feed.reader import Window
from ingest.feed.values import FeedPosition
from ingest.feed.watermark import (
    fetch_end_position,
    fetch_oldest_writer_age,
    fetch_watermark,
)
from ingest.models import Application, AppUser, Session, StoredEvent

LAST_ID = 2**63 - 1
MAX_PAGE_BYTES = 8 * 1024 * 1024  # of documents; one larger document is a page
SEARCH_SECONDS = 5.0  # for the documents of a page; the next page goes on from there


@dataclass(frozen=True)
class FeedQuery:
    """The records to read. The window is [start, end) of the resource's own time."""

    channel_id: int
    resource: str  # events, sessions, users, or datasets/ and the name of an own one
    start: datetime | None = None
    end: datetime | None = None
    types: tuple[str, ...] = ()
    application: str = ""  # its id; empty for all


def query_fingerprint(query: FeedQuery) -> list[Any]:
    """Returns the identity of a query, to which its cursors are bound."""
    fingerprint = [
        "feed",
        query.channel_id,
        query.resource,
        query.start.isoformat() if query.start else None,
        query.end.isoformat() if query.end else None,
        list(query.types),
    ]
    return [*fingerprint, query.application] if query.application else fingerprint


class Page(NamedTuple):
    """Documents in the feed's order. A page can be empty and not the last one."""

    items: list[bytes]
    position: FeedPosition  # of the last one, or of the last row that was passed over
    is_at_end: bool  # whether there is no more at present
    application_ids: frozenset[int | None]  # of its records; None for one without


def read_page(query: FeedQuery, position: FeedPosition, limit: int) -> Page:
    """Returns up to `limit` documents and about `MAX_PAGE_BYTES` after a position.

    Raises `RequestError`: 410 if some of them are pruned, 409 if the position is not reached.
    """
    up_to = fetch_watermark()
    if position.xid >= up_to:
        restore.require_reached(position)
    if query.resource == "events" and position == values.START:
        position = pruning.get_pruned_position(pruning.fetch_prune_state(query.channel_id))
        items, end = _collect(query, position, up_to, limit)
    else:
        items, end = _collect(query, position, up_to, limit)
        if query.resource == "events":
            pruning.require_unpruned(query.channel_id, position)
    application_ids = frozenset(item.application_id for item in items)
    documents_kept = [item.document for item in items]
    if end is not None:
        return Page(documents_kept, end, False, application_ids)
    # all below the watermark was read, and nothing is ever added there
    end_position = fetch_end_position(TABLES[query.resource], query.channel_id, up_to)
    return Page(documents_kept, max(position, end_position), True, application_ids)


def fetch_current_position(channel_id: int, resource: str) -> FeedPosition:
    """Returns the position of the last row that has arrived."""
    end_position = fetch_end_position(TABLES[resource], channel_id, fetch_watermark())
    if resource != "events":
        return end_position
    prune_state = pruning.fetch_prune_state(channel_id)
    return max(end_position, pruning.get_pruned_position(prune_state))


def measure_lag(query: FeedQuery) -> timedelta:
    """Returns by how much new records may be late: open transactions, or the derivation."""
    if query.resource not in ("sessions", "users"):  # rows of events
        return fetch_oldest_writer_age()
    return deriver.measure_lag(query.channel_id).age


class _Item(NamedTuple):
    position: FeedPosition
    document: bytes
    application_id: int | None = None


def _collect(
    query: FeedQuery, position: FeedPosition, up_to: int, limit: int
) -> tuple[list[_Item], FeedPosition | None]:
    """Returns the documents of a page, and its end; None where it ends below the watermark."""
    items: list[_Item] = []
    size = 0
    end = None
    for window in _iterate_windows(query, position, up_to):
        for item in READERS[query.resource](query, window, up_to, limit - len(items)):
            if size < MAX_PAGE_BYTES:  # the rest is read and dropped: to stop a stream costs more
                items.append(item)
                size += len(item.document)
        if len(items) == limit or size >= MAX_PAGE_BYTES:
            return items, items[-1].position
        end = window.end
    return items, end


def _iterate_windows(query: FeedQuery, position: FeedPosition, up_to: int) -> Iterable[Window]:
    """Returns the windows to search; one without an end where every row is a document."""
    is_filtered = query.start or query.end or query.types or query.application
    if not is_filtered and not (query.resource == "events" and _has_superseded(query.channel_id)):
        return [Window(position, None)]
    return iterate_windows(query.channel_id, query.resource, position, up_to)


def iterate_windows(
    channel_id: int, resource: str, position: FeedPosition, up_to: int
) -> Iterator[Window]:
    """Yields the windows that one page searches."""
    rows = select_rows(channel_id, resource)
    return reader.iterate_windows(rows, position, up_to, SEARCH_SECONDS)


def select_rows(channel_id: int, resource: str) -> Any:
    """Returns all rows of a channel."""
    return _MODELS[resource].objects.filter(channel_id=channel_id)


def _has_superseded(channel_id: int) -> bool:
    return bool(
        fetch_all(
            "SELECT 1 FROM ingest_storedevent"
            " WHERE channel_id = %s AND superseded_xid IS NOT NULL LIMIT 1",
            [channel_id],
        )
    )


def _read_events(query: FeedQuery, window: Window, up_to: int, limit: int) -> Iterator[_Item]:
    application_id = None
    if query.application:
        application = find_application(query.channel_id, query.application)
        application_id = application.pk if application else 0
    chosen = EventFilter(query.channel_id, query.start, query.end, query.types, application_id)
    with closing(stream_events(chosen, window, up_to, limit)) as event_rows:
        for row in event_rows:
            document = documents.encode_event(row, *query.types)
            yield _Item(row.position, document, row.application_id)


def _read_sessions(query: FeedQuery, window: Window, up_to: int, limit: int) -> Iterator[_Item]:
    rows = select_rows(query.channel_id, "sessions").select_related("parent")
    rows = _filter_by_time(_filter_by_application(rows, query), "closes_at", query)
    rows = rows.defer("buckets")
    return (
        _Item(FeedPosition(row.xid, row.pk), documents.encode_session(row))
        for row in reader.fetch_ordered(reader.select_window(rows, window, up_to)[:limit])
    )


def _read_users(query: FeedQuery, window: Window, up_to: int, limit: int) -> Iterator[_Item]:
    rows = _filter_by_time(select_rows(query.channel_id, "users"), "modified_at", query)
    return (
        _Item(FeedPosition(row.xid, row.pk), documents.encode_user(row))
        for row in reader.fetch_ordered(reader.select_window(rows, window, up_to)[:limit])
    )


def _filter_by_application(rows: Any, query: FeedQuery) -> Any:
    if not query.application:
        return rows
    found = find_application(query.channel_id, query.application)
    return rows.filter(application=found.pk if found else 0)


def explain_unknown_application(channel_id: int, identifier: str) -> str:
    """Returns why no record can be of that application; empty where the channel has it."""
    if find_application(channel_id, identifier) is not None:
        return ""
    return "This channel has no application of that id; name one it has."


def find_application(channel_id: int, identifier: str) -> Application | None:
    """Returns the channel's application of that id."""
    return Application.objects.filter(channel_id=channel_id, identifier=identifier).first()


def _filter_by_time(rows: Any, field: str, query: FeedQuery) -> Any:
    if query.start is not None:
        rows = rows.filter(**{f"{field}__gte": query.start})
    if query.end is not None:
        rows = rows.filter(**{f"{field}__lt": query.end})
    return rows


TABLES = {"events": "ingest_storedevent", "sessions": "ingest_session", "users": "ingest_appuser"}
_MODELS: dict[str, Any] = {"events": StoredEvent, "sessions": Session, "users": AppUser}
READERS = {"events": _read_events, "sessions": _read_sessions, "users": _read_users}
