"""Celery's side: a message says "look now", and what there is to do stands in the rows."""

import logging
from functools import cache
from typing import Any

from celery import shared_task
from django.conf import settings
from kombu import Connection
from kombu.exceptions import KombuError
from kombu.pools import producers

from config.celery import app
from exhaust import jobs, retention, runner
from ingest import deriver

log = logging.getLogger(__name__)


@shared_task(name="exhaust.work")
def work() -> None:
    """Claims the oldest due job and makes its file; then says that there may be more."""
    job = jobs.claim()
    if job is not None:
        runner.run(job)
        wake()


@shared_task(name="exhaust.sweep")
def sweep() -> None:
    """Finds what lost messages and dead workers left."""
    jobs.reap()
    if jobs.due().exists():
        wake()


@shared_task(name="exhaust.derive")
def derive() -> None:
    """Brings sessions and users up to what arrived; what is left over is the next one's."""
    deriver.derive_all(seconds=8)


@shared_task(name="exhaust.nightly")
def nightly() -> None:
    """The daily run: whatever is due, and files past their retention."""
    retention.delete_expired()
    sweep()


def wake() -> None:
    """Tells a worker to look now. A broker that is down costs a second at most, never a request:
    the sweep finds the job."""
    try:
        with producers[_connection()].acquire(block=True, timeout=1) as producer:
            work.apply_async(producer=producer, retry=False)
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
