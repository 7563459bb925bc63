"""A dataset's rows as files: bytes in the asked format, in parts where they are large.

On PostgreSQL the database makes the cells where it can, and CSV's lines by itself; the portable way
makes the same bytes.
"""

import hashlib
import io
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from django.db import connection

from exhaust.datasets.base import Dataset
from exhaust.datasets.selection import Selection
from exhaust.files import parallel_copy
from exhaust.files.formats import CSV, Format
from exhaust.files.formats.lines import Sheaf


@dataclass
class Progress:
    """Rows written so far; another thread reads it. And cells that a format left empty."""

    rows: int = 0
    misfits: int = 0


def blocks(
    dataset: Dataset,
    selection: Selection,
    progress: Progress,
    form: Format = CSV,
    *,
    portable: bool = False,
) -> Generator[bytes]:
    """The whole answer as one file, in blocks of bounded size."""
    for part in parts(dataset, selection, progress, form, limit=0, portable=portable):
        yield from part


def parts(
    dataset: Dataset,
    selection: Selection,
    progress: Progress,
    form: Format,
    *,
    limit: int,
    portable: bool = False,
    statements: parallel_copy.Statements | None = None,
) -> Generator[Iterator[bytes]]:
    """The files, each in blocks, each to be read to its end before the next is asked for.

    A file ends at the row at which it has `limit` bytes, if rows are left; 0 is no limit. The
    connections that PostgreSQL's rows come over are told to `statements`.
    """
    limit = limit or sys.maxsize
    rows: Any
    by_line = False
    if queries := [] if portable else _queries(dataset, selection, form):
        by_line = form.copied
        rows = parallel_copy.copied(
            queries, by_line=by_line, statements=statements or parallel_copy.Statements()
        )
    else:
        rows = dataset.rows(selection)
    ahead: list[Any] = []
    more = True

    def part() -> Iterator[bytes]:
        nonlocal ahead, more
        body: Any = form.begin(dataset.columns, limit)
        add = _by_sheaf(body) if by_line else _by_row(body)
        yield (block := body.start())
        size = len(block)
        more = False
        for each in chain(ahead, rows):
            for count, block in add(each):
                progress.rows += count
                if block:
                    yield block
                    size += len(block)
                    if size >= limit:
                        more = True
                        break
            if more:
                ahead = [each] if by_line and each.left else list(islice(rows, 1))
                more = bool(ahead)
                break
        yield body.end()
        progress.misfits += body.misfits

    with closing(rows):
        while more:
            yield part()


Add = Callable[[Any], Iterable[tuple[int, bytes]]]  # rows that were added, bytes that are ready


def _by_row(body: Any) -> Add:
    return lambda row: ((1, body.add(row)),)


def _by_sheaf(body: Any) -> Add:
    def add(sheaf: Sheaf) -> Iterator[tuple[int, bytes]]:
        while left := sheaf.left:
            block = body.add_lines(sheaf)
            yield left - sheaf.left, block

    return add


def _queries(dataset: Dataset, selection: Selection, form: Format) -> list[parallel_copy.Query]:
    """What PostgreSQL is to make whole; nothing where Python must finish a cell."""
    if connection.vendor != "postgresql":
        return []
    if dataset.copy(selection, guarded=form.copied) is None:
        return []
    asked = (dataset.copy(each, guarded=form.copied) for each in _slices(dataset, selection))
    return [query for query in asked if query is not None]


def _slices(dataset: Dataset, selection: Selection) -> list[Selection]:
    """The selection in parts whose rows follow one another: by time, of about as many rows."""
    count = min(dataset.estimate(selection) // parallel_copy.SLICE_ROWS, parallel_copy.MOST_SLICES)
    span = dataset.span(selection) if count > parallel_copy.AT_ONCE else None
    if span is None or span[0] == span[1]:
        return [selection]
    first, last = span
    edges = [first + (last - first) * number / count for number in range(1, count)]
    return [
        replace(selection, start=start, end=end)
        for start, end in zip([selection.start, *edges], [*edges, selection.end], strict=True)
    ]


class Stream(io.RawIOBase):
    """What storage reads: exactly the bytes asked for until the end, counted and hashed."""

    def __init__(self, blocks: Iterator[bytes | bytearray]) -> None:
        self._blocks = blocks
        self._rest: bytes | bytearray | memoryview = b""  # of the last block
        self._sha256 = hashlib.sha256()
        self.byte_count = 0
        self.ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        pieces = [self._rest]
        held = len(self._rest)
        while size < 0 or held < size:
            block = next(self._blocks, None)
            if block is None:
                self.ended = True
                size = held
            else:
                self._sha256.update(block)
                pieces.append(block)
                held += len(block)
        last = memoryview(pieces[-1])
        kept = len(last) - (held - size)
        pieces[-1], self._rest = last[:kept], last[kept:]
        taken = b"".join(pieces)
        self.byte_count += len(taken)
        return taken

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()
