"""What of the feed goes to a destination next, as the bytes that it gets."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from django.db.models import Q, QuerySet

from exhaust.delivery import elasticsearch, session_documents
from exhaust.feed import documents
from exhaust.feed.pages import LAST_ID
from exhaust.models import Delivery, Destination
from ingest.feed import reader, values
from ingest.feed.values import FeedPosition
from ingest.feed.watermark import fetch_watermark
from ingest.models import Session, StoredEvent
from ingest.times import from_microseconds

MAX_DOCUMENTS = 1_000
MAX_BYTES = 896_000
FIRST_READ_ROWS = 200  # rows that are read first


class Document(NamedTuple):
    """A document and the bytes that are sent for it: its line, or its action line too."""

    position: FeedPosition
    row_id: int
    id: str
    visible_since: datetime  # when it could first be read
    wire_bytes: bytes


class Batch(NamedTuple):
    """Documents in the feed's order."""

    documents: list[Document]
    end_position: FeedPosition  # behind the last one, or as far as everything was read
    is_full: bool


def read_batch(destination: Destination, limit: int, position: FeedPosition) -> Batch:
    """What comes next behind a place: `limit` documents or `BYTES` at most, or one."""
    watermark_xid = fetch_watermark()
    documents: list[Document] = []
    size, count = 0, FIRST_READ_ROWS
    while True:
        rows = _build_documents(
            destination,
            reader.select_after(_select_rows(destination, watermark_xid), position, watermark_xid)[
                :count
            ],
        )
        for document in rows:
            size += len(document.wire_bytes)
            if documents and size > MAX_BYTES:
                return Batch(documents, documents[-1].position, is_full=True)
            documents.append(document)
            if len(documents) >= limit:
                return Batch(documents, document.position, is_full=True)
        if len(rows) < count:
            # all below the watermark was looked at; nothing will ever be added there
            return Batch(
                documents, max(position, FeedPosition(watermark_xid - 1, LAST_ID)), is_full=False
            )
        position = rows[-1].position
        # as many as fill the batch if they are like those before, and a few more
        count = min(
            limit - len(documents),
            (MAX_BYTES - size) * len(documents) // size + FIRST_READ_ROWS // 10,
        )


def rebuild_documents(destination: Destination, delivery: Delivery) -> list[Document]:
    """What is still to be taken of a delivery. What has changed since comes by itself later."""
    watermark_xid = fetch_watermark()
    rows = _select_rows(destination, watermark_xid)
    if delivery.pending is not None:
        rows = rows.filter(pk__in=delivery.pending)
    if delivery.kind == Delivery.Kind.DEAD_LETTERS:
        return _build_documents(destination, rows.order_by("xid", "id"))
    start, end = (
        FeedPosition(delivery.from_xid, delivery.from_id),
        FeedPosition(delivery.to_xid, delivery.to_id),
    )
    rows = reader.select_after(rows, start, watermark_xid).filter(xid__lte=end.xid)
    return _build_documents(destination, rows.filter(~Q(xid=end.xid) | Q(id__lte=end.id)))


def count_waiting(destination: Destination) -> tuple[int, datetime | None]:
    """How many documents wait, counted up to 10,000, and since when the first of them does."""
    watermark_xid = fetch_watermark()
    waiting = reader.select_after(
        _select_rows(destination, watermark_xid),
        FeedPosition(destination.xid, destination.cursor_id),
        watermark_xid,
    )
    field = (
        "modified_at" if destination.resource == Destination.Resource.SESSIONS else "received_at"
    )
    since: datetime | None = waiting.values_list(field, flat=True).first()
    return (waiting[:10_000].count() if since else 0), since


def find_position_at(destination: Destination, moment: datetime) -> FeedPosition:
    """The place before the first document that arrived or changed at that time or later."""
    field = (
        "modified_at" if destination.resource == Destination.Resource.SESSIONS else "received_at"
    )
    watermark_xid = fetch_watermark()
    rows = reader.select_after(
        _select_rows(destination, watermark_xid), values.START, watermark_xid
    ).filter(**{f"{field}__gte": moment})
    first = rows.values_list("xid", "id").first()
    return (
        FeedPosition(first[0], first[1] - 1) if first else FeedPosition(watermark_xid - 1, LAST_ID)
    )


def _select_rows(destination: Destination, watermark_xid: int) -> "QuerySet[Any]":
    """Sessions that are closed, or events that live, whatever their place."""
    if destination.resource == Destination.Resource.SESSIONS:
        return Session.objects.filter(channel_id=destination.channel_id, closed=True)
    visible = StoredEvent.objects.filter(
        Q(superseded_xid__isnull=True) | Q(superseded_xid__gte=watermark_xid),
        channel_id=destination.channel_id,
    )
    return visible.filter(type__in=destination.types) if destination.types else visible


def _build_documents(destination: Destination, rows: "QuerySet[Any]") -> list[Document]:
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
            place, place.id, identifier, since, frame_document(destination, identifier, document)
        )
        for (place, since), (identifier, document) in zip(positions, identified, strict=True)
    ]


def join_json_lines(document: bytes) -> bytes:
    """A payload may stand on many lines where the database keeps its text."""
    return (
        msgspec.json.format(document, indent=-1)
        if b"\n" in document or b"\r" in document
        else document
    )


def frame_document(destination: Destination, identifier: str, document: bytes) -> bytes:
    """A document as the destination's protocol wants it."""
    if destination.kind == Destination.Kind.ELASTICSEARCH:
        return elasticsearch.format_bulk_lines(
            destination.index, destination.doc_type, identifier, document
        )
    return document + b"\n"


def total_bytes(documents: Iterable[Document]) -> int:
    return sum(len(document.wire_bytes) for document in documents)
