"""Merges sorted tables into the order of a file: by a time or a number, then by id. It is pure.

Tables come one after the other, each with the least key that it may hold. So a row is passed on as
soon as no later table can hold an earlier one, and memory stays at the tables that overlap. A table
that overlaps no other is passed on unread: whoever takes it reads it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

Key = tuple[int, int]  # time in microseconds or number, id
_END = (1 << 63) - 1  # of both
_LATE = -1  # the number of the source that is read last


@dataclass(frozen=True)
class Unread:
    """A table that is read when it has to be, and what is known of it before."""

    source: int  # tables of one source follow one another in order
    first: int  # no row has less in the column of the order, here or later in the source
    last: int  # no row has more
    read: Callable[[Any], Any]  # called with this object


def merge_tables(
    tables: Sequence[Unread], late: Iterator[Any], order: str = "occurred_at"
) -> Iterator[Any]:
    """Yields the rows of all tables in order: in tables of their own, or as whole unread ones.

    `tables` are sorted by what is first. `late` is one more source, of which it is not known
    before; none of its tables is empty. Each table is sorted by the column `order` and by `id`.
    """
    later = next(late, None)
    pending: list[_Pending | _Rows] = []
    place = 0
    while place < len(tables) or later is not None:
        later_first = None if later is None else _read_keys(later, order)[0]
        if place < len(tables) and (later_first is None or tables[place].first <= later_first):
            pending.append(_Pending(tables[place], order))
            place += 1
        else:
            pending.append(_Rows(_LATE, later, order))
            later = next(late, None)
            later_first = None if later is None else _read_keys(later, order)[0]
        yield from _take_ready(pending, tables, place, later_first)


class _Rows:
    """Rows that wait for tables that may hold earlier ones."""

    def __init__(self, source: int, table: Any, order: str) -> None:
        self.source, self.table, self.order = source, table, order
        self._keys = _read_keys(table, order)
        ids = table.column("id")
        self.first: Key = (int(self._keys[0]), ids[0].as_py())
        self.last: Key = (int(self._keys[-1]), ids[-1].as_py())

    def split(self, limit: Key) -> "tuple[_Rows | None, _Rows | None]":
        """The rows before a limit, and the others; None for no rows."""
        if self.last < limit:
            return self, None
        if self.first >= limit:
            return None, self
        low, high = (int(np.searchsorted(self._keys, limit[0], side)) for side in _SIDES)
        ids = self.table.column("id").slice(low, high - low).to_numpy()
        count = low + int(np.searchsorted(ids, limit[1]))
        before, after = self.table.slice(0, count), self.table.slice(count)
        return _Rows(self.source, before, self.order), _Rows(self.source, after, self.order)

    def read(self) -> Any:
        return self.table


class _Pending:
    """A table that waits unread."""

    def __init__(self, table: Unread, order: str) -> None:
        self.table, self.source, self.order = table, table.source, order
        self.first: Key = (table.first, -1)
        self.last: Key = (table.last, _END)

    def split(self, limit: Key) -> "tuple[_Pending | _Rows | None, _Pending | _Rows | None]":
        """What is before a limit, and the rest; reads the table where it may hold both."""
        if self.last < limit:
            return self, None
        if self.first >= limit:
            return None, self
        table = self.read()
        if not table.num_rows:
            return None, None
        return _Rows(self.source, table, self.order).split(limit)

    def read(self) -> Any:
        return self.table.read(self.table)


_SIDES: tuple[Any, Any] = ("left", "right")


def _take_ready(
    pending: list[_Pending | _Rows], tables: Sequence[Unread], place: int, later_first: int | None
) -> Iterator[Any]:
    """Takes the rows that no later table can precede out of `pending`, and yields them in order."""
    split_rows = [
        each.split((_find_limit(each.source, tables, place, later_first), -1)) for each in pending
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


def _find_limit(source: int, tables: Sequence[Unread], place: int, later_first: int | None) -> int:
    """The least key that a later table of another source may hold."""
    limit = _END if later_first is None or source == _LATE else later_first
    while place < len(tables) and tables[place].source == source:
        place += 1
    return min(limit, tables[place].first) if place < len(tables) else limit


def _join(parts: Sequence[_Pending | _Rows]) -> Any:
    if len(parts) == 1:
        return parts[0].table
    tables = [table for part in parts if (table := part.read()).num_rows]
    if len(tables) < 2:
        return tables[0] if tables else parts[0].read()
    schema = tables[0].schema
    table = pa.concat_tables([each.cast(schema) for each in tables]).combine_chunks()
    return table.sort_by([(parts[0].order, "ascending"), ("id", "ascending")])


def _read_keys(table: Any, order: str) -> Any:
    keys = table.column(order).combine_chunks()
    return keys.cast(pa.int64()).to_numpy(zero_copy_only=False)
