"""The manifest of a file in several parts: its parts, columns and range of the feed."""

import json
from collections.abc import Sequence
from datetime import UTC
from typing import Any

from exhaust.datasets.base import Dataset
from exhaust.datasets.selection import Selection
from exhaust.feed import cursor
from exhaust.feed.pages import LAST_ID, FeedQuery, query_fingerprint
from exhaust.files.upload import StoredFile
from exhaust.models import Job
from ingest.feed.values import START, FeedPosition
from ingest.times import EPOCH

SUFFIX = "json"
CONTENT_TYPE = "application/json"


def build_manifest(
    job: Job, dataset: Dataset, selection: Selection, files: Sequence[StoredFile]
) -> bytes:
    """Returns the manifest as JSON, the same in every attempt. `files` are the parts, in order."""
    document = {
        "dataset": dataset.name,
        "datasetConfig": job.config,
        "format": job.output_format,
        # every row of the parts is below it in the feed
        "watermark": str(selection.watermark),
        **_feed_span(dataset, selection, job.config.get("application")),
        "rows": sum(file.row_count for file in files),
        "bytes": sum(file.byte_count for file in files),
        "columns": [
            {"name": column.header, "type": column.kind, "description": column.description}
            for column in dataset.columns
        ],
        "parts": [
            {
                "name": file.name,
                "rows": file.row_count,
                "bytes": file.byte_count,
                "sha256": file.sha256,
            }
            for file in files
        ],
    }
    return json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n"


def _feed_span(dataset: Dataset, selection: Selection, application: Any) -> dict[str, Any]:
    """Returns the feed positions around the parts, `from` not included, and `pull`.

    `pull` is the query that continues behind the parts; null where no pull has the same filters.
    """
    positions = {
        "from": FeedPosition(selection.since_xid - 1, LAST_ID) if selection.since_xid else START,
        "to": FeedPosition(selection.watermark - 1, LAST_ID),
    }
    span = {
        name: {"position": f"{position.xid}.{position.id}"} for name, position in positions.items()
    }
    resource = dataset.pull_resource
    if not resource or selection.conversation_id is not None or selection.start < EPOCH:
        return {**span, "pull": None}
    name = "" if application is None else str(application)
    start, end = selection.start.astimezone(UTC), selection.end.astimezone(UTC)
    types = () if dataset.types else selection.types  # a dataset's own ones are no filter of a pull
    fingerprint = query_fingerprint(
        FeedQuery(selection.channel_id, resource, start, end, types, name)
    )
    for end_name, position in positions.items():
        span[end_name]["cursor"] = cursor.encode(list(position), fingerprint)
    pull = {
        "resource": resource,
        "start": int(start.timestamp()),
        "end": int(end.timestamp()),
        "events": list(types),
        **({"application": name} if name else {}),
        "cursor": span["to"]["cursor"],
    }
    return {**span, "pull": pull}
