"""Reads the next batch of a destination from the feed, as the bytes that are sent."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from django.db.models import Q, QuerySet

from exhaust.delivery import session_documents
from exhaust.delivery.kinds import kind_of
from exhaust.feed import documents, pages
from exhaust.feed.events import EventFilter, stream_events
from exhaust.feed.pages import TABLES
from exhaust.models import Delivery, Destination
from ingest.feed import reader
from ingest.feed.reader import Window
from ingest.feed.values import FeedPosition
from ingest.feed.watermark import fetch_end_position, fetch_watermark
from ingest.times import from_microseconds

MAX_BATCH_DOCUMENTS = 1_000
MAX_BATCH_BYTES = 896_000
FIRST_READ_ROWS = 200
SEARCH_SECONDS = 1.0  # for a batch; the destination's next turn goes on from there
COUNT_SECONDS = 0.2  # of one destination
COUNT_ALL_SECONDS = 1.0  # of those of a list
SLOWEST_WRITE = timedelta(minutes=5)  # from an arrival, or a session's change, to the commit
MAX_COUNTED = 10_000  # waiting documents


class Document(NamedTuple):
    """A document and the bytes that are sent for it: its line, with an action line before it."""

    position: FeedPosition
    row_id: int
    id: str
    visible_since: datetime  # since then a reader could read it
    wire_bytes: bytes


class Batch(NamedTuple):
    """Documents in the order of the feed."""

    documents: list[Document]
    end_position: FeedPosition  # of the last one, or of all that was read
    has_more: bool  # after it; also where the search found none so far


def read_batch(destination: Destination, limit: int, position: FeedPosition) -> Batch:
    """Returns the batch after a position: up to `limit` documents and `MAX_BATCH_BYTES`, or one."""
    watermark_xid = fetch_watermark()
    documents: list[Document] = []
    size, count = 0, FIRST_READ_ROWS
    every = pages.select_rows(destination.channel_id, destination.resource)
    for window in reader.iterate_windows(every, position, watermark_xid, SEARCH_SECONDS):
        rest = window
        while True:
            records = _read_window(destination, rest, watermark_xid, count)
            rows = build_documents(destination, records)
            for document in rows:
                size += len(document.wire_bytes)
                if documents and size > MAX_BATCH_BYTES:
                    return Batch(documents, documents[-1].position, has_more=True)
                documents.append(document)
                if len(documents) >= limit:
                    return Batch(documents, document.position, has_more=True)
            if len(rows) < count:
                break
            rest = Window(rows[-1].position, window.end)
            # enough to fill the batch if they are as long as those before, and a few more
            count = min(
                limit - len(documents),
                (MAX_BATCH_BYTES - size) * len(documents) // size + FIRST_READ_ROWS // 10,
            )
        if window.end is None:
            break
        position = window.end
    else:
        return Batch(documents, position, has_more=True)
    # nothing is ever added below the watermark
    end_position = _fetch_end_position(destination, watermark_xid)
    return Batch(documents, max(rest.start, end_position), has_more=False)


def rebuild_documents(destination: Destination, delivery: Delivery) -> list[Document]:
    """Returns the undelivered documents of a delivery, as they are now.

    Rows that changed since are left out: the feed has them again, further on.
    """
    watermark_xid = fetch_watermark()
    rows = _select_rows(destination, watermark_xid)
    if delivery.pending is not None:
        rows = rows.filter(pk__in=delivery.pending)
    if delivery.kind == Delivery.Kind.DEAD_LETTERS:
        return build_documents(destination, _fetch_records(destination, rows.order_by("xid", "id")))
    start, end = (
        FeedPosition(delivery.from_xid, delivery.from_id),
        FeedPosition(delivery.to_xid, delivery.to_id),
    )
    rows = reader.select_after(rows, start, watermark_xid).filter(xid__lte=end.xid)
    rows = rows.filter(~Q(xid=end.xid) | Q(id__lte=end.id))
    return build_documents(destination, _fetch_records(destination, rows))


def count_waiting(
    destination: Destination, seconds: float = COUNT_SECONDS
) -> tuple[int, datetime | None]:
    """Returns how many documents wait, up to `MAX_COUNTED`, and since when the first one does.

    After so many seconds it stops: more may wait then. If it found none, it returns since when the
    rest of the feed waits to be searched.
    """
    watermark_xid = fetch_watermark()
    wanted = _select_rows(destination, watermark_xid)
    every = pages.select_rows(destination.channel_id, destination.resource)
    position = FeedPosition(destination.cursor_xid, destination.cursor_id)
    field = _time_field(destination)
    count, since = 0, None
    for window in reader.iterate_windows(every, position, watermark_xid, seconds):
        waiting = reader.select_window(wanted, window, watermark_xid)
        since = since or waiting.values_list(field, flat=True).first()
        if since:
            count += waiting[: MAX_COUNTED - count].count()
        if count == MAX_COUNTED or window.end is None:
            return count, since
        position = window.end
    rest = reader.select_after(every, position, watermark_xid)
    return count, since or rest.values_list(field, flat=True).first()


def find_position_at(destination: Destination, moment: datetime) -> FeedPosition:
    """Returns the position before the first document that arrived or changed since then.

    After `SEARCH_SECONDS` it stops: earlier documents may follow the position then.
    """
    field = _time_field(destination)
    watermark_xid = fetch_watermark()
    wanted = _select_rows(destination, watermark_xid).filter(**{f"{field}__gte": moment})
    every = pages.select_rows(destination.channel_id, destination.resource)
    position = _find_start(destination.channel_id, moment, watermark_xid)
    for window in reader.iterate_windows(every, position, watermark_xid, SEARCH_SECONDS):
        rows = reader.select_window(wanted, window, watermark_xid)
        if found := reader.fetch_ordered(rows.only("xid")[:1]):
            return FeedPosition(found[0].xid, found[0].pk - 1)
        if window.end is None:
            return _fetch_end_position(destination, watermark_xid)
        position = window.end
    return position


def _find_start(channel_id: int, moment: datetime, watermark_xid: int) -> FeedPosition:
    """Returns a position that all that arrived or changed since then comes after, and not long.

    Sessions change in the order of their positions, so halving finds it. Events do not arrive in
    that order: a replay stores them with the time at which they came first.
    """
    sessions = pages.select_rows(channel_id, "sessions").only("xid", "modified_at")
    low, high = 0, watermark_xid
    while low < high:
        middle = (low + high) // 2
        after = reader.select_after(sessions, FeedPosition(middle, 0), watermark_xid)
        found = reader.fetch_ordered(after[:1])
        if found and found[0].modified_at < moment - SLOWEST_WRITE:
            low = found[0].xid + 1
        else:
            high = middle
    return FeedPosition(low, 0)


def _fetch_end_position(destination: Destination, watermark_xid: int) -> FeedPosition:
    return fetch_end_position(TABLES[destination.resource], destination.channel_id, watermark_xid)


def _time_field(destination: Destination) -> str:
    """Returns the field that tells since when a reader could read a row."""
    is_session = destination.resource == Destination.Resource.SESSIONS
    return "modified_at" if is_session else "received_at"


def _select_rows(destination: Destination, watermark_xid: int) -> "QuerySet[Any]":
    """Returns the closed sessions or current events that it wants, whatever their position."""
    if destination.resource != Destination.Resource.SESSIONS:
        return _choose_events(destination).select(watermark_xid)
    rows: QuerySet[Any] = pages.select_rows(destination.channel_id, destination.resource)
    rows = rows.filter(closed=True)
    if destination.application:
        rows = rows.filter(application=_find_application_id(destination))
    return rows


def _choose_events(destination: Destination) -> EventFilter:
    return EventFilter(
        destination.channel_id,
        types=tuple(destination.types),
        application_id=_find_application_id(destination) if destination.application else None,
    )


def _find_application_id(destination: Destination) -> int:
    application = pages.find_application(destination.channel_id, destination.application)
    return application.pk if application else 0


def _read_window(
    destination: Destination, window: Window, watermark_xid: int, count: int
) -> list[Any]:
    """Returns the first `count` records of a window, for `build_documents`."""
    if destination.resource == Destination.Resource.SESSIONS:
        rows = _select_rows(destination, watermark_xid)
        rows = reader.select_window(rows, window, watermark_xid)[:count]
        return session_documents.fetch_sessions(rows)
    chosen = _choose_events(destination)
    with closing(stream_events(chosen, window, watermark_xid, count)) as events:
        return list(events)


def _fetch_records(destination: Destination, rows: "QuerySet[Any]") -> list[Any]:
    """Returns the records of rows in the feed's order, for `build_documents`."""
    if destination.resource == Destination.Resource.SESSIONS:
        return session_documents.fetch_sessions(rows)
    return list(reader.stream_events(rows))


def build_documents(destination: Destination, records: Sequence[Any]) -> list[Document]:
    """Returns a document for each session or `EventRow`."""
    if destination.resource == Destination.Resource.SESSIONS:
        identified = session_documents.build_documents(destination.channel.identifier, records)
        positions = [(FeedPosition(row.xid, row.id), row.modified_at) for row in records]
    else:
        identified = [
            (row.identity, join_json_lines(documents.encode_event(row, *destination.types)))
            for row in records
        ]
        positions = [(row.position, from_microseconds(row.received_us)) for row in records]
    return [
        Document(
            position,
            position.id,
            identifier,
            since,
            frame_document(destination, identifier, document),
        )
        for (position, since), (identifier, document) in zip(positions, identified, strict=True)
    ]


def join_json_lines(document: bytes) -> bytes:
    """Returns the document on one line; SQLite keeps the text of a payload as it came."""
    return (
        msgspec.json.format(document, indent=-1)
        if b"\n" in document or b"\r" in document
        else document
    )


def frame_document(destination: Destination, identifier: str, document: bytes) -> bytes:
    """Returns the bytes of a document in the protocol of its destination."""
    return kind_of(destination).frame_document(destination, identifier, document)


def total_bytes(documents: Iterable[Document]) -> int:
    return sum(len(document.wire_bytes) for document in documents)
