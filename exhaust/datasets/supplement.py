"""What a request with `since` goes on from."""

from collections.abc import Mapping
from typing import Any

from exhaust.models import Job
from ingest.feed import pruning


def _text(said: Any) -> str | None:
    return None if said is None else str(said)  # the configuration is kept as it was sent


def _since(dataset: str, channel_id: int, config: Mapping[str, Any]) -> int:
    request_id = _text(config.get("since"))
    if request_id is None:
        return 0
    job = made(dataset, channel_id, request_id)
    if job is None or job.watermark is None:
        raise LookupError(f"There is no file of {request_id} to go on from.")
    if gap := missing(job):
        raise LookupError(gap)
    return int(job.watermark)


def missing(job: Job) -> str:
    """Why no supplement can follow a job's file: some that arrived since were pruned."""
    from exhaust.datasets import DATASETS  # which are made of what stands here

    dataset = DATASETS.get(job.dataset)
    begins = dataset.begins(job.channel_id) if dataset else pruning.of(job.channel_id)
    if begins is None or job.watermark is None or begins.xid < job.watermark:
        return ""
    return f"{pruning.told(begins)} Some of them came after that file; ask without since."


def made(dataset: str, channel_id: int, request_id: str) -> Job | None:
    """The job by that request id that has its file, of this dataset and channel."""
    return Job.objects.filter(
        channel=channel_id, dataset=dataset, request_id=request_id, status=Job.Status.SUCCESS
    ).first()
