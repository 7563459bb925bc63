"""Writes the rows of a dataset as files of the requested format, in parts where they are large.

PostgreSQL makes the cells where it can, and whole lines of CSV. The portable way makes the same
bytes.
"""

import hashlib
import io
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from django.db import connection

from exhaust.datasets.base import Dataset
from exhaust.datasets.selection import Selection
from exhaust.files import parallel_copy
from exhaust.files.formats import CSV, CellChunk, Format
from exhaust.files.formats.lines import LineChunk


@dataclass
class Progress:
    """Rows written so far, which another thread reads, and cells that a format cannot hold."""

    rows: int = 0
    unconvertible_cells: int = 0


def iter_blocks(
    dataset: Dataset,
    selection: Selection,
    progress: Progress,
    file_format: Format = CSV,
    *,
    portable: bool = False,
) -> Generator[bytes]:
    """Yields the whole result as one file, in blocks of bounded size."""
    for part in iter_parts(dataset, selection, progress, file_format, limit=0, portable=portable):
        yield from part


def iter_parts(
    dataset: Dataset,
    selection: Selection,
    progress: Progress,
    file_format: Format,
    *,
    limit: int,
    portable: bool = False,
    rows: Generator[Any] | None = None,
) -> Generator[Iterator[bytes]]:
    """Yields the parts, each an iterator of blocks. Read each to its end before the next one.

    A part ends at the row at which it has `limit` bytes, if rows are left; 0 is no limit. `rows`
    are those of `iter_rows`, or of a source that yields the same ones.
    """
    limit = limit or sys.maxsize
    if rows is None:
        rows = iter_rows(dataset, selection, file_format, portable=portable)
    lookahead: list[Any] = []
    has_more = True

    def iter_part_blocks() -> Iterator[bytes]:
        nonlocal lookahead, has_more
        body: Any = file_format.make_writer(dataset.columns, limit)
        yield (block := body.start())
        size = len(block)
        has_more = False
        for item in chain(lookahead, rows):
            for count, block in _add_item(body, item):
                progress.rows += count
                if block:
                    yield block
                    size += len(block)
                    if size >= limit:
                        has_more = True
                        break
            if has_more:
                is_left = isinstance(item, LineChunk | CellChunk) and item.rows_left
                lookahead = [item] if is_left else list(islice(rows, 1))
                has_more = bool(lookahead)
                break
        yield body.end()
        progress.unconvertible_cells += body.unconvertible_cells

    with closing(rows):
        while has_more:
            yield iter_part_blocks()


def _add_item(body: Any, item: Any) -> Iterator[tuple[int, bytes]]:
    """Adds a row or a chunk; yields how many rows were added, and the bytes that are ready."""
    if isinstance(item, LineChunk | CellChunk):
        add = body.add_lines if isinstance(item, LineChunk) else body.add_cells
        while left := item.rows_left:
            block = add(item)
            yield left - item.rows_left, block
    else:
        yield 1, body.add(item)


def iter_rows(
    dataset: Dataset,
    selection: Selection,
    file_format: Format,
    *,
    portable: bool = False,
    statements: parallel_copy.CancellableQueries | None = None,
) -> Generator[Any]:
    """Yields the rows as cells, or where PostgreSQL makes whole lines, chunks of these.

    The connections that PostgreSQL's rows come over are added to `statements`.
    """
    rows: Any
    if queries := [] if portable else _build_copy_queries(dataset, selection, file_format):
        rows = parallel_copy.copy_rows(
            queries,
            by_line=file_format.has_add_lines,
            statements=statements or parallel_copy.CancellableQueries(),
        )
    else:
        rows = dataset.iterate_rows(selection)
    with closing(rows):
        yield from rows


def _build_copy_queries(
    dataset: Dataset, selection: Selection, file_format: Format
) -> list[parallel_copy.Query]:
    """Returns the queries that PostgreSQL copies; none where Python must finish a cell."""
    if connection.vendor != "postgresql":
        return []
    if dataset.copy_sql(selection, escape_formulas=file_format.has_add_lines) is None:
        return []
    candidates = (
        dataset.copy_sql(each, escape_formulas=file_format.has_add_lines)
        for each in split_by_time(dataset, selection)
    )
    return [query for query in candidates if query is not None]


def split_by_time(dataset: Dataset, selection: Selection) -> list[Selection]:
    """Returns selections that follow one another in time, of about as many rows each."""
    count = min(
        dataset.estimate_rows(selection) // parallel_copy.SLICE_ROWS, parallel_copy.MAX_SLICES
    )
    span = dataset.time_span(selection) if count > parallel_copy.CONNECTIONS else None
    if span is None or span[0] == span[1]:
        return [selection]
    first, last = span
    edges = [first + (last - first) * number / count for number in range(1, count)]
    return [
        replace(selection, start=start, end=end)
        for start, end in zip([selection.start, *edges], [*edges, selection.end], strict=True)
    ]


class BlockStream(io.RawIOBase):
    """A readable stream of blocks that counts and hashes its bytes.

    Every read but the last returns as many bytes as requested.
    """

    def __init__(self, blocks: Iterator[bytes | bytearray]) -> None:
        self._blocks = blocks
        self._remainder: bytes | bytearray | memoryview = b""  # of the last block
        self._sha256 = hashlib.sha256()
        self.byte_count = 0
        self.is_finished = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        pieces = [self._remainder]
        available = len(self._remainder)
        while size < 0 or available < size:
            block = next(self._blocks, None)
            if block is None:
                self.is_finished = True
                size = available
            else:
                self._sha256.update(block)
                pieces.append(block)
                available += len(block)
        last = memoryview(pieces[-1])
        kept_size = len(last) - (available - size)
        pieces[-1], self._remainder = last[:kept_size], last[kept_size:]
        data = b"".join(pieces)
        self.byte_count += len(data)
        return data

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()
