"""The lease of a channel's run: one process at a time changes the channel's files."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Any

from django.conf import settings
from django.db import Error, connection, connections
from django.db.models import QuerySet
from django.db.models.functions import Now

from exhaust.files import parallel_copy, storage
from exhaust.models import ArchiveRun
from ingest import logs

log = logs.get_logger(__name__)
LEASE = timedelta(seconds=60)
RENEW_SECONDS = 5.0


class RunLost(Exception):
    """Another attempt has the run, or its rows change: this attempt must leave no trace."""


def own_run(run: ArchiveRun) -> "QuerySet[ArchiveRun]":
    """Returns the run's row as long as this attempt owns it."""
    return ArchiveRun.objects.filter(pk=run.pk, attempt=run.attempt, state=ArchiveRun.State.WRITING)


class Lease:
    """Renews a run's lease from a thread of its own while an attempt works.

    When the lease is lost, or `is_allowed` no longer has a row, it ends the attempt's statements
    and its calls to the storage.
    """

    def __init__(self, run: ArchiveRun, is_allowed: Any = None) -> None:
        self._run = run
        self._is_allowed = is_allowed
        self._stopped = threading.Event()
        self._is_lost = False
        self._renewed_at = time.monotonic()
        connection.ensure_connection()
        self._queries = parallel_copy.CancellableQueries(connection.connection)
        self._call_limit = storage.CallLimit(settings.EXHAUST_MAX_SECONDS)
        self._call_limits = [self._call_limit]
        self._thread = threading.Thread(
            target=self._renew_until_stopped, name=f"archive-{run.pk}", daemon=True
        )

    def __enter__(self) -> "Lease":
        self._call_limit.__enter__()
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
        self._call_limit.__exit__(error_type, error, trace)
        if self._is_lost and error is not None and not isinstance(error, RunLost):
            raise RunLost from error  # of what was ended

    @contextmanager
    def extend_to_thread(self) -> Iterator[None]:
        """Lets another thread work for the attempt, with a database connection of its own."""
        connection.ensure_connection()
        self._queries.add(connection.connection)
        limit = storage.CallLimit(settings.EXHAUST_MAX_SECONDS)
        self._call_limits.append(limit)
        try:
            with limit:
                self.require()
                yield
        finally:
            connections.close_all()

    def require(self) -> None:
        """Raises `RunLost` when the lease is lost, or was not renewed in time."""
        if self._is_lost or self._is_overdue():
            raise RunLost

    def _is_overdue(self) -> bool:
        return time.monotonic() - self._renewed_at > LEASE.total_seconds()

    def _renew_until_stopped(self) -> None:
        try:
            while not self._stopped.wait(RENEW_SECONDS):
                started = time.monotonic()
                try:
                    if not self._renew():
                        self._mark_lost()
                        return
                    self._renewed_at = started
                except Error as error:
                    log.warning("archive.renewal_failed", run=self._run.pk, error=error)
                    with suppress(Error):
                        connection.close()
                    if self._is_overdue():
                        self._mark_lost()
                        return
        finally:
            connections.close_all()

    def _renew(self) -> bool:
        rows = own_run(self._run)
        if self._is_allowed is not None:
            rows = rows.filter(self._is_allowed)
        return bool(rows.update(lease_until=Now() + LEASE))

    def _mark_lost(self) -> None:
        self._is_lost = True
        for limit in self._call_limits:
            limit.end()
        self._queries.cancel_all(timeout=5)
