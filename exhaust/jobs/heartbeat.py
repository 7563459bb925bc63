"""Renews an attempt's lease from a thread of its own."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from django.conf import settings
from django.db import Error, connection, connections

from exhaust.failpoints import trigger_failpoint
from exhaust.files import parallel_copy, storage, writer
from exhaust.jobs import transitions
from exhaust.models import Job
from ingest import logs

log = logs.get_logger(__name__)
HEARTBEAT_SECONDS = 1.0


class LeaseLost(Exception):
    """Another attempt has claimed the job; this one must leave no trace."""


class Heartbeat:
    """Renews a job's lease every second, over its own database connection.

    When the lease is lost, it ends the attempt's queries and its call to the storage.
    """

    def __init__(self, job: Job, progress: writer.Progress) -> None:
        self._job = job
        self._progress = progress
        self._stopped = threading.Event()
        self._last_renewed = time.monotonic()
        self._queries: parallel_copy.CancellableQueries | None = None
        self.call_limit = storage.CallLimit(settings.EXHAUST_MAX_SECONDS)
        self.is_lost = False
        self._thread = threading.Thread(
            target=self._renew_until_stopped, name=f"lease-{job.pk}", daemon=True
        )

    def __enter__(self) -> "Heartbeat":
        self.call_limit.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()
        self.call_limit.__exit__(error_type, error, trace)

    @contextmanager
    def cancel_on_loss(self, queries: parallel_copy.CancellableQueries) -> Iterator[None]:
        """Cancels these queries when the lease is lost."""
        self._queries = queries
        try:
            yield
        finally:
            self._queries = None

    def require_lease(self) -> None:
        """Raises `LeaseLost` when the lease is lost, or was not renewed in time."""
        if self.is_lost or self._is_overdue():
            raise LeaseLost

    def _is_overdue(self) -> bool:
        return time.monotonic() - self._last_renewed > transitions.LEASE.total_seconds()

    def _renew_until_stopped(self) -> None:
        try:
            while not self._stopped.wait(HEARTBEAT_SECONDS):
                started = time.monotonic()
                try:
                    trigger_failpoint("heartbeat", self._job.pk)
                    if not transitions.renew(self._job, self._progress.rows):
                        self._mark_lost()
                        return
                    self._last_renewed = started
                except Exception as error:  # this thread ends with its attempt, and never before
                    log.warning(
                        "lease.renewal_failed",
                        job=self._job,
                        error=error,
                        exc_info=not isinstance(error, Error),
                    )
                    with suppress(Error):
                        connection.close()
                    if self._is_overdue():
                        self._mark_lost()
                        return
        finally:
            connections.close_all()

    def _mark_lost(self) -> None:
        """Cancels what the attempt waits for: its result is no longer needed."""
        self.is_lost = True
        self.call_limit.end()
        queries = self._queries
        if queries is not None:
            queries.cancel_all(timeout=5)
