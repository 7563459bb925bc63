"""Celery's tasks. Messages carry no payload; workers claim due work from the database."""

from datetime import timedelta
from typing import Any

from celery import Task, shared_task

from exhaust.archive import due
from exhaust.archive import objects as archive_objects
from exhaust.delivery import callbacks, notices, pump, receiver_tests
from exhaust.files import last_position, orphans, storage
from exhaust.jobs import attempt, file_delivery, schedules, transitions, wakeup, withdrawal
from exhaust.maintenance import daily, retention
from exhaust.models import Job
from exhaust.worker import current_worker_id, work_lock
from ingest import logs
from ingest.audit import reads
from ingest.auth import failures
from ingest.derive import deriver
from ingest.privacy import consent, erasure

log = logs.get_logger(__name__)
SWEEP_STORAGE_SECONDS = 10
WATCH = "notices.watch"  # the look for what no other code notices as it happens
WATCH_EVERY = timedelta(minutes=5)
ARCHIVE_EVERY = timedelta(hours=1)
STALLED_AFTER = {
    "exhaust.derive_sessions": timedelta(seconds=20),
    "exhaust.keep_last_position": timedelta(seconds=120),
}


class WokenTask(Task):  # type: ignore[type-arg]
    """A task of which one message at a time waits."""

    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        wakeup.record_start(":".join((self.name, *args)))


@shared_task(name="exhaust.work", base=WokenTask)
def work(queue: str = "nightly") -> None:
    """Runs the next due job, and wakes workers for more: at its start and at its end.

    The queue `interactive` runs interactive jobs only.
    """
    is_interactive = queue == Job.Priority.INTERACTIVE.queue
    lowest_priority = Job.Priority.INTERACTIVE if is_interactive else Job.Priority.LOW
    with work_lock:
        job = transitions.claim(lowest_priority=lowest_priority, worker_id=current_worker_id())
        if job is None:
            return
        wakeup.enqueue_work(lowest_priority)
        attempt.run(job)
    wakeup.enqueue_work(job.priority)


@shared_task(name="exhaust.sweep", base=WokenTask)
def sweep() -> None:
    """Finds the work of lost messages and lost workers, and submits due schedules."""
    wakeup.note_sweep()
    expired_ids = transitions.fail_expired()
    for priority in (
        transitions.claimable_jobs().order_by().values_list("priority", flat=True).distinct()
    ):
        wakeup.enqueue_work(priority)
    if callbacks.find_due().exists():
        wakeup.enqueue("exhaust.deliver_callbacks")
    if pump.find_due().exists():
        wakeup.enqueue("exhaust.push_documents")
    if receiver_tests.find_due().exists():
        wakeup.enqueue("exhaust.send_tests")
    if file_delivery.is_waiting():
        wakeup.enqueue("exhaust.deliver_files")
    if notices.find_due().exists() or is_watch_due():
        wakeup.enqueue("exhaust.send_notices")
    if daily.is_due():
        wakeup.enqueue("exhaust.daily_run")
    if archive_objects.is_enabled() and not wakeup.has_run("exhaust.archive_events", ARCHIVE_EVERY):
        wakeup.enqueue("exhaust.archive_events")
    if erasure.unfinished_erasures().exists():
        wakeup.enqueue("exhaust.continue_erasures")
    if consent.find_marked().exists() or retention.withdrawn_files().exists():
        wakeup.enqueue("exhaust.delete_withdrawn_files")
    for task, after in STALLED_AFTER.items():  # Celery's schedule does not run
        if wakeup.is_stalled(task, after):
            wakeup.enqueue(task)
    schedules.submit_due()
    if schedules.find_due().exists():  # the next sweep goes on with them at once
        wakeup.enqueue("exhaust.sweep")
    failures.roll_up()
    reads.roll_up()
    wakeup.delete_drafts()
    with storage.CallLimit(SWEEP_STORAGE_SECONDS):  # last: nothing else waits for the storage
        try:
            orphans.remove_for_jobs(*expired_ids)
        except storage.StorageError as error:
            log.warning(
                "storage.object_orphaned", jobs=expired_ids, error=error
            )  # the daily run deletes them


@shared_task(name="exhaust.daily_run", base=WokenTask)
def daily_run() -> None:
    """Runs the daily maintenance unless another process has begun it."""
    daily.run_daily()


@shared_task(name="exhaust.archive_events", base=WokenTask)
def archive_events() -> None:
    """Archives a range of each channel that is due, then wakes a worker for the next ranges."""
    if archive_objects.is_enabled() and due.archive_due():
        wakeup.enqueue("exhaust.archive_events")


@shared_task(name="exhaust.continue_erasures", base=WokenTask)
def continue_erasures() -> None:
    """Continues erasures for about 20 s, then wakes a worker for the rest."""
    if erasure.resume(seconds=20):
        wakeup.enqueue("exhaust.continue_erasures")


@shared_task(name="exhaust.delete_withdrawn_files", base=WokenTask)
def delete_withdrawn_files() -> None:
    """Finds and deletes the files that hold a participant who withdrew consent or was erased."""
    withdrawal.revoke_marked_files()
    with storage.CallLimit(SWEEP_STORAGE_SECONDS):
        retention.delete_withdrawn_files()


@shared_task(name="exhaust.deliver_callbacks", base=WokenTask)
def deliver_callbacks() -> None:
    """Delivers callbacks for at most 20 s, then wakes a worker for the rest."""
    if callbacks.deliver_due(seconds=5):
        wakeup.enqueue("exhaust.deliver_callbacks")


@shared_task(name="exhaust.push_documents", base=WokenTask)
def push_documents() -> None:
    """Pushes documents for at most 45 s, then wakes a worker for the rest."""
    if pump.deliver_due(seconds=15):
        wakeup.enqueue("exhaust.push_documents")


@shared_task(name="exhaust.send_tests", base=WokenTask)
def send_tests() -> None:
    """Sends tests of destinations for at most 15 s, then wakes a worker for the rest."""
    if receiver_tests.deliver_due(seconds=5):
        wakeup.enqueue("exhaust.send_tests")


@shared_task(name="exhaust.deliver_files", base=WokenTask)
def deliver_files() -> None:
    """Delivers files until nothing is due; one process at a time, with a thread for each."""
    file_delivery.deliver_due()


@shared_task(name="exhaust.send_notices", base=WokenTask)
def send_notices() -> None:
    """Sends notices for at most 10 s, and looks every five minutes for what to tell."""
    if is_watch_due():
        wakeup.record_start(WATCH)
        notices.announce_rejections()
        if wakeup.take_gap():
            notices.announce_stall()
    if notices.deliver_due(seconds=5):
        wakeup.enqueue("exhaust.send_notices")


def is_watch_due() -> bool:
    """Returns whether the last look was five minutes ago, and anyone could be told."""
    return notices.has_readers() and not wakeup.has_run(WATCH, WATCH_EVERY)


@shared_task(name="exhaust.keep_last_position", base=WokenTask)
def keep_last_position() -> None:
    """Stores the feed's last position, and notices that the database was set back."""
    try:
        last_position.keep_last_position()
    except storage.StorageError as error:
        log.warning("storage.position_not_kept", error=error)


@shared_task(name="exhaust.derive_sessions", base=WokenTask)
def derive_sessions() -> None:
    """Derives sessions and users from new events; the next run continues."""
    deriver.derive_all(seconds=1)


_WORK_CHECKS = {
    "exhaust.push_documents": lambda: pump.find_due().exists(),
    "exhaust.derive_sessions": deriver.has_work,
}


def has_work(task: str) -> bool:
    """Returns whether a scheduled task has any, where that is quick to see; else True."""
    return _WORK_CHECKS.get(task, lambda: True)()
