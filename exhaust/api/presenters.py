"""Jobs and previews as the dataset API answers them: times and durations in milliseconds."""

from datetime import datetime
from typing import Any

from django.utils import timezone

from exhaust.datasets import DATASETS
from exhaust.files import links
from exhaust.jobs import transitions
from exhaust.jobs.preview import Preview
from exhaust.jobs.submit import Submission
from exhaust.models import Delivery, Job


def present_job(row: Job) -> dict[str, Any]:
    """Returns the answer to submit, read and list; it may create links."""
    files = list(row.files.all()) if row.status == Job.Status.SUCCESS else []
    files = [file for file in files if file.withdrawn_at is None] or files
    files.sort(key=lambda file: file.part)
    now: datetime = row.database_now  # type: ignore[attr-defined]
    file_links = [(file, links.get_or_create(file, now)) for file in files]
    usable_links = [link for _, link in file_links if link is not None]
    payload = {
        "requestId": row.request_id,
        "tag": f"{row.tag}:{row.channel.identifier}",
        "dataset": row.dataset,
        "requestedBy": row.requested_by,
        "requestedChannel": row.channel.identifier,
        "status": row.status,
        "lastUpdated": _epoch_ms(row.completed_at or row.submitted_at),
        "datasetConfig": row.config,
        "attempts": transitions.count_failed_attempts(row),
        "jobStats": {
            "dtJobSubmitted": _epoch_ms(row.submitted_at),
            "dtJobCompleted": _epoch_ms(row.completed_at),
            "executionTime": row.execution_ms,
        },
        "downloadUrls": [links.build_url(link) for link in usable_links],
        "expiresAt": _epoch_ms(min(link.expires_at for link in usable_links))
        if usable_links
        else 0,
        "statusMessage": row.status_message,
        "priority": Job.Priority(row.priority).name.lower(),
        "files": [
            {
                "name": file.name,
                "format": file.format,
                "rows": file.row_count,
                "bytes": file.byte_count,
                "sha256": file.sha256,
                "deleted": not file.is_available,
            }
            for file in files
        ],
        "progress": present_progress(row),
    }
    if row.encryption:
        payload["encryption"] = row.encryption
    if row.callback_url:
        payload["callback"] = present_callback(row)
    return payload


def present_callback(row: Job) -> dict[str, Any]:
    """Returns the state of the latest callback; of an unfinished job that of none."""
    callbacks = list(row.callbacks.all()) if row.status in transitions.TERMINAL_STATUSES else []
    latest = max(callbacks, key=lambda callback: callback.pk, default=Delivery())
    return {
        "url": row.callback_url,
        "delivered": latest.status == Delivery.Status.DELIVERED,
        "attempts": latest.attempt,
        "answer": latest.answer,
        "error": latest.error,
    }


def present_preview(submission: Submission, preview: Preview) -> dict[str, Any]:
    columns = DATASETS[submission.dataset].columns
    return {
        "dataset": submission.dataset,
        "requestedChannel": submission.channel,
        "datasetConfig": submission.config,
        "estimate": {
            "rows": preview.row_count,
            "bytes": preview.byte_count,
            "counted": preview.is_counted,
        },
        "columns": [
            {
                "header": column.header,
                "kind": column.kind,
                "description": column.description,
                "personal": column.is_personal,
            }
            for column in columns
        ],
        "rows": [
            {column.header: cell for column, cell in zip(columns, row, strict=True)}
            for row in preview.rows
        ],
        "message": preview.message,
    }


def present_progress(row: Job) -> dict[str, Any]:
    """Returns the progress; `queuePosition` counts the jobs of the channel."""
    fraction_done = row.rows_done / row.rows_estimated if row.rows_estimated else 0.0
    return {
        "phase": _phase_name(row),
        "queuePosition": row.queue_position,  # type: ignore[attr-defined] # of its channel's queue
        "startedAt": _epoch_ms(row.started_at),
        "rows": row.rows_done,
        "estimatedRows": row.rows_estimated,
        # the estimate may be too low, so 100 means SUCCESS
        "percent": 100 if row.status == Job.Status.SUCCESS else min(99, int(fraction_done * 100)),
    }


def _phase_name(row: Job) -> str:
    match row.status:
        case Job.Status.SUBMITTED:
            return "waiting for the next attempt" if row.due_at > timezone.now() else "queued"
        case Job.Status.PROCESSING:
            return "writing" if row.rows_done else "preparing"
        case _:
            return "ended"


def _epoch_ms(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1000)
