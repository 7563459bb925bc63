"""Parquet by pyarrow: typed columns, zstd, a row group at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exhaust.datasets.cells import NUMBER_PATTERN, Cell, Column, Kind
from exhaust.files.formats.base import CellChunk
from exhaust.files.formats.pending import PendingBytes

_ARROW_TYPES: dict[Kind, Any] = {
    "text": pa.string(),
    "uuid": pa.string(),
    "json": pa.string(),
    "whole": pa.int64(),
    "number": pa.float64(),
}


def _arrow_type(column: Column) -> Any:
    if column.kind == "time":
        return pa.timestamp("ms", tz=column.zone)
    return _ARROW_TYPES[column.kind]


# texts that a type can hold; a number may still be too large
_READABLE_PATTERNS: dict[Kind, str] = {"whole": "^-?[0-9]+$", "number": f"^{NUMBER_PATTERN}$"}
# characters of the rows that Python holds (a batch), and Arrow (a row group)
_BATCH_CHARACTERS = 256 * 1024
_GROUP_CHARACTERS = 8 * 1024 * 1024


class ParquetFileWriter:
    """Writes one file. A cell that its column's type cannot hold becomes null and is counted."""

    def __init__(self, columns: Sequence[Column], limit: int) -> None:
        self._columns = columns
        self._schema = pa.schema(
            [
                pa.field(
                    column.header,
                    _arrow_type(column),
                    metadata={"description": column.description, "kind": column.kind},
                )
                for column in columns
            ]
        )
        self._pending = PendingBytes()
        self._writer = pq.ParquetWriter(
            self._pending, self._schema, compression="zstd", version="2.6"
        )
        self._batch_limit, self._group_limit = (
            min(_BATCH_CHARACTERS, limit),
            min(_GROUP_CHARACTERS, limit),
        )
        self._rows: list[Sequence[Cell]] = []
        self._pieces: list[Sequence[Any]] = []  # columns of the batch before these rows
        self._batches: list[Any] = []
        self._pending_characters = self._batched_characters = 0
        self.unconvertible_cells = 0

    def start(self) -> bytes:
        return self._pending.take()

    def add(self, row: Sequence[Cell]) -> bytes:
        self._rows.append(row)
        self._pending_characters += len(row) + sum(map(len, filter(None, row)))
        if self._pending_characters >= self._batch_limit:
            self._close_batch()
            if self._batched_characters >= self._group_limit:
                self._close_group()
        return self._pending.take()

    def add_cells(self, chunk: CellChunk) -> bytes:
        """Adds rows until bytes are ready or none is left, as if each came by itself."""
        self._close_piece()
        sizes = _count_characters(chunk)
        while chunk.rows_left:
            begin = chunk.rows_taken
            before = int(sizes[begin - 1]) if begin else 0
            wanted = before + self._batch_limit - self._pending_characters
            end = min(int(np.searchsorted(sizes, wanted)) + 1, chunk.row_count)
            self._pieces.append([column.slice(begin, end - begin) for column in chunk.columns])
            self._pending_characters += int(sizes[end - 1]) - before
            chunk.rows_taken = end
            if self._pending_characters >= self._batch_limit:
                self._close_batch()
                if self._batched_characters >= self._group_limit:
                    self._close_group()
                    return self._pending.take()
        return self._pending.take()

    def end(self) -> bytes:
        if self._rows or self._pieces:
            self._close_batch()
        if self._batches:
            self._close_group()
        self._writer.close()
        return self._pending.take()

    def _close_piece(self) -> None:
        if self._rows:
            cells = zip(*self._rows, strict=True)
            self._pieces.append([pa.array(values, pa.string()) for values in cells])
            self._rows.clear()

    def _close_batch(self) -> None:
        self._close_piece()
        columns = [pa.concat_arrays(parts) for parts in zip(*self._pieces, strict=True)]
        self._pieces.clear()
        self._batches.append(
            pa.record_batch(list(map(self._convert, self._columns, columns)), schema=self._schema)
        )
        self._batched_characters += self._pending_characters
        self._pending_characters = 0

    def _close_group(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._batches, self._schema))
        self._batched_characters = 0
        self._batches.clear()

    def _convert(self, column: Column, texts: Any) -> Any:
        kind = column.kind
        if kind not in _READABLE_PATTERNS:
            return texts.cast(_arrow_type(column))
        empty_count = texts.null_count
        is_readable = pc.match_substring_regex(texts, _READABLE_PATTERNS[kind])
        texts = pc.if_else(is_readable, texts, pa.scalar(None, pa.string()))
        if kind == "number":
            typed = texts.cast(pa.float64())
            typed = pc.if_else(pc.is_finite(typed), typed, pa.scalar(None, pa.float64()))
        else:
            try:
                typed = texts.cast(pa.int64())
            except pa.ArrowInvalid:  # one of them is too large
                typed = pa.array([_parse_int64(text) for text in texts.to_pylist()], pa.int64())
        self.unconvertible_cells += typed.null_count - empty_count
        return typed


def _count_characters(chunk: CellChunk) -> Any:
    """Returns for each row the characters up to its end, as `add` counts them."""
    lengths = [pc.fill_null(pc.utf8_length(column), 0).to_numpy() for column in chunk.columns]
    return np.cumsum(np.sum(lengths, axis=0, dtype=np.int64) + len(chunk.columns))


def _parse_int64(text: str | None) -> int | None:
    """Returns the number, or None where 64 bits cannot hold it."""
    if text is None or abs(float(text)) > 1e19:
        return None
    whole = int(text)
    return whole if -(1 << 63) <= whole < 1 << 63 else None
