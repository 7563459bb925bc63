"""The lease of a channel's run: one process at a time changes the channel's files."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any

from django.conf import settings
from django.db import connection, connections
from django.db.models import QuerySet
from django.db.models.functions import Now

from exhaust.files import parallel_copy, storage
from exhaust.files.lease import LeaseRenewal
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


class Lease(LeaseRenewal):
    """Renews a run's lease. It is lost also when `is_allowed` no longer has a row."""

    def __init__(self, run: ArchiveRun, is_allowed: Any = None) -> None:
        super().__init__(f"archive-{run.pk}", LEASE, RENEW_SECONDS)
        self._run = run
        self._is_allowed = is_allowed
        connection.ensure_connection()
        self._statements = parallel_copy.CancellableQueries(connection.connection)
        self._queries = self._statements

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(error_type, error, trace)
        if self.is_lost and error is not None and not isinstance(error, RunLost):
            raise RunLost from error  # of what was ended

    @contextmanager
    def extend_to_thread(self) -> Iterator[None]:
        """Lets another thread work for the attempt, with a database connection of its own."""
        connection.ensure_connection()
        self._statements.add(connection.connection)
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
        if not self.is_held:
            raise RunLost

    def renew(self) -> bool:
        rows = own_run(self._run)
        if self._is_allowed is not None:
            rows = rows.filter(self._is_allowed)
        return bool(rows.update(lease_until=Now() + LEASE))

    def log_failure(self, error: Exception) -> None:
        log.warning("archive.renewal_failed", run=self._run.pk, error=error)
