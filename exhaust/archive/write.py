"""Makes the files of a range of events: rows of the database, as blocks of Parquet.

PostgreSQL makes the cells by COPY; the portable way makes the same values. Memory is bounded by a
row group, whatever the range.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
from django.db import connection

from exhaust.archive import device_filter
from exhaust.archive.schema import ANSWERS, EVENTS, PAYLOAD_CELLS, Table
from exhaust.datasets import cells
from exhaust.datasets.base import stream_rows
from exhaust.datasets.event_table import ENVELOPE_SQL
from exhaust.datasets.response import RESPONSE
from exhaust.files import parallel_copy
from exhaust.files.formats.pending import PendingBytes
from ingest.feed.values import FeedPosition

COMPRESSION, COMPRESSION_LEVEL = "zstd", 3
PARSED_BYTES = 4 * 1024 * 1024  # of lines at once: parsing takes several times as much memory
GROUP_BYTES = 24 * 1024 * 1024  # of rows as text: a row group of large payloads ends here
# of CSV between PostgreSQL and us: JSON has none, so its quotes need no quotes
_DELIMITER, _QUOTE = "\x1f", "\x1e"
_CELL_COLUMNS = [column for column in RESPONSE.columns if column.path[0] == "payload"]

# The keys are sorted, which are narrow, and not the rows: each row is then looked up by its id.
_SORTED_KEYS_SETTINGS = (
    f"{parallel_copy.PLANNER_SETTINGS};"
    " SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL jit = off"
)


@dataclass(frozen=True)
class Range:
    """A channel's events after `start`, up to `end` itself, in the order of arrival."""

    channel_id: int
    start: FeedPosition
    end: FeedPosition

    def filter_sql(self) -> tuple[str, dict[str, Any]]:
        """The SQL condition on events `e`, and its parameters."""
        is_postgresql = connection.vendor == "postgresql"
        cast = "::xid8" if is_postgresql else ""
        where = (
            "e.channel_id = %(channel)s"
            f" AND (e.xid, e.id) > (%(start_xid)s{cast}, %(start_id)s)"
            f" AND (e.xid, e.id) <= (%(end_xid)s{cast}, %(end_id)s)"
        )
        params = {
            "channel": self.channel_id,
            "start_xid": str(self.start.xid) if is_postgresql else self.start.xid,
            "start_id": self.start.id,
            "end_xid": str(self.end.xid) if is_postgresql else self.end.xid,
            "end_id": self.end.id,
        }
        return where, params


@dataclass(frozen=True)
class FilePlan:
    """A file that a range needs: its table, its month like `2026-11`, and how many rows."""

    table: Table
    month: str
    row_count: int


@dataclass
class Summary:
    """What a file holds, as its row of the registry says it."""

    row_count: int = 0
    first: tuple[int, int] | None = None  # the least position
    last: tuple[int, int] | None = None
    first_occurred_at: datetime | None = None
    last_occurred_at: datetime | None = None
    first_conversation: int | None = None
    last_conversation: int | None = None
    _hashes: list[Any] = field(default_factory=list, repr=False)

    def add(self, group: pa.Table) -> None:
        """Adds a row group with at least one row."""
        self.row_count += group.num_rows
        xids, ids = group["xid"].to_numpy(), group["id"].to_numpy()
        least_xid, greatest_xid = xids.min(), xids.max()
        least = (int(least_xid), int(ids[xids == least_xid].min()))
        greatest = (int(greatest_xid), int(ids[xids == greatest_xid].max()))
        self.first = min(filter(None, (self.first, least)))
        self.last = max(filter(None, (self.last, greatest)))
        times = pc.min_max(group["occurred_at"]).as_py()
        self.first_occurred_at = min(filter(None, (self.first_occurred_at, times["min"])))
        self.last_occurred_at = max(filter(None, (self.last_occurred_at, times["max"])))
        if (numbers := pc.min_max(group["conversation_id"]).as_py())["min"] is not None:
            self.first_conversation = min(self.first_conversation or numbers["min"], numbers["min"])
            self.last_conversation = max(self.last_conversation or 0, numbers["max"])
        devices = [each for each in pc.unique(group["device_id"]).to_pylist() if each]
        self._hashes.append(device_filter.hash_devices(devices))

    def build_device_filter(self) -> bytes:
        return device_filter.build_filter(np.unique(np.concatenate(self._hashes)))

    def list_bounds(self) -> dict[str, Any]:
        """Returns the fields of `ArchiveFile` that say what the file holds."""
        (first_xid, first_id), (last_xid, last_id) = self.first or (0, 0), self.last or (0, 0)
        return {
            "first_xid": first_xid,
            "first_id": first_id,
            "last_xid": last_xid,
            "last_id": last_id,
            "first_occurred_at": self.first_occurred_at,
            "last_occurred_at": self.last_occurred_at,
            "first_conversation": self.first_conversation,
            "last_conversation": self.last_conversation,
            "device_filter": self.build_device_filter(),
        }


def plan_files(range_: Range) -> list[FilePlan]:
    """Returns the files that the range needs, with the rows that the database counts for each."""
    where, params = range_.filter_sql()
    sources = {
        EVENTS: f"ingest_storedevent e WHERE {where}",
        ANSWERS: f"({_answer_keys_sql(where)}) e",
    }
    plans: list[FilePlan] = []
    for table, source in sources.items():
        month_sql = _month_sql(f"e.{table.month_of}")
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {month_sql}, COUNT(*) FROM {source} GROUP BY 1 ORDER BY 1",  # noqa: S608
                params,
            )
            plans += [
                FilePlan(table, str(name)[:7], int(count)) for name, count in cursor.fetchall()
            ]
    return plans


def write_file(
    range_: Range, plan: FilePlan, summary: Summary, *, portable: bool = False
) -> Iterator[bytes]:
    """Yields the file in blocks, and tells `summary` what it holds. Close it to end the query."""
    yield from write_blocks(plan.table, _iterate_groups(range_, plan, portable), summary)


def write_blocks(table: Table, groups: Iterator[pa.Table], summary: Summary) -> Iterator[bytes]:
    """Yields row groups as the blocks of one Parquet file."""
    pending = PendingBytes()
    uncompressible = {*table.delta_columns, *table.plain_columns}
    writer = pq.ParquetWriter(
        pending,
        table.schema,
        version="2.6",
        compression=COMPRESSION,
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=[name for name in table.columns if name not in uncompressible],
        column_encoding=dict.fromkeys(table.delta_columns, "DELTA_BINARY_PACKED"),
    )
    for group in groups:
        summary.add(group)
        writer.write_table(group, row_group_size=table.group_rows)
        if block := pending.take():
            yield block
    writer.close()
    yield pending.take()


# Statements ---------------------------------------------------------------------------------------


def _month_sql(column: str) -> str:
    """The month's first day, which costs PostgreSQL a tenth of a text; on SQLite the text."""
    if connection.vendor == "postgresql":
        return f"CAST(date_trunc('month', {column} AT TIME ZONE 'UTC') AS date)"
    return f"substr({column}, 1, 7)"


def _microseconds_sql(column: str) -> str:
    """Microseconds since 1970, as `ingest.feed.reader.Microseconds` computes them."""
    if connection.vendor == "postgresql":
        return f"CAST(date_part('epoch', {column}) * 1000000 AS bigint)"
    return (
        f"strftime('%%s', substr({column}, 1, 19)) * 1000000"
        f" + CAST(substr({column}, 21) AS integer)"
    )


def _answer_keys_sql(where: str) -> str:
    """The answers of a range: (id, conversation, time), once for each conversation."""
    return (
        "SELECT e.id, e.conversation_id, e.occurred_at FROM ingest_storedevent e"  # noqa: S608
        f" WHERE {where} AND e.is_answer AND e.conversation_id IS NOT NULL"
        " UNION ALL SELECT e.id, c.id, e.occurred_at FROM ingest_storedevent e"
        " JOIN ingest_conversation c ON c.channel_id = e.channel_id"
        " AND e.other_conversations LIKE '%%,' || CAST(c.id AS text) || ',%%'"
        f" WHERE {where} AND e.is_answer AND e.other_conversations IS NOT NULL"
        " AND (e.conversation_id IS NULL OR c.id <> e.conversation_id)"
    )


def _build_query(range_: Range, plan: FilePlan, columns: dict[str, str], joins: str) -> Any:
    """Returns the SQL of a file's rows in the table's order, and its parameters."""
    where, params = range_.filter_sql()
    params |= {"month": f"{plan.month}-01" if connection.vendor == "postgresql" else plan.month}
    is_in_month = f"{_month_sql(f'e.{plan.table.month_of}')} = %(month)s"
    select_list = ", ".join(columns.values())
    if plan.table is EVENTS:
        return (
            f"SELECT {select_list} FROM ingest_storedevent e"  # noqa: S608
            f" WHERE {where} AND {is_in_month} ORDER BY e.xid, e.id",
            params,
        )
    return (
        f"SELECT {select_list} FROM (SELECT * FROM ({_answer_keys_sql(where)}) e"  # noqa: S608
        f" WHERE {is_in_month} ORDER BY e.conversation_id, e.occurred_at, e.id) k"
        " JOIN ingest_storedevent e ON e.id = k.id"
        f" JOIN ingest_conversation c ON c.id = k.conversation_id {joins}"
        " ORDER BY k.conversation_id, k.occurred_at, k.id",
        params,
    )


def list_envelope(table: Table) -> dict[str, str]:
    """Expressions that both databases understand, by column, for all but the answers' cells."""
    special = {
        "xid": "CAST(CAST(e.xid AS text) AS bigint)",
        "superseded_xid": "CAST(CAST(e.superseded_xid AS text) AS bigint)",
        "identity": "CAST(e.identity AS text)",
        "occurred_at": _microseconds_sql("e.occurred_at"),
        "received_at": _microseconds_sql("e.received_at"),
        "conversation": ENVELOPE_SQL["conversation"],
        "application": ENVELOPE_SQL["application"],
        "payload": "CAST(e.payload AS text)",
    }
    if table.name == ANSWERS.name:
        special |= {"conversation_id": "k.conversation_id", "conversation": "c.identifier"}
    return {
        name: special.get(name, f"e.{name}")
        for name in table.columns
        if table.name == EVENTS.name or name not in PAYLOAD_CELLS
    }


# Rows ---------------------------------------------------------------------------------------------


def _iterate_groups(range_: Range, plan: FilePlan, portable: bool) -> Iterator[pa.Table]:
    if connection.vendor == "postgresql" and not portable:
        yield from _copy_groups(range_, plan)
    else:
        yield from _read_groups(range_, plan)


def _copy_groups(range_: Range, plan: FilePlan) -> Iterator[pa.Table]:
    table = plan.table
    columns, joins = list_envelope(table), ""
    planner_settings = parallel_copy.PLANNER_SETTINGS
    if table is ANSWERS:
        columns |= zip(PAYLOAD_CELLS, cells.cells_sql(_CELL_COLUMNS, "false"), strict=True)
        joins = cells.joins_sql(_CELL_COLUMNS)
        planner_settings = _SORTED_KEYS_SETTINGS
    connection.ensure_connection()
    rows: Any = parallel_copy.stream_query_rows(
        *_build_query(range_, plan, columns, joins),
        by_line=True,
        line_format=f"csv, DELIMITER '{_DELIMITER}', QUOTE '{_QUOTE}'",
        planner_settings=planner_settings,
    )
    types = {name: _plain_type(table.schema.field(name).type) for name in columns}
    with closing(rows):
        blocks: list[pa.Table] = []
        for lines, ends_group in _join_lines(rows, table.group_rows):
            blocks.append(_shape_group(table, _parse_lines(lines, types)))
            if ends_group:
                yield pa.concat_tables(blocks)
                blocks = []
        if blocks:
            yield pa.concat_tables(blocks)


def _join_lines(rows: Iterator[memoryview], group_rows: int) -> Iterator[tuple[bytearray, bool]]:
    """Yields lines that are parsed at once, and whether they end a row group.

    A list of so many objects would have Python search all it has for garbage, again and again.
    """
    lines, count, size = bytearray(), 0, 0
    for line in rows:
        lines += line
        count += 1
        ends_group = count == group_rows or size + len(lines) >= GROUP_BYTES
        if ends_group or len(lines) >= PARSED_BYTES:
            yield lines, ends_group
            count, size = (0, 0) if ends_group else (count, size + len(lines))
            lines = bytearray()
    if lines:
        yield lines, True


def _parse_lines(lines: bytearray, types: dict[str, pa.DataType]) -> pa.Table:
    """Returns lines of PostgreSQL's CSV as columns: an empty field is null, a quoted one a text."""
    return pcsv.read_csv(
        pa.BufferReader(lines),
        read_options=pcsv.ReadOptions(
            column_names=list(types), block_size=len(lines) + 1, use_threads=False
        ),
        parse_options=pcsv.ParseOptions(
            delimiter=_DELIMITER, quote_char=_QUOTE, newlines_in_values=True
        ),
        convert_options=pcsv.ConvertOptions(
            check_utf8=False,
            column_types=types,
            null_values=[""],
            true_values=["t"],
            false_values=["f"],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def _read_groups(range_: Range, plan: FilePlan) -> Iterator[pa.Table]:
    table = plan.table
    columns = list_envelope(table)
    if table is ANSWERS:
        columns["payload"] = "CAST(e.payload AS text)"
    read_cells = cells.make_cell_reader(_CELL_COLUMNS)

    def complete(row: Any) -> list[Any]:
        *envelope, payload = row
        return [*envelope, *read_cells({}, payload, False)]

    with stream_rows(*_build_query(range_, plan, columns, "")) as rows:
        completed: Iterator[Any] = map(complete, rows) if table is ANSWERS else iter(rows)
        for group in _split_rows(completed, table.group_rows):
            yield make_table(table, group)


def make_table(table: Table, rows: Sequence[Any]) -> pa.Table:
    """Returns rows, one at least, that a query of `list_envelope` found."""
    arrays = [
        pa.array(map(bool, values) if kind == pa.bool_() else values, _plain_type(kind))
        for values, kind in zip(zip(*rows, strict=True), table.schema.types, strict=True)
    ]
    return _shape_group(table, pa.table(arrays, table.columns))


def _measure_row(row: Any) -> int:
    return sum(len(cell) for cell in row if isinstance(cell, str))


def _split_rows(rows: Iterator[Any], group_rows: int) -> Iterator[list[Any]]:
    """Yields the rows of one row group after another."""
    group: list[Any] = []
    size = 0
    for row in rows:
        group.append(row)
        size += _measure_row(row)
        if len(group) == group_rows or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a query's column arrives: times as microseconds, a UUID as hex digits."""
    if pa.types.is_timestamp(kind):
        return pa.int64()
    return pa.string() if kind == pa.uuid() else kind


def _shape_group(table: Table, rows: pa.Table) -> pa.Table:
    """Returns the rows in the table's types and order of columns."""
    arrays = []
    for name, kind in zip(table.columns, table.schema.types, strict=True):
        column = rows[name].combine_chunks()
        if kind == pa.uuid():
            column = _parse_identities(column)
        elif pa.types.is_timestamp(kind):
            column = column.cast(kind)
        arrays.append(column)
    return pa.Table.from_arrays(arrays, schema=table.schema)


def _parse_identities(column: pa.Array) -> pa.Array:
    digits = "".join(column.to_pylist()).replace("-", "")
    storage = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(column), [None, pa.py_buffer(bytes.fromhex(digits))]
    )
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)
