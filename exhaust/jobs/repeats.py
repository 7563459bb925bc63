"""The export that a repeated request finds: its age, and the rows that arrived since."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from exhaust.datasets.base import Dataset
from exhaust.datasets.own import find_job_dataset, require_dataset
from exhaust.datasets.resolve import resolve_selection
from exhaust.datasets.supplement import explain_gap
from exhaust.jobs import queries, transitions
from exhaust.jobs.queries import Filters
from exhaust.jobs.submit import Submission
from exhaust.models import Job
from ingest.db.time_limit import limit_query_seconds
from ingest.feed.watermark import fetch_watermark

COUNT_SECONDS = 0.5
MAX_LOOKED_AT = 500  # of the newest jobs of a conversation, or of the channel


@dataclass(frozen=True)
class FileAge:
    """How old the file of a job is."""

    as_of: datetime  # the file holds all events that arrived until then
    new_rows: int | None  # that arrived since; None where they cannot be counted in time
    takes_supplement: bool

    @property
    def message(self) -> str:
        """Tells which events the file holds, and how to get the others."""
        since = ", or name this one in datasetConfig.since" if self.takes_supplement else ""
        return (
            f"This export exists already, and its file holds the events until"
            f" {self.as_of.astimezone(UTC):%Y-%m-%d %H:%M} UTC. For later ones send the request"
            f' with "forceNew": true{since}.'
        )


def find_same(submission: Submission, readable: Sequence[str]) -> Job | None:
    """Returns the newest export of the same rows in the same format, on any day and by any user.

    It waits, runs, or has its files. `readable` is that of `Filters`.
    """
    conversation = submission.config.get("conversationId")
    filters = Filters(submission.channel_id, readable, conversation=conversation)
    unfinished_or_ready = (Job.Status.SUBMITTED, Job.Status.PROCESSING, Job.Status.SUCCESS)
    wanted = (submission.dataset, submission.output_format, _question(submission.config))
    newest = queries.filter_jobs(filters).order_by("-submitted_at", "-id")
    values = newest.values_list("pk", "status", "dataset", "output_format", "config")
    for pk, status, *question in values[:MAX_LOOKED_AT]:
        if status not in unfinished_or_ready or (*question[:2], _question(question[2])) != wanted:
            continue
        job = queries.filter_jobs(filters).get(pk=pk)
        files = job.files.all()
        has_files = status != Job.Status.SUCCESS or any(file.is_available for file in files)
        dataset = require_dataset(submission.channel_id, submission.dataset)
        if has_files and job.definition == dataset.definition:
            return job
    return None


def _question(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what decides the rows and columns, with its defaults."""
    return {"timezone": "UTC", **config, "type": ""}


def measure_age(job: Job) -> FileAge | None:
    """Returns the age of a job's file; None for a job without one."""
    if job.status != Job.Status.SUCCESS:
        return None
    dataset = find_job_dataset(job)
    takes_supplement = (
        dataset is not None and "since" in dataset.optional_fields and not explain_gap(dataset, job)
    )
    new_rows = _count_new_rows(job, dataset) if dataset and takes_supplement else None
    return FileAge(transitions.find_first_start(job), new_rows, takes_supplement)


def _count_new_rows(job: Job, dataset: Dataset) -> int | None:
    """Returns the rows of a supplement to the job; None where they take too long to count."""
    if job.watermark is None:
        return None
    try:
        with limit_query_seconds(COUNT_SECONDS):
            selection = resolve_selection(dataset, job.channel_id, job.config, fetch_watermark())
            return dataset.count_rows(replace(selection, since_xid=job.watermark))
    except (LookupError, TimeoutError):
        return None
