"""Celery's side: a message says "look now", and what there is to do stands in the rows."""

import atexit
import logging
import os
import threading
from datetime import timedelta
from typing import Any

from celery import shared_task
from celery.signals import celeryd_after_setup, worker_process_init
from django.db import DatabaseError, connections

from config.celery import app
from exhaust.delivery import callbacks, pump
from exhaust.files import orphans, storage
from exhaust.jobs import attempt, schedules, transitions
from exhaust.jobs.wakeup import wake, wake_work
from exhaust.maintenance import daily, retention
from exhaust.models import Job
from exhaust.monitoring import metrics
from ingest.auth import failures
from ingest.derive import deriver
from ingest.privacy import erasure

log = logging.getLogger(__name__)
MISSED = timedelta(seconds=7)  # a sweep should have come by then
_working = threading.Lock()
_worker_pid = 0  # of the process that all of a worker's children belong to


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
        wake(notify)
    if pump.due().exists():
        wake(push)
    if daily.is_due():
        wake(daily_run)
    if erasure.unfinished().exists():
        wake(erase)
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
        wake(erase)


@shared_task(name="exhaust.notify")
def notify() -> None:
    """Tells receivers that jobs have ended, for 20 s at most; then says that there may be more."""
    if callbacks.deliver_due(seconds=5):
        wake(notify)


@shared_task(name="exhaust.push")
def push() -> None:
    """Pushes to sinks, for 45 s at most; then says that there may be more."""
    if pump.run(seconds=15):
        wake(push)


@shared_task(name="exhaust.derive")
def derive() -> None:
    """Brings sessions and users up to what arrived; what is left over is the next one's."""
    deriver.derive_all(seconds=8)


# Without messages ---------------------------------------------------------------------------------


def look(stopped: threading.Event) -> None:
    """Makes, until `stopped`, what no message came for.

    A job that has been due for a while beside an idle process means that messages are lost, or
    that the broker is: the rows are all there is, and all that is needed.
    """
    lowest = Job.Priority.NIGHTLY
    if "nightly" not in app.amqp.queues.consume_from:
        lowest = Job.Priority.INTERACTIVE  # kept free for those who wait
    while not stopped.wait(2):
        try:
            if transitions.oldest_due(lowest) > MISSED and _working.acquire(blocking=False):
                try:
                    if job := transitions.claim(lowest=lowest, holder=_holder()):
                        log.warning("broker.missed job=%s", job.pk)
                        attempt.run(job)
                finally:
                    _working.release()
        except DatabaseError:
            log.warning("lookout.database_failed")
        except Exception:
            log.exception(
                "lookout.failed"
            )  # without it a worker that hears nothing is idle for good
        finally:
            connections.close_all()


def _holder() -> str:
    """The worker: its children may be gone when it gives back what they had."""
    return transitions.holder_named(_worker_pid or os.getpid())


def _watch(**_: Any) -> None:
    global _worker_pid
    _worker_pid = _worker_pid or os.getppid()
    threading.Thread(target=look, args=[threading.Event()], name="lookout", daemon=True).start()


def _watch_solo(instance: Any, **_: Any) -> None:
    """A solo worker has no child that would say that it has begun."""
    global _worker_pid
    if "solo" in str(instance.pool_cls):
        _worker_pid = os.getpid()
        _watch()


def _begin(**_: Any) -> None:
    """Celery's own signal of the end is not sent where tasks are still under way."""
    atexit.register(_give_back)
    metrics.serve()


def _give_back() -> None:
    """A worker that was told to stop does not keep its jobs until their leases lapse."""
    try:
        for priority in transitions.release(transitions.holder_named(os.getpid())):
            wake_work(priority)
    except DatabaseError:
        log.warning("worker.could_not_give_back")


celeryd_after_setup.connect(_begin)
worker_process_init.connect(_watch)
celeryd_after_setup.connect(_watch_solo)
