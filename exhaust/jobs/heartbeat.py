"""Renews an attempt's lease from a thread of its own."""

from django.db import Error

from exhaust.failpoints import trigger_failpoint
from exhaust.files import writer
from exhaust.files.lease import LeaseRenewal
from exhaust.jobs import transitions
from exhaust.models import Job
from ingest import logs

log = logs.get_logger(__name__)
HEARTBEAT_SECONDS = 1.0


class LeaseLost(Exception):
    """Another attempt has claimed the job; this one must leave no trace."""


class Heartbeat(LeaseRenewal):
    """Renews a job's lease every second, and reports its progress."""

    def __init__(self, job: Job, progress: writer.Progress) -> None:
        super().__init__(f"lease-{job.pk}", transitions.LEASE, HEARTBEAT_SECONDS)
        self._job = job
        self._progress = progress

    def renew(self) -> bool:
        trigger_failpoint("heartbeat", self._job.pk)
        return transitions.renew(self._job, self._progress.rows)

    def log_failure(self, error: Exception) -> None:
        is_unknown = not isinstance(error, Error)
        log.warning("lease.renewal_failed", job=self._job, error=error, exc_info=is_unknown)

    def require_lease(self) -> None:
        """Raises `LeaseLost` when the lease is lost, or was not renewed in time."""
        if not self.is_held:
            raise LeaseLost
