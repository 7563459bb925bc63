"""What of the feed goes to a sink next, as the bytes that it gets."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from django.db.models import Q, QuerySet

from exhaust.delivery import elasticsearch, session_documents
from exhaust.feed import documents
from exhaust.feed.pages import LAST_ID
from exhaust.models import Delivery, Sink
from ingest.feed import reader, values
from ingest.feed.values import Place
from ingest.feed.watermark import watermark
from ingest.models import Session, StoredEvent
from ingest.times import moment

DOCUMENTS = 1_000
BYTES = 896_000
SLICE = 200  # rows that are read first


class Document(NamedTuple):
    """A document and the bytes that are sent for it: its line, or its action line too."""

    place: Place
    row: int
    id: str
    since: datetime  # when it could first be read
    sent: bytes


class Batch(NamedTuple):
    """Documents in the feed's order."""

    documents: list[Document]
    place: Place  # behind the last one, or as far as everything was read
    full: bool


def read(sink: Sink, limit: int, place: Place) -> Batch:
    """What comes next behind a place: `limit` documents or `BYTES` at most, or one."""
    mark = watermark()
    found: list[Document] = []
    size, count = 0, SLICE
    while True:
        slice_ = _documents(sink, reader.after(_rows(sink, mark), place, mark)[:count])
        for document in slice_:
            size += len(document.sent)
            if found and size > BYTES:
                return Batch(found, found[-1].place, full=True)
            found.append(document)
            if len(found) >= limit:
                return Batch(found, document.place, full=True)
        if len(slice_) < count:
            # all below the watermark was looked at; nothing will ever be added there
            return Batch(found, max(place, Place(mark - 1, LAST_ID)), full=False)
        place = slice_[-1].place
        # as many as fill the batch if they are like those before, and a few more
        count = min(limit - len(found), (BYTES - size) * len(found) // size + SLICE // 10)


def again(sink: Sink, delivery: Delivery) -> list[Document]:
    """What is still to be taken of a delivery. What has changed since comes by itself later."""
    mark = watermark()
    rows = _rows(sink, mark)
    if delivery.pending is not None:
        rows = rows.filter(pk__in=delivery.pending)
    if delivery.kind == Delivery.Kind.LETTERS:
        return _documents(sink, rows.order_by("xid", "id"))
    start, end = Place(delivery.from_xid, delivery.from_id), Place(delivery.to_xid, delivery.to_id)
    rows = reader.after(rows, start, mark).filter(xid__lte=end.xid)
    return _documents(sink, rows.filter(~Q(xid=end.xid) | Q(id__lte=end.id)))


def behind(sink: Sink) -> tuple[int, datetime | None]:
    """How many documents wait, counted up to 10,000, and since when the first of them does."""
    mark = watermark()
    waiting = reader.after(_rows(sink, mark), Place(sink.xid, sink.place_id), mark)
    field = "modified_at" if sink.resource == Sink.Resource.SESSIONS else "received_at"
    since: datetime | None = waiting.values_list(field, flat=True).first()
    return (waiting[:10_000].count() if since else 0), since


def of_time(sink: Sink, at: datetime) -> Place:
    """The place before the first document that arrived or changed at that time or later."""
    field = "modified_at" if sink.resource == Sink.Resource.SESSIONS else "received_at"
    mark = watermark()
    rows = reader.after(_rows(sink, mark), values.START, mark).filter(**{f"{field}__gte": at})
    first = rows.values_list("xid", "id").first()
    return Place(first[0], first[1] - 1) if first else Place(mark - 1, LAST_ID)


def _rows(sink: Sink, mark: int) -> "QuerySet[Any]":
    """Sessions that are closed, or events that live, whatever their place."""
    if sink.resource == Sink.Resource.SESSIONS:
        return Session.objects.filter(channel_id=sink.channel_id, closed=True)
    living = StoredEvent.objects.filter(
        Q(superseded_xid__isnull=True) | Q(superseded_xid__gte=mark), channel_id=sink.channel_id
    )
    return living.filter(type__in=sink.types) if sink.types else living


def _documents(sink: Sink, rows: "QuerySet[Any]") -> list[Document]:
    if sink.resource == Sink.Resource.SESSIONS:
        found = session_documents.told(rows)
        told = session_documents.documents(sink.channel.identifier, found)
        places = [(Place(row.xid, row.id), row.modified_at) for row in found]
    else:
        arrived = list(reader.arrived(rows))
        told = [(row.identity, one_line(documents.event(row))) for row in arrived]
        places = [(row.place, moment(row.received)) for row in arrived]
    return [
        Document(place, place.id, identifier, since, framed(sink, identifier, document))
        for (place, since), (identifier, document) in zip(places, told, strict=True)
    ]


def one_line(document: bytes) -> bytes:
    """A payload may stand on many lines where the database keeps its text."""
    return (
        msgspec.json.format(document, indent=-1)
        if b"\n" in document or b"\r" in document
        else document
    )


def framed(sink: Sink, identifier: str, document: bytes) -> bytes:
    """A document as the sink's protocol wants it."""
    if sink.kind == Sink.Kind.ELASTICSEARCH:
        return elasticsearch.lines(sink.index, sink.doc_type, identifier, document)
    return document + b"\n"


def size(found: Iterable[Document]) -> int:
    return sum(len(document.sent) for document in found)
