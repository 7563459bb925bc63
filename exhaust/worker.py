"""The thread that looks for due jobs beside a worker, and what a worker gives back at its end."""

import atexit
import os
import threading
from datetime import timedelta
from typing import Any

from celery import current_app
from django.db import DatabaseError, connections

from exhaust.jobs import attempt, transitions
from exhaust.jobs.wakeup import enqueue_work
from exhaust.models import Job
from exhaust.monitoring import metrics
from ingest import logs

log = logs.get_logger(__name__)


BROKER_STALL = timedelta(seconds=7)  # a sweep should have come by then


_is_working = threading.Lock()


_worker_pid = 0  # of the process that all of a worker's children belong to


def poll_loop(stop_event: threading.Event) -> None:
    """Makes, until `stopped`, what no message came for.

    A job that has been due for a while beside an idle process means that messages are lost, or
    that the broker is: the rows are all there is, and all that is needed.
    """
    lowest_priority = Job.Priority.NIGHTLY
    if "nightly" not in current_app.amqp.queues.consume_from:
        lowest_priority = Job.Priority.INTERACTIVE  # kept free for those who wait
    while not stop_event.wait(2):
        try:
            if transitions.queue_wait(lowest_priority) > BROKER_STALL and _is_working.acquire(
                blocking=False
            ):
                try:
                    if job := transitions.claim(
                        lowest_priority=lowest_priority, worker_id=_current_worker_id()
                    ):
                        log.warning("broker.stalled", job=job.pk)
                        attempt.run(job)
                finally:
                    _is_working.release()
        except DatabaseError:
            log.warning("poller.database_failed")
        except Exception:
            log.exception(
                "poller.failed"
            )  # without it a worker that hears nothing is idle for good
        finally:
            connections.close_all()


def _current_worker_id() -> str:
    """The worker: its children may be gone when it gives back what they had."""
    return transitions.format_worker_id(_worker_pid or os.getpid())


def _start_poller(**_: Any) -> None:
    global _worker_pid
    _worker_pid = _worker_pid or os.getppid()
    threading.Thread(
        target=poll_loop, args=[threading.Event()], name="job-poller", daemon=True
    ).start()


def _start_solo_poller(instance: Any, **_: Any) -> None:
    """A solo worker has no child that would say that it has begun."""
    global _worker_pid
    if "solo" in str(instance.pool_cls):
        _worker_pid = os.getpid()
        _start_poller()


def _prepare_worker(**_: Any) -> None:
    """Celery's own signal of the end is not sent where tasks are still under way."""
    atexit.register(_release_jobs)
    metrics.start_metrics_server()


def _release_jobs() -> None:
    """A worker that was told to stop does not keep its jobs until their leases lapse."""
    try:
        for priority in transitions.release_all(transitions.format_worker_id(os.getpid())):
            enqueue_work(priority)
    except DatabaseError:
        log.warning("worker.release_failed")
