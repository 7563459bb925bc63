"""Renews a lease from a thread of its own, and ends the work of an attempt that has lost it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Self

from django.conf import settings
from django.db import Error, connection, connections

from exhaust.files import parallel_copy, storage


class LeaseRenewal:
    """Renews a lease, over a database connection of its own, while an attempt works.

    When the lease is lost, it ends the attempt's queries and its calls to the storage.
    """

    def __init__(self, name: str, lease: timedelta, period_seconds: float) -> None:
        self.is_lost = False
        self.call_limit = storage.CallLimit(settings.EXHAUST_MAX_SECONDS)
        self._call_limits = [self.call_limit]
        self._lease = lease
        self._period_seconds = period_seconds
        self._queries: parallel_copy.CancellableQueries | None = None
        self._stopped = threading.Event()
        self._renewed_at = time.monotonic()
        self._thread = threading.Thread(target=self._renew_until_stopped, name=name, daemon=True)

    def renew(self) -> bool:
        """Renews the lease by one statement. Returns False when it is lost."""
        raise NotImplementedError

    def log_failure(self, error: Exception) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
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

    @property
    def is_held(self) -> bool:
        """Whether the lease is not lost, and was renewed in time."""
        return not self.is_lost and not self._is_overdue()

    def _is_overdue(self) -> bool:
        return time.monotonic() - self._renewed_at > self._lease.total_seconds()

    def _renew_until_stopped(self) -> None:
        try:
            while not self._stopped.wait(self._period_seconds):
                started = time.monotonic()
                try:
                    if not self.renew():
                        self._mark_lost()
                        return
                    self._renewed_at = started
                except Exception as error:  # this thread ends with its attempt, and never before
                    self.log_failure(error)
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
        for limit in self._call_limits:
            limit.end()
        queries = self._queries
        if queries is not None:
            queries.cancel_all(timeout=5)
