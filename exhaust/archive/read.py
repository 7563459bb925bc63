"""Reads archived answers, and merges those that came later, in the order of a file.

Threads read and make row groups ahead of the file, so memory stays at a few of them.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from contextvars import copy_context
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa
from django.conf import settings
from django.db import connection

from exhaust.archive import late, part
from exhaust.archive.columns import build_plan
from exhaust.archive.engine import Engine, LineMaker
from exhaust.archive.merge import Unread, merge_tables
from exhaust.archive.part import PartPlan
from exhaust.archive.row_groups import (
    AnswerGroup,
    fetch_metadata,
    list_answer_groups,
    to_datetime,
    to_microseconds,
)
from exhaust.archive.rows import RowFilter, RowReader
from exhaust.archive.schema import ANSWERS
from exhaust.archive.snapshot import Archive
from exhaust.datasets.base import Dataset
from exhaust.datasets.selection import Selection
from exhaust.files import parallel_copy, writer
from exhaust.files.formats import CellChunk, Format
from exhaust.files.formats.lines import LineChunk

THREADS = 2  # at least, that read and make row groups, or have them made
EARLY_ROWS = 1_000_000  # archived ones, which take a few seconds
PROCESS_ROWS = 1_000_000  # of a file that is worth half a second, in which a process starts


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
    with ExitStack() as stack:
        pool = stack.enter_context(Pool(max(THREADS, settings.EXHAUST_PROCESSES)))
        groups = list_answer_groups(
            archive, selection, pool.map_ahead(fetch_metadata, archive.files)
        )
        archived, tail = _split_selection(selection, groups)
        later = stack.enter_context(
            closing(writer.iter_rows(dataset, tail, file_format, statements=statements))
        )
        first: list[Any] = []
        if groups:
            reader = Reader(archive, dataset, archived, groups, statements)
            chunks = stack.enter_context(closing(reader.iter_chunks(pool, file_format)))
            yield from islice(chunks, 1)
            if _can_begin(dataset, tail, groups):
                first = list(islice(later, 1))
            yield from chunks
        if tail.start < tail.end:
            yield from first
            yield from later


def _split_selection(
    selection: Selection, groups: list[AnswerGroup]
) -> tuple[Selection, Selection]:
    """Up to the last archived row, and the rows that occurred later and were not archived yet."""
    if not groups:
        return replace(selection, end=selection.start), selection
    end = min(to_datetime(max(group.last_us for group in groups) + 1), selection.end)
    return replace(selection, end=end), replace(selection, start=max(end, selection.start))


def _can_begin(dataset: Dataset, tail: Selection, groups: list[AnswerGroup]) -> bool:
    """Whether the database makes the first later rows while the archived ones are made.

    Not over this thread's own connection, which late rows need; and not for so long that its
    snapshot would hinder a vacuum.
    """
    return (
        connection.vendor == "postgresql"
        and tail.start < tail.end
        and sum(group.row_count for group in groups) <= EARLY_ROWS
        and len(writer.split_by_time(dataset, tail)) > 1
    )


class Pool(ThreadPoolExecutor):
    """Threads that work ahead of their reader."""

    def __init__(self, thread_count: int) -> None:
        super().__init__(thread_count, "archive")
        self._ahead = thread_count - 1

    def map_ahead(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yields the results in order; each thread makes one before it is taken."""
        waiting: deque[Future[Any]] = deque()
        try:
            for item in items:
                # its calls to the storage have the limits of this thread
                waiting.append(self.submit(copy_context().run, function, item))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()


def list_names(plan: PartPlan) -> list[str]:
    """The archive's columns that a plan reads."""
    shown = (column.name for column in plan.columns if column.name)
    return list(dict.fromkeys(("occurred_at", "id", "device_id", *shown)))


@dataclass(frozen=True)
class _UnreadGroup(Unread):
    group: AnswerGroup


class Reader:
    """Reads the rows of a selection that ends at the last archived one's time."""

    def __init__(
        self,
        archive: Archive,
        dataset: Dataset,
        selection: Selection,
        groups: list[AnswerGroup],
        statements: parallel_copy.CancellableQueries,
    ) -> None:
        self._archive, self._selection, self._groups = archive, selection, groups
        self._statements = statements
        self._plan = build_plan(dataset, selection)
        self._names = list_names(self._plan)
        self._filter = RowFilter(
            selection.conversation_id or 0,
            to_microseconds(selection.start),
            to_microseconds(selection.end),
            selection.since_xid,
            selection.watermark,
            archive.pruned,
        )
        superseded = pa.array(late.fetch_superseded(selection), pa.int64())
        self._row_reader = RowReader(ANSWERS, self._names, superseded)

    def iter_chunks(self, pool: Pool, file_format: Format) -> Generator[Any]:
        sources = {file.pk: number for number, file in enumerate(self._archive.files)}
        unread = [
            _UnreadGroup(
                sources[group.file.pk], group.first_us, group.last_us, self._read_group, group
            )
            for group in self._groups
        ]
        first_late = late.find_first(self._archive, self._selection)
        late_tables = late.iter_tables(
            self._archive, self._selection, self._names, self._statements, first_late
        )
        with closing(late_tables), ExitStack() as stack:
            rows = _split_tables(merge_tables(unread, late_tables))
            for chunks in pool.map_ahead(self._choose_maker(file_format, stack), rows):
                yield from chunks

    def _read_group(self, unread: _UnreadGroup) -> Any:
        """The selected rows of a row group, in the order of the file."""
        group = unread.group
        return self._row_reader.read(group.fetch(), self._choose_filter(group))

    def _choose_filter(self, group: AnswerGroup) -> RowFilter | None:
        return None if group.is_whole else self._filter

    def _choose_maker(
        self, file_format: Format, stack: ExitStack
    ) -> Callable[[Any], Iterable[Any]]:
        """What makes chunks of a table, or of an unread row group."""
        make = MAKERS[file_format.archive_rows]

        def make_chunks(rows: Any) -> Iterable[Any]:
            if isinstance(rows, _UnreadGroup):
                rows = self._read_group(rows)
            chunks = make(rows, self._plan)
            # lists of cells take much memory: they wait for their reader
            return chunks if file_format.archive_rows == "rows" else list(chunks)

        if (make_lines := LINES.get(file_format.archive_rows)) is None:
            return make_chunks
        maker = LineMaker(self._row_reader, self._plan, make_lines)
        engine = stack.enter_context(Engine(maker, self._count_processes()))

        def make_lines_by_engine(rows: Any) -> Iterable[Any]:
            if not isinstance(rows, _UnreadGroup):
                return make_chunks(rows)
            lines = engine.make_group(rows.group.fetch(), self._choose_filter(rows.group))
            return [LineChunk(data, ends) for data, ends in lines]

        return make_lines_by_engine

    def _count_processes(self) -> int:
        """How many processes beside this one make the file's rows."""
        row_count = sum(group.row_count for group in self._groups)
        return settings.EXHAUST_PROCESSES - 1 if row_count >= PROCESS_ROWS else 0


def _split_tables(tables: Iterator[Any]) -> Iterator[Any]:
    """Yields tables in slices, and unread ones whole."""
    for table in tables:
        if isinstance(table, Unread):
            yield table
            continue
        for start in range(0, table.num_rows, part.SLICE_ROWS):
            yield table.slice(start, part.SLICE_ROWS)


# What is made of the rows -------------------------------------------------------------------------

LINES = {"csv lines": part.make_csv_lines, "json lines": part.make_json_lines}


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
