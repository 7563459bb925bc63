"""Pages of an own dataset in the order of arrival: its own columns, behind a cursor."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

from django.db import connection

from exhaust.datasets.cells import Cell, Column
from exhaust.datasets.event_table import EventTable
from exhaust.datasets.resolve import resolve_selection
from exhaust.datasets.selection import Selection
from exhaust.feed import pages
from exhaust.feed.pages import MAX_PAGE_BYTES, TABLES, FeedQuery
from exhaust.files.formats.lines import JsonLinesWriter
from ingest.feed import pruning, restore
from ingest.feed.reader import Window
from ingest.feed.values import START, FeedPosition
from ingest.feed.watermark import fetch_end_position, fetch_watermark

_POSITION = Column("Position", "text", ("position",), "Its place in the feed.")


class Page(NamedTuple):
    """Rows as JSON objects, keyed by the columns' headers. It can be empty and not the last one."""

    items: list[bytes]
    position: FeedPosition  # of the last row, or of the last event that was passed over
    is_at_end: bool  # whether there is no more at present


def read_page(dataset: EventTable, query: FeedQuery, position: FeedPosition, limit: int) -> Page:
    """Returns up to `limit` rows and about `MAX_PAGE_BYTES` after a position.

    Raises `RequestError`: 410 if some of them are pruned, 409 if the position is not reached.
    """
    up_to = fetch_watermark()
    if position.xid >= up_to:
        restore.require_reached(position)
    is_at_start = position == START
    if is_at_start:
        position = pruning.get_pruned_position(pruning.fetch_prune_state(query.channel_id))
    items, end = _collect(dataset, query, position, up_to, limit)
    if not is_at_start:
        pruning.require_unpruned(query.channel_id, position)
    if end is not None:
        return Page(items, end, False)
    end_position = fetch_end_position(TABLES["events"], query.channel_id, up_to)
    return Page(items, max(position, end_position), True)


def _collect(
    dataset: EventTable, query: FeedQuery, position: FeedPosition, up_to: int, limit: int
) -> tuple[list[bytes], FeedPosition | None]:
    """Returns the rows of a page, and its end; None where it ends below the watermark."""
    items: list[bytes] = []
    size, end = 0, None
    write = JsonLinesWriter(dataset.columns, 0).add
    selection = _select(dataset, query, up_to)
    for window in pages.iterate_windows(query.channel_id, "events", position, up_to):
        rest = replace(selection, limit=limit - len(items))
        with closing(_iterate_window(dataset, rest, window)) as rows:
            for cells, row_position in rows:
                items.append(write(cells).rstrip(b"\n"))
                size += len(items[-1])
                if len(items) == limit or size >= MAX_PAGE_BYTES:
                    return items, row_position
        end = window.end
    return items, end


def _select(dataset: EventTable, query: FeedQuery, up_to: int) -> Selection:
    config = {
        **({"types": list(query.types)} if query.types else {}),
        **({"application": query.application} if query.application else {}),
    }
    selection = resolve_selection(dataset, query.channel_id, config, up_to)
    return replace(selection, start=query.start or selection.start, end=query.end or selection.end)


def _iterate_window(
    dataset: EventTable, selection: Selection, window: Window
) -> Generator[tuple[list[Cell], FeedPosition]]:
    condition = f"{dataset.condition} AND {_compare('>', window.start)}"
    if window.end is not None:
        condition += f" AND {_compare('<=', window.end)}"
    table = replace(dataset, columns=(*dataset.columns, _POSITION), condition=condition)
    for *cells, text in table.iterate_rows(selection):
        xid, _, pk = str(text).partition(".")
        yield cells, FeedPosition(int(xid), int(pk))


def _compare(operator: str, position: FeedPosition) -> str:
    is_postgresql = connection.vendor == "postgresql"
    xid = f"'{position.xid:d}'::xid8" if is_postgresql else f"{position.xid:d}"
    return f"(e.xid, e.id) {operator} ({xid}, {position.id:d})"
