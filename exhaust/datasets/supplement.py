"""Supplements: a request whose `since` names an earlier one reads only what arrived after it."""

from exhaust.datasets.base import Dataset
from exhaust.models import Job
from ingest.feed import pruning


def find_since_xid(dataset: Dataset, channel_id: int, request_id: str) -> int:
    """The feed position that a supplement begins at.

    Raises `LookupError` where the request has no file, or events after that file were pruned.
    """
    job = find_completed_job(dataset.name, channel_id, request_id)
    if job is None or job.watermark is None:
        raise LookupError(f"There is no file of {request_id} to go on from.")
    if reason := explain_gap(dataset, job):
        raise LookupError(reason)
    return int(job.watermark)


def explain_gap(dataset: Dataset, job: Job) -> str:
    """Why no supplement can follow the job's file; empty where one can."""
    prune_state = dataset.prune_state(job.channel_id)
    if prune_state is None or job.watermark is None or prune_state.xid < job.watermark:
        return ""
    pruned = pruning.describe_pruning(prune_state)
    return f"{pruned} Some of them came after that file; ask without since."


def find_completed_job(dataset: str, channel_id: int, request_id: str) -> Job | None:
    """The channel's job of that dataset and request id, if it has its file."""
    return Job.objects.filter(
        channel=channel_id, dataset=dataset, request_id=request_id, status=Job.Status.SUCCESS
    ).first()
