"""Sends wake-ups to workers. They carry no payload, and the sweep replaces lost ones."""

from functools import cache
from typing import Any

from celery import current_app
from django.conf import settings
from kombu import Connection
from kombu.exceptions import KombuError
from kombu.pools import producers

from exhaust.models import Job
from ingest import logs

log = logs.get_logger(__name__)


def enqueue_work(priority: int = Job.Priority.INTERACTIVE) -> None:
    """Wakes a worker for a due job of that priority."""
    queue = Job.Priority(priority).name.lower()
    enqueue("exhaust.work", queue, queue=queue)


def enqueue(task: str, *args: str, **options: Any) -> None:
    """Sends a task by its name.

    An unreachable broker costs a second at most and raises nothing: the sweep finds the job.
    """
    try:
        with producers[publisher_connection()].acquire(block=True, timeout=1) as producer:
            current_app.send_task(task, args=args, producer=producer, retry=False, **options)
    except (KombuError, OSError, TimeoutError) as error:
        log.warning("broker.connection_failed", error=type(error).__name__)


@cache
def publisher_connection() -> Connection:
    """A connection that gives up after a second instead of retrying."""
    options: dict[str, Any] = dict(settings.CELERY_BROKER_TRANSPORT_OPTIONS)
    if not settings.CELERY_BROKER_URL.startswith("filesystem"):
        options |= {
            "socket_connect_timeout": 1,
            "socket_timeout": 1,
            "retry_on_timeout": False,
            "max_retries": 0,
        }
    return current_app.connection_for_write(connect_timeout=1, transport_options=options)
