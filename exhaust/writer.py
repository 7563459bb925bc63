"""A dataset's rows as files: bytes in the asked format, in parts where they are large.

On PostgreSQL the database makes the cells where it can, and CSV's lines by itself; the portable way
makes the same bytes.
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

from exhaust import copying
from exhaust.datasets.selection import Dataset, Selection
from exhaust.formats import CSV, Format


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
    statements: copying.Statements | None = None,
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
        rows = copying.copied(
            queries, by_line=by_line, statements=statements or copying.Statements()
        )
    else:
        rows = dataset.rows(selection)
    ahead: list[Any] = []
    more = True

    def part() -> Iterator[bytes]:
        nonlocal ahead, more
        body: Any = form.begin(dataset.columns, limit)
        add = body.add_line if by_line else body.add
        yield (block := body.start())
        size = len(block)
        more = False
        for row in chain(ahead, rows):
            block = add(row)
            progress.rows += 1
            if block:
                yield block
                size += len(block)
                if size >= limit:
                    ahead = list(islice(rows, 1))
                    more = bool(ahead)
                    break
        yield body.end()
        progress.misfits += body.misfits

    with closing(rows):
        while more:
            yield part()


def _queries(dataset: Dataset, selection: Selection, form: Format) -> list[copying.Query]:
    """What PostgreSQL is to make whole; nothing where Python must finish a cell."""
    if connection.vendor != "postgresql":
        return []
    if dataset.copy(selection, guarded=form.copied) is None:
        return []
    asked = (dataset.copy(each, guarded=form.copied) for each in _slices(dataset, selection))
    return [query for query in asked if query is not None]


def _slices(dataset: Dataset, selection: Selection) -> list[Selection]:
    """The selection in parts whose rows follow one another: by time, of about as many rows."""
    count = min(dataset.estimate(selection) // copying.SLICE_ROWS, copying.MOST_SLICES)
    span = dataset.span(selection) if count > copying.AT_ONCE else None
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
        self._held = bytearray()
        self._sha256 = hashlib.sha256()
        self.byte_count = 0
        self.ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._held) < size:
            block = next(self._blocks, None)
            if block is None:
                self.ended = True
                size = len(self._held)
            else:
                self._held += block
        with memoryview(self._held) as view:
            taken = bytes(view[:size])
        del self._held[:size]
        self._sha256.update(taken)
        self.byte_count += len(taken)
        return taken

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()
