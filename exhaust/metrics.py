"""Counters of jobs, files and documents; `exhaust/monitoring/metrics.py` adds gauges."""

from collections.abc import Iterable
from datetime import datetime

from prometheus_client import Counter, Histogram

from exhaust.models import Job

ATTEMPTS_ENDED = Counter(
    "exhaust_jobs", "Ended attempts by dataset and outcome.", ["dataset", "outcome"]
)
JOB_SECONDS = Histogram(
    "exhaust_job_seconds",
    "From the claim to the published file.",
    ["dataset"],
    buckets=(0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400),
)
READY_SECONDS = Histogram(
    "exhaust_ready_seconds",
    "From the request to its published file, waiting and failed attempts included.",
    ["dataset"],
    buckets=(1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400),
)
PUBLISHED_ROWS = Counter("exhaust_rows_out", "Rows in published files.", ["dataset"])
PUBLISHED_BYTES = Counter("exhaust_bytes_out", "Bytes of published files.", ["dataset"])
LEASE_TAKEOVERS = Counter(
    "exhaust_lease_takeovers",
    "Jobs taken over: their worker was lost, or was stopped and released them.",
    ["dataset", "reason"],
)
DELIVERED_DOCUMENTS = Counter(
    "exhaust_destination_documents", "Documents by outcome.", ["kind", "outcome"]
)
DOWNLOADS = Counter(
    "exhaust_downloads", "Downloads through links of the service, by HTTP status.", ["status"]
)
ARCHIVE_ORPHANS = Counter(
    "exhaust_archive_orphans", "Objects of the archive that no row named, and that were deleted."
)


def begin_counts(datasets: Iterable[str]) -> None:
    """Shows 0 for what the alerts count: Prometheus sees no rise in a count's first value."""
    for dataset in datasets:
        for outcome in ("failed", "postponed"):
            ATTEMPTS_ENDED.labels(dataset, outcome)
        LEASE_TAKEOVERS.labels(dataset, "worker_lost")


def dataset_label(dataset: str, own_scope: str) -> str:
    """Returns the label of a job's dataset: own datasets share one."""
    return "own" if own_scope else dataset


def record_publication(job: Job, completed_at: datetime, rows: int, byte_count: int) -> None:
    """Counts a published job."""
    dataset = dataset_label(job.dataset, job.own_scope)
    ATTEMPTS_ENDED.labels(dataset, "success").inc()
    JOB_SECONDS.labels(dataset).observe(
        (completed_at - (job.started_at or completed_at)).total_seconds()
    )
    READY_SECONDS.labels(dataset).observe((completed_at - job.submitted_at).total_seconds())
    PUBLISHED_ROWS.labels(dataset).inc(rows)
    PUBLISHED_BYTES.labels(dataset).inc(byte_count)
