"""Merges sorted tables of answers into the order of a file: by time, then by id. It is pure.

Tables come one after the other, each with the least time that it may hold. So a row is passed on as
soon as no later table can hold an earlier one, and memory stays at the tables that overlap. A table
that overlaps no other is passed on unread: whoever takes it reads it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

Key = tuple[int, int]  # time in microseconds, id
_END = (1 << 63) - 1  # of times and ids
_LATE = -1  # the number of the source that is read last


@dataclass(frozen=True)
class Unread:
    """A table that is read when it has to be, and what is known of it before."""

    source: int  # tables of one source follow one another in order
    first_us: int  # no row is earlier, here or in a later table of the source
    last_us: int  # no row is later
    read: Callable[[Any], Any]  # called with this object


def merge_tables(tables: Sequence[Unread], late: Iterator[Any]) -> Iterator[Any]:
    """Yields the rows of all tables in order: in tables of their own, or as whole unread ones.

    `tables` are sorted by their first time. `late` is one more source, whose times are not known
    before; none of its tables is empty. Each table is sorted by `occurred_at` and `id`.
    """
    later = next(late, None)
    pending: list[_Pending | _Rows] = []
    place = 0
    while place < len(tables) or later is not None:
        later_us = None if later is None else _read_times(later)[0]
        if place < len(tables) and (later_us is None or tables[place].first_us <= later_us):
            pending.append(_Pending(tables[place]))
            place += 1
        else:
            pending.append(_Rows(_LATE, later))
            later = next(late, None)
            later_us = None if later is None else _read_times(later)[0]
        yield from _take_ready(pending, tables, place, later_us)


class _Rows:
    """Rows that wait for tables that may hold earlier ones."""

    def __init__(self, source: int, table: Any) -> None:
        self.source, self.table = source, table
        self._times = _read_times(table)
        ids = table.column("id")
        self.first: Key = (int(self._times[0]), ids[0].as_py())
        self.last: Key = (int(self._times[-1]), ids[-1].as_py())

    def split(self, limit: Key) -> "tuple[_Rows | None, _Rows | None]":
        """The rows before a limit, and the others; None for no rows."""
        if self.last < limit:
            return self, None
        if self.first >= limit:
            return None, self
        low, high = (int(np.searchsorted(self._times, limit[0], side)) for side in _SIDES)
        ids = self.table.column("id").slice(low, high - low).to_numpy()
        count = low + int(np.searchsorted(ids, limit[1]))
        before, after = self.table.slice(0, count), self.table.slice(count)
        return _Rows(self.source, before), _Rows(self.source, after)

    def read(self) -> Any:
        return self.table


class _Pending:
    """A table that waits unread."""

    def __init__(self, table: Unread) -> None:
        self.table, self.source = table, table.source
        self.first: Key = (table.first_us, -1)
        self.last: Key = (table.last_us, _END)

    def split(self, limit: Key) -> "tuple[_Pending | _Rows | None, _Pending | _Rows | None]":
        """What is before a limit, and the rest; reads the table where it may hold both."""
        if self.last < limit:
            return self, None
        if self.first >= limit:
            return None, self
        table = self.read()
        return _Rows(self.source, table).split(limit) if table.num_rows else (None, None)

    def read(self) -> Any:
        return self.table.read(self.table)


_SIDES: tuple[Any, Any] = ("left", "right")


def _take_ready(
    pending: list[_Pending | _Rows], tables: Sequence[Unread], place: int, later_us: int | None
) -> Iterator[Any]:
    """Takes the rows that no later table can precede out of `pending`, and yields them in order."""
    split_rows = [
        each.split((_find_limit(each.source, tables, place, later_us), -1)) for each in pending
    ]
    kept = [rows for _, rows in split_rows if rows is not None]
    first_kept = min((each.first for each in kept), default=(_END, 0))
    split_rows = [rows.split(first_kept) for rows, _ in split_rows if rows is not None]
    pending[:] = kept + [rows for _, rows in split_rows if rows is not None]
    ready = [rows for rows, _ in split_rows if rows is not None]
    overlapping: list[_Pending | _Rows] = []
    for each in sorted(ready, key=lambda each: each.first):
        if overlapping and max(other.last for other in overlapping) < each.first:
            yield _join(overlapping)
            overlapping = []
        overlapping.append(each)
    if overlapping:
        yield _join(overlapping)


def _find_limit(source: int, tables: Sequence[Unread], place: int, later_us: int | None) -> int:
    """The time from which on a later table of another source may hold rows."""
    limit_us = _END if later_us is None or source == _LATE else later_us
    while place < len(tables) and tables[place].source == source:
        place += 1
    return min(limit_us, tables[place].first_us) if place < len(tables) else limit_us


def _join(parts: Sequence[_Pending | _Rows]) -> Any:
    if len(parts) == 1:
        return parts[0].table
    tables = [table for part in parts if (table := part.read()).num_rows]
    if len(tables) < 2:
        return tables[0] if tables else parts[0].read()
    schema = tables[0].schema
    table = pa.concat_tables([each.cast(schema) for each in tables]).combine_chunks()
    return table.sort_by([("occurred_at", "ascending"), ("id", "ascending")])


def _read_times(table: Any) -> Any:
    times = table.column("occurred_at").combine_chunks()
    return times.cast(pa.int64()).to_numpy(zero_copy_only=False)
