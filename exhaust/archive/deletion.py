"""Deletes files that readers no longer need, and objects that no row names."""

from collections.abc import Iterator, Sequence
from itertools import islice

from django.db import transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from exhaust.archive import objects
from exhaust.archive.lease import LEASE, RunLost, own_run
from exhaust.archive.runs import claim_run, lock_state
from exhaust.failpoints import trigger_failpoint
from exhaust.metrics import ARCHIVE_ORPHANS
from exhaust.models import ArchiveFile, ArchiveRun, ArchiveState
from ingest import logs
from ingest.feed.pruning import fetch_prune_state
from ingest.feed.values import FeedPosition

log = logs.get_logger(__name__)
_BATCH_KEYS = 500


def current_files(channel_id: int) -> QuerySet[ArchiveFile]:
    """The files that readers use, without their filters of devices."""
    rows = ArchiveFile.objects.filter(channel=channel_id, archive_until=None)
    return rows.defer("device_filter").order_by("pk")


def replace_files(
    channel_id: int, old: QuerySet[ArchiveFile], new: list[ArchiveFile] | None = None
) -> int:
    """Takes files away from readers and gives them others, in the caller's transaction.

    Returns how many went. `delete_replaced` deletes their objects.
    """
    state = lock_state(channel_id)
    count = old.filter(channel=channel_id, archive_until=None).update(
        archive_until=state.number + 1
    )
    if count:
        for file in new or ():
            file.archive_from = state.number + 1
        ArchiveFile.objects.bulk_create(new or ())
        ArchiveState.objects.filter(pk=channel_id).update(number=state.number + 1)
    return count


@transaction.atomic
def swap_files(run: ArchiveRun, old: Sequence[ArchiveFile], new: list[ArchiveFile]) -> None:
    """Puts files in the place of others. Raises `RunLost` where the attempt does not own both."""
    lock_state(run.channel_id)  # first: everyone locks in this order
    if not own_run(run).update(lease_until=Now() + LEASE):
        raise RunLost
    rows = ArchiveFile.objects.filter(pk__in=[file.pk for file in old])
    if replace_files(run.channel_id, rows, new) != len(old):
        raise RunLost


def delete_replaced(channel_id: int) -> Iterator[int]:
    """Deletes the objects of replaced files; yields 1 for each. Raises `StorageError`."""
    for file in ArchiveFile.objects.filter(channel=channel_id, archive_until__isnull=False):
        objects.purge(file.key)
        trigger_failpoint("archive.purged", channel_id)
        file.delete()
        yield 1


def delete_pruned(channel_id: int) -> Iterator[int]:
    """Deletes the files all of whose events are pruned; yields 1 for each.

    Raises `StorageError`; the next call goes on.
    """
    if (prune_state := fetch_prune_state(channel_id)) is not None:
        is_pruned = Q(last_xid__lt=prune_state.xid) | Q(
            last_xid=prune_state.xid, last_id__lte=prune_state.event_id
        )
        with transaction.atomic():
            replace_files(channel_id, ArchiveFile.objects.filter(is_pruned))
    yield from delete_replaced(channel_id)


def sweep(channel_id: int | None = None) -> Iterator[int]:
    """Deletes objects that no row names and that no attempt is writing, of one channel or of all.

    Yields how many of a few hundred keys. Raises `StorageError`.
    """
    keys = iter(objects.list_keys(channel_id))
    while batch := list(islice(keys, _BATCH_KEYS)):
        unreferenced = find_unreferenced(batch)
        for key in unreferenced:
            objects.purge(key)
            ARCHIVE_ORPHANS.inc()
            log.warning("archive.orphan_deleted", key=key)
        yield len(unreferenced)


def find_unreferenced(keys: list[str]) -> list[str]:
    """Returns the keys that no row names and no attempt is writing."""
    parts = {key: part for key in keys if (part := objects.parse_key(key))}
    run_ids = {part.run_id for part in parts.values()}
    attempts = set(  # first: a registration meanwhile adds rows of files
        ArchiveRun.objects.filter(pk__in=run_ids, state=ArchiveRun.State.WRITING).values_list(
            "pk", "attempt"
        )
    )
    named = set(ArchiveFile.objects.filter(key__in=parts).values_list("key", flat=True))
    return [
        key
        for key, part in sorted(parts.items())
        if key not in named and (part.run_id, part.attempt) not in attempts
    ]


def drop() -> Iterator[int]:
    """Deletes all files and the record of the archive; yields 1 for each file.

    Raises `StorageError`; the next call goes on. Skips a channel that an attempt is archiving.
    """
    for channel_id in ArchiveState.objects.order_by("pk").values_list("pk", flat=True):
        with transaction.atomic():
            state = lock_state(channel_id)
            position = FeedPosition(state.xid, state.event_id)
            run = claim_run(channel_id, position, position)
            if run is None:
                log.warning("archive.drop_skipped", channel=channel_id)
                continue
            replace_files(channel_id, ArchiveFile.objects.all())
            ArchiveState.objects.filter(pk=channel_id).update(xid=0, event_id=0)
        yield from delete_replaced(channel_id)
        ArchiveRun.objects.filter(channel=channel_id).delete()
        ArchiveState.objects.filter(pk=channel_id).delete()
    list(sweep())
