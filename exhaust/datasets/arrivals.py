"""Datasets that hold records in the order of arrival, each under its position in the feed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from django.db import connection

from exhaust.datasets import columns
from exhaust.datasets.base import Dataset, has_device, streaming
from exhaust.datasets.columns import Cell
from exhaust.datasets.selection import Selection

POSITION = "CAST(e.xid AS text) || '.' || CAST(e.id AS text)"
APPLICATION = "(SELECT a.identifier FROM ingest_application a WHERE a.id = e.application_id)"


class Arrivals(Dataset):
    """One table's rows `e`: the columns read what `fields` names, and look into `payload`.

    `fields` is SQL that both databases understand: name to expression.
    """

    table: str
    moment: str  # whose days are asked for
    fields: ClassVar[Mapping[str, str]]
    payload: str  # PostgreSQL's jsonb of a row
    raw: str  # the column that the portable way makes the same of
    refused = "false"  # whether the row's person refused consent

    def opened(self, raw: str, refused: bool) -> str:
        """What `payload` gives on PostgreSQL, from the raw column's JSON text."""
        return raw

    def copy(self, selection: Selection, *, guarded: bool = False) -> tuple[str, dict[str, Any]]:
        where, params = self._where(selection)
        cells = ",\n".join(columns.cells_sql(self.columns, "false", "r", guarded=guarded))
        source = (
            f"SELECT {self._fields()}, {self.payload} AS payload, e.xid, e.id"  # noqa: S608
            f" FROM {self.table} e WHERE {where}"
        )
        return (
            f"SELECT {cells}\nFROM ({source}) r\n{columns.joins_sql(self.columns, 'r')}\n"
            f"ORDER BY r.xid, r.id{selection.tail}",
            params,
        )

    def rows(self, selection: Selection) -> Iterator[list[Cell]]:
        where, params = self._where(selection)
        raw = f"CAST(e.{self.raw} AS text)"
        sql = (
            f"SELECT {raw}, {self.refused}, {self._fields()} FROM {self.table} e"  # noqa: S608
            f" WHERE {where} ORDER BY e.xid, e.id{selection.tail}"
        )
        read = columns.reader(self.columns)
        with streaming(sql, params) as rows:
            for text, refused, *values in rows:
                envelope = dict(zip(self.fields, values, strict=True))
                yield read(envelope, self.opened(text, refused), False)

    def count_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        where, params = self._where(selection)
        return f"SELECT 1 FROM {self.table} e WHERE {where}", params  # noqa: S608

    def holds(self, selection: Selection, device_ids: Sequence[str]) -> bool:
        """A derived record that has changed since may have stood in the file as it was."""
        if not self.derived:
            return super().holds(selection, device_ids)
        where, params = self._where(selection)
        of_channel = f"e.channel_id = %(channel)s AND (e.version > 1 OR ({where}))"
        return has_device(f"{self.table} e WHERE {of_channel}", params, device_ids)

    def _where(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        return selection.standing(self.moment)

    def _fields(self) -> str:
        each = "jsonb_each_text" if connection.vendor == "postgresql" else "json_each"
        return ", ".join(
            f"{sql.replace('json_each', each)} AS {name}" for name, sql in self.fields.items()
        )
