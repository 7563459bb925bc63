"""Reads answers as cells, from files and rows as one: by time, or by device and session.

The rows are those of `uci-response-exhaust`, in its order. Another order is made in bounded memory:
what does not fit is read again, a range of devices and sessions each time.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import groupby, islice, pairwise, zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from django.conf import settings

from exhaust.archive import read
from exhaust.archive.snapshot import Archive
from exhaust.datasets.answers import DEVICE
from exhaust.datasets.base import DatasetLimitExceeded
from exhaust.datasets.cells import Column
from exhaust.datasets.response import RESPONSE
from exhaust.datasets.selection import Selection
from exhaust.files.formats import FORMATS, CellChunk
from exhaust.files.parallel_copy import CancellableQueries

SORTED_BYTES = 64 * 1024 * 1024  # of answers that are sorted at once
SAMPLED_KEYS = 8192  # at most, and half as many at least
TABLE_ROWS = 4096
_COLUMNAR = FORMATS["parquet"]
_DEVICE, _SESSION = "device", "session"  # others are named by their numbers

_Key = tuple[str, str]  # device and session
_FIRST: _Key = ("", "")


def iterate_answers(
    archive: Archive,
    selection: Selection,
    columns: Sequence[Column],
    order: str,
    limit: int | None,
) -> Generator[Sequence[Any]]:
    """Yields what `exhaust.datasets.answers.iterate_answers` does.

    Raises `ArchiveChanged`, `StorageError` and `DatasetLimitExceeded`.
    """
    read_tables = partial(_iterate_tables, archive, selection, columns, limit)
    tables = read_tables() if order == "time" else sort_by_key(read_tables, order)
    with closing(tables):
        for table in tables:
            yield from zip(*(texts.to_pylist() for texts in table.columns), strict=True)


def _iterate_tables(
    archive: Archive, selection: Selection, columns: Sequence[Column], limit: int | None
) -> Generator[Any]:
    """Yields the answers by time."""
    session = next(column for column in RESPONSE.columns if column.path == ("session_id",))
    dataset = replace(RESPONSE, columns=(DEVICE, session, *columns))
    stored = replace(selection, device_key=None, limit=None)
    names = [_DEVICE, _SESSION, *map(str, range(len(columns)))]
    deadline = time.monotonic() + settings.EXHAUST_MAX_SECONDS
    rows = read.iter_rows(archive, dataset, stored, _COLUMNAR, CancellableQueries())
    with closing(rows):
        for arrays in _collect_columns(rows):
            if time.monotonic() > deadline:
                raise DatasetLimitExceeded(
                    f"It took longer than {settings.EXHAUST_MAX_SECONDS} s; ask for fewer days."
                )
            devices, sessions = (pc.fill_null(array, "") for array in arrays[:2])
            table = pa.table([devices, sessions, *arrays[2:]], names).slice(0, limit)
            yield table
            if limit is not None and not (limit := limit - table.num_rows):
                return


def _collect_columns(rows: Iterator[Any]) -> Iterator[list[Any]]:
    """Yields the cells of some rows as an array for each column."""
    for is_chunk, items in groupby(rows, key=lambda item: isinstance(item, CellChunk)):
        if is_chunk:
            yield from (item.columns for item in items)
            continue
        while batch := list(islice(items, TABLE_ROWS)):
            yield [pa.array(texts, pa.string()) for texts in zip(*batch, strict=True)]


# Another order -----------------------------------------------------------------------------------


def sort_by_key(read_tables: Callable[[], Generator[Any]], order: str) -> Generator[Any]:
    """Yields the answers by device, then by session or participant, then by time."""
    kept: list[Any] = []
    size, keys = 0, _Sample()
    with closing(read_tables()) as tables:
        for table in tables:
            compact = _encode(table)
            size += compact.nbytes
            keys.add(table, order)
            if size <= SORTED_BYTES:
                kept.append(compact)
            else:
                kept.clear()
    if size <= SORTED_BYTES:
        yield from sort_tables(kept, order)
        return
    for start, end in keys.split(-(-size // SORTED_BYTES)):
        is_one_key = end == _find_next(start)
        with closing(read_tables()) as tables:
            selected = (_select_range(table, order, start, end) for table in tables)
            if is_one_key:  # of any size, and in order
                yield from selected
            else:
                kept = [_encode(table) for table in selected if table.num_rows]
        if not is_one_key:
            yield from sort_tables(kept, order)


class _Sample:
    """Every so many keys of the answers, in equal distances."""

    def __init__(self) -> None:
        self._keys: list[_Key] = []
        self._row_count, self._distance = 0, 1

    def add(self, table: Any, order: str) -> None:
        places = np.arange(-self._row_count % self._distance, table.num_rows, self._distance)
        devices, sessions = (each.take(places).to_pylist() for each in _read_key(table, order))
        self._keys += zip(devices, sessions, strict=True)
        self._row_count += table.num_rows
        while len(self._keys) > SAMPLED_KEYS:
            del self._keys[1::2]
            self._distance *= 2

    def split(self, count: int) -> Iterator[tuple[_Key, _Key | None]]:
        """Yields ranges of about as many answers: the first key, and that of the next range.

        A key with more answers has a range of its own.
        """
        keys = sorted(self._keys)
        starts = [keys[len(keys) * number // count] for number in range(1, count)]
        repeated = {key for key, following in pairwise(starts) if key == following}
        starts = sorted({_FIRST, *starts, *map(_find_next, repeated)})
        return zip_longest(starts, starts[1:])


def _find_next(key: _Key) -> _Key:
    """The least key that is greater."""
    return key[0], f"{key[1]}\0"


def _read_key(table: Any, order: str) -> tuple[Any, Any]:
    devices, sessions = (table.column(name).combine_chunks() for name in (_DEVICE, _SESSION))
    if order == "participant":  # a known device's sessions are one participant's
        sessions = pc.if_else(pc.equal(devices, ""), sessions, "")
    return devices, sessions


def _select_range(table: Any, order: str, start: _Key, end: _Key | None) -> Any:
    """The answers from one key to before another."""
    devices, sessions = _read_key(table, order)

    def is_before(key: _Key) -> Any:
        is_less = pc.and_(pc.equal(devices, key[0]), pc.less(sessions, key[1]))
        return pc.or_(pc.less(devices, key[0]), is_less)

    is_selected = pc.invert(is_before(start))
    return table.filter(is_selected if end is None else pc.and_(is_selected, is_before(end)))


def _encode(table: Any) -> Any:
    """The table with its texts as dictionaries, which take less."""
    return pa.table([column.dictionary_encode() for column in table.columns], table.column_names)


def sort_tables(tables: list[Any], order: str) -> Iterator[Any]:
    """Yields the rows of encoded tables in order, and takes the tables out of their list."""
    if not tables:
        return
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    tables.clear()
    devices, sessions = (_rank(table.column(name)) for name in (_DEVICE, _SESSION))
    if order == "participant":
        is_named = pc.not_equal(table.column(_DEVICE).cast(pa.string()), "")
        sessions = np.where(is_named.to_numpy(), 0, sessions)
    places = np.argsort(devices * (sessions.max() + 1) + sessions, kind="stable")
    for start in range(0, table.num_rows, TABLE_ROWS):
        some = table.take(places[start : start + TABLE_ROWS])
        plain = [column.cast(pa.string()) for column in some.columns]
        yield pa.table(plain, some.column_names)


def _rank(texts: Any) -> Any:
    """The place of each text among the distinct ones, in the order of their bytes."""
    encoded = texts.combine_chunks()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks[encoded.indices.to_numpy()]
