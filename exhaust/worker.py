"""The work of a worker beside its tasks: it starts a poller, serves metrics, and releases its jobs.

The poller is a thread of each worker process. It runs jobs and tasks whose wake-up was lost or
waits behind a long task, and sweeps when nothing else does.
"""

import atexit
import os
import threading
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from celery import current_app
from celery.signals import celeryd_after_setup, worker_process_init
from django.db import DatabaseError, Error, connections

from exhaust.files import last_position
from exhaust.jobs import attempt, transitions, wakeup
from exhaust.models import Job
from exhaust.monitoring import metrics
from ingest import logs
from ingest.db import outages

log = logs.get_logger(__name__)
work_lock = threading.Lock()  # held while this process runs a job
_worker_pid = 0  # the parent of a worker's processes


def current_worker_id() -> str:
    """The id of this process's worker, which outlives the process and releases its jobs."""
    return transitions.format_worker_id(_worker_pid or os.getpid())


def poll_loop(stop_event: threading.Event) -> None:
    """Runs overdue jobs and tasks until `stop_event` is set.

    A job that stays due beside an idle process means that messages or the broker are lost. The
    rows are enough to go on.
    """
    queues = set(current_app.amqp.queues.consume_from)
    lowest_priority = Job.Priority.LOW
    if "nightly" not in queues:
        lowest_priority = Job.Priority.INTERACTIVE  # this worker is reserved for them
    running: dict[str, threading.Thread] = {}
    while not stop_event.wait(2):
        try:
            start_overdue_tasks(queues, running)
            if queues & {"interactive", "nightly"}:
                _run_overdue_job(lowest_priority)
        except Error as error:
            log.warning("poller.database_failed", error=error)
        except Exception:
            # the loop goes on: a worker without a broker depends on it
            log.exception("poller.failed")
        finally:
            connections.close_all()


def start_overdue_tasks(queues: Collection[str], running: dict[str, threading.Thread]) -> None:
    """Runs what waits too long in these queues, each in a thread; and the sweep in any worker.

    A thread, since a silent receiver or storage must not hold the poller.
    """
    for kind in [kind for kind, thread in running.items() if not thread.is_alive()]:
        del running[kind]
    routes = current_app.conf.task_routes
    kinds = {task for task, queue in routes.items() if queue in queues} - {"exhaust.work"}
    overdue = wakeup.claim_overdue(kinds - running.keys())
    if wakeup.SWEEP not in {*overdue, *running} and wakeup.claim_stalled_sweep():
        overdue.append(wakeup.SWEEP)
    for kind in overdue:
        log.warning("wakeup.overdue", task=kind)
        running[kind] = threading.Thread(target=_run_task, args=[kind], name=kind, daemon=True)
        running[kind].start()


def _run_task(name: str) -> None:
    try:
        current_app.tasks[name]()
    except Exception:
        log.exception("poller.task_failed", task=name)
    finally:
        connections.close_all()


def _run_overdue_job(lowest_priority: int) -> None:
    if transitions.queue_wait(lowest_priority) <= wakeup.OVERDUE:
        return
    if not work_lock.acquire(blocking=False):
        return
    try:
        job = transitions.claim(lowest_priority=lowest_priority, worker_id=current_worker_id())
        if job is not None:
            log.warning("broker.stalled", job=job)
            wakeup.forget_message(job.priority)
            attempt.run(job)
    finally:
        work_lock.release()


@celeryd_after_setup.connect
def prepare_worker(**_: Any) -> None:
    """Serves metrics, and releases the worker's jobs when it exits. Refuses a database set back.

    Celery sends no signal at the end of a worker whose tasks are still running.
    """
    with suppress(DatabaseError):  # the poller says so
        if fault := last_position.find_fault_at_start():
            raise SystemExit(f"The database is {fault}.")
    outages.log_unreachable(outages.WORKER_PATIENCE_SECONDS)
    atexit.register(release_jobs)
    metrics.start_metrics_server()


@worker_process_init.connect
def start_poller(**_: Any) -> None:
    """Starts the poller in a worker's process."""
    global _worker_pid
    _worker_pid = _worker_pid or os.getppid()
    threading.Thread(
        target=poll_loop, args=[threading.Event()], name="job-poller", daemon=True
    ).start()


@celeryd_after_setup.connect
def start_solo_poller(instance: Any, **_: Any) -> None:
    """Starts the poller in a solo worker, which has no other process."""
    global _worker_pid
    if "solo" in str(instance.pool_cls):
        _worker_pid = os.getpid()
        start_poller()


def release_jobs() -> None:
    """Releases a stopping worker's jobs, so that others need not wait for their leases."""
    try:
        for priority in transitions.release_all(transitions.format_worker_id(os.getpid())):
            wakeup.enqueue_work(priority)
    except Error as error:
        log.warning("worker.release_failed", error=error)
