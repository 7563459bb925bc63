"""Parquet by pyarrow: typed columns, zstd, a row group at a time."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exhaust.datasets.columns import NUMBER, Cell, Column, Kind
from exhaust.files.formats.pending import Pending

_TYPES: dict[Kind, Any] = {
    "text": pa.string(),
    "uuid": pa.string(),
    "json": pa.string(),
    "whole": pa.int64(),
    "number": pa.float64(),
    "time": pa.timestamp("ms", tz="UTC"),
}
# what a type can hold, as far as the text tells: a number may still be too great
_READABLE: dict[Kind, str] = {"whole": "^-?[0-9]+$", "number": f"^{NUMBER}$"}
# characters: a batch is what Python holds of the rows, a row group what Arrow holds
_BATCH = 256 * 1024
_GROUP = 8 * 1024 * 1024


class Parquet:
    """One file. A cell that its column's type cannot hold is null, and counted."""

    def __init__(self, columns: Sequence[Column], limit: int) -> None:
        self._kinds = [column.kind for column in columns]
        self._schema = pa.schema(
            [
                pa.field(
                    column.header,
                    _TYPES[column.kind],
                    metadata={"description": column.description, "kind": column.kind},
                )
                for column in columns
            ]
        )
        self._pending = Pending()
        self._writer = pq.ParquetWriter(
            self._pending, self._schema, compression="zstd", version="2.6"
        )
        self._batch, self._group = min(_BATCH, limit), min(_GROUP, limit)
        self._rows: list[Sequence[Cell]] = []
        self._batches: list[Any] = []
        self._in_rows = self._in_batches = 0
        self.misfits = 0

    def start(self) -> bytes:
        return self._pending.given()

    def add(self, row: Sequence[Cell]) -> bytes:
        self._rows.append(row)
        self._in_rows += len(row) + sum(map(len, filter(None, row)))
        if self._in_rows >= self._batch:
            self._close_batch()
            if self._in_batches >= self._group:
                self._close_group()
        return self._pending.given()

    def end(self) -> bytes:
        if self._rows:
            self._close_batch()
        if self._batches:
            self._close_group()
        self._writer.close()
        return self._pending.given()

    def _close_batch(self) -> None:
        cells = zip(*self._rows, strict=True)
        self._batches.append(
            pa.record_batch(
                [
                    self._typed(kind, list(held))
                    for kind, held in zip(self._kinds, cells, strict=True)
                ],
                schema=self._schema,
            )
        )
        self._in_batches += self._in_rows
        self._in_rows = 0
        self._rows.clear()

    def _close_group(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._batches, self._schema))
        self._in_batches = 0
        self._batches.clear()

    def _typed(self, kind: Kind, cells: list[Cell]) -> Any:
        texts = pa.array(cells, pa.string())
        if kind not in _READABLE:
            return texts.cast(_TYPES[kind])
        readable = pc.match_substring_regex(texts, _READABLE[kind])
        texts = pc.if_else(readable, texts, pa.scalar(None, pa.string()))
        if kind == "number":
            typed = texts.cast(pa.float64())
            typed = pc.if_else(pc.is_finite(typed), typed, pa.scalar(None, pa.float64()))
        else:
            try:
                typed = texts.cast(pa.int64())
            except pa.ArrowInvalid:  # one of them is too great
                typed = pa.array([_whole(text) for text in texts.to_pylist()], pa.int64())
        self.misfits += typed.null_count - cells.count(None)
        return typed


def _whole(text: str | None) -> int | None:
    """The number, or None where 64 bits cannot hold it."""
    if text is None or abs(float(text)) > 1e19:
        return None
    whole = int(text)
    return whole if -(1 << 63) <= whole < 1 << 63 else None
