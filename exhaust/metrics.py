"""What jobs, files and sinks count. `monitoring/metrics.py` shows it."""

from datetime import datetime

from prometheus_client import Counter, Histogram

from exhaust.models import Job

JOBS = Counter("exhaust_jobs", "Ends of attempts, by dataset and outcome.", ["dataset", "outcome"])
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
ROWS = Counter("exhaust_rows_out", "Rows in published files.", ["dataset"])
BYTES = Counter("exhaust_bytes_out", "Bytes of published files.", ["dataset"])
TAKEOVERS = Counter(
    "exhaust_lease_takeovers",
    "Jobs taken over, by why: their worker fell silent, or was stopped and gave them back.",
    ["dataset", "why"],
)
PUSHED = Counter("exhaust_pushed_documents", "Documents by outcome.", ["kind", "outcome"])
DOWNLOADS = Counter("exhaust_downloads", "Uses of our own links, by answer.", ["status"])


def published(job: Job, at: datetime, rows: int, size: int) -> None:
    """A job's end with its files: `size` is in bytes."""
    JOBS.labels(job.dataset, "success").inc()
    JOB_SECONDS.labels(job.dataset).observe((at - (job.started_at or at)).total_seconds())
    READY_SECONDS.labels(job.dataset).observe((at - job.submitted_at).total_seconds())
    ROWS.labels(job.dataset).inc(rows)
    BYTES.labels(job.dataset).inc(size)
