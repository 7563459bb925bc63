"""The thread that looks for due jobs beside a worker, and what a worker gives back at its end."""

import atexit
import logging
import os
import threading
from datetime import timedelta
from typing import Any

from celery import current_app
from django.db import DatabaseError, connections

from exhaust.jobs import attempt, transitions
from exhaust.jobs.wakeup import wake_work
from exhaust.models import Job
from exhaust.monitoring import metrics

log = logging.getLogger(__name__)


MISSED = timedelta(seconds=7)  # a sweep should have come by then


_working = threading.Lock()


_worker_pid = 0  # of the process that all of a worker's children belong to


def look(stopped: threading.Event) -> None:
    """Makes, until `stopped`, what no message came for.

    A job that has been due for a while beside an idle process means that messages are lost, or
    that the broker is: the rows are all there is, and all that is needed.
    """
    lowest = Job.Priority.NIGHTLY
    if "nightly" not in current_app.amqp.queues.consume_from:
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
