"""Datasets of records in the order of arrival, each with its feed position."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from django.db import connection

from exhaust.datasets import cells
from exhaust.datasets.base import Dataset, has_device, stream_rows
from exhaust.datasets.cells import Cell
from exhaust.datasets.selection import Selection

POSITION_SQL = "CAST(e.xid AS text) || '.' || CAST(e.id AS text)"
APPLICATION_SQL = "(SELECT a.identifier FROM ingest_application a WHERE a.id = e.application_id)"


class FeedDataset(Dataset):
    """A dataset over one table `e`: its columns read `sql_fields` and paths in the payload.

    `sql_fields` maps names to expressions that both databases understand.
    """

    table: str
    time_column: str  # that the requested days filter
    sql_fields: ClassVar[Mapping[str, str]]
    payload_sql: str  # a row's jsonb, on PostgreSQL
    raw_column: str  # that `build_payload` makes the same of
    refused_sql = "false"  # whether the participant refused consent

    def build_payload(self, raw_json: str, is_refused: bool) -> str:
        """The JSON text of `payload_sql`, from the raw column's JSON text."""
        return raw_json

    def copy_sql(
        self, selection: Selection, *, escape_formulas: bool = False
    ) -> tuple[str, dict[str, Any]]:
        where, params = self._filter_sql(selection)
        select_list = ",\n".join(
            cells.cells_sql(self.columns, "false", "r", escape_formulas=escape_formulas)
        )
        source = (
            f"SELECT {self._fields_sql()}, {self.payload_sql} AS payload, e.xid, e.id"  # noqa: S608
            f" FROM {self.table} e WHERE {where}"
        )
        return (
            f"SELECT {select_list}\nFROM ({source}) r\n{cells.joins_sql(self.columns, 'r')}\n"
            f"ORDER BY r.xid, r.id{selection.limit_clause}",
            params,
        )

    def iterate_rows(self, selection: Selection) -> Iterator[list[Cell]]:
        where, params = self._filter_sql(selection)
        raw_sql = f"CAST(e.{self.raw_column} AS text)"
        sql = (
            f"SELECT {raw_sql}, {self.refused_sql}, {self._fields_sql()} FROM {self.table} e"  # noqa: S608
            f" WHERE {where} ORDER BY e.xid, e.id{selection.limit_clause}"
        )
        read_cells = cells.make_cell_reader(self.columns)
        with stream_rows(sql, params) as rows:
            for text, is_refused, *values in rows:
                envelope = dict(zip(self.sql_fields, values, strict=True))
                yield read_cells(envelope, self.build_payload(text, is_refused), False)

    def count_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        where, params = self._filter_sql(selection)
        return f"SELECT 1 FROM {self.table} e WHERE {where}", params  # noqa: S608

    def may_contain(self, selection: Selection, device_ids: Sequence[str]) -> bool:
        """A derived record that changed since may have been in the file before."""
        if not self.is_derived:
            return super().may_contain(selection, device_ids)
        where, params = self._filter_sql(selection)
        condition = f"e.channel_id = %(channel)s AND (e.version > 1 OR ({where}))"
        return has_device(f"{self.table} e WHERE {condition}", params, device_ids)

    def _filter_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        return selection.base_filter(self.time_column)

    def _fields_sql(self) -> str:
        each_function = "jsonb_each_text" if connection.vendor == "postgresql" else "json_each"
        return ", ".join(
            f"{sql.replace('json_each', each_function)} AS {name}"
            for name, sql in self.sql_fields.items()
        )
