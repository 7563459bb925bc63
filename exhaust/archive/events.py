"""Reads archived events, and then those that came later, in the order of arrival."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from json.encoder import encode_basestring
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from django.db import connection

from exhaust.archive import late
from exhaust.archive.columns import build_column
from exhaust.archive.merge import Unread, merge_tables
from exhaust.archive.part import PartPlan
from exhaust.archive.read import MAKERS, THREADS, Pool
from exhaust.archive.row_groups import fetch_group, fetch_metadata, to_microseconds
from exhaust.archive.rows import GroupBytes, RowReader
from exhaust.archive.schema import EVENTS as TABLE
from exhaust.archive.snapshot import Archive
from exhaust.datasets import cells
from exhaust.datasets.base import Dataset
from exhaust.datasets.events import EVENTS
from exhaust.datasets.selection import Selection
from exhaust.feed import vocabulary
from exhaust.files import parallel_copy, writer
from exhaust.files.formats import Format
from exhaust.models import ArchiveFile
from ingest.feed.values import FeedPosition
from ingest.models import Application, Conversation, Participant

MADE_ROWS = 2048  # that are made at once
# columns of the archive by the field that is made of them; others have their field's name
_SOURCES = {
    "position": ("xid", "id"),
    "application": ("application_id",),
    "conversation": ("conversation_id",),
    "payload": ("payload", "is_answer", "device_id"),
}


def iter_rows(
    archive: Archive,
    dataset: Dataset,
    selection: Selection,
    file_format: Format,
    statements: parallel_copy.CancellableQueries,
) -> Generator[Any]:
    """Yields what `writer.iter_rows` would, and archived rows as the format takes them best.

    Raises `ArchiveChanged` and `StorageError`.
    """
    with Pool(THREADS) as pool:
        yield from Exporter(archive, dataset, selection).iter_chunks(pool, file_format)
    selection = replace(selection, after=archive.place)
    with closing(writer.iter_rows(dataset, selection, file_format, statements=statements)) as rows:
        yield from rows


# Row groups ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EventGroup:
    """A row group of events, and what its statistics say."""

    file: ArchiveFile
    metadata: Any
    number: int
    first_xid: int
    last: FeedPosition  # no row is after it
    first_time: datetime
    last_time: datetime
    is_current: bool  # no row had been replaced when it was archived

    def may_hold(self, selection: Selection) -> bool:
        """Whether it may have rows of the selection."""
        return (
            self.first_time < selection.end
            and self.last_time >= selection.start
            and self.first_xid < selection.watermark
            and self.last.xid >= selection.since_xid
            and self.last > selection.after
        )

    def is_whole(self, selection: Selection, pruned: FeedPosition) -> bool:
        """Whether the selection has all of its rows, but for those at or before `after`."""
        return (
            self.is_current
            and not selection.types
            and selection.application_id is None
            and selection.conversation_id is None
            and self.first_time >= selection.start
            and self.last_time < selection.end
            and self.first_xid >= selection.since_xid
            and self.first_xid > pruned.xid
            and self.last.xid < selection.watermark
        )

    def fetch(self) -> GroupBytes:
        return fetch_group(self.file, self.metadata, self.number)


@dataclass(frozen=True)
class UnreadGroup(Unread):
    """A row group for `merge_tables`."""

    group: EventGroup


def read_table(rows: Any) -> Any:
    """Returns a table that `merge_tables` yielded, read if it was not."""
    return rows.read(rows) if isinstance(rows, Unread) else rows


def describe_groups(file: ArchiveFile, metadata: Any) -> Iterator[EventGroup]:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        times, xids, ids, superseded = (
            group.column(TABLE.columns.index(name)).statistics
            for name in ("occurred_at", "xid", "id", "superseded_xid")
        )
        yield EventGroup(
            file=file,
            metadata=metadata,
            number=number,
            first_xid=xids.min,
            last=FeedPosition(xids.max, ids.max),
            first_time=times.min,
            last_time=times.max,
            is_current=superseded.null_count == group.num_rows,
        )


@dataclass(frozen=True)
class EventCondition:
    """The condition of `Selection.event_filter`, on events that were not pruned."""

    selection: Selection
    pruned: FeedPosition
    sources: Sequence[str] | None = None  # None for all

    @property
    def columns(self) -> list[str]:
        selection = self.selection
        return [
            *(["source"] if self.sources is not None else []),
            "occurred_at",
            "superseded_xid",
            *(["type"] if selection.types else []),
            *(["application_id"] if selection.application_id is not None else []),
            *(
                ["conversation_id", "other_conversations"]
                if selection.conversation_id is not None
                else []
            ),
        ]

    def build(self) -> Any:
        selection, pruned = self.selection, self.pruned
        xid, superseded_xid, moment = map(pc.field, ("xid", "superseded_xid", "occurred_at"))
        start, end = (
            pa.scalar(to_microseconds(each), pa.timestamp("us", "UTC"))
            for each in (selection.start, selection.end)
        )
        condition = (
            (moment >= start)
            & (moment < end)
            & (xid >= selection.since_xid)
            & (xid < selection.watermark)
            & (superseded_xid.is_null() | (superseded_xid >= selection.watermark))
            & ((xid > pruned.xid) | ((xid == pruned.xid) & (pc.field("id") > pruned.id)))
        )
        if self.sources is not None:
            name = pc.field("source").cast(pa.string())
            condition &= name.isin(pa.array(self.sources, pa.string()))
        if selection.application_id is not None:
            condition &= pc.field("application_id") == selection.application_id
        if selection.conversation_id is not None:
            is_inside = pc.field("conversation_id") == selection.conversation_id
            if selection.shares_events:
                others = pc.field("other_conversations").cast(pa.string())
                is_inside |= pc.match_substring(others, f",{selection.conversation_id},")
            condition &= is_inside
        if selection.types:
            types, table = vocabulary.expand_types(selection.types)
            name = pc.field("type").cast(pa.string())
            is_selected = name.isin(pa.array(types, pa.string()))
            if table:
                is_selected |= ~name.isin(pa.array(table, pa.string()))
            condition &= is_selected
        return condition


class EventReader:
    """Reads columns of the archived events of a selection."""

    def __init__(
        self,
        archive: Archive,
        selection: Selection,
        names: Sequence[str],
        sources: Sequence[str] | None = None,
    ) -> None:
        self._archive, self._selection, self._sources = archive, selection, sources
        superseded = pa.array(late.fetch_superseded(selection, "true"), pa.int64())
        self._rows = RowReader(TABLE, names, superseded)

    def list_groups(self, pool: Pool) -> list[EventGroup]:
        """The row groups that may hold events of the selection."""
        files = self._archive.files
        metadata = pool.map_ahead(fetch_metadata, files)
        return [
            group
            for file, footer in zip(files, metadata, strict=True)
            for group in describe_groups(file, footer)
            if group.may_hold(self._selection)
        ]

    def read_group(self, group: EventGroup, selection: Selection | None = None) -> Any:
        """The selected rows of a row group, in the order of the file."""
        selection, pruned = selection or self._selection, self._archive.pruned
        condition = None
        if self._sources is not None or not group.is_whole(selection, pruned):
            condition = EventCondition(selection, pruned, self._sources)
        return self._rows.read(group.fetch(), condition)

    def iter_tables(self, pool: Pool) -> Iterator[Any]:
        """Yields the events in the order of arrival."""
        groups = sorted(self.list_groups(pool), key=lambda group: group.first_xid)
        sources = {file.pk: number for number, file in enumerate(self._archive.files)}
        unread = [
            UnreadGroup(
                sources[group.file.pk], group.first_xid, group.last.xid, self._read_unread, group
            )
            for group in groups
        ]
        return pool.map_ahead(read_table, merge_tables(unread, iter(()), order="xid"))

    def _read_unread(self, unread: UnreadGroup) -> Any:
        return self.read_group(unread.group)


# Files --------------------------------------------------------------------------------------------


class Exporter:
    """Makes the archived events of a selection into what a format takes."""

    def __init__(self, archive: Archive, dataset: Dataset, selection: Selection) -> None:
        self._fields = list(dict.fromkeys(column.path[0] for column in dataset.columns))
        columns = [name for field in self._fields for name in _SOURCES.get(field, (field,))]
        names = list(dict.fromkeys(("xid", "id", *columns)))
        self._reader = EventReader(archive, selection, names)
        participants = Participant.objects.filter(channel=selection.channel_id, consent=False)
        self._refused = pa.array(participants.values_list("device_id", flat=True), pa.string())
        self._applications = dict(
            Application.objects.filter(channel=selection.channel_id).values_list("pk", "identifier")
        )
        self._conversations: dict[int, str] = {}
        self._plan = PartPlan(
            columns=[build_column(column, {}) for column in dataset.columns],
            refused=pa.array([], pa.string()),  # its payload is made without the answer here
            device_key=None,
            formula_signs=cells.FORMULA_STARTS,
            number_pattern=cells.NUMBER_PATTERN,
        )

    def iter_chunks(self, pool: Pool, file_format: Format) -> Iterator[Any]:
        make = MAKERS[file_format.archive_rows]

        def make_all(table: Any) -> list[Any]:
            return list(make(table, self._plan))

        for chunks in pool.map_ahead(
            make_all, map(self._shape, split_tables(self._reader.iter_tables(pool)))
        ):
            yield from chunks

    def _shape(self, rows: Any) -> Any:
        """The rows with the fields of the dataset."""
        return pa.table([self._make_field(rows, field) for field in self._fields], self._fields)

    def _make_field(self, rows: Any, field: str) -> Any:
        match field:
            case "identity":
                return format_identities(rows.column("identity").combine_chunks())
            case "position":
                texts = [pc.cast(rows.column(name), pa.string()) for name in ("xid", "id")]
                return pc.binary_join_element_wise(*texts, ".")
            case "application":
                return _name_ids(rows.column("application_id"), self._applications)
            case "conversation":
                numbers = rows.column("conversation_id")
                self._find_conversations(pc.unique(numbers).to_pylist())
                return _name_ids(numbers, self._conversations)
            case "payload":
                return self._make_payloads(rows)
        return rows.column(field)

    def _find_conversations(self, numbers: Sequence[int | None]) -> None:
        if missing := {number for number in numbers if number} - self._conversations.keys():
            found = Conversation.objects.filter(pk__in=missing)
            self._conversations |= dict(found.values_list("pk", "identifier"))

    def _make_payloads(self, rows: Any) -> Any:
        payloads = rows.column("payload").combine_chunks()
        is_refused = find_refused(rows, self._refused)
        if connection.vendor != "postgresql":  # SQLite keeps the sender's text
            return pa.array(
                [
                    cells.format_json(cells.decode_json(EVENTS.build_payload(text, refused)))
                    for text, refused in zip(
                        payloads.to_pylist(), is_refused.to_pylist(), strict=True
                    )
                ],
                pa.string(),
            )
        if not pc.any(is_refused).as_py():
            return payloads
        emptied = [remove_answer(text) for text in payloads.filter(is_refused).to_pylist()]
        return pc.replace_with_mask(payloads, is_refused, pa.array(emptied, pa.string()))


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def remove_answer(payload: str) -> str:
    """What `EVENTS.build_payload` makes of jsonb's text, in a tenth of the time."""
    fields = {name: bytes(value) for name, value in _decode_fields(payload).items()}
    if not fields.get("edata", b"").startswith(b"{"):
        return payload
    data = {name: bytes(value) for name, value in _decode_fields(fields["edata"]).items()}
    is_new = "resvalues" not in data
    data["resvalues"] = b"[]"
    if is_new:  # jsonb's order
        data = dict(
            sorted(data.items(), key=lambda item: (len(item[0].encode()), item[0].encode()))
        )
    fields["edata"] = _join_fields(data)
    return _join_fields(fields).decode()


def _join_fields(fields: dict[str, bytes]) -> bytes:
    parts = (b"%b: %b" % (encode_basestring(name).encode(), fields[name]) for name in fields)
    return b"{%b}" % b", ".join(parts)


def find_refused(rows: Any, refused: Any) -> Any:
    """Which of the rows are answers of these devices, as an array."""
    devices = rows.column("device_id").combine_chunks()
    if pa.types.is_dictionary(devices.type):
        is_device = pc.take(pc.is_in(devices.dictionary, refused), devices.indices)
    else:
        is_device = pc.is_in(devices, refused)
    return pc.and_(rows.column("is_answer").combine_chunks(), is_device)


def split_tables(tables: Iterator[Any]) -> Iterator[Any]:
    for table in tables:
        for start in range(0, table.num_rows, MADE_ROWS):
            yield table.slice(start, MADE_ROWS)


def _name_ids(numbers: Any, names: dict[int, str]) -> Any:
    encoded = numbers.combine_chunks().dictionary_encode()
    texts = [names.get(number) for number in encoded.dictionary.to_pylist()]
    return pa.DictionaryArray.from_arrays(encoded.indices, pa.array(texts, pa.string()))


_HEX = np.frombuffer(bytes(range(256)).hex().encode(), np.uint8).reshape(256, 2)
_PLACES = [place for place in range(36) if place not in {8, 13, 18, 23}]


def format_identities(identities: Any) -> Any:
    """Identities as texts like `6f2c1e0a-...`."""
    count = len(identities)
    raw = b"".join(identities.storage.to_pylist())
    texts = np.full((count, 36), ord("-"), np.uint8)
    texts[:, _PLACES] = _HEX[np.frombuffer(raw, np.uint8)].reshape(count, 32)
    ends = np.arange(0, 36 * (count + 1), 36, dtype=np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(texts)]
    return pa.Array.from_buffers(pa.string(), count, buffers)
