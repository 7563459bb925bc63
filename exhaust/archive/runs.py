"""Archives past events: one run at a time for each channel, in steps that any process resumes.

1. A claim gives an attempt a range of positions: after the archived one, past the hot window, below
   the watermark.
2. It stores the files of the range under keys of its own, and compares their rows with the
   database's.
3. One transaction registers the files and moves the channel's archived position. From then on
   readers may take these events from the files.

An attempt that dies after the first step leaves a run, which the next one takes over, and objects
that no row names, which a sweep deletes. Rows stay in the database.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, QuerySet, Value
from django.db.models.functions import Now

from exhaust.archive import objects
from exhaust.archive.lease import LEASE, Lease, RunLost, own_run
from exhaust.failpoints import trigger_failpoint
from exhaust.files import storage
from exhaust.models import ArchiveFile, ArchiveRun, ArchiveState
from ingest import logs
from ingest.db.clock import read_clock
from ingest.feed import reader
from ingest.feed.values import START, FeedPosition
from ingest.feed.watermark import fetch_watermark
from ingest.models import Erasure, StoredEvent
from ingest.models.fields import XidField
from ingest.privacy import consent

if TYPE_CHECKING:
    from exhaust.archive import write
    from exhaust.archive.write import Summary

log = logs.get_logger(__name__)
RUN_ROWS = 1_000_000  # at most
MIN_ROWS = 100_000  # past the hot window; fewer wait until their month is


def archive_channel(channel_id: int, *, is_forced: bool = False) -> ArchiveRun | None:
    """Archives the channel's next range. Returns the run; None where none is due.

    `is_forced` archives all that is past the hot window, however little. Raises `RunLost` and
    `StorageError`; a later call tries again.
    """
    run = _claim(channel_id, is_forced)
    if run is not None:
        trigger_failpoint("archive.claimed", run.pk)
        _attempt(run)
    return run


# Claim --------------------------------------------------------------------------------------------


def unfinished_erasures(channel_id: int | OuterRef) -> QuerySet[Erasure]:
    return Erasure.objects.filter(channel_id=channel_id, finished_at=None)


@transaction.atomic
def _claim(channel_id: int, is_forced: bool) -> ArchiveRun | None:
    """Returns the next attempt at the channel's run; None where none is due or another has it."""
    watermark = fetch_watermark()
    consent.lock_shared(channel_id)  # an erasure that begins now sees the run
    if unfinished_erasures(channel_id).exists():
        return None
    state = lock_state(channel_id)
    run = ArchiveRun.objects.filter(channel=channel_id, state=ArchiveRun.State.WRITING).first()
    start = FeedPosition(state.xid, state.event_id)
    attempt = run.attempt + 1 if run else 1
    limit = max(RUN_ROWS >> min(attempt - 1, 4), 1)  # attempts that died may have had too much
    end = _find_end(channel_id, start, watermark, limit, is_forced or run is not None)
    if end is None:
        if run is not None:
            ArchiveRun.objects.filter(pk=run.pk, lease_until__lte=Now()).delete()
        return None
    return claim_run(channel_id, start, end)


def lock_state(channel_id: int) -> ArchiveState:
    """Returns the channel's state, which no other transaction changes until this one ends."""
    ArchiveState.objects.get_or_create(pk=channel_id)
    return ArchiveState.objects.select_for_update().get(pk=channel_id)


def claim_run(channel_id: int, start: FeedPosition, end: FeedPosition) -> ArchiveRun | None:
    """Takes over the channel's unfinished run, or begins one; None while an attempt owns it.

    Call `lock_state` before.
    """
    positions = {"from_xid": start.xid, "from_id": start.id, "to_xid": end.xid, "to_id": end.id}
    times = {"started_at": Now(), "lease_until": Now() + LEASE}
    run = ArchiveRun.objects.filter(channel=channel_id, state=ArchiveRun.State.WRITING).first()
    if run is None:
        run = ArchiveRun.objects.create(
            channel_id=channel_id, lease_until=read_clock(), **positions
        )
        ArchiveRun.objects.filter(pk=run.pk).update(**times)
    else:
        lapsed = ArchiveRun.objects.filter(pk=run.pk, lease_until__lte=Now())
        if not lapsed.update(attempt=run.attempt + 1, **positions, **times):
            return None
    run.refresh_from_db()
    return run


@transaction.atomic
def claim_rewriting(channel_id: int) -> ArchiveRun | None:
    """Takes the channel's files to change them, without a range; None while an attempt has them."""
    state = lock_state(channel_id)
    position = FeedPosition(state.xid, state.event_id)
    return claim_run(channel_id, position, position)


def _find_end(
    channel_id: int, start: FeedPosition, watermark: int, limit: int, is_forced: bool
) -> FeedPosition | None:
    """Returns the last position of the next range; None where too little is past the hot window.

    A range has at most `limit` events, and those of about a month of arrival.
    """
    rows = reader.select_after(
        StoredEvent.objects.filter(channel_id=channel_id).only("xid", "received_at"),
        start,
        watermark,
    )
    first = _fetch_first(rows)
    cutoff = find_cutoff()
    if first is None or first.received_at >= cutoff:
        return None
    # a day more: around midnight events of two months arrive side by side
    month_end = _next_month(first.received_at + timedelta(days=1))
    last = _fetch_first(rows[limit - 1 : limit])
    stop_rows = rows.filter(received_at__gte=min(cutoff, month_end))
    if last is not None:
        stop_rows = stop_rows.filter(xid__lte=last.xid)
    stop = _fetch_first(stop_rows)
    if stop is not None and (last is None or (stop.xid, stop.pk) <= (last.xid, last.pk)):
        before = reader.IsAfterPosition(Value(stop.xid, XidField()), Value(stop.pk), "xid", "id")
        last = _fetch_first(rows.filter(before).order_by("-xid", "-id"))
        is_whole = month_end <= cutoff
    else:
        is_whole = last is not None or month_end <= cutoff
        last = last or _fetch_first(rows.order_by("-xid", "-id"))
    if last is None:
        return None
    if not (is_forced or is_whole) and rows.filter(xid__lte=last.xid)[:MIN_ROWS].count() < MIN_ROWS:
        return None
    return FeedPosition(last.xid, last.pk)


def measure_lag(channel_id: int) -> timedelta:
    """Returns for how long the channel's oldest event that is not archived has been due."""
    state = ArchiveState.objects.filter(pk=channel_id).first()
    start = FeedPosition(state.xid, state.event_id) if state else START
    rows = reader.select_after(StoredEvent.objects.filter(channel_id=channel_id), start)
    first = _fetch_first(rows.only("received_at"))
    return max(find_cutoff() - first.received_at, timedelta()) if first else timedelta()


def find_cutoff() -> datetime:
    return read_clock() - timedelta(days=settings.EXHAUST_ARCHIVE_AFTER_DAYS)


def _fetch_first(rows: QuerySet[StoredEvent]) -> StoredEvent | None:
    return next(iter(reader.fetch_ordered(rows if rows.query.is_sliced else rows[:1])), None)


def _next_month(moment: datetime) -> datetime:
    year, month = moment.astimezone(UTC).year, moment.astimezone(UTC).month
    return datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)


# Write and register -------------------------------------------------------------------------------


def _attempt(run: ArchiveRun) -> None:
    is_erasing = Exists(unfinished_erasures(OuterRef("channel")))
    keys: list[str] = []
    is_registered = False
    try:
        with Lease(run, ~is_erasing) as lease:
            files = _store_files(run, lease, keys)
            trigger_failpoint("archive.registering", run.pk)
            lease.require()
            _register(run, files)
            is_registered = True
            trigger_failpoint("archive.registered", run.pk)
    finally:
        if not is_registered:
            connection.close()  # an interrupted COPY leaves it unusable
        if not is_registered and not ArchiveFile.objects.filter(key__in=keys).exists():
            release(run, keys)
    log.info(
        "archive.run_finished",
        run=run.pk,
        channel=run.channel_id,
        rows=sum(file.row_count for file in files if file.table == "events"),
    )


def release(run: ArchiveRun, keys: list[str]) -> None:
    """Deletes an attempt's objects and gives its run back. The sweep deletes what stays."""
    for key in keys:
        try:
            objects.purge(key)
        except storage.StorageError as error:
            log.warning("archive.object_orphaned", key=key, error=error)
            break
    own_run(run).delete()


def _store_files(run: ArchiveRun, lease: Lease, keys: list[str]) -> list[ArchiveFile]:
    """Stores the files of the run's range; each key is in `keys` before its upload begins.

    A table is one thread's, with a connection of its own: the rows of one cost PostgreSQL a core.
    """
    from exhaust.archive import write  # it takes a fifth of a second, and few processes archive

    range_ = write.Range(
        run.channel_id,
        FeedPosition(run.from_xid, run.from_id),
        FeedPosition(run.to_xid, run.to_id),
    )
    files: list[ArchiveFile] = []
    errors: list[BaseException] = []

    def store(plans: list["write.FilePlan"]) -> None:
        try:
            for plan in plans:
                key = objects.make_key(plan.table.name, plan.month, run)
                keys.append(key)
                summary = write.Summary()
                blocks = _until_failed(write.write_file(range_, plan, summary), errors)
                file = store_file(run, key, blocks, summary, lease)
                if file.row_count != plan.row_count:
                    log.warning("archive.rows_changed", run=run.pk, rows=file.row_count)
                    raise RunLost
                trigger_failpoint("archive.file_stored", run.pk)
                files.append(file)
        except BaseException as error:  # this thread's caller raises it
            errors.append(error)

    def store_beside(plans: list["write.FilePlan"]) -> None:
        with lease.extend_to_thread():
            store(plans)

    plans = write.plan_files(range_)
    if connection.vendor == "postgresql":
        answers = [plan for plan in plans if plan.table.name == "answers"]
        with ThreadPoolExecutor(1, "archive-answers") as pool:
            beside = pool.submit(copy_context().run, store_beside, answers)
            store([plan for plan in plans if plan not in answers])
        beside.result()
    else:
        store(plans)
    if errors:
        raise errors[0]
    return files


def _until_failed(blocks: Iterator[bytes], errors: list[BaseException]) -> Iterator[bytes]:
    """Yields the blocks. Raises `RunLost` once there are errors, which another thread had."""
    with closing(blocks):  # type: ignore[type-var]
        for block in blocks:
            if errors:
                raise RunLost
            yield block


def store_file(
    run: ArchiveRun, key: str, blocks: Iterator[bytes], summary: "Summary", lease: Lease
) -> ArchiveFile:
    """Stores an object, and returns its row, which is not saved. `summary` grows with `blocks`."""

    def check(blocks: Iterator[bytes]) -> Iterator[bytes]:
        for block in blocks:
            lease.require()
            yield block
        lease.require()

    try:
        stored = objects.store_blocks(key, check(blocks))
    finally:
        blocks.close()  # type: ignore[attr-defined] # ends its query
    return ArchiveFile(
        channel_id=run.channel_id,
        run=run,
        table=key.partition("/")[0],
        key=key,
        row_count=summary.row_count,
        byte_count=stored.byte_count,
        sha256=stored.sha256,
        **summary.list_bounds(),
    )


@transaction.atomic
def _register(run: ArchiveRun, files: list[ArchiveFile]) -> None:
    """Registers the files, and moves the archived position. Raises `RunLost`."""
    consent.lock_shared(run.channel_id)
    if consent.is_erasing(run.channel_id, run.started_at):
        raise RunLost  # the files may hold the person
    state = lock_state(run.channel_id)
    is_ours = own_run(run).update(state=ArchiveRun.State.ARCHIVED, ended_at=Now())
    if not is_ours or (state.xid, state.event_id) != (run.from_xid, run.from_id):
        raise RunLost
    state.xid, state.event_id, state.number = run.to_xid, run.to_id, state.number + 1
    for file in files:
        file.archive_from = state.number
    ArchiveFile.objects.bulk_create(files)
    state.save()
