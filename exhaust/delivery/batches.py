"""Reads the next batch of a destination from the feed, as the bytes that are sent."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from django.db.models import Q, QuerySet

from exhaust.delivery import session_documents
from exhaust.delivery.kinds import kind_of
from exhaust.feed import documents
from exhaust.feed.pages import TABLES
from exhaust.models import Delivery, Destination
from ingest.feed import reader, values
from ingest.feed.values import FeedPosition
from ingest.feed.watermark import fetch_end_position, fetch_watermark
from ingest.models import Session, StoredEvent
from ingest.times import from_microseconds

MAX_BATCH_DOCUMENTS = 1_000
MAX_BATCH_BYTES = 896_000
FIRST_READ_ROWS = 200
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
    is_full: bool


def read_batch(destination: Destination, limit: int, position: FeedPosition) -> Batch:
    """Returns the batch after a position: up to `limit` documents and `MAX_BATCH_BYTES`, or one."""
    watermark_xid = fetch_watermark()
    documents: list[Document] = []
    size, count = 0, FIRST_READ_ROWS
    while True:
        rows = build_documents(
            destination,
            reader.select_after(_select_rows(destination, watermark_xid), position, watermark_xid)[
                :count
            ],
        )
        for document in rows:
            size += len(document.wire_bytes)
            if documents and size > MAX_BATCH_BYTES:
                return Batch(documents, documents[-1].position, is_full=True)
            documents.append(document)
            if len(documents) >= limit:
                return Batch(documents, document.position, is_full=True)
        if len(rows) < count:
            # nothing is ever added below the watermark
            end_position = _fetch_end_position(destination, watermark_xid)
            return Batch(documents, max(position, end_position), is_full=False)
        position = rows[-1].position
        # enough to fill the batch if they are as long as those before, and a few more
        count = min(
            limit - len(documents),
            (MAX_BATCH_BYTES - size) * len(documents) // size + FIRST_READ_ROWS // 10,
        )


def rebuild_documents(destination: Destination, delivery: Delivery) -> list[Document]:
    """Returns the undelivered documents of a delivery, as they are now.

    Rows that changed since are left out: the feed has them again, further on.
    """
    watermark_xid = fetch_watermark()
    rows = _select_rows(destination, watermark_xid)
    if delivery.pending is not None:
        rows = rows.filter(pk__in=delivery.pending)
    if delivery.kind == Delivery.Kind.DEAD_LETTERS:
        return build_documents(destination, rows.order_by("xid", "id"))
    start, end = (
        FeedPosition(delivery.from_xid, delivery.from_id),
        FeedPosition(delivery.to_xid, delivery.to_id),
    )
    rows = reader.select_after(rows, start, watermark_xid).filter(xid__lte=end.xid)
    return build_documents(destination, rows.filter(~Q(xid=end.xid) | Q(id__lte=end.id)))


def count_waiting(destination: Destination) -> tuple[int, datetime | None]:
    """Returns how many documents wait, up to `MAX_COUNTED`, and since when the first one does."""
    watermark_xid = fetch_watermark()
    waiting = reader.select_after(
        _select_rows(destination, watermark_xid),
        FeedPosition(destination.cursor_xid, destination.cursor_id),
        watermark_xid,
    )
    field = (
        "modified_at" if destination.resource == Destination.Resource.SESSIONS else "received_at"
    )
    since: datetime | None = waiting.values_list(field, flat=True).first()
    return (waiting[:MAX_COUNTED].count() if since else 0), since


def find_position_at(destination: Destination, moment: datetime) -> FeedPosition:
    """Returns the position before the first document that arrived or changed since then."""
    field = (
        "modified_at" if destination.resource == Destination.Resource.SESSIONS else "received_at"
    )
    watermark_xid = fetch_watermark()
    rows = reader.select_after(
        _select_rows(destination, watermark_xid), values.START, watermark_xid
    ).filter(**{f"{field}__gte": moment})
    first = rows.values_list("xid", "id").first()
    if first is None:
        return _fetch_end_position(destination, watermark_xid)
    return FeedPosition(first[0], first[1] - 1)


def _fetch_end_position(destination: Destination, watermark_xid: int) -> FeedPosition:
    return fetch_end_position(TABLES[destination.resource], destination.channel_id, watermark_xid)


def _select_rows(destination: Destination, watermark_xid: int) -> "QuerySet[Any]":
    """Returns closed sessions, or current events, whatever their position."""
    if destination.resource == Destination.Resource.SESSIONS:
        return Session.objects.filter(channel_id=destination.channel_id, closed=True)
    visible = StoredEvent.objects.filter(
        Q(superseded_xid__isnull=True) | Q(superseded_xid__gte=watermark_xid),
        channel_id=destination.channel_id,
    )
    return visible.filter(type__in=destination.types) if destination.types else visible


def build_documents(destination: Destination, rows: "QuerySet[Any]") -> list[Document]:
    if destination.resource == Destination.Resource.SESSIONS:
        session_rows = session_documents.fetch_sessions(rows)
        identified = session_documents.build_documents(destination.channel.identifier, session_rows)
        positions = [(FeedPosition(row.xid, row.id), row.modified_at) for row in session_rows]
    else:
        event_rows = list(reader.stream_events(rows))
        identified = [
            (row.identity, join_json_lines(documents.encode_event(row))) for row in event_rows
        ]
        positions = [(row.position, from_microseconds(row.received_us)) for row in event_rows]
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
