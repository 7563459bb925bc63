"""Merges sorted tables of answers into the order of a file: by time, then by id. It is pure.

Tables come one after the other, each with the least time that it may hold. So a row is passed on as
soon as no later table can hold an earlier one, and memory stays at the tables that overlap.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

Key = tuple[int, int]  # time in microseconds, id
_END = (1 << 63) - 1  # of time
_LATE = -1  # the number of the source that is read last


@dataclass(frozen=True)
class Bound:
    """What is known of a table before it is read: where it is from, and its least time."""

    source: int  # tables of one source follow one another in order
    first_us: int


def merge_tables(
    bounds: Sequence[Bound], tables: Iterable[Any], late: Iterator[Any]
) -> Iterator[Any]:
    """Yields the rows of all tables in order, in tables of their own.

    `tables` are those of `bounds`, which are sorted by time. `late` is one more source, whose
    bounds are not known before. Each table is sorted by `occurred_at` and `id`.
    """
    tables = iter(tables)
    later = next(late, None)
    pending: list[_Pending] = []
    place = 0
    while place < len(bounds) or later is not None:
        later_us = None if later is None else _read_times(later)[0]
        if place < len(bounds) and (later_us is None or bounds[place].first_us <= later_us):
            source, table = bounds[place].source, next(tables)
            place += 1
        else:
            source, table = _LATE, later
            later = next(late, None)
            later_us = None if later is None else _read_times(later)[0]
        if table.num_rows:
            pending.append(_Pending(source, table))
        yield from _take_ready(pending, bounds, place, later_us)


@dataclass
class _Pending:
    """Rows that wait for tables that may hold earlier ones."""

    source: int
    table: Any

    def __post_init__(self) -> None:
        self.times = _read_times(self.table)
        ids = self.table.column("id")
        self.first: Key = (int(self.times[0]), ids[0].as_py())
        self.last: Key = (int(self.times[-1]), ids[-1].as_py())

    def split(self, limit: Key) -> tuple["_Pending | None", "_Pending | None"]:
        """The rows before a limit, and the others; None for no rows."""
        if self.last < limit:
            return self, None
        if self.first >= limit:
            return None, self
        low, high = (int(np.searchsorted(self.times, limit[0], side)) for side in _SIDES)
        ids = self.table.column("id").slice(low, high - low).to_numpy()
        count = low + int(np.searchsorted(ids, limit[1]))
        before, after = self.table.slice(0, count), self.table.slice(count)
        return _Pending(self.source, before), _Pending(self.source, after)


_SIDES: tuple[Any, Any] = ("left", "right")


def _take_ready(
    pending: list[_Pending], bounds: Sequence[Bound], place: int, later_us: int | None
) -> Iterator[Any]:
    """Takes the rows that no later table can precede out of `pending`, and yields them in order."""
    split_rows = [
        each.split((_find_limit(each.source, bounds, place, later_us), -1)) for each in pending
    ]
    kept = [rows for _, rows in split_rows if rows is not None]
    first_kept = min((each.first for each in kept), default=(_END, 0))
    overlapping: list[_Pending] = []
    split_rows = [rows.split(first_kept) for rows, _ in split_rows if rows is not None]
    pending[:] = kept + [rows for _, rows in split_rows if rows is not None]
    ready = [rows for rows, _ in split_rows if rows is not None]
    for each in sorted(ready, key=lambda each: each.first):
        if overlapping and max(other.last for other in overlapping) < each.first:
            yield _join(overlapping)
            overlapping = []
        overlapping.append(each)
    if overlapping:
        yield _join(overlapping)


def _find_limit(source: int, bounds: Sequence[Bound], place: int, later_us: int | None) -> int:
    """The time from which on a later table of another source may hold rows."""
    limit_us = _END if later_us is None or source == _LATE else later_us
    while place < len(bounds) and bounds[place].source == source:
        place += 1
    return min(limit_us, bounds[place].first_us) if place < len(bounds) else limit_us


def _join(parts: Sequence[_Pending]) -> Any:
    if len(parts) == 1:
        return parts[0].table
    schema = parts[0].table.schema
    table = pa.concat_tables([each.table.cast(schema) for each in parts]).combine_chunks()
    return table.sort_by([("occurred_at", "ascending"), ("id", "ascending")])


def _read_times(table: Any) -> Any:
    times = table.column("occurred_at").combine_chunks()
    return times.cast(pa.int64()).to_numpy(zero_copy_only=False)
