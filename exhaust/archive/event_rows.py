"""Makes archived events into the rows that the feed's readers take."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from exhaust.archive.events import (
    EventCondition,
    EventGroup,
    UnreadGroup,
    describe_groups,
    format_identities,
    read_table,
)
from exhaust.archive.merge import merge_tables
from exhaust.archive.row_groups import fetch_metadata
from exhaust.archive.rows import GroupBytes, RowReader
from exhaust.archive.schema import EVENTS
from exhaust.datasets.selection import Selection
from exhaust.feed.events import EventFilter
from exhaust.files import storage
from exhaust.models import ArchiveFile
from ingest.feed.reader import Window
from ingest.feed.values import START, EventRow, FeedPosition
from ingest.models import Participant, StoredEvent

CALL_SECONDS = 5.0  # that a page waits for a row group
_KEPT_FOOTERS = 16  # of files, in a process
_KEPT_GROUPS = 2  # row groups, up to 24 MiB each: the next page is mostly in the same one
MAX_ROWS = 1000  # that are made at once
_COLUMNS = (
    "xid", "id", "occurred_at", "received_at", "application_id", "is_answer", "identity", "source",
    "type", "device_id", "session_id", "payload", "superseded_xid",
)  # fmt: skip
_NONE = pa.array([], pa.int64())
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def iterate_rows(
    files: Sequence[ArchiveFile], chosen: EventFilter, window: Window, watermark: int, limit: int
) -> Iterator[EventRow]:
    """Yields the events of a run's files that are in the window, in order.

    `limit` is how many the caller wants at most. Raises `ArchiveChanged` and `StorageError`.
    """
    selection = Selection(
        channel_id=chosen.channel_id,
        conversation_id=None,
        conversation="",
        conversation_name="",
        start=chosen.start or _FIRST,
        end=chosen.end or _LAST,
        watermark=watermark,
        after=window.start,
        types=chosen.types,
        application_id=chosen.application_id,
    )
    groups = sorted(
        (
            (number, group)
            for number, file in enumerate(files)
            for group in _list_groups(file)
            if group.may_hold(selection) and _starts_by(group, window.end)
        ),
        key=lambda found: found[1].first_xid,
    )
    condition = EventCondition(selection, START)
    is_search = chosen != EventFilter(chosen.channel_id)

    def read_group(unread: UnreadGroup) -> Any:
        group = unread.group
        if is_search and not group.is_whole(selection, START):
            return _search_group(group, condition)
        rows = _read_group(group.file.key, group.file.byte_count, group.number)
        return rows if group.is_whole(selection, START) else rows.filter(condition.build())

    unread = [
        UnreadGroup(number, group.first_xid, group.last.xid, read_group, group)
        for number, group in groups
    ]
    has_superseded = _select_superseded(selection).exists()
    for rows in merge_tables(unread, iter(()), order="xid"):
        table = _cut(read_table(rows), window)
        for start in range(0, table.num_rows, min(limit, MAX_ROWS)):
            part = table.slice(start, min(limit, MAX_ROWS))
            if has_superseded:
                part = _leave_out_superseded(part, selection)
            yield from _make_rows(part, chosen.channel_id)


def _starts_by(group: EventGroup, end: FeedPosition | None) -> bool:
    return end is None or group.first_xid <= end.xid


def _list_groups(file: ArchiveFile) -> tuple[EventGroup, ...]:
    with storage.CallLimit(CALL_SECONDS):
        return _describe_groups(file.key, file.byte_count)


@lru_cache(maxsize=_KEPT_FOOTERS)  # a key is never used again
def _describe_groups(key: str, byte_count: int) -> tuple[EventGroup, ...]:
    file = ArchiveFile(key=key, byte_count=byte_count)
    return tuple(describe_groups(file, fetch_metadata(file)))


@lru_cache(maxsize=_KEPT_GROUPS)
def _read_group(key: str, byte_count: int, number: int) -> Any:
    group = _describe_groups(key, byte_count)[number]
    return RowReader(EVENTS, _COLUMNS, _NONE).read(_fetch(group))


def _search_group(group: EventGroup, condition: EventCondition) -> Any:
    """The rows that meet a condition. Payloads are unpacked only where there are any."""
    data = _fetch(group)
    found = RowReader(EVENTS, ("xid", "id"), _NONE).read(data, condition)
    return RowReader(EVENTS, _COLUMNS, _NONE).read(data, condition) if found.num_rows else found


def _fetch(group: EventGroup) -> GroupBytes:
    with storage.CallLimit(CALL_SECONDS):
        return group.fetch()


def _cut(table: Any, window: Window) -> Any:
    """The rows of a table that are in the window."""
    xids, ids = (table.column(name).to_numpy() for name in ("xid", "id"))

    def count_up_to(position: FeedPosition) -> int:
        is_last = (xids == position.xid) & (ids <= position.id)
        return int(np.count_nonzero((xids < position.xid) | is_last))

    start = count_up_to(window.start)
    end = table.num_rows if window.end is None else count_up_to(window.end)
    return table.slice(start, max(end - start, 0))


def _select_superseded(selection: Selection) -> Any:
    """The events that were replaced below the watermark: files do not say it of later ones."""
    return StoredEvent.objects.filter(
        channel=selection.channel_id, superseded_xid__lt=selection.watermark
    )


def _leave_out_superseded(rows: Any, selection: Selection) -> Any:
    ids = rows.column("id").to_pylist()
    superseded = _select_superseded(selection).filter(pk__in=ids).values_list("pk", flat=True)
    return rows.filter(np.isin(ids, list(superseded), invert=True)) if superseded else rows


def _make_rows(rows: Any, channel_id: int) -> Iterator[EventRow]:
    devices = rows.column("device_id").to_pylist()
    is_answer = rows.column("is_answer").to_pylist()
    answering = {device for device, answers in zip(devices, is_answer, strict=True) if answers}
    refused = set(
        Participant.objects.filter(
            channel=channel_id, device_id__in=answering, consent=False
        ).values_list("device_id", flat=True)
        if answering
        else ()
    )
    columns = {
        **{name: rows.column(name).to_pylist() for name in ("xid", "id", "application_id")},
        **{name: rows.column(name).to_pylist() for name in ("source", "type", "session_id")},
        "superseded_xid": [None] * len(devices),
        "occurred_us": rows.column("occurred_at").cast(pa.int64()).to_pylist(),
        "received_us": rows.column("received_at").cast(pa.int64()).to_pylist(),
        "is_answer": is_answer,
        "identity": format_identities(rows.column("identity").combine_chunks()).to_pylist(),
        "device_id": devices,
        "is_consent_refused": [
            answers and device in refused
            for device, answers in zip(devices, is_answer, strict=True)
        ],
        "payload": rows.column("payload").cast(pa.binary()).to_pylist(),
    }
    yield from map(EventRow._make, zip(*(columns[name] for name in EventRow._fields), strict=True))
