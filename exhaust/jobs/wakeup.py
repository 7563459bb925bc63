"""wakeup"""

import logging
from functools import cache
from typing import Any

from django.conf import settings
from kombu import Connection
from kombu.exceptions import KombuError
from kombu.pools import producers

from config.celery import app
from exhaust.models import Job
from exhaust.tasks import work

log = logging.getLogger(__name__)


def wake_work(priority: int = Job.Priority.INTERACTIVE) -> None:
    """Tells a worker that a job of that priority is due."""
    queue = Job.Priority(priority).name.lower()
    wake(work, queue, queue=queue)


def wake(task: Any, *args: str, **options: Any) -> None:
    """Tells a worker to look now. A broker that is down costs a second at most, never a request:
    the sweep finds the job."""
    try:
        with producers[_connection()].acquire(block=True, timeout=1) as producer:
            task.apply_async(args=args, producer=producer, retry=False, **options)
    except (KombuError, OSError, TimeoutError) as error:
        log.warning("broker.unreachable error=%s", type(error).__name__)


@cache
def _connection() -> Connection:
    """The publisher's: it would rather give up than wait."""
    options: dict[str, Any] = dict(settings.CELERY_BROKER_TRANSPORT_OPTIONS)
    if not settings.CELERY_BROKER_URL.startswith("filesystem"):
        options |= {
            "socket_connect_timeout": 1,
            "socket_timeout": 1,
            "retry_on_timeout": False,
            "max_retries": 0,
        }
    return app.connection_for_write(connect_timeout=1, transport_options=options)
