"""Compares the archive's record with its objects and with the database's events."""

import hashlib
from collections.abc import Iterator
from itertools import islice

import pyarrow.parquet as pq
from django.db import connection
from django.db.models import Sum

from exhaust.archive import deletion, objects, write
from exhaust.models import ArchiveFile, ArchiveRun, ArchiveState
from ingest.feed.pruning import fetch_prune_state, get_pruned_position
from ingest.feed.values import FeedPosition

_READ_BYTES = 8 * 1024 * 1024


def find_faults(*, is_reading: bool = False) -> Iterator[str]:
    """Yields a sentence for each fault. `is_reading` reads every object and compares its SHA-256.

    Raises `StorageError`.
    """
    for state in ArchiveState.objects.order_by("pk"):
        for file in deletion.current_files(state.pk).iterator():
            yield from _check_object(file, is_reading)
        yield from _check_positions(state)
    replaced = ArchiveFile.objects.filter(archive_until__isnull=False).order_by("pk")
    for key in replaced.values_list("key", flat=True):
        yield f"{key}: is replaced, and its object is still to be deleted"
    keys = objects.list_keys()
    while batch := list(islice(keys, 500)):
        for key in deletion.find_unreferenced(batch):
            yield f"{key}: no row names this object; the daily run deletes it"


def _check_object(file: ArchiveFile, is_reading: bool) -> Iterator[str]:
    size = objects.fetch_size(file.key)
    if size is None:
        yield f"{file.key}: the object is missing"
    elif size != file.byte_count:
        yield f"{file.key}: has {size:,} bytes, and not {file.byte_count:,}"
    elif is_reading:
        source = objects.ObjectFile(file.key, file.byte_count)
        digest = hashlib.sha256()
        while block := source.read(_READ_BYTES):
            digest.update(block)
        if digest.hexdigest() != file.sha256:
            yield f"{file.key}: its SHA-256 is another"
        elif (rows := pq.ParquetFile(source).metadata.num_rows) != file.row_count:
            yield f"{file.key}: has {rows:,} rows, and not {file.row_count:,}"


def _check_positions(state: ArchiveState) -> Iterator[str]:
    position = FeedPosition()
    archived = ArchiveRun.objects.filter(channel=state.pk, state=ArchiveRun.State.ARCHIVED)
    for run in archived.order_by("to_xid", "to_id"):
        if (run.from_xid, run.from_id) != position:
            yield f"channel {state.pk}: run {run.pk} does not begin where the one before ends"
        position = FeedPosition(run.to_xid, run.to_id)
    if (state.xid, state.event_id) != position:
        yield f"channel {state.pk}: the archived position is not that of its last run"
    yield from _check_rows(state)


def _check_rows(state: ArchiveState) -> Iterator[str]:
    """Compares counts, unless a file holds pruned events too: then there are more in the files."""
    pruned = get_pruned_position(fetch_prune_state(state.pk))
    files = deletion.current_files(state.pk).filter(table="events", last_xid__gt=pruned.xid)
    if files.filter(first_xid__lte=pruned.xid).exists():
        return
    archived_rows = files.order_by().aggregate(rows=Sum("row_count"))["rows"] or 0
    end = max(pruned, FeedPosition(state.xid, state.event_id))
    where, params = write.Range(state.pk, pruned, end).filter_sql()
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM ingest_storedevent e WHERE {where}", params)  # noqa: S608
        stored = cursor.fetchone()[0]
    if stored != archived_rows:
        yield (
            f"channel {state.pk}: its files hold {archived_rows:,} events up to the archived"
            f" position, and the database {stored:,}"
        )
