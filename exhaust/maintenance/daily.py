"""The daily maintenance: once a day at `EXHAUST_DAILY_HOUR`, or as soon after as a worker runs."""

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F
from django.db.models.functions import Now

from exhaust.archive import deletion, objects
from exhaust.delivery import notices, pump
from exhaust.files import orphans, storage
from exhaust.maintenance import retention
from exhaust.models import DailyRun
from ingest import logs
from ingest.audit import hash_chain
from ingest.db.clock import read_clock
from ingest.feed import daily_counts
from ingest.models import BrowserSession

log = logs.get_logger(__name__)
# a run that was not renewed for so long has died; its finished steps stay done
_STALE_AFTER = timedelta(minutes=10)


def run_day(now: datetime) -> date:
    """The latest day whose run should have begun."""
    local_time = now.astimezone(ZoneInfo(settings.EXHAUST_DAILY_TIMEZONE))
    return (local_time - timedelta(hours=settings.EXHAUST_DAILY_HOUR)).date()


def is_due(now: datetime | None = None) -> bool:
    """Whether the day's run has not begun, or has died."""
    run = DailyRun.objects.filter(day=run_day(now or read_clock())).first()
    return run is None or (run.finished_at is None and run.renewed_at < read_clock() - _STALE_AFTER)


def run_daily(now: datetime | None = None) -> bool:
    """Deletes all that is expired, and orphans; False when the day's run exists already."""
    day = run_day(now or read_clock())
    if not _claim_day(day):
        return False
    daily_run = DailyRun.objects.filter(day=day)
    for count in retention.delete_expired_files():
        daily_run.update(files_deleted=F("files_deleted") + count, renewed_at=Now())
    for _, count in retention.prune_events():
        daily_run.update(events_deleted=F("events_deleted") + count, renewed_at=Now())
    daily_counts.count_all()  # of channels that get no events any more
    if objects.is_enabled():
        try:
            for count in retention.delete_pruned_archive():
                daily_run.update(files_deleted=F("files_deleted") + count, renewed_at=Now())
            for count in deletion.sweep():
                daily_run.update(orphans_deleted=F("orphans_deleted") + count, renewed_at=Now())
        except storage.StorageError:
            log.exception("archive.sweep_failed", day=str(day))  # the next day's run tries again
    for _ in retention.delete_expired_rejections():
        daily_run.update(renewed_at=Now())
    for _ in retention.delete_expired_jobs():
        daily_run.update(renewed_at=Now())
    retention.delete_expired_dead_letters()
    BrowserSession.objects.filter(expire_date__lt=Now()).delete()
    notices.announce_expiring_files()
    notices.purge(read_clock() - timedelta(days=settings.EXHAUST_FILE_RETENTION_DAYS))
    pump.purge_history(read_clock() - timedelta(days=settings.EXHAUST_FILE_RETENTION_DAYS))
    try:
        for count in orphans.remove_all():
            daily_run.update(orphans_deleted=F("orphans_deleted") + count, renewed_at=Now())
    except storage.StorageError:
        log.exception("daily_run.storage_failed", day=str(day))  # the next day's run tries again
    hash_chain.digest_days(now)
    daily_run.update(finished_at=Now())
    log.info("daily_run.finished", day=str(day))
    return True


def _claim_day(day: date) -> bool:
    try:
        with transaction.atomic():
            DailyRun.objects.create(day=day)
    except IntegrityError:
        stale_run = DailyRun.objects.filter(
            day=day, finished_at=None, renewed_at__lt=Now() - _STALE_AFTER
        )
        return bool(stale_run.update(renewed_at=Now()))
    return True
