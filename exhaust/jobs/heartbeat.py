"""Keeps an attempt's lease from a thread of its own."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from django.db import DatabaseError, connection, connections

from exhaust.failpoints import failpoint
from exhaust.files import parallel_copy, writer
from exhaust.jobs import transitions
from exhaust.models import Job

log = logging.getLogger(__name__)


TICK_SECONDS = 1.0


class Fenced(Exception):
    """Another attempt has this job now; this one must leave no trace."""


class Heartbeat:
    """Keeps a job's lease while the work goes on, from a thread with its own connection."""

    def __init__(self, job: Job, progress: writer.Progress) -> None:
        self._job = job
        self._progress = progress
        self._stop = threading.Event()
        self._renewed = time.monotonic()
        self._statements: parallel_copy.Statements | None = None
        self.lost = False
        self._thread = threading.Thread(target=self._beat, name=f"lease-{job.pk}", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    @contextmanager
    def watching(self, statements: parallel_copy.Statements) -> Iterator[None]:
        """These statements end when the lease is lost."""
        self._statements = statements
        try:
            yield
        finally:
            self._statements = None

    def check(self) -> None:
        """Raises `Fenced` when the lease is gone, or can no longer be known to stand."""
        if self.lost or time.monotonic() - self._renewed > transitions.LEASE.total_seconds():
            raise Fenced

    def _beat(self) -> None:
        try:
            while not self._stop.wait(TICK_SECONDS):
                begun = time.monotonic()
                try:
                    failpoint("heartbeat", self._job.pk)
                    if not transitions.renew(self._job, self._progress.rows):
                        self._lose()
                        return
                    self._renewed = begun
                except DatabaseError:
                    log.warning("lease.not_renewed job=%s", self._job.pk)
                    connection.close()
        finally:
            connections.close_all()

    def _lose(self) -> None:
        """The work is another's, or nobody's: not one more row is worth waiting for."""
        self.lost = True
        statements = self._statements
        if statements is not None:
            statements.cancel_safe(timeout=5)
