"""Fast path of polling: reads a job, or the jobs of a tag, in one SQL statement.

The ORM would take four queries and build each anew. Other databases than PostgreSQL use the ORM.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

import psycopg
from django.db import connection
from django.db.models import prefetch_related_objects

from exhaust.feed import cursor
from exhaust.jobs import queries
from exhaust.jobs.queries import Filters, Page
from exhaust.models import File, Job, Link
from exhaust.models.files import USABLE_LINK
from ingest.models import Channel

_JOB_COLUMNS = (
    "id", "channel_id", "tag", "request_id", "dataset", "config", "encryption", "requested_by",
    "status", "status_message", "priority", "callback_url", "attempt", "due_at", "lease_until",
    "rows_estimated", "rows_done", "submitted_at", "started_at", "completed_at", "execution_ms",
)  # fmt: skip
_FILE_COLUMNS = (
    "id", "job_id", "part", "key", "name", "content_type", "row_count", "byte_count", "sha256",
    "created_at", "deleted_at", "withdrawn_at",
)  # fmt: skip
_LINK_COLUMNS = (
    "id", "file_id", "encrypted_token", "expires_at", "revoked_at", "use_count", "max_uses",
)  # fmt: skip
_FILE_OFFSET = len(_JOB_COLUMNS) + 3
_LINK_OFFSET = _FILE_OFFSET + len(_FILE_COLUMNS)
_CONFIG_OFFSET = _JOB_COLUMNS.index("config")


def _select_list(alias: str, column_names: Sequence[str]) -> str:
    return ", ".join(f"{alias}.{name}" for name in column_names)


# the position in the queue is that of `queries`
_JOBS_SQL = f"""
WITH j AS (
    SELECT {", ".join(_JOB_COLUMNS)} FROM exhaust_job
    WHERE channel_id = %(channel)s AND tag = %(tag)s AND {{which}}
)
SELECT {_select_list("j", _JOB_COLUMNS)}, c.identifier, statement_timestamp(),
    CASE WHEN j.status = 'SUBMITTED' THEN (
        SELECT count(*) FROM exhaust_job w
        WHERE w.channel_id = j.channel_id AND w.status = 'SUBMITTED'
        AND (w.priority, w.submitted_at, w.id) <= (j.priority, j.submitted_at, j.id)
    ) END,
    {_select_list("f", _FILE_COLUMNS)}, {_select_list("exhaust_link", _LINK_COLUMNS)}
FROM j
JOIN ingest_channel c ON c.id = j.channel_id
LEFT JOIN exhaust_file f ON f.job_id = j.id AND j.status = 'SUCCESS'
LEFT JOIN exhaust_link ON exhaust_link.file_id = f.id AND {{usable_link}}
ORDER BY j.submitted_at DESC, j.id DESC, f.part, f.id, exhaust_link.id
"""  # noqa: S608 # no caller's text
_ONE_JOB = "request_id = %(request_id)s"
_TAG_CONDITION = (
    "dataset = ANY(%(datasets)s) {behind} ORDER BY submitted_at DESC, id DESC LIMIT %(limit)s"
)
_FIRST_PAGE = _TAG_CONDITION.format(behind="")
_NEXT_PAGE = _TAG_CONDITION.format(behind="AND (submitted_at, id) < (%(at)s, %(pk)s)")


@cache
def _build_sql(condition: str) -> str:
    """Returns the statement for the jobs of a condition, with the one rule of a usable link."""
    compiler = Link.objects.filter(USABLE_LINK).query.get_compiler(connection=connection)
    usable_link, params = compiler.compile(compiler.query.where)
    return _JOBS_SQL.format(which=condition, usable_link=usable_link % tuple(params))


def fetch_job(channel_id: int, tag: str, request_id: str) -> Job | None:
    """Returns the same as `queries.find_job`."""
    if connection.vendor != "postgresql" or "\0" in tag + request_id:
        return queries.find_job(channel_id, tag, request_id)
    params = {"channel": channel_id, "tag": tag, "request_id": request_id}
    return next(iter(_fetch_jobs(_ONE_JOB, params)), None)


def fetch_tag_page(filters: Filters, limit: int, after: str | None) -> Page:
    """Returns the same as `queries.search_jobs`, for filters by tag only."""
    if connection.vendor != "postgresql" or "\0" in (filters.tag or ""):
        return queries.search_jobs(filters, limit, after)
    params: dict[str, Any] = {
        "channel": filters.channel_id,
        "tag": filters.tag,
        "datasets": list(filters.datasets),
        "limit": limit + 1,
    }
    if after is not None:
        submitted_at, pk = cursor.decode(after, queries.describe_query(filters))
        params |= {"at": datetime.fromisoformat(submitted_at), "pk": pk}
    return queries.paginate(
        _fetch_jobs(_NEXT_PAGE if after is not None else _FIRST_PAGE, params),
        filters,
        limit,
    )


def _fetch_jobs(condition: str, params: dict[str, Any]) -> list[Job]:
    """Returns jobs with channel, files and usable links, as `prefetch_related` leaves them."""
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as db_cursor:
        rows = db_cursor.execute(_build_sql(condition), params).fetchall()
    jobs: dict[int, Job] = {}
    files: dict[int, File] = {}
    channel: Channel | None = None
    for row in rows:
        job = jobs.get(row[0])
        if job is None:
            values = list(row[: len(_JOB_COLUMNS)])
            values[_CONFIG_OFFSET] = json.loads(values[_CONFIG_OFFSET])
            job = jobs[row[0]] = Job.from_db("default", _JOB_COLUMNS, values)
            identifier, database_now, position = row[len(_JOB_COLUMNS) : _FILE_OFFSET]
            job.channel = channel = channel or Channel(pk=job.channel_id, identifier=identifier)
            job.database_now, job.queue_position = database_now, position  # type: ignore[attr-defined]
            _prefetch_cache(job)["files"] = []
        if row[_FILE_OFFSET] is None:
            continue
        file = files.get(row[_FILE_OFFSET])
        if file is None:
            file = File.from_db("default", _FILE_COLUMNS, row[_FILE_OFFSET:_LINK_OFFSET])
            files[row[_FILE_OFFSET]], file.job = file, job
            _prefetch_cache(job)["files"].append(file)
            _prefetch_cache(file)["links"] = []
        if row[_LINK_OFFSET] is not None:
            link = Link.from_db("default", _LINK_COLUMNS, row[_LINK_OFFSET:])
            link.file, link.is_usable = file, True
            _prefetch_cache(file)["links"].append(link)
    if jobs_with_callbacks := [job for job in jobs.values() if job.callback_url]:
        prefetch_related_objects(jobs_with_callbacks, "callbacks")
    return list(jobs.values())


def _prefetch_cache(row: Job | File) -> dict[str, Any]:
    """The cache that `row.files.all()` reads before it queries."""
    prefetched: dict[str, Any] = row.__dict__.setdefault("_prefetched_objects_cache", {})
    return prefetched
