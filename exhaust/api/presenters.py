"""Jobs in the wire's names: moments in epoch milliseconds, durations in milliseconds."""

from datetime import datetime
from typing import Any

from django.utils import timezone

from exhaust.datasets import DATASETS
from exhaust.files import links
from exhaust.jobs import transitions
from exhaust.jobs.preview import Preview
from exhaust.jobs.submit import Submission
from exhaust.models import Job, Notice


def job(row: Job) -> dict[str, Any]:
    """A job as submit, read and list show it."""
    files = list(row.files.all()) if row.status == Job.Status.SUCCESS else []
    files = [file for file in files if file.withdrawn_at is None] or files
    files.sort(key=lambda file: file.part)
    now: datetime = row.shown_at  # type: ignore[attr-defined]
    made = [(file, links.current(file, now)) for file in files]
    standing = [link for _, link in made if link is not None]
    shown = {
        "requestId": row.request_id,
        "tag": f"{row.tag}:{row.channel.identifier}",
        "dataset": row.dataset,
        "requestedBy": row.requested_by,
        "requestedChannel": row.channel.identifier,
        "status": row.status,
        "lastUpdated": _ms(row.completed_at or row.submitted_at),
        "datasetConfig": row.config,
        "attempts": transitions.failed_attempts(row),
        "jobStats": {
            "dtJobSubmitted": _ms(row.submitted_at),
            "dtJobCompleted": _ms(row.completed_at),
            "executionTime": row.execution_ms,
        },
        "downloadUrls": [links.address(link) for link in standing],
        "expiresAt": _ms(min(link.expires_at for link in standing)) if standing else 0,
        "statusMessage": row.status_message,
        "priority": Job.Priority(row.priority).name.lower(),
        "files": [
            {
                "name": file.name,
                "format": file.format,
                "rows": file.row_count,
                "bytes": file.byte_count,
                "sha256": file.sha256,
                "deleted": file.deleted_at is not None or file.withdrawn_at is not None,
            }
            for file in files
        ],
        "progress": progress(row),
    }
    if row.sealing:
        shown["sealing"] = row.sealing
    if row.callback_url:
        shown["callback"] = callback(row)
    return shown


def callback(row: Job) -> dict[str, Any]:
    """How its receiver was told of the job's end; of an earlier end nothing is shown."""
    told = list(row.notices.all()) if row.status in transitions.ENDS else []
    notice = max(told, key=lambda notice: notice.pk, default=Notice())
    return {
        "url": row.callback_url,
        "delivered": notice.delivered_at is not None,
        "attempts": notice.attempt,
        "answer": notice.answer,
        "error": notice.error,
    }


def preview(submission: Submission, shown: Preview) -> dict[str, Any]:
    columns = DATASETS[submission.dataset].columns
    return {
        "dataset": submission.dataset,
        "requestedChannel": submission.channel,
        "datasetConfig": submission.config,
        "estimate": {
            "rows": shown.row_count,
            "bytes": shown.byte_count,
            "counted": shown.counted,
        },
        "columns": [
            {
                "header": column.header,
                "kind": column.kind,
                "description": column.description,
                "personal": column.personal,
            }
            for column in columns
        ],
        "rows": [
            {column.header: cell for column, cell in zip(columns, row, strict=True)}
            for row in shown.rows
        ],
        "message": shown.message,
    }


def progress(row: Job) -> dict[str, Any]:
    """How far a job is; `queuePosition` is its place in its channel's queue."""
    share = row.rows_done / row.rows_estimated if row.rows_estimated else 0.0
    return {
        "phase": _phase(row),
        "queuePosition": row.queue_position,  # type: ignore[attr-defined] # of its channel's queue
        "startedAt": _ms(row.started_at),
        "rows": row.rows_done,
        "estimatedRows": row.rows_estimated,
        # an estimate may be short: only the file itself says 100
        "percent": 100 if row.status == Job.Status.SUCCESS else min(99, int(share * 100)),
    }


def _phase(row: Job) -> str:
    match row.status:
        case Job.Status.SUBMITTED:
            return "waiting for the next attempt" if row.due_at > timezone.now() else "queued"
        case Job.Status.PROCESSING:
            return "writing" if row.rows_done else "preparing"
        case _:
            return "ended"


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1000)
