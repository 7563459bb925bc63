"""Reads rows out of the bytes of a row group. It knows neither Django nor a database.

So any process can do it, wherever it has the bytes from.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exhaust.archive.range_file import RangeFile
from exhaust.archive.schema import Table

_REPEATING_BYTES = 32  # of a value in its file: texts that take more hardly repeat


@dataclass(frozen=True)
class GroupBytes:
    """A row group as it lies in its file: its bytes, and where they begin."""

    metadata: Any  # of the file
    number: int
    data: bytes
    start: int


class Condition(Protocol):
    """Which rows are selected."""

    @property
    def columns(self) -> Sequence[str]:
        """The columns that it reads."""

    def build(self) -> Any:
        """Returns pyarrow's expression."""


@dataclass(frozen=True)
class RowFilter:
    """Which answers are selected: `Selection.event_filter`, on rows that were not pruned."""

    conversation_id: int
    start_us: int  # of `occurred_at`
    end_us: int
    since_xid: int
    watermark: int
    pruned: tuple[int, int]  # the last position that was deleted

    columns = ("conversation_id", "occurred_at", "id", "xid", "superseded_xid")

    def build(self) -> Any:
        xid, superseded_xid = pc.field("xid"), pc.field("superseded_xid")
        pruned_xid, pruned_id = self.pruned
        start, end = (
            pa.scalar(moment, pa.timestamp("us", "UTC")) for moment in (self.start_us, self.end_us)
        )
        return (
            (pc.field("conversation_id") == self.conversation_id)
            & (pc.field("occurred_at") >= start)
            & (pc.field("occurred_at") < end)
            & (xid >= self.since_xid)
            & (xid < self.watermark)
            & (superseded_xid.is_null() | (superseded_xid >= self.watermark))
            & ((xid > pruned_xid) | ((xid == pruned_xid) & (pc.field("id") > pruned_id)))
        )


@dataclass(frozen=True)
class RowReader:
    """Reads columns of a table's row groups. `left_out` are the ids of rows that are passed over.

    Texts that repeat come as dictionaries.
    """

    table: Table
    names: Sequence[str]
    left_out: Any  # an array

    def read(self, group: GroupBytes, row_filter: Condition | None = None) -> Any:
        """Returns the rows in the order of the file; all of them without a filter."""
        names = [*self.names]
        if row_filter is not None:
            names += [name for name in row_filter.columns if name not in names]
        file = pq.ParquetFile(
            _Window(group),
            metadata=group.metadata,
            read_dictionary=self._list_repeating(group, names),
            page_checksum_verification=True,
        )
        table = file.read_row_group(group.number, columns=names, use_threads=False)
        if row_filter is not None:
            table = table.filter(row_filter.build())
        if len(self.left_out):
            table = table.filter(~pc.field("id").isin(self.left_out))
        return table.select(self.names)

    def _list_repeating(self, group: GroupBytes, names: Sequence[str]) -> list[str]:
        """The texts that are worth a dictionary in this row group."""
        columns = group.metadata.row_group(group.number)
        return [
            name
            for name in names
            if pa.types.is_string(self.table.schema.field(name).type)
            and name not in self.table.plain_columns
            and columns.column(self.table.columns.index(name)).total_uncompressed_size
            < columns.num_rows * _REPEATING_BYTES
        ]


def find_range(group: Any) -> tuple[int, int]:
    """Returns where the bytes of a row group begin and end in its file, by its metadata."""
    columns = [group.column(place) for place in range(group.num_columns)]
    starts = [
        min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
        for column in columns
    ]
    sizes = [column.total_compressed_size for column in columns]
    return min(starts), max(start + size for start, size in zip(starts, sizes, strict=True))


class _Window(io.RawIOBase):
    """A file of which only a row group is there. Places are those of the file."""

    def __init__(self, group: GroupBytes) -> None:
        self._data, self._start = memoryview(group.data), group.start
        self._place = group.start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = self._start + len(self._data)
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: end}[whence]
        return self._place

    def position(self) -> int:
        return self._place

    tell = position  # as files name it

    def read(self, size: int = -1) -> bytes:
        begin = self._place - self._start
        piece = self._data[begin : len(self._data) if size < 0 else begin + size]
        self._place += len(piece)
        return bytes(piece)


def fetch_group(file: RangeFile, metadata: Any, number: int) -> GroupBytes:
    """Returns the bytes of a row group, read at once."""
    start, end = find_range(metadata.row_group(number))
    file.seek(start)
    return GroupBytes(metadata, number, file.read(end - start), start)
