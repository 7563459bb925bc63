"""What those who wait ask all day, a job and a tag's jobs, in one statement.

The ORM would write it anew each time, and ask thrice more for files and links. Elsewhere than on
PostgreSQL it is the ORM's all the same.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import psycopg
from django.db import connection
from django.db.models import prefetch_related_objects

from exhaust.feed import cursor
from exhaust.jobs import queries
from exhaust.jobs.queries import Filters, Page
from exhaust.models import File, Job, Link
from ingest.models import Channel

_JOB = (
    "id", "channel_id", "tag", "request_id", "dataset", "config", "sealing", "requested_by",
    "status", "status_message", "priority", "callback_url", "attempt", "due_at", "lease_until",
    "rows_estimated", "rows_done", "submitted_at", "started_at", "completed_at", "execution_ms",
)  # fmt: skip
_FILE = (
    "id", "job_id", "part", "key", "name", "content_type", "row_count", "byte_count", "sha256",
    "created_at", "deleted_at", "withdrawn_at",
)  # fmt: skip
_LINK = (
    "id", "file_id", "sealed_token", "expires_at", "revoked_at", "use_count", "max_uses",
)  # fmt: skip
_AT_FILE = len(_JOB) + 3
_AT_LINK = _AT_FILE + len(_FILE)
_CONFIG = _JOB.index("config")


def _said(alias: str, names: Sequence[str]) -> str:
    return ", ".join(f"{alias}.{name}" for name in names)


# the links are those that `links.standing` takes; the place in the queue is `submissions`' own
_SQL = f"""
WITH j AS (
    SELECT {", ".join(_JOB)} FROM exhaust_job WHERE channel_id = %(channel)s AND tag = %(tag)s
    AND {{which}}
)
SELECT {_said("j", _JOB)}, c.identifier, statement_timestamp(),
    CASE WHEN j.status = 'SUBMITTED' THEN (
        SELECT count(*) FROM exhaust_job w
        WHERE w.channel_id = j.channel_id AND w.status = 'SUBMITTED'
        AND (w.priority, w.submitted_at, w.id) <= (j.priority, j.submitted_at, j.id)
    ) END,
    {_said("f", _FILE)}, {_said("l", _LINK)}
FROM j
JOIN ingest_channel c ON c.id = j.channel_id
LEFT JOIN exhaust_file f ON f.job_id = j.id AND j.status = 'SUCCESS'
LEFT JOIN exhaust_link l ON l.file_id = f.id AND l.expires_at > statement_timestamp()
    AND l.revoked_at IS NULL AND l.use_count < l.max_uses
ORDER BY j.submitted_at DESC, j.id DESC, f.part, f.id, l.id
"""  # noqa: S608 # our own words
_ONE = _SQL.format(which="request_id = %(request_id)s")
_LISTED = "dataset = ANY(%(datasets)s) {behind} ORDER BY submitted_at DESC, id DESC LIMIT %(limit)s"
_FIRST = _SQL.format(which=_LISTED.format(behind=""))
_NEXT = _SQL.format(which=_LISTED.format(behind="AND (submitted_at, id) < (%(at)s, %(pk)s)"))


def find(channel_id: int, tag: str, request_id: str) -> Job | None:
    """As `submissions.find`."""
    if connection.vendor != "postgresql" or "\0" in tag + request_id:
        return queries.find(channel_id, tag, request_id)
    asked = {"channel": channel_id, "tag": tag, "request_id": request_id}
    return next(iter(_jobs(_ONE, asked)), None)


def page(filters: Filters, limit: int, after: str | None) -> Page:
    """As `submissions.page`, of filters that name a tag and nothing more."""
    if connection.vendor != "postgresql" or "\0" in (filters.tag or ""):
        return queries.page(filters, limit, after)
    asked: dict[str, Any] = {
        "channel": filters.channel_id,
        "tag": filters.tag,
        "datasets": list(filters.datasets),
        "limit": limit + 1,
    }
    if after is not None:
        at, pk = cursor.unseal(after, queries.question(filters))
        asked |= {"at": datetime.fromisoformat(at), "pk": pk}
    return queries.cut(_jobs(_NEXT if after is not None else _FIRST, asked), filters, limit)


def _jobs(sql: str, asked: dict[str, Any]) -> list[Job]:
    """The jobs with channel, files and standing links, as `prefetch_related` leaves them."""
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as reading:
        rows = reading.execute(sql, asked).fetchall()
    jobs: dict[int, Job] = {}
    files: dict[int, File] = {}
    channel: Channel | None = None
    for row in rows:
        job = jobs.get(row[0])
        if job is None:
            values = list(row[: len(_JOB)])
            values[_CONFIG] = json.loads(values[_CONFIG])
            job = jobs[row[0]] = Job.from_db("default", _JOB, values)
            identifier, shown_at, position = row[len(_JOB) : _AT_FILE]
            job.channel = channel = channel or Channel(pk=job.channel_id, identifier=identifier)
            job.shown_at, job.queue_position = shown_at, position  # type: ignore[attr-defined]
            _kept(job)["files"] = []
        if row[_AT_FILE] is None:
            continue
        file = files.get(row[_AT_FILE])
        if file is None:
            file = File.from_db("default", _FILE, row[_AT_FILE:_AT_LINK])
            files[row[_AT_FILE]], file.job = file, job
            _kept(job)["files"].append(file)
            _kept(file)["links"] = []
        if row[_AT_LINK] is not None:
            link = Link.from_db("default", _LINK, row[_AT_LINK:])
            link.file = file
            _kept(file)["links"].append(link)
    if told := [job for job in jobs.values() if job.callback_url]:
        prefetch_related_objects(told, "notices")
    return list(jobs.values())


def _kept(row: Job | File) -> dict[str, Any]:
    """What `row.files.all()` looks into before it asks."""
    kept: dict[str, Any] = row.__dict__.setdefault("_prefetched_objects_cache", {})
    return kept
