"""Reads archived answers, and merges those that came later, in the order of a file.

Two threads read and make row groups ahead of the file, so memory stays at a few of them.
"""

import io
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from django.db import connection

from exhaust.archive import objects, part
from exhaust.archive.merge import Bound, merge_tables
from exhaust.archive.part import PartColumn, PartPlan
from exhaust.archive.schema import ANSWERS
from exhaust.archive.snapshot import Archive, ArchiveChanged
from exhaust.datasets import cells
from exhaust.datasets.base import Dataset, stream_rows
from exhaust.datasets.cells import NUMBER_PATTERN, Column
from exhaust.datasets.event_table import read_constants
from exhaust.datasets.local_time import list_offsets
from exhaust.datasets.response import RESPONSE
from exhaust.datasets.selection import Selection
from exhaust.files import parallel_copy, writer
from exhaust.files.formats import CellChunk, Format
from exhaust.files.formats.lines import LineChunk
from exhaust.models import ArchiveFile
from ingest.models import Participant

THREADS = 2  # that read and make row groups
_AHEAD = 1  # row groups that are read, and tables that are made, before the file takes them
_MADE_ROWS = 8192  # that are made at once
LATE_ROWS = 4096  # of a table of rows that the archive does not have
_FOOTER_BYTES = 64 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


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
    with ThreadPoolExecutor(THREADS, "archive") as pool:
        groups = _list_groups(pool, archive, selection)
        if groups:
            end = min(_to_datetime(max(group.last_us for group in groups) + 1), selection.end)
            reader = Reader(archive, dataset, replace(selection, end=end), groups, statements)
            yield from reader.iter_chunks(pool, file_format)
            selection = replace(selection, start=max(end, selection.start))
    if selection.start < selection.end:
        # rows that occurred after every archived one, and were not archived yet
        with closing(
            writer.iter_rows(dataset, selection, file_format, statements=statements)
        ) as rows:
            yield from rows


def _map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[Any]:
    """Yields the results in order; a few are made before they are taken."""
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            # its calls to the storage have the limits of this thread
            waiting.append(pool.submit(copy_context().run, function, item))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for each in waiting:
            each.cancel()


# Row groups ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """A row group of a file, and what its statistics say."""

    file: ArchiveFile
    metadata: Any
    number: int
    first_us: int  # no selected row is earlier, here or in a later group of the file
    last_us: int
    is_whole: bool  # the selection has all of its rows


def _list_groups(pool: ThreadPoolExecutor, archive: Archive, selection: Selection) -> list[_Group]:
    """The row groups that may hold rows of the selection, by their first time."""
    groups: list[_Group] = []
    for file, metadata in zip(
        archive.files, _map_ahead(pool, _read_metadata, archive.files), strict=True
    ):
        first_us = _to_microseconds(selection.start)
        for number in range(metadata.num_row_groups):
            group = _describe_group(file, metadata, number, archive, selection)
            if group is not None:
                # the times of a group with several conversations may be those of another one
                first_us = max(first_us, group.first_us)
                groups.append(replace(group, first_us=first_us))
    return sorted(groups, key=lambda group: group.first_us)


def _read_metadata(file: ArchiveFile) -> Any:
    stream = _Object(file)
    stream.fetch(max(0, file.byte_count - _FOOTER_BYTES), file.byte_count)
    return pq.read_metadata(stream)


class _Object(objects.ObjectFile):
    """An object of which a range is fetched by one request, and the rest when it is read."""

    def __init__(self, file: ArchiveFile) -> None:
        super().__init__(file.key, file.byte_count)
        self._window, self._window_start = b"", 0

    def fetch(self, start: int, end: int) -> None:
        self.seek(start)
        self._window, self._window_start = self.read(end - start), start

    def read(self, size: int = -1) -> bytes:
        begin = self.tell() - self._window_start
        if size > 0 and 0 <= begin <= len(self._window) - size:
            self.seek(size, io.SEEK_CUR)
            return self._window[begin : begin + size]
        try:
            return super().read(size)
        except FileNotFoundError as error:
            raise ArchiveChanged(str(error)) from error


def _describe_group(
    file: ArchiveFile, metadata: Any, number: int, archive: Archive, selection: Selection
) -> _Group | None:
    """The group; None where its statistics exclude rows of the selection."""
    group = metadata.row_group(number)
    times, xids, conversations, superseded = (
        group.column(ANSWERS.columns.index(name)).statistics
        for name in ("occurred_at", "xid", "conversation_id", "superseded_xid")
    )
    if (
        times.max < selection.start
        or times.min >= selection.end
        or xids.max < selection.since_xid
        or xids.min >= selection.watermark
        or not conversations.min <= selection.conversation_id <= conversations.max
    ):
        return None
    is_whole = (
        conversations.min == conversations.max
        and times.min >= selection.start
        and times.max < selection.end
        and xids.min >= selection.since_xid
        and xids.min > archive.pruned.xid
        and xids.max < selection.watermark
        and superseded.null_count == group.num_rows
    )
    return _Group(
        file, metadata, number, _to_microseconds(times.min), _to_microseconds(times.max), is_whole
    )


def _to_microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _to_datetime(microseconds: int) -> datetime:
    return _EPOCH + microseconds * _MICROSECOND


# Rows ---------------------------------------------------------------------------------------------


class Reader:
    """Reads the rows of a selection that ends at the last archived one's time."""

    def __init__(
        self,
        archive: Archive,
        dataset: Dataset,
        selection: Selection,
        groups: list[_Group],
        statements: parallel_copy.CancellableQueries,
    ) -> None:
        self._archive, self._selection, self._groups = archive, selection, groups
        self._statements = statements
        self._plan = _build_plan(dataset, selection)
        self._names = list(
            dict.fromkeys(
                (
                    "occurred_at",
                    "id",
                    "device_id",
                    *(column.name for column in self._plan.columns if column.name),
                )
            )
        )
        superseded = self._fetch_superseded()
        self._superseded = pa.array(superseded, pa.int64())

    def iter_chunks(self, pool: ThreadPoolExecutor, file_format: Format) -> Iterator[Any]:
        sources = {file.pk: number for number, file in enumerate(self._archive.files)}
        bounds = [Bound(sources[group.file.pk], group.first_us) for group in self._groups]
        with closing(self._iter_late()) as late:
            tables = merge_tables(bounds, _map_ahead(pool, self.read_group, self._groups), late)
            make = MAKERS[file_format.archive_rows]

            def make_first(table: Any) -> Iterator[Any]:
                """Makes the first chunk; the others of a large table wait for their reader."""
                chunks = make(table, self._plan)
                return chain(list(islice(chunks, 1)), chunks)

            for chunks in _map_ahead(pool, make_first, _split_tables(tables)):
                yield from chunks

    def read_group(self, group: _Group) -> Any:
        """The selected rows of a row group, in the order of the file."""
        names = [*self._names]
        if not group.is_whole:
            names += [name for name in _FILTERED if name not in names]
        stream = _Object(group.file)
        stream.fetch(*_find_range(group.metadata.row_group(group.number)))
        texts = [name for name in names if name not in _NUMBERS]
        file = pq.ParquetFile(
            stream,
            metadata=group.metadata,
            read_dictionary=[name for name in texts if name not in ANSWERS.plain_columns],
            page_checksum_verification=True,
        )
        table = file.read_row_group(group.number, columns=names, use_threads=False)
        if not group.is_whole:
            table = table.filter(self._build_filter())
        if len(self._superseded):
            table = table.filter(~pc.field("id").isin(self._superseded))
        return table.select(self._names)

    def _build_filter(self) -> Any:
        """The condition of `Selection.event_filter`, on rows that were not pruned."""
        chosen, pruned = self._selection, self._archive.pruned
        xid, superseded_xid = pc.field("xid"), pc.field("superseded_xid")
        moments = [
            pa.scalar(_to_microseconds(moment), pa.timestamp("us", "UTC"))
            for moment in (chosen.start, chosen.end)
        ]
        return (
            (pc.field("conversation_id") == chosen.conversation_id)
            & (pc.field("occurred_at") >= moments[0])
            & (pc.field("occurred_at") < moments[1])
            & (xid >= chosen.since_xid)
            & (xid < chosen.watermark)
            & (superseded_xid.is_null() | (superseded_xid >= chosen.watermark))
            & ((xid > pruned.xid) | ((xid == pruned.xid) & (pc.field("id") > pruned.id)))
        )

    def _fetch_superseded(self) -> list[int]:
        """The archived answers that were replaced since: files do not say it."""
        where, params = self._selection.base_filter("occurred_at")
        cast = "::xid8" if connection.vendor == "postgresql" else ""
        sql = (
            f"SELECT e.id FROM ingest_storedevent e WHERE {where} AND {RESPONSE.condition}"  # noqa: S608
            f" AND e.superseded_xid IS NOT NULL AND e.superseded_xid < %(watermark)s{cast}"
        )
        with connection.cursor() as cursor:
            cursor.execute(sql, params)
            return [number for (number,) in cursor.fetchall()]

    # rows that came later

    def _iter_late(self) -> Generator[Any]:
        """The selected rows behind the archived place, sorted, in tables."""
        columns = [
            replace(column, needs_consent=False)
            for column in RESPONSE.columns
            if column.path[0] == "payload" and _name_archived(column) in self._names
        ]
        names = ["id", "occurred_at", "device_id", "session_id", *map(_name_archived, columns)]
        with closing(self._iter_late_rows(columns)) as rows:
            while batch := list(islice(rows, LATE_ROWS)):
                ids, times, *texts = zip(*batch, strict=True)
                moments = pa.array(times, pa.string()).cast(pa.timestamp("us"))
                arrays = [
                    pa.array(map(int, ids), pa.int64()),
                    moments.cast(pa.timestamp("us", "UTC")),
                    *(pa.array(each, pa.string()) for each in texts),
                ]
                yield pa.table(arrays, names).select(self._names)

    def _iter_late_rows(self, columns: list[Column]) -> Generator[Any]:
        """Yields id, time, device, session and the payload's cells."""
        is_postgresql = connection.vendor == "postgresql"
        cast = "::xid8" if is_postgresql else ""
        is_late = f"(e.xid, e.id) > (%(place_xid)s{cast}, %(place_id)s)"
        where, params = self._selection.event_filter()
        xid, place_id = self._archive.place
        params |= {"place_xid": str(xid) if is_postgresql else xid, "place_id": place_id}
        with connection.cursor() as cursor:
            # `+ 0`: an index of ids alone would be read from its start
            cursor.execute(
                "SELECT min(e.id + 0) FROM ingest_storedevent e"  # noqa: S608
                f" WHERE e.channel_id = %(channel)s AND {is_late}",
                params,
            )
            (params["first_id"],) = cursor.fetchone()
        if params["first_id"] is None:
            return
        # the index by conversation has the ids, so archived rows are passed over in it
        where += f" AND {RESPONSE.condition} AND e.id >= %(first_id)s AND {is_late}"
        envelope = "e.id, {}, e.device_id, e.session_id"
        source = "FROM ingest_storedevent e {} WHERE " + where + " ORDER BY e.occurred_at, e.id"
        rows: Any
        if is_postgresql:
            time = "to_char(e.occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
            select_list = ", ".join((envelope.format(time), *cells.cells_sql(columns, "false")))
            sql = f"SELECT {select_list} {source.format(cells.joins_sql(columns))}"
            rows = parallel_copy.copy_rows(
                [(sql, params)], by_line=False, statements=self._statements
            )
            with closing(rows):
                yield from rows
            return
        read_cells = cells.make_cell_reader(columns)
        select_list = envelope.format("CAST(e.occurred_at AS text)")
        sql = f"SELECT {select_list}, e.payload {source.format('')}"
        with stream_rows(sql, params) as rows:
            for *values, payload in rows:
                yield [*values, *read_cells({}, payload, False)]


_NUMBERS = frozenset(
    {"id", "occurred_at", "xid", "superseded_xid", "conversation_id", "application_id"}
)
_FILTERED = ("conversation_id", "occurred_at", "id", "xid", "superseded_xid")


def _split_tables(tables: Iterator[Any]) -> Iterator[Any]:
    for table in tables:
        for start in range(0, table.num_rows, _MADE_ROWS):
            yield table.slice(start, _MADE_ROWS)


def _find_range(group: Any) -> tuple[int, int]:
    """Where the bytes of a row group begin and end in its file."""
    columns = [group.column(place) for place in range(group.num_columns)]
    starts = [
        min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
        for column in columns
    ]
    sizes = [column.total_compressed_size for column in columns]
    return min(starts), max(start + size for start, size in zip(starts, sizes, strict=True))


# What is made of them -----------------------------------------------------------------------------


def _build_plan(dataset: Dataset, selection: Selection) -> PartPlan:
    refused: list[str] = []
    if any(column.needs_consent for column in dataset.columns):
        participants = Participant.objects.filter(channel=selection.channel_id, consent=False)
        refused = list(participants.values_list("device_id", flat=True))
    constants = read_constants(selection)
    return PartPlan(
        columns=[build_column(column, constants) for column in dataset.columns],
        refused=pa.array(refused, pa.string()),
        show_device=selection.displayed_device_id,
        formula_signs=cells.FORMULA_STARTS,
        number_pattern=NUMBER_PATTERN,
    )


def build_column(column: Column, constants: Mapping[str, str]) -> PartColumn:
    """What a part knows of a column. `constants` are the fields that all rows share."""
    made = PartColumn(column.header, column.kind, needs_consent=column.needs_consent)
    if column.path[0] in constants:
        return replace(made, constant=constants[column.path[0]])
    made = replace(made, name=_name_archived(column))
    if column.kind != "time" or column.zone == "UTC":
        return made
    offsets = list_offsets(column.zone)
    changes = [_to_microseconds(moment.replace(tzinfo=UTC)) for moment in offsets.changes]
    return replace(made, offsets=offsets.minutes, changes_us=changes)


def _name_archived(column: Column) -> str:
    """The name of the archive's column with the same cells."""
    if column.path[0] == "payload":
        return column.header.lower().replace(" ", "_")
    return column.path[0]


def _make_csv(table: Any, plan: PartPlan) -> Iterator[LineChunk]:
    for data, ends in part.make_csv_lines(table, plan):
        yield LineChunk(data, ends)


def _make_json(table: Any, plan: PartPlan) -> Iterator[LineChunk]:
    for data, ends in part.make_json_lines(table, plan):
        yield LineChunk(data, ends)


def _make_cells(table: Any, plan: PartPlan) -> Iterator[CellChunk]:
    for columns in part.make_cells(table, plan):
        yield CellChunk(columns, len(columns[0]))


def _make_rows(table: Any, plan: PartPlan) -> Iterator[Any]:
    return part.iterate_rows(table, plan)


MAKERS: dict[str, Callable[[Any, PartPlan], Iterator[Any]]] = {
    "csv lines": _make_csv,
    "json lines": _make_json,
    "cells": _make_cells,
    "rows": _make_rows,
}
