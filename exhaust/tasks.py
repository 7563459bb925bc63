"""Celery's side: a message says "look now", and what there is to do stands in the rows."""

from celery import shared_task
from celery.signals import celeryd_after_setup, worker_process_init

from exhaust.delivery import callbacks, pump
from exhaust.files import orphans, storage
from exhaust.jobs import attempt, schedules, transitions, wakeup
from exhaust.maintenance import daily, retention
from exhaust.models import Job
from exhaust.worker import (
    _current_worker_id,
    _is_working,
    _prepare_worker,
    _start_poller,
    _start_solo_poller,
)
from ingest import logs
from ingest.auth import failures
from ingest.derive import deriver
from ingest.privacy import erasure

log = logs.get_logger(__name__)


@shared_task(name="exhaust.work")
def work(queue: str = "nightly") -> None:
    """Claims the next due job and makes its file; then says that there may be more.

    What came by the queue `interactive` makes nothing that can wait.
    """
    with _is_working:
        job = transitions.claim(
            lowest_priority=Job.Priority[queue.upper()], worker_id=_current_worker_id()
        )
        if job is not None:
            attempt.run(job)
    if job is not None:
        wakeup.enqueue_work(job.priority)


@shared_task(name="exhaust.sweep")
def sweep() -> None:
    """Finds what lost messages and dead workers left, and makes what schedules ask for."""
    if expired_ids := transitions.fail_expired():
        try:
            orphans.remove_for_jobs(*expired_ids)
        except storage.StorageError:
            log.warning("storage.object_orphaned", jobs=expired_ids)  # the daily run finds it
    for priority in (
        transitions.claimable_jobs().order_by().values_list("priority", flat=True).distinct()
    ):
        wakeup.enqueue_work(priority)
    if callbacks.find_due().exists():
        wakeup.enqueue("exhaust.deliver_callbacks")
    if pump.find_due().exists():
        wakeup.enqueue("exhaust.push_documents")
    if daily.is_due():
        wakeup.enqueue("exhaust.daily_run")
    if erasure.unfinished_erasures().exists():
        wakeup.enqueue("exhaust.continue_erasures")
    retention.delete_withdrawn_files()
    schedules.submit_due()
    failures.roll_up()


@shared_task(name="exhaust.daily_run")
def daily_run() -> None:
    """The day's run, if nobody has it."""
    daily.run_daily()


@shared_task(name="exhaust.continue_erasures")
def continue_erasures() -> None:
    """Goes on with erasures, for about 20 s; then says that there may be more."""
    if erasure.resume(seconds=20):
        wakeup.enqueue("exhaust.continue_erasures")


@shared_task(name="exhaust.deliver_callbacks")
def deliver_callbacks() -> None:
    """Tells receivers that jobs have ended, for 20 s at most; then says that there may be more."""
    if callbacks.deliver_due(seconds=5):
        wakeup.enqueue("exhaust.deliver_callbacks")


@shared_task(name="exhaust.push_documents")
def push_documents() -> None:
    """Pushes to destinations, for 45 s at most; then says that there may be more."""
    if pump.deliver_due(seconds=15):
        wakeup.enqueue("exhaust.push_documents")


@shared_task(name="exhaust.derive_sessions")
def derive_sessions() -> None:
    """Brings sessions and users up to what arrived; what is left over is the next one's."""
    deriver.derive_all(seconds=8)


# Without messages ---------------------------------------------------------------------------------


celeryd_after_setup.connect(_prepare_worker)
worker_process_init.connect(_start_poller)
celeryd_after_setup.connect(_start_solo_poller)
