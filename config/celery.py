"""Celery's application and the schedule; the tasks stand in `exhaust/tasks.py`."""

import os
from typing import Any

from celery import Celery
from celery.signals import celeryd_init, setup_logging
from kombu import Exchange, Queue
from kombu.transport.redis import Channel

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

# A wake-up that nobody took needs no way back to its queue: a sweep follows. And kombu 5.7 ends the
# whole worker over the attempt, where Redis is gone.
Channel.do_restore = False


@setup_logging.connect
def log_as_all_do(**_: Any) -> None:
    """Celery has no handlers and no level of its own: `LOG_LEVEL` says, `config/logs.py` writes."""


@celeryd_init.connect
def survive_a_child_that_died_without_redis(**_: Any) -> None:
    """A child's end is noticed by the loop that reads from Redis. Where the child dies while Redis
    is gone, celery 5.7 ends the whole worker when Redis is back: it knows that the child is watched
    no more, and not that it is to be replaced. Watched anew, it is."""
    from celery.concurrency import asynpool

    pool_class: Any = asynpool.AsynPool
    track = pool_class._track_child_process

    def watch(pool: Any, child: Any, hub: Any) -> None:
        if getattr(child, "_sentinel_poll", ...) is None:
            del child._sentinel_poll
        track(pool, child, hub)

    pool_class._track_child_process = watch


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
app.conf.task_routes = {"exhaust.push": "push", "exhaust.work": "nightly"}
app.conf.beat_schedule = {
    # one that waited behind a long job has nothing to add to the next
    "sweep": {"task": "exhaust.sweep", "schedule": 5.0, "options": {"expires": 5}},
    "derive": {"task": "exhaust.derive", "schedule": 10.0, "options": {"expires": 10}},
}
