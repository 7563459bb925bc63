"""Jobs in the wire's names: moments in epoch milliseconds, durations in milliseconds."""

from datetime import datetime
from typing import Any

from exhaust import jobs, links
from exhaust.models import Job


def job(row: Job) -> dict[str, Any]:
    """A job as submit, read and list show it."""
    files = list(row.files.all()) if row.status == Job.Status.SUCCESS else []
    made = [(file, links.current(file)) for file in files]
    standing = [link for _, link in made if link is not None]
    return {
        "requestId": row.request_id,
        "tag": f"{row.tag}:{row.channel.identifier}",
        "dataset": row.dataset,
        "requestedBy": row.requested_by,
        "requestedChannel": row.channel.identifier,
        "status": row.status,
        "lastUpdated": _ms(row.completed_at or row.submitted_at),
        "datasetConfig": row.config,
        "attempts": jobs.failed_attempts(row),
        "jobStats": {
            "dtJobSubmitted": _ms(row.submitted_at),
            "dtJobCompleted": _ms(row.completed_at),
            "executionTime": row.execution_ms,
        },
        "downloadUrls": [links.address(link) for link in standing],
        "expiresAt": _ms(min(link.expires_at for link in standing)) if standing else 0,
        "statusMessage": row.status_message,
        "files": [
            {
                "name": file.name,
                "rows": file.row_count,
                "bytes": file.byte_count,
                "sha256": file.sha256,
                "deleted": file.deleted_at is not None,
            }
            for file in files
        ],
        "progress": _progress(row),
    }


def _progress(row: Job) -> dict[str, Any]:
    done = row.status == Job.Status.SUCCESS
    share = row.rows_done / row.rows_estimated if row.rows_estimated else 0.0
    return {
        "rows": row.rows_done,
        "estimatedRows": row.rows_estimated,
        # an estimate may be short: only the file itself says 100
        "percent": 100 if done else min(99, int(share * 100)),
    }


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1000)
