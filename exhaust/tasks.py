"""Celery's side: a message says "look now", and what there is to do stands in the rows."""

import logging

from celery import shared_task
from celery.signals import celeryd_after_setup, worker_process_init

from exhaust.delivery import callbacks, pump
from exhaust.files import orphans, storage
from exhaust.jobs import attempt, schedules, transitions
from exhaust.jobs.wakeup import wake, wake_work
from exhaust.maintenance import daily, retention
from exhaust.models import Job
from exhaust.worker import _begin, _holder, _watch, _watch_solo, _working
from ingest.auth import failures
from ingest.derive import deriver
from ingest.privacy import erasure

log = logging.getLogger(__name__)


@shared_task(name="exhaust.work")
def work(queue: str = "nightly") -> None:
    """Claims the next due job and makes its file; then says that there may be more.

    What came by the queue `interactive` makes nothing that can wait.
    """
    with _working:
        job = transitions.claim(lowest=Job.Priority[queue.upper()], holder=_holder())
        if job is not None:
            attempt.run(job)
    if job is not None:
        wake_work(job.priority)


@shared_task(name="exhaust.sweep")
def sweep() -> None:
    """Finds what lost messages and dead workers left, and makes what schedules ask for."""
    if dead := transitions.reap():
        try:
            orphans.remove_of(*dead)
        except storage.StorageError:
            log.warning("file.left_behind jobs=%s", dead)  # the daily run finds it
    for priority in transitions.due().order_by().values_list("priority", flat=True).distinct():
        wake_work(priority)
    if callbacks.due().exists():
        wake("exhaust.notify")
    if pump.due().exists():
        wake("exhaust.push")
    if daily.is_due():
        wake("exhaust.daily")
    if erasure.unfinished().exists():
        wake("exhaust.erase")
    retention.delete_withdrawn()
    schedules.make_due()
    failures.settle()


@shared_task(name="exhaust.maintenance.daily")
def daily_run() -> None:
    """The day's run, if nobody has it."""
    daily.run()


@shared_task(name="exhaust.erase")
def erase() -> None:
    """Goes on with erasures, for about 20 s; then says that there may be more."""
    if erasure.go_on(seconds=20):
        wake("exhaust.erase")


@shared_task(name="exhaust.notify")
def notify() -> None:
    """Tells receivers that jobs have ended, for 20 s at most; then says that there may be more."""
    if callbacks.deliver_due(seconds=5):
        wake("exhaust.notify")


@shared_task(name="exhaust.push")
def push() -> None:
    """Pushes to sinks, for 45 s at most; then says that there may be more."""
    if pump.run(seconds=15):
        wake("exhaust.push")


@shared_task(name="exhaust.derive")
def derive() -> None:
    """Brings sessions and users up to what arrived; what is left over is the next one's."""
    deriver.derive_all(seconds=8)


# Without messages ---------------------------------------------------------------------------------


celeryd_after_setup.connect(_begin)
worker_process_init.connect(_watch)
celeryd_after_setup.connect(_watch_solo)
