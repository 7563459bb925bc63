"""Merges small files of answers, so that a month of them is read from few.

A run stores a file for each month in which its answers occurred. Answers that come late, and runs
of which a month has many, leave files that overlap in time. Once a month of arrival is over, its
files of one month of occurrence become one. No file has two months of arrival, so retention deletes
each as early as before. One transaction puts the new file in the place of the others. Files of
events are in the order of arrival, and stay as they are.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from django.db.models import Exists, OuterRef

from exhaust.archive import deletion, objects, runs, write
from exhaust.archive.lease import Lease, RunLost, own_run
from exhaust.archive.merge import Unread, merge_tables
from exhaust.archive.row_groups import to_microseconds
from exhaust.archive.schema import ANSWERS
from exhaust.failpoints import trigger_failpoint
from exhaust.models import ArchiveFile, ArchiveRun
from ingest import logs

log = logs.get_logger(__name__)
_TIME_BITS = 42  # of the microseconds of a month; a conversation's place takes the others
_ORDER = "order"  # the column of both


def compact_month(channel_id: int) -> ArchiveFile | None:
    """Merges the files of one month. Returns the new file; None where there is none to make.

    Raises `RunLost` and `StorageError`; a later call tries again.
    """
    if not _choose_files(channel_id) or runs.unfinished_erasures(channel_id).exists():
        return None
    run = runs.claim_rewriting(channel_id)
    if run is None:
        return None
    keys: list[str] = []
    try:
        trigger_failpoint("archive.rewriting", channel_id)
        files = _choose_files(channel_id)  # those of another attempt are merged by now
        if not files:
            return None
        is_erasing = Exists(runs.unfinished_erasures(OuterRef("channel")))
        with Lease(run, ~is_erasing) as lease:
            merged = _merge(run, files, keys, lease)
    except FileNotFoundError as error:
        raise RunLost from error
    finally:
        if ArchiveFile.objects.filter(key__in=keys).exists():
            own_run(run).delete()
        else:
            runs.release(run, keys)
    log.info("archive.files_merged", channel=channel_id, rows=merged.row_count)
    list(deletion.delete_replaced(channel_id))
    return merged


def _choose_files(channel_id: int) -> list[ArchiveFile]:
    """Returns the next files to merge: the smallest of a month, up to the rows of one run."""
    current = deletion.current_files(channel_id)
    arrival_months = {
        run_id: objects.parse_month(key)  # the last one, where a run has two
        for run_id, key in current.filter(table="events")
        .order_by("key")
        .values_list("run_id", "key")
    }
    open_month = f"{runs.find_cutoff() - timedelta(days=1):%Y-%m}"  # a day: see `runs`
    months: defaultdict[tuple[str, str], list[ArchiveFile]] = defaultdict(list)
    for file in current.filter(table=ANSWERS.name).order_by("row_count", "pk"):
        arrival_month = arrival_months.get(file.run_id, open_month)
        if arrival_month < open_month:
            months[arrival_month, objects.parse_month(file.key)].append(file)
    for _, files in sorted(months.items()):
        sums = accumulate(file.row_count for file in files)
        count = sum(row_count <= runs.RUN_ROWS for row_count in sums)
        if count > 1:
            return files[:count]
    return []


def _merge(
    run: ArchiveRun, files: Sequence[ArchiveFile], keys: list[str], lease: Lease
) -> ArchiveFile:
    groups = _open_groups(files)
    keys.append(objects.make_key(ANSWERS.name, objects.parse_month(files[0].key), run))
    summary = write.Summary()
    blocks = write.write_blocks(ANSWERS, _merge_groups(groups), summary)
    merged = runs.store_file(run, keys[0], blocks, summary, lease)
    merged.run_id = max(file.run_id for file in files)  # of the same month of arrival
    if merged.row_count != sum(file.row_count for file in files):
        log.warning("archive.rows_changed", run=run.pk, rows=merged.row_count)
        raise RunLost
    trigger_failpoint("archive.rewritten", run.channel_id)
    lease.require()
    deletion.swap_files(run, files, [merged])
    trigger_failpoint("archive.swapped", run.channel_id)
    return merged


# Rows ---------------------------------------------------------------------------------------------


def _open_groups(files: Sequence[ArchiveFile]) -> list["_Group"]:
    """Returns the row groups of all files. Raises `FileNotFoundError` and `StorageError`."""
    sources = [pq.ParquetFile(objects.ObjectFile(file.key, file.byte_count)) for file in files]
    order = _Order(files, sources)
    groups: list[_Group] = []
    for source, parquet in enumerate(sources):
        first = 0
        for number in range(parquet.num_row_groups):
            conversations, times = (
                parquet.metadata.row_group(number).column(ANSWERS.columns.index(name)).statistics
                for name in ("conversation_id", "occurred_at")
            )
            # a later row group may have a later conversation and an earlier time
            first = max(first, int(order(conversations.min, to_microseconds(times.min))))
            last = int(order(conversations.max, to_microseconds(times.max)))
            groups.append(_Group(source, first, last, order.read, parquet, number))
    return sorted(groups, key=lambda group: group.first)


def _merge_groups(groups: Sequence["_Group"]) -> Iterator[pa.Table]:
    """Yields the row groups of the merged file."""
    merged = merge_tables(groups, iter(()), order=_ORDER)
    yield from _cut_groups(
        (rows.read(rows) if isinstance(rows, Unread) else rows).drop_columns([_ORDER])
        for rows in merged
    )


@dataclass(frozen=True)
class _Group(Unread):
    parquet: Any
    number: int


class _Order:
    """The order of a file of answers as one number: the conversation's place, and the time."""

    def __init__(self, files: Sequence[ArchiveFile], sources: Sequence[Any]) -> None:
        columns = [source.read(["conversation_id"], use_threads=False)[0] for source in sources]
        self._conversations = np.unique(np.concatenate([each.to_numpy() for each in columns]))
        self._first_us = to_microseconds(min(file.first_occurred_at for file in files))

    def __call__(self, conversation_ids: Any, times_us: Any) -> Any:
        places = np.searchsorted(self._conversations, conversation_ids)
        return (places << _TIME_BITS) + (times_us - self._first_us)

    def read(self, group: Any) -> pa.Table:
        """Returns a row group with its numbers."""
        rows = group.parquet.read_row_group(group.number, use_threads=False)
        times_us = rows["occurred_at"].cast(pa.int64()).to_numpy()
        order = self(rows["conversation_id"].to_numpy(), times_us)
        return rows.append_column(_ORDER, pa.array(order, pa.int64()))


def _cut_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yields the rows as row groups of the usual size."""
    group: list[pa.Table] = []
    row_count = byte_count = 0
    for table in tables:
        start = 0
        while start < table.num_rows:
            part = table.slice(start, ANSWERS.group_rows - row_count)
            group.append(part)
            start, row_count = start + part.num_rows, row_count + part.num_rows
            byte_count += part.nbytes
            if row_count == ANSWERS.group_rows or byte_count >= write.GROUP_BYTES:
                yield pa.concat_tables(group).combine_chunks()
                group, row_count, byte_count = [], 0, 0
    if group:
        yield pa.concat_tables(group).combine_chunks()
