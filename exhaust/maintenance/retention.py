"""Deletes files, jobs, deliveries, events and rejected events past their retention."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q, QuerySet

from exhaust.archive import deletion
from exhaust.datasets import DATASETS
from exhaust.delivery import batches, destinations
from exhaust.files import storage
from exhaust.jobs import withdrawal
from exhaust.models import Callback, DeadLetter, Destination, File, Job, Link
from ingest import logs
from ingest.db.clock import read_clock
from ingest.feed import pruning
from ingest.models import Channel, RejectedDay, RejectedEvent, StoredEvent

log = logs.get_logger(__name__)
JOB_ROWS = 500
REJECTED_ROWS = 1000
ENDED = (Job.Status.SUCCESS, Job.Status.FAILED, Job.Status.CANCELLED)


def expired_files() -> "QuerySet[File]":
    """Files older than `EXHAUST_FILE_RETENTION_DAYS` that still exist."""
    created_before = read_clock() - timedelta(days=settings.EXHAUST_FILE_RETENTION_DAYS)
    return File.objects.filter(deleted_at__isnull=True, created_at__lt=created_before)


def delete_expired_files() -> Iterator[int]:
    """Deletes files older than `EXHAUST_FILE_RETENTION_DAYS`; their links answer 410.

    Yields 1 for each deleted file, and 0 for each that the next run tries again.
    """
    yield from _delete_files(expired_files())


def withdrawn_files() -> "QuerySet[File]":
    """Withdrawn files that still exist."""
    return File.objects.filter(deleted_at__isnull=True, withdrawn_at__isnull=False)


def delete_withdrawn_files() -> int:
    """Deletes withdrawn files; returns how many."""
    return sum(_delete_files(withdrawn_files()))


def delete_now(job: Job, username: str) -> bool:
    """Deletes the files of a job for a user; False where none is available.

    The next sweep deletes what the storage does not delete now.
    """
    if not withdrawal.withdraw_by_user(job, username):
        return False
    list(_delete_files(withdrawn_files().filter(job=job)))
    return True


def _delete_files(files: QuerySet[File]) -> Iterator[int]:
    for file in files.iterator():
        try:
            storage.get_storage().delete(file.key)
        except storage.StorageError as error:
            log.exception("file.deletion_failed", file=file.pk)
            yield 0
            if isinstance(error, storage.StorageOutage):  # the next one would wait as long
                return
        else:
            File.objects.filter(pk=file.pk).update(deleted_at=read_clock())
            yield 1


def expired_jobs() -> "QuerySet[Job]":
    """Jobs that ended before `EXHAUST_JOB_RETENTION_DAYS` and have neither a file nor a callback
    that is still to be delivered."""
    files = File.objects.filter(job=OuterRef("pk"), deleted_at=None)
    callbacks = Callback.objects.filter(job=OuterRef("pk"), status=Callback.Status.FAILING)
    return Job.objects.filter(
        ~Exists(files), ~Exists(callbacks), status__in=ENDED, completed_at__lt=_job_cutoff()
    )


def delete_expired_jobs() -> Iterator[int]:
    """Deletes the records of expired jobs: files, links, callbacks, transitions.

    Yields how many, at most `JOB_ROWS` a commit.
    """
    for channel_id in Channel.objects.order_by("id").values_list("pk", flat=True):
        expired = expired_jobs().filter(channel=channel_id, submitted_at__lt=_job_cutoff())
        count = JOB_ROWS
        while count == JOB_ROWS:
            with transaction.atomic():
                locked = expired.select_for_update(of=("self",)).order_by("submitted_at", "id")
                ids = list(locked.values_list("pk", flat=True)[:JOB_ROWS])
                Link.objects.filter(file__job__in=ids).delete()
                File.objects.filter(job__in=ids).delete()
                Job.objects.filter(pk__in=ids).delete()
            count = len(ids)
            yield count


def delete_expired_dead_letters() -> int:
    """Deletes dead letters that were delivered before `EXHAUST_FILE_RETENTION_DAYS`, and others
    from before `EXHAUST_JOB_RETENTION_DAYS`; returns how many."""
    delivered_before = read_clock() - timedelta(days=settings.EXHAUST_FILE_RETENTION_DAYS)
    is_delivered = Q(delivered_at__lt=delivered_before)
    return DeadLetter.objects.filter(is_delivered | Q(created_at__lt=_job_cutoff())).delete()[0]


def _job_cutoff() -> datetime:
    return read_clock() - timedelta(days=settings.EXHAUST_JOB_RETENTION_DAYS)


def expired_rejections() -> "QuerySet[RejectedEvent]":
    """Rejected events that arrived before `EXHAUST_REJECTED_RETENTION_DAYS`."""
    return RejectedEvent.objects.filter(received_at__lt=_rejected_cutoff())


def delete_expired_rejections() -> Iterator[int]:
    """Deletes rejected events older than `EXHAUST_REJECTED_RETENTION_DAYS`.

    Yields how many, at most `REJECTED_ROWS` a commit.
    """
    RejectedDay.objects.filter(day__lt=_rejected_cutoff().date()).delete()
    for channel_id in Channel.objects.order_by("id").values_list("pk", flat=True):
        expired = expired_rejections().filter(channel=channel_id).order_by("received_at")
        while ids := list(expired.values_list("pk", flat=True)[:REJECTED_ROWS]):
            RejectedEvent.objects.filter(pk__in=ids).only("pk").delete()  # reads no bodies
            yield len(ids)


def _rejected_cutoff() -> datetime:
    return read_clock() - timedelta(days=settings.EXHAUST_REJECTED_RETENTION_DAYS)


def event_cutoff() -> datetime | None:
    """Events that arrived before this moment are expired; None where they never expire."""
    days = settings.EXHAUST_EVENT_RETENTION_DAYS
    return read_clock() - timedelta(days=days) if days else None


def count_expired_events() -> dict[str, int]:
    """About how many events a pruning would delete, by channel; reads all rows."""
    if (cutoff := event_cutoff()) is None:
        return {}
    expired = StoredEvent.objects.filter(received_at__lt=cutoff).values_list("channel__identifier")
    return dict(expired.order_by("channel__identifier").annotate(count=Count("id")))


def lagging_destinations(channels: Iterable[str]) -> list[str]:
    """Destinations whose unsent events the next pruning would delete, as `channel/name`."""
    cutoff = event_cutoff()
    pushed = Destination.objects.filter(
        channel__identifier__in=channels, resource=Destination.Resource.EVENTS, disabled_reason=""
    ).select_related("channel")
    return [
        f"{destination.channel.identifier}/{destination.name}"
        for destination in pushed
        if cutoff and (batches.count_waiting(destination)[1] or cutoff) < cutoff
    ]


def prune_events() -> Iterator[tuple[str, int]]:
    """Deletes events older than `EXHAUST_EVENT_RETENTION_DAYS`; yields channel and count by steps.

    Skips channels whose events a running job reads, until the next run.
    """
    if (cutoff := event_cutoff()) is None:
        return
    for channel in Channel.objects.order_by("id"):
        while not (is_read := is_being_read(channel.pk)):
            with transaction.atomic():
                count = pruning.prune_events(channel.pk, cutoff)
                disabled_count = disable_lagging_destinations(channel.pk) if count else 0
            if disabled_count:
                log.error(
                    "destinations.disabled_by_pruning",
                    channel=channel.pk,
                    destinations=disabled_count,
                )
            if count:
                yield channel.identifier, count
            if count < pruning.PRUNE_ROWS:
                break
        if is_read:
            log.warning("events.pruning_skipped", channel=channel.pk)


def delete_pruned_archive() -> Iterator[int]:
    """Deletes the archive's files all of whose events are pruned; yields 1 for each.

    Raises `storage.StorageError`; the next run goes on.
    """
    for channel_id in Channel.objects.order_by("id").values_list("pk", flat=True):
        yield from deletion.delete_pruned(channel_id)


def is_being_read(channel_id: int) -> bool:
    """Whether a job with a watermark is unfinished: its attempts need the same rows."""
    started_jobs = Job.objects.filter(
        channel=channel_id,
        status__in=(Job.Status.SUBMITTED, Job.Status.PROCESSING),
        watermark__isnull=False,
    )
    return started_jobs.exclude(
        dataset__in=[d.name for d in DATASETS.values() if d.is_derived]
    ).exists()


def disable_lagging_destinations(channel_id: int) -> int:
    """Disables destinations with unsent events among the pruned ones; returns how many.

    Runs in the pruning's transaction, so a pump that reads for one of them loses its claim.
    """
    prune_state = pruning.fetch_prune_state(channel_id)
    if prune_state is None:
        return 0
    is_earlier = Q(cursor_xid__lt=prune_state.xid) | Q(
        cursor_xid=prune_state.xid, cursor_id__lt=prune_state.event_id
    )
    left_behind = Destination.objects.select_for_update().filter(
        is_earlier, channel=channel_id, resource=Destination.Resource.EVENTS, disabled_reason=""
    )
    for destination in left_behind:
        destinations.disable(
            destination,
            f"{pruning.describe_pruning(prune_state)} Some after its cursor were not sent;"
            " rewind it, then resume.",
        )
    return len(left_behind)
