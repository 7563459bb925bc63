"""What a request with `since` goes on from."""

from collections.abc import Mapping
from typing import Any

from exhaust.models import Job
from ingest.feed import pruning


def _optional_text(value: Any) -> str | None:
    return None if value is None else str(value)  # the configuration is kept as it was sent


def _find_since_xid(dataset: str, channel_id: int, config: Mapping[str, Any]) -> int:
    request_id = _optional_text(config.get("since"))
    if request_id is None:
        return 0
    job = completed_job(dataset, channel_id, request_id)
    if job is None or job.watermark is None:
        raise LookupError(f"There is no file of {request_id} to go on from.")
    if reason := pruned_reason(job):
        raise LookupError(reason)
    return int(job.watermark)


def pruned_reason(job: Job) -> str:
    """Why no supplement can follow a job's file: some that arrived since were pruned."""
    from exhaust.datasets import DATASETS  # which are made of what stands here

    dataset = DATASETS.get(job.dataset)
    prune_state = (
        dataset.prune_state(job.channel_id)
        if dataset
        else pruning.fetch_prune_state(job.channel_id)
    )
    if prune_state is None or job.watermark is None or prune_state.xid < job.watermark:
        return ""
    return f"{pruning.describe_pruning(prune_state)} Some of them came after that file; ask without since."


def completed_job(dataset: str, channel_id: int, request_id: str) -> Job | None:
    """The job by that request id that has its file, of this dataset and channel."""
    return Job.objects.filter(
        channel=channel_id, dataset=dataset, request_id=request_id, status=Job.Status.SUCCESS
    ).first()
