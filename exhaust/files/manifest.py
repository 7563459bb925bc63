"""What stands beside a file in several parts: which parts there are, and what is in them."""

import json
from collections.abc import Sequence
from datetime import UTC
from typing import Any

from exhaust.datasets.base import Dataset
from exhaust.datasets.selection import Selection
from exhaust.feed import cursor
from exhaust.feed.pages import LAST_ID, Question, bound
from exhaust.models import File, Job
from ingest.feed.values import START, Place
from ingest.times import EPOCH

SUFFIX = "json"
CONTENT_TYPE = "application/json"


def content(job: Job, dataset: Dataset, selection: Selection, files: Sequence[File]) -> bytes:
    """The same in every attempt: no moment, no key. `files` are the parts, in order."""
    said = {
        "dataset": dataset.name,
        "datasetConfig": job.config,
        "format": job.output_format,
        # everything in the parts stands below it in the feed
        "watermark": str(selection.watermark),
        **_span(dataset, selection),
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
    return json.dumps(said, ensure_ascii=False, indent=2).encode() + b"\n"


def _span(dataset: Dataset, selection: Selection) -> dict[str, Any]:
    """The places of the feed that the parts lie between, `from` not included; and `pull`, what
    a page is asked with to go on behind them, null where no pull asks what the file was asked."""
    ends = {
        "from": Place(selection.since - 1, LAST_ID) if selection.since else START,
        "to": Place(selection.watermark - 1, LAST_ID),
    }
    told = {name: {"position": f"{place.xid}.{place.id}"} for name, place in ends.items()}
    resource = dataset.pulled
    filtered = selection.conversation_id is not None or selection.application_id is not None
    if not resource or filtered or selection.start < EPOCH:
        return {**told, "pull": None}
    start, end = selection.start.astimezone(UTC), selection.end.astimezone(UTC)
    question = bound(Question(selection.channel_id, resource, start, end, selection.types))
    for name, place in ends.items():
        told[name]["cursor"] = cursor.seal(list(place), question)
    pull = {
        "resource": resource,
        "start": int(start.timestamp()),
        "end": int(end.timestamp()),
        "events": list(selection.types),
        "cursor": told["to"]["cursor"],
    }
    return {**told, "pull": pull}
