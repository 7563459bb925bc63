"""Takes an erased person out of the archive's files, before the erasure's certificate is given.

A file that holds the person is written anew: with the events as the erasure leaves them, and
without the answers. One transaction puts the new file in the place of the old one, whose object is
then deleted with its earlier versions, and seen to be gone. Objects that no row names go too, since
they may hold the person. No run of the channel writes meanwhile; an attempt that hung deletes what
it stored once it goes on.
"""

from collections.abc import Callable, Iterator
from time import sleep
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from django.db import transaction

from exhaust.archive import deletion, device_filter, objects, runs, write
from exhaust.archive.lease import Lease, RunLost, own_run
from exhaust.archive.schema import ANSWERS, TABLES
from exhaust.failpoints import trigger_failpoint
from exhaust.files import storage
from exhaust.models import ArchiveFile, ArchiveRun
from ingest import logs

log = logs.get_logger(__name__)
PAUSE_SECONDS = 1.0  # while another process, or the storage, has to be waited for
# what an erasure makes of an event: see `ingest.privacy.erasure`
_ERASED_VALUES = {
    "device_id": "", "session_id": "", "note": "", "is_answer": False, "payload": "{}",
}  # fmt: skip


def erase_device(channel_id: int, device_id: str, record_rows: Callable[[int], None]) -> int | None:
    """Rewrites at most one file. Returns None until no object holds the device any more, and then
    the number of files that were searched.

    `record_rows` is called with the number of erased rows, in the transaction that erases them.
    """
    if not objects.is_enabled():
        log.error("archive.not_reached", channel=channel_id)  # its address was taken away
        sleep(PAUSE_SECONDS)
        return None
    run = runs.claim_rewriting(channel_id)
    try:
        if run is not None:
            trigger_failpoint("archive.rewriting", channel_id)
            with Lease(run) as lease:
                return _erase(run, device_id, record_rows, lease)
    except (RunLost, FileNotFoundError) as error:
        log.warning("archive.run_lost", channel=channel_id, error=error)
    except storage.StorageError as error:
        log.warning("archive.storage_failed", channel=channel_id, error=error)
    finally:
        if run is not None:
            own_run(run).delete()
    sleep(PAUSE_SECONDS)
    return None


def _erase(
    run: ArchiveRun, device_id: str, record_rows: Callable[[int], None], lease: Lease
) -> int | None:
    list(deletion.delete_replaced(run.channel_id))
    searched = 0
    for file in deletion.current_files(run.channel_id):
        lease.require()
        searched += 1
        if _holds(file, device_id):
            _rewrite(run, file, device_id, record_rows, lease)
            list(deletion.delete_replaced(run.channel_id))
            return None
    list(deletion.sweep(run.channel_id))
    lease.require()
    return searched


def _holds(file: ArchiveFile, device_id: str) -> bool:
    if not device_filter.may_hold(bytes(file.device_filter), device_id):
        return False
    groups = _read_groups(file, ["device_id"])
    return any(pc.any(pc.equal(group["device_id"], device_id)).as_py() for group in groups)


def _read_groups(file: ArchiveFile, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yields the file's row groups. Raises `FileNotFoundError`."""
    source = pq.ParquetFile(objects.ObjectFile(file.key, file.byte_count))
    for number in range(source.num_row_groups):
        yield source.read_row_group(number, columns, use_threads=False)


def _rewrite(
    run: ArchiveRun,
    file: ArchiveFile,
    device_id: str,
    record_rows: Callable[[int], None],
    lease: Lease,
) -> None:
    """Puts a file without the person in the place of one that holds them."""
    erased_rows = 0

    def erase_rows() -> Iterator[pa.Table]:
        nonlocal erased_rows
        for group in _read_groups(file):
            is_erased = pc.equal(group["device_id"], device_id)
            erased_rows += pc.sum(is_erased).as_py()
            if file.table == ANSWERS.name:
                group = group.filter(pc.invert(is_erased))
            else:
                group = _empty_rows(group, is_erased)
            if group.num_rows:
                yield group

    summary = write.Summary()
    groups = erase_rows()
    new: list[ArchiveFile] = []
    if (first := next(groups, None)) is not None:
        key = objects.make_key(file.table, objects.parse_month(file.key), run)
        blocks = write.write_blocks(TABLES[file.table], _chain(first, groups), summary)
        new = [runs.store_file(run, key, blocks, summary, lease)]
        new[0].run_id = file.run_id
    trigger_failpoint("archive.rewritten", run.channel_id)
    lease.require()
    with transaction.atomic():
        deletion.swap_files(run, [file], new)
        record_rows(erased_rows)
    trigger_failpoint("archive.swapped", run.channel_id)


def _chain(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest


def _empty_rows(group: pa.Table, is_erased: Any) -> pa.Table:
    for name, value in _ERASED_VALUES.items():
        index = group.schema.get_field_index(name)
        field = group.schema.field(index)
        emptied = pc.if_else(is_erased, pa.scalar(value, field.type), group[name])
        group = group.set_column(index, field, emptied)
    return group
