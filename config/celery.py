"""Celery's application and the schedule; the tasks stand in `exhaust/tasks.py`."""

import os
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.signals import celeryd_init, setup_logging
from kombu import Exchange, Queue
from kombu.transport import filesystem
from kombu.utils.json import dumps

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")


class AtomicFileChannel(filesystem.Channel):
    """Messages and tables as files that appear whole: kombu 5.7 writes into what others may already
    read, and an empty message ends the worker."""

    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]
        """Puts a message; an OSError where the disk refuses it."""
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
    """A wake-up that nobody took needs no way back to its queue: a sweep follows. And kombu 5.7
    ends the whole worker over the attempt, where Redis is gone."""
    from kombu.transport.redis import Channel

    Channel.do_restore = False


@setup_logging.connect
def keep_own_logging(**_: Any) -> None:
    """Celery has no handlers and no level of its own: `EXHAUST_LOG_LEVEL` says, `ingest/logs.py` writes."""


@celeryd_init.connect
def replace_children_lost_without_redis(**_: Any) -> None:
    """A child's end is noticed by the loop that reads from Redis. Where the child dies while Redis
    is gone, celery 5.7 ends the whole worker when Redis is back: it knows that the child is watched
    no more, and not that it is to be replaced. Watched anew, it is."""
    from celery.concurrency import asynpool

    pool_class: Any = asynpool.AsynPool
    track_child = pool_class._track_child_process

    def track_again(pool: Any, child: Any, hub: Any) -> None:
        if getattr(child, "_sentinel_poll", ...) is None:
            del child._sentinel_poll
        track_child(pool, child, hub)

    pool_class._track_child_process = track_again


app = Celery("exhaust")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["exhaust"])
# A worker takes from all of them, or from those of `-Q`: who waits for a file must not wait behind
# the nightly ones, nor for a receiver that is slow.
app.conf.task_queues = [
    Queue(name, Exchange(name), routing_key=name)
    for name in ("default", "interactive", "nightly", "push")
]
app.conf.task_default_queue = "default"
app.conf.task_routes = {"exhaust.push_documents": "push", "exhaust.work": "nightly"}
app.conf.beat_schedule = {
    # one that waited behind a long job has nothing to add to the next
    "sweep": {"task": "exhaust.sweep", "schedule": 5.0, "options": {"expires": 5}},
    "derive": {"task": "exhaust.derive_sessions", "schedule": 10.0, "options": {"expires": 10}},
}
