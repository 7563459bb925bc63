"""Files and events past their life."""

import logging
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Count, Q, QuerySet
from django.utils import timezone

from exhaust.datasets import DATASETS
from exhaust.delivery import batches, destinations
from exhaust.files import storage
from exhaust.models import File, Job, Sink
from ingest.feed import pruning
from ingest.models import Channel, StoredEvent

log = logging.getLogger(__name__)


def expired_files() -> "QuerySet[File]":
    born_before = timezone.now() - timedelta(days=settings.EXHAUST_RETENTION_DAYS)
    return File.objects.filter(deleted_at__isnull=True, created_at__lt=born_before)


def delete_expired() -> Iterator[int]:
    """Deletes files older than `EXHAUST_RETENTION_DAYS`; their links answer 410.

    Gives 1 for each that is gone, 0 for each that the storage kept: the next run tries again.
    """
    yield from _delete(expired_files())


def delete_withdrawn() -> int:
    """Deletes files that nobody may have any more; how many are gone."""
    return sum(_delete(File.objects.filter(deleted_at__isnull=True, withdrawn_at__isnull=False)))


def _delete(files: QuerySet[File]) -> Iterator[int]:
    for file in files.iterator():
        try:
            storage.default().delete(file.key)
        except storage.StorageError:
            log.exception("file.not_deleted file=%s", file.pk)
            yield 0
        else:
            File.objects.filter(pk=file.pk).update(deleted_at=timezone.now())
            yield 1


def before() -> datetime | None:
    """Events that arrived before are past their life; None where they are kept for ever."""
    days = settings.EVENT_RETENTION_DAYS
    return timezone.now() - timedelta(days=days) if days else None


def expired_events() -> dict[str, int]:
    """About how many a pruning would delete, by channel; reads all rows."""
    if (moment := before()) is None:
        return {}
    old = StoredEvent.objects.filter(received_at__lt=moment).values_list("channel__identifier")
    return dict(old.order_by("channel__identifier").annotate(count=Count("id")))


def behind(channels: Iterable[str]) -> list[str]:
    """Sinks of events that the next pruning would leave behind, as `channel/name`."""
    moment = before()
    sinks = Sink.objects.filter(
        channel__identifier__in=channels, resource=Sink.Resource.EVENTS, switched_off=""
    ).select_related("channel")
    return [
        f"{sink.channel.identifier}/{sink.name}"
        for sink in sinks
        if moment and (batches.behind(sink)[1] or moment) < moment
    ]


def prune_events() -> Iterator[tuple[str, int]]:
    """Deletes events older than `EVENT_RETENTION_DAYS` in steps: the channel, and how many.

    A channel whose events a request is being made of is left to the next run.
    """
    if (moment := before()) is None:
        return
    for channel in Channel.objects.order_by("id"):
        while not (held := _is_read(channel.pk)):
            with transaction.atomic():
                count = pruning.prune(channel.pk, moment)
                behind = _leave_behind(channel.pk) if count else 0
            if behind:
                log.error("events.sinks_left_behind channel=%s sinks=%s", channel.pk, behind)
            if count:
                yield channel.identifier, count
            if count < pruning.STEP:
                break
        if held:
            log.warning("events.not_pruned channel=%s", channel.pk)


def _is_read(channel_id: int) -> bool:
    """Whether a request has begun: every attempt at it is to find the same rows."""
    begun = Job.objects.filter(
        channel=channel_id,
        status__in=(Job.Status.SUBMITTED, Job.Status.PROCESSING),
        watermark__isnull=False,
    )
    return begun.exclude(dataset__in=[d.name for d in DATASETS.values() if d.derived]).exists()


def _leave_behind(channel_id: int) -> int:
    """Switches off the sinks that had still to send what was just pruned; how many.

    In the pruning's own commit: whoever reads for one of them now is overtaken.
    """
    begins = pruning.of(channel_id)
    if begins is None:
        return 0
    earlier = Q(xid__lt=begins.xid) | Q(xid=begins.xid, place_id__lt=begins.event_id)
    sinks = Sink.objects.select_for_update().filter(
        earlier, channel=channel_id, resource=Sink.Resource.EVENTS, switched_off=""
    )
    for sink in sinks:
        destinations.switch_off(
            sink,
            f"{pruning.told(begins)} Some behind its cursor were not sent; rewind it, then resume.",
        )
    return len(sinks)
