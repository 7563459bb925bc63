"""What stands beside a file in several parts: which parts there are, and what is in them."""

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
    """The same in every attempt: no moment, no key. `files` are the parts, in order."""
    document = {
        "dataset": dataset.name,
        "datasetConfig": job.config,
        "format": job.output_format,
        # everything in the parts stands below it in the feed
        "watermark": str(selection.watermark),
        **_feed_span(dataset, selection),
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


def _feed_span(dataset: Dataset, selection: Selection) -> dict[str, Any]:
    """The places of the feed that the parts lie between, `from` not included; and `pull`, what
    a page is asked with to go on behind them, null where no pull asks what the file was asked."""
    positions = {
        "from": FeedPosition(selection.since_xid - 1, LAST_ID) if selection.since_xid else START,
        "to": FeedPosition(selection.watermark - 1, LAST_ID),
    }
    span = {name: {"position": f"{place.xid}.{place.id}"} for name, place in positions.items()}
    resource = dataset.pull_resource
    is_filtered = selection.conversation_id is not None or selection.application_id is not None
    if not resource or is_filtered or selection.start < EPOCH:
        return {**span, "pull": None}
    start, end = selection.start.astimezone(UTC), selection.end.astimezone(UTC)
    fingerprint = query_fingerprint(
        FeedQuery(selection.channel_id, resource, start, end, selection.types)
    )
    for name, place in positions.items():
        span[name]["cursor"] = cursor.encode(list(place), fingerprint)
    pull = {
        "resource": resource,
        "start": int(start.timestamp()),
        "end": int(end.timestamp()),
        "events": list(selection.types),
        "cursor": span["to"]["cursor"],
    }
    return {**span, "pull": pull}
