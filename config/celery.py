"""Celery's application, queues and schedule; the tasks are in `exhaust/tasks.py`."""

import os
import warnings
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.beat import PersistentScheduler
from celery.signals import celeryd_init, setup_logging
from django.conf import settings
from kombu import Exchange, Queue
from kombu.transport import filesystem
from kombu.utils.json import dumps

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
RECONNECT_SECONDS = 2.0


class AtomicFileChannel(filesystem.Channel):
    """Writes messages and tables as files that appear whole.

    kombu 5.7 writes into files that others may already read, and an empty message ends a worker.
    """

    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]
        """Puts a message. Raises `OSError` where the disk is full."""
        name = f"{monotonic() * 1000:.0f}_{uuid4()}.{queue}.msg"
        temporary = Path(self.data_folder_out, f".{name}")
        temporary.write_text(dumps(payload))
        temporary.rename(temporary.with_name(name))

    def _queue_bind(self, exchange: str, *others: Any) -> None:
        table = Path(self.control_folder, f"{exchange}.exchange")
        if not table.exists():
            empty = table.with_name(f".{uuid4()}")
            empty.write_text("[]")
            with suppress(FileExistsError):
                table.hardlink_to(empty)
            empty.unlink()
        super()._queue_bind(exchange, *others)


filesystem.Transport.Channel = AtomicFileChannel


@celeryd_init.connect
def disable_message_restore(**_: Any) -> None:
    """Does not restore unacknowledged messages: the sweep finds the jobs.

    kombu 5.7 would end the whole worker over the attempt while Redis is down.
    """
    from kombu.transport.redis import Channel

    Channel.do_restore = False


@celeryd_init.connect
def pause_between_attempts(**_: Any) -> None:
    """Waits before a worker calls a Redis again that answers but refuses writes.

    celery 5.7 waits only for one that does not answer, and writes ten lines a second to the log.
    """
    from celery.worker.consumer import Consumer

    report = Consumer.on_connection_error_before_connected

    def report_and_wait(self: Any, error: Exception) -> None:
        report(self, error)
        sleep(RECONNECT_SECONDS)

    consumer: Any = Consumer
    consumer.on_connection_error_before_connected = report_and_wait


@celeryd_init.connect
def accept_every_user(**_: Any) -> None:
    """Keeps Celery's warning about root out of the log: it is about pickle, and we read JSON."""
    from celery.exceptions import SecurityWarning

    warnings.filterwarnings("ignore", category=SecurityWarning, module="celery.platforms")


@setup_logging.connect
def keep_own_logging(**_: Any) -> None:
    """Keeps Celery from its own handlers and level; `ingest/logs.py` has both."""


@celeryd_init.connect
def replace_children_lost_without_redis(**_: Any) -> None:
    """Replaces children that died while Redis was down, before the first connection and after.

    The loop that reads from Redis notices the end of a child. Without this, celery 5.7 ends the
    whole worker when Redis is back: after the first connection since it takes a lost child for a
    pool that cannot start, and later since it knows that the child is not watched any more, and
    not that it must be replaced.
    """
    from celery.concurrency import asynpool

    pool_class: Any = asynpool.AsynPool
    track_child = pool_class._track_child_process

    def track_again(pool: Any, child: Any, hub: Any) -> None:
        if getattr(child, "_sentinel_poll", ...) is None:
            del child._sentinel_poll
        track_child(pool, child, hub)

    def start_replacements(pool: Any) -> bool:
        pool.maintain_pool()
        return True

    pool_class.did_start_ok = start_replacements
    pool_class._track_child_process = track_again


@celeryd_init.connect
def replace_queues_of_dead_children(**_: Any) -> None:
    """Gives a new child queues of its own where those of a dead one were not given back.

    celery 5.7 forgets them when a child dies before the worker's first connection. It then finds
    none that are free, and ends the whole worker.
    """
    from celery.concurrency import asynpool

    pool_class: Any = asynpool.AsynPool
    find_free = pool_class.get_process_queues

    def find_or_create(pool: Any) -> Any:
        try:
            return find_free(pool)
        except StopIteration:
            for queues, owner in list(pool._queues.items()):
                if not owner._is_alive():
                    del pool._queues[queues]  # no loop watches them yet
            made = pool.create_process_queues()
            pool._queues[made] = None
            return made

    pool_class.get_process_queues = find_or_create


class WakeupScheduler(PersistentScheduler):
    """Sends a task only when it has work and no message of its kind waits already."""

    def apply_async(self, entry: Any, *_: Any, **__: Any) -> None:
        from django.db import Error, connection

        from exhaust import tasks
        from exhaust.jobs import wakeup

        try:
            with suppress(Error):
                if not tasks.has_work(entry.task):
                    return
            wakeup.enqueue(entry.task)
        finally:
            connection.close()


app = Celery("exhaust")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["exhaust"])
# A worker consumes all queues, or those of `-Q`. A process for each, and none waits for another.
app.conf.task_queues = [
    Queue(name, Exchange(name), routing_key=name)
    for name in ("interactive", "nightly", "deliver", "maintain")
]
app.conf.task_default_queue = "maintain"
app.conf.task_routes = {
    "exhaust.work": "nightly",  # or interactive
    "exhaust.deliver_callbacks": "deliver",
    "exhaust.push_documents": "deliver",
    "exhaust.send_tests": "deliver",
    "exhaust.deliver_files": "deliver",
    "exhaust.send_notices": "deliver",
    "exhaust.sweep": "maintain",
    "exhaust.derive_sessions": "maintain",
    "exhaust.daily_run": "maintain",
    "exhaust.archive_events": "maintain",
    "exhaust.continue_erasures": "maintain",
    "exhaust.delete_withdrawn_files": "maintain",
    "exhaust.keep_last_position": "maintain",
}
app.conf.beat_scheduler = WakeupScheduler
# these two look often, and send no message where there is no work
push_interval = min(1.0, settings.EXHAUST_PUSH_SECONDS / 4)
app.conf.beat_schedule = {
    "sweep": {"task": "exhaust.sweep", "schedule": 5.0},
    "position": {"task": "exhaust.keep_last_position", "schedule": 60.0},
    "push": {"task": "exhaust.push_documents", "schedule": push_interval},
    "derive": {"task": "exhaust.derive_sessions", "schedule": push_interval},
}
