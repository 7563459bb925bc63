"""Reads the events of an own dataset: from files, and those that came later, in its order.

Files are in the order of arrival. A conversation's events are wanted by time: they are sorted in
stretches of time, each of which fits into memory.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from exhaust.archive import late
from exhaust.archive.events import (
    EventGroup,
    EventReader,
    format_identities,
    read_table,
    split_tables,
)
from exhaust.archive.merge import Unread, merge_tables
from exhaust.archive.part import write_times
from exhaust.archive.read import THREADS, Pool
from exhaust.archive.row_groups import MICROSECOND, to_microseconds
from exhaust.archive.snapshot import Archive
from exhaust.datasets import cells
from exhaust.datasets.cells import Cell
from exhaust.datasets.event_table import EventTable, read_constants
from exhaust.datasets.selection import Selection
from exhaust.files import parallel_copy, writer
from exhaust.files.formats import Format
from ingest.adapters import ADAPTERS
from ingest.models import Application, Conversation, Participant

SORTED_BYTES = 32 * 1024 * 1024  # of row groups that are sorted at once
_SOURCES = {
    "position": ("xid", "id"),
    "application": ("application_id",),
    "conversation": ("conversation_id",),
    "conversation_name": ("conversation_id",),
}


def iter_rows(
    archive: Archive,
    dataset: EventTable,
    selection: Selection,
    file_format: Format,
    queries: parallel_copy.CancellableQueries,
) -> Generator[Any]:
    """Yields what `writer.iter_rows` would.

    Raises `ArchiveChanged` and `StorageError`.
    """
    maker = _RowMaker(dataset, selection)
    reader = EventReader(archive, selection, maker.names, _list_sources(dataset))
    with Pool(THREADS) as pool, ExitStack() as stack:
        if selection.conversation_id is None:
            tables, rest = reader.iter_tables(pool), replace(selection, after=archive.place)
        else:
            groups = sorted(reader.list_groups(pool), key=lambda group: group.first_time)
            stretches = list(_split_time(groups, selection))
            end = stretches[-1].end if stretches else selection.start
            archived = replace(selection, end=end)
            later = stack.enter_context(
                closing(late.iter_events(archive, archived, maker.names, dataset.condition))
            )
            unread = [_Stretch.make(each, groups, reader) for each in stretches]
            tables, rest = merge_tables(unread, later), replace(selection, start=end)
        for table in split_tables(map(read_table, tables)):
            yield from maker.make_rows(table)
    if rest.start < rest.end:
        with closing(writer.iter_rows(dataset, rest, file_format, statements=queries)) as rows:
            yield from rows


def _list_sources(dataset: EventTable) -> list[str] | None:
    """The sources that the dataset chooses; None for all."""
    names = (dataset.definition or {}).get("sources")
    return [name for name in names if name in ADAPTERS] if names else None


# By time ------------------------------------------------------------------------------------------


def _split_time(groups: Sequence[EventGroup], selection: Selection) -> Iterator[Selection]:
    """Yields selections that follow one another in time, up to the last archived event."""
    if not groups:
        return
    start, size = max(selection.start, groups[0].first_time), 0
    for group in groups:
        if size >= SORTED_BYTES and group.first_time > start:
            yield replace(selection, start=start, end=group.first_time)
            start, size = group.first_time, 0
        size += group.metadata.row_group(group.number).total_byte_size
    last = max(group.last_time for group in groups)
    yield replace(selection, start=start, end=min(last + MICROSECOND, selection.end))


@dataclass(frozen=True)
class _Stretch(Unread):
    """The archived events of a stretch of time, sorted when they are read."""

    selection: Selection
    groups: Sequence[EventGroup]
    reader: EventReader

    @classmethod
    def make(
        cls, selection: Selection, groups: Sequence[EventGroup], reader: EventReader
    ) -> "_Stretch":
        first, end = map(to_microseconds, (selection.start, selection.end))
        return cls(0, first, end - 1, cls.sort, selection, groups, reader)

    def sort(self) -> Any:
        tables = [
            self.reader.read_group(group, self.selection)
            for group in self.groups
            if group.may_hold(self.selection)
        ]
        table = pa.concat_tables([_make_plain(table) for table in tables]).combine_chunks()
        return table.sort_by([("occurred_at", "ascending"), ("id", "ascending")])


def _make_plain(table: Any) -> Any:
    """The table without dictionaries, which differ from one row group to another."""
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


# Rows ---------------------------------------------------------------------------------------------


class _RowMaker:
    """Makes events into the cells of a dataset, as `EventTable.iterate_rows` does."""

    def __init__(self, dataset: EventTable, selection: Selection) -> None:
        self._selection, self._constants = selection, read_constants(selection)
        fields = dict.fromkeys(column.path[0] for column in dataset.columns)
        self._fields = [name for name in fields if name not in {"payload", *self._constants}]
        self._read_cells = cells.make_cell_reader(dataset.columns)
        needed = [name for field in self._fields for name in _SOURCES.get(field, (field,))]
        payload = ["payload"] if "payload" in fields else []
        self.names = list(
            dict.fromkeys(("xid", "id", "occurred_at", "device_id", *needed, *payload))
        )
        self._refused: set[str] = set()
        if any(column.needs_consent for column in dataset.columns):
            participants = Participant.objects.filter(channel=selection.channel_id, consent=False)
            self._refused.update(participants.values_list("device_id", flat=True))
        applications = Application.objects.filter(channel=selection.channel_id)
        self._applications = dict(applications.values_list("pk", "identifier"))
        self._conversations: dict[int | None, tuple[str | None, str | None]] = {None: (None, None)}

    def make_rows(self, table: Any) -> Iterator[list[Cell]]:
        if not table.num_rows:
            return
        envelope: dict[str, Any] = dict(self._constants)
        devices = table.column("device_id").to_pylist()
        payloads: Any = ["null"] * table.num_rows
        if "payload" in self.names:
            payloads = table.column("payload").to_pylist()
        fields = [self._list_values(table, field) for field in self._fields]
        for device, payload, *values in zip(devices, payloads, *fields, strict=True):
            envelope |= zip(self._fields, values, strict=True)
            yield self._read_cells(envelope, payload, device in self._refused)

    def _list_values(self, table: Any, field: str) -> list[Any]:
        match field:
            case "identity":
                identities = table.column("identity").combine_chunks()
                return format_identities(identities).to_pylist()  # type: ignore[no-any-return]
            case "position":
                xids, ids = (table.column(name).to_pylist() for name in ("xid", "id"))
                return [f"{xid}.{number}" for xid, number in zip(xids, ids, strict=True)]
            case "application":
                numbers = table.column("application_id").to_pylist()
                return [self._applications.get(number) for number in numbers]
            case "conversation" | "conversation_name":
                numbers = table.column("conversation_id").to_pylist()
                self._find_conversations(set(numbers) - self._conversations.keys())
                place = ("conversation", "conversation_name").index(field)
                return [self._conversations[number][place] for number in numbers]
            case "occurred_at" | "received_at":
                moments = table.column(field).cast(pa.int64()).to_numpy()
                return write_times(moments).to_pylist()  # type: ignore[no-any-return]
            case "device_id":
                show = self._selection.displayed_device_id
                return [show(device) for device in table.column(field).to_pylist()]
        return table.column(field).to_pylist()  # type: ignore[no-any-return]

    def _find_conversations(self, numbers: set[int]) -> None:
        if numbers:
            self._conversations |= dict.fromkeys(numbers, (None, None))
            for row in Conversation.objects.filter(pk__in=numbers):
                self._conversations[row.pk] = (row.identifier, row.name)
