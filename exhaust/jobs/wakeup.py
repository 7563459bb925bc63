"""Tells workers to look now; a sweep finds what no message came for."""

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
    """Tells a worker that a job of that priority is due."""
    queue = Job.Priority(priority).name.lower()
    enqueue("exhaust.work", queue, queue=queue)


def enqueue(task: str, *args: str, **options: Any) -> None:
    """Sends a task by its name. A broker that is down costs a second at most, never a request:
    the sweep finds the job."""
    try:
        with producers[_publisher_connection()].acquire(block=True, timeout=1) as producer:
            current_app.send_task(task, args=args, producer=producer, retry=False, **options)
    except (KombuError, OSError, TimeoutError) as error:
        log.warning("broker.connection_failed", error=type(error).__name__)


@cache
def _publisher_connection() -> Connection:
    """The publisher's: it would rather give up than wait."""
    options: dict[str, Any] = dict(settings.CELERY_BROKER_TRANSPORT_OPTIONS)
    if not settings.CELERY_BROKER_URL.startswith("filesystem"):
        options |= {
            "socket_connect_timeout": 1,
            "socket_timeout": 1,
            "retry_on_timeout": False,
            "max_retries": 0,
        }
    return current_app.connection_for_write(connect_timeout=1, transport_options=options)
