"""What the files do not know, asked from the database: answers that came or were replaced later."""

from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow as pa
from django.db import connection

from exhaust.archive import write
from exhaust.archive.columns import name_archived
from exhaust.archive.schema import EVENTS
from exhaust.archive.snapshot import Archive
from exhaust.datasets import cells
from exhaust.datasets.base import stream_rows
from exhaust.datasets.cells import Column
from exhaust.datasets.response import RESPONSE
from exhaust.datasets.selection import Selection
from exhaust.files import parallel_copy

TABLE_ROWS = 4096


def fetch_superseded(selection: Selection, condition: str = RESPONSE.condition) -> list[int]:
    """The ids of archived rows that were replaced since: files do not say it."""
    where, params = selection.base_filter("occurred_at")
    cast = "::xid8" if connection.vendor == "postgresql" else ""
    sql = (
        f"SELECT e.id FROM ingest_storedevent e WHERE {where} AND {condition}"  # noqa: S608
        f" AND e.superseded_xid IS NOT NULL AND e.superseded_xid < %(watermark)s{cast}"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return [number for (number,) in cursor.fetchall()]


def iter_tables(
    archive: Archive,
    selection: Selection,
    selected_names: Collection[str],
    statements: parallel_copy.CancellableQueries,
    first_id: int | None,
) -> Generator[Any]:
    """Yields the selected rows behind the archived place, sorted, with the archive's columns.

    `first_id` is that of `find_first`.
    """
    if first_id is None:
        return
    columns = [
        replace(column, needs_consent=False)
        for column in RESPONSE.columns
        if column.path[0] == "payload" and name_archived(column) in selected_names
    ]
    names = ["id", "occurred_at", "device_id", "session_id", *map(name_archived, columns)]
    with closing(_iter_rows(archive, selection, columns, statements, first_id)) as rows:
        while batch := list(islice(rows, TABLE_ROWS)):
            ids, times, *texts = zip(*batch, strict=True)
            moments = pa.array(times, pa.string()).cast(pa.timestamp("us"))
            arrays = [
                pa.array(map(int, ids), pa.int64()),
                moments.cast(pa.timestamp("us", "UTC")),
                *(pa.array(each, pa.string()) for each in texts),
            ]
            yield pa.table(arrays, names).select(list(selected_names))


def find_first(archive: Archive, selection: Selection) -> int | None:
    """Returns the least id of the channel's events behind the archived place; None for none."""
    condition, params = _late_condition(archive)
    params["channel"] = selection.channel_id
    with connection.cursor() as cursor:
        # `+ 0`: an index of ids alone would be read from its start
        cursor.execute(
            "SELECT min(e.id + 0) FROM ingest_storedevent e"  # noqa: S608
            f" WHERE e.channel_id = %(channel)s AND {condition}",
            params,
        )
        (first_id,) = cursor.fetchone()
    return None if first_id is None else int(first_id)


def _late_condition(archive: Archive) -> tuple[str, dict[str, Any]]:
    is_postgresql = connection.vendor == "postgresql"
    cast = "::xid8" if is_postgresql else ""
    xid, place_id = archive.place
    params = {"place_xid": str(xid) if is_postgresql else xid, "place_id": place_id}
    return f"(e.xid, e.id) > (%(place_xid)s{cast}, %(place_id)s)", params


def _filter_late(
    archive: Archive, selection: Selection, condition: str, first_id: int
) -> tuple[str, dict[str, Any]]:
    """The SQL condition on the selected rows behind the archived place."""
    is_late, late_params = _late_condition(archive)
    where, params = selection.event_filter()
    # the index by conversation has the ids, so archived rows are passed over in it
    where += f" AND {condition} AND e.id >= %(first_id)s AND {is_late}"
    return where, params | late_params | {"first_id": first_id}


def _iter_rows(
    archive: Archive,
    selection: Selection,
    columns: list[Column],
    statements: parallel_copy.CancellableQueries,
    first_id: int,
) -> Generator[Any]:
    """Yields id, time, device, session and the payload's cells."""
    where, params = _filter_late(archive, selection, RESPONSE.condition, first_id)
    envelope = "e.id, {}, e.device_id, e.session_id"
    source = "FROM ingest_storedevent e {} WHERE " + where + " ORDER BY e.occurred_at, e.id"
    rows: Any
    if connection.vendor == "postgresql":
        time = "to_char(e.occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
        select_list = ", ".join((envelope.format(time), *cells.cells_sql(columns, "false")))
        sql = f"SELECT {select_list} {source.format(cells.joins_sql(columns))}"
        rows = parallel_copy.copy_rows([(sql, params)], by_line=False, statements=statements)
        with closing(rows):
            yield from rows
        return
    read_cells = cells.make_cell_reader(columns)
    select_list = envelope.format("CAST(e.occurred_at AS text)")
    sql = f"SELECT {select_list}, e.payload {source.format('')}"
    with stream_rows(sql, params) as rows:
        for *values, payload in rows:
            yield [*values, *read_cells({}, payload, False)]


def iter_events(
    archive: Archive, selection: Selection, names: Sequence[str], condition: str
) -> Generator[Any]:
    """Yields the selected events behind the archived place by time, with the archive's columns."""
    first_id = find_first(archive, selection)
    if first_id is None:
        return
    where, params = _filter_late(archive, selection, condition, first_id)
    table = replace(EVENTS, schema=pa.schema([EVENTS.schema.field(name) for name in names]))
    select_list = ", ".join(write.list_envelope(table).values())
    sql = (
        f"SELECT {select_list} FROM ingest_storedevent e WHERE {where}"  # noqa: S608
        " ORDER BY e.occurred_at, e.id"
    )
    with stream_rows(sql, params) as rows:
        while batch := list(islice(rows, TABLE_ROWS)):
            yield write.make_table(table, batch)
