"""Fast path of polling: reads jobs, or the jobs of tags, for all who ask in one SQL statement.

The ORM would take four queries for each and build each anew. Other databases than PostgreSQL use
the ORM.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple

import psycopg
from django.db import connection
from django.db.models import prefetch_related_objects

from exhaust.feed import cursor
from exhaust.jobs import queries
from exhaust.jobs.queries import Filters, Page
from exhaust.models import File, Job, Link
from exhaust.models.files import USABLE_LINK
from ingest.db import binary_arrays
from ingest.db.loop_connection import LoopConnection
from ingest.db.pool import Unavailable
from ingest.models import Channel

_JOB_COLUMNS = (
    "id", "channel_id", "tag", "request_id", "dataset", "own_scope", "config", "encryption",
    "fingerprint", "requested_by", "status", "status_message", "priority", "callback_url",
    "deliver_to", "attempt", "uncounted_attempts", "due_at", "lease_until", "worker_id",
    "rows_estimated", "rows_done", "submitted_at", "started_at", "completed_at", "execution_ms",
)  # fmt: skip
_FILE_COLUMNS = (
    "id", "job_id", "part", "key", "name", "content_type", "row_count", "byte_count", "sha256",
    "created_at", "deleted_at", "withdrawn_at",
)  # fmt: skip
_LINK_COLUMNS = (
    "id", "file_id", "encrypted_token", "expires_at", "revoked_at", "use_count", "max_uses",
)  # fmt: skip
# A row that has changed has another xmin. What else an answer depends on stands here too: the place
# in the queue, which is that of `queries`, and what the clock decides.
_POSITION = """
CASE WHEN j.status = 'SUBMITTED' THEN (
    SELECT count(*) FROM exhaust_job w
    WHERE w.channel_id = j.channel_id AND w.status = 'SUBMITTED'
    AND (w.priority, w.submitted_at, w.id) <= (j.priority, j.submitted_at, j.id)
) END
"""
_VERSION = f"""
(
    j.id, j.xmin, j.due_at > statement_timestamp(), {_POSITION},
    CASE WHEN j.callback_url <> '' OR j.deliver_to <> '' THEN (
        SELECT string_agg((d.id, d.xmin)::text, '' ORDER BY d.id) FROM exhaust_delivery d
        WHERE d.job_id = j.id
    ) END,
    f.id, f.xmin, exhaust_link.id, exhaust_link.xmin
)::text
"""  # noqa: S608 # no caller's text
_JOB_OFFSET = 6
_FILE_OFFSET = _JOB_OFFSET + len(_JOB_COLUMNS)
_LINK_OFFSET = _FILE_OFFSET + len(_FILE_COLUMNS)
_CONFIG_OFFSET = _JOB_COLUMNS.index("config")


class JobKey(NamedTuple):
    """What names a job in a channel that its reader may see."""

    channel_id: int
    tag: str
    request_id: str


class PageKey(NamedTuple):
    """A page of the jobs of a tag or a conversation; it has no other filters but `readable`."""

    filters: Filters
    limit: int
    after: str | None = None


def _select_list(alias: str, column_names: Sequence[str]) -> str:
    return ", ".join(f"{alias}.{name}" for name in column_names)


_FROM_JOBS = """
FROM ({jobs}) j
LEFT JOIN exhaust_file f ON f.job_id = j.id AND j.status = 'SUCCESS'
LEFT JOIN exhaust_link ON exhaust_link.file_id = f.id AND {usable_link}
"""
_ORDER = "ORDER BY j.n, j.submitted_at DESC, j.id DESC, f.part, f.id, exhaust_link.id"
_SELECT_VERSIONS = f"SELECT j.n, j.id, {_VERSION} {_FROM_JOBS} {_ORDER}"  # no caller's text
_SELECT_JOBS = f"""
SELECT j.n, j.id, {_VERSION}, c.identifier, statement_timestamp(), {_POSITION},
    {_select_list("j", _JOB_COLUMNS)}, {_select_list("f", _FILE_COLUMNS)},
    {_select_list("exhaust_link", _LINK_COLUMNS)}
{_FROM_JOBS}
JOIN ingest_channel c ON c.id = j.channel_id
{_ORDER}
"""  # no caller's text
# The planner does not look into a subquery. For a few values it would plan each time anew, which
# takes ten times as long as to execute.
_JOBS_BY_KEY = """
SELECT q.n, job.xmin, job.*
FROM unnest((SELECT %(channels)b), (SELECT %(tags)b), (SELECT %(request_ids)b))
    WITH ORDINALITY AS q(channel_id, tag, request_id, n)
JOIN exhaust_job job ON job.channel_id = q.channel_id
    AND job.tag = q.tag AND job.request_id = q.request_id
"""
_JOBS_BY_PAGE = """
SELECT q.n, job.*
FROM unnest(
    (SELECT %(channels)b), (SELECT %(tags)b), (SELECT %(readable)b),
    (SELECT %(limits)b), (SELECT %(before)b), (SELECT %(before_ids)b)
) WITH ORDINALITY AS q(channel_id, name, readable, row_limit, before, before_id, n)
CROSS JOIN LATERAL (
    ({by_tag}) UNION ALL ({by_conversation})
    ORDER BY submitted_at DESC, id DESC LIMIT q.row_limit
) job
"""
_PAGE_OF_JOBS = """
    SELECT xmin, * FROM exhaust_job
    WHERE channel_id = q.channel_id AND {column} BETWEEN q.name AND q.name {condition}
    AND CASE own_scope WHEN '' THEN dataset ELSE own_scope END
        = ANY (string_to_array(q.readable, ' '))
    AND (submitted_at, id) < (q.before, q.before_id)
    ORDER BY {column}, submitted_at DESC, id DESC LIMIT q.row_limit
"""
# Two reads of an index each, since one with an OR would sort all jobs. With `=` the planner takes
# the index of the whole channel where most jobs share a tag or a conversation, and reads them all.
_JOBS_BY_PAGE = _JOBS_BY_PAGE.format(
    by_tag=_PAGE_OF_JOBS.format(column="tag", condition=""),
    by_conversation=_PAGE_OF_JOBS.format(column="conversation", condition="AND tag <> q.name"),
)
_TYPES = {  # of the statements' arrays
    "channels": 1016, "tags": 1009, "request_ids": 1009, "readable": 1009, "limits": 1016,
    "before": 1185, "before_ids": 1016,
}  # fmt: skip
_FIRST_PAGE = datetime.max.replace(tzinfo=UTC), 0


@cache
def _build_sql(select: str, jobs: str) -> str:
    """Returns the statement for these jobs, with the one rule of a link that an answer shows."""
    shown = Link.objects.filter(USABLE_LINK, is_shared=False)
    compiler = shown.query.get_compiler(connection=connection)
    usable_link, params = compiler.compile(compiler.query.where)
    return select.format(jobs=jobs, usable_link=usable_link % tuple(params))


def is_supported() -> bool:
    """Returns whether the database has these statements; all others use the ORM."""
    return connection.vendor == "postgresql"


def take_own_connection() -> None:
    """Gives this thread a connection beside those of the pool."""
    options = dict(connection.settings_dict["OPTIONS"])
    if options.pop("pool", None) is not None:
        connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}


def fetch_job(channel_id: int, tag: str, request_id: str) -> Job | None:
    """Returns the same as `queries.find_job`."""
    return fetch_jobs([JobKey(channel_id, tag, request_id)])[0]


def fetch_jobs(keys: Sequence[JobKey]) -> list[Job | None]:
    """Returns for each key the same as `queries.find_job`."""
    if not is_supported():
        return [queries.find_job(*key) for key in keys]
    jobs: list[Job | None] = [None] * len(keys)
    rows = _execute(_SELECT_JOBS, _JOBS_BY_KEY, _bind_keys(keys))
    for number, found in _build_jobs(rows).items():
        jobs[number] = found[0]
    return jobs


def _bind_keys(keys: Sequence[JobKey]) -> dict[str, Any]:
    return {
        "channels": binary_arrays.integers([key.channel_id for key in keys]),
        "tags": _bind_texts([key.tag for key in keys]),
        "request_ids": _bind_texts([key.request_id for key in keys]),
    }


def _bind_texts(values: Sequence[str]) -> Any:
    # PostgreSQL accepts no NUL, and no job has this in its place
    return binary_arrays.texts([value.replace("\0", "\ufffd") for value in values])


def fetch_page(filters: Filters, limit: int, after: str | None) -> Page:
    """Returns the same as `queries.search_jobs`, for a list's filters."""
    return fetch_pages([PageKey(filters, limit, after)])[0]


def fetch_pages(keys: Sequence[PageKey]) -> list[Page]:
    """Returns for each key the same as `queries.search_jobs`."""
    if not is_supported():
        return [queries.search_jobs(*key) for key in keys]
    jobs = _build_jobs(_execute(_SELECT_JOBS, _JOBS_BY_PAGE, _bind_pages(keys)))
    return [
        queries.paginate(jobs.get(number, []), key.filters, key.limit)
        for number, key in enumerate(keys)
    ]


def _bind_pages(keys: Sequence[PageKey]) -> dict[str, Any]:
    ends = [decode_cursor(key) for key in keys]
    return {
        "channels": binary_arrays.integers([key.filters.channel_id for key in keys]),
        "tags": _bind_texts([key.filters.tag_or_conversation or "" for key in keys]),
        "readable": binary_arrays.texts([" ".join(key.filters.readable) for key in keys]),
        "limits": binary_arrays.integers([key.limit + 1 for key in keys]),
        "before": binary_arrays.moments([moment for moment, _ in ends]),
        "before_ids": binary_arrays.integers([pk for _, pk in ends]),
    }


def decode_cursor(key: PageKey) -> tuple[datetime, int]:
    """Returns what the jobs of a page come after. Raises `RequestError` (400)."""
    if key.after is None:
        return _FIRST_PAGE
    submitted_at, pk = cursor.decode(key.after, queries.describe_query(key.filters))
    return datetime.fromisoformat(submitted_at), pk


# Versions ----------------------------------------------------------------------------------------


class VersionReader:
    """Tells on the event loop which versions of jobs there are; answers change with them only."""

    def __init__(self) -> None:
        self._jobs_sql = _build_sql(_SELECT_VERSIONS, _JOBS_BY_KEY)
        self._pages_sql = _build_sql(_SELECT_VERSIONS, _JOBS_BY_PAGE)
        # a plan that was made while a table was small would read all of it
        self._connection = LoopConnection(
            (self._jobs_sql, self._pages_sql), _TYPES, "SET enable_seqscan = off"
        )

    async def read(self, keys: Sequence[JobKey | PageKey]) -> list[list[str]]:
        """Returns the versions of each: of one job or none; of a page's jobs, in their order.

        A page that has a next one has one version more than its limit. Raises `psycopg.Error`.
        """
        versions: list[dict[bytes | None, str]] = [{} for _ in keys]
        calls: list[tuple[str, dict[str, Any]]] = []
        places: list[list[int]] = []
        binders: Any = (
            (JobKey, self._jobs_sql, _bind_keys),
            (PageKey, self._pages_sql, _bind_pages),
        )
        for kind, sql, bind in binders:
            if found := [place for place, key in enumerate(keys) if isinstance(key, kind)]:
                calls.append((sql, bind([keys[place] for place in found])))
                places.append(found)
        for found, rows in zip(places, await self._execute(calls), strict=True):
            for number, pk, version in rows:
                by_job = versions[found[int.from_bytes(number or b"") - 1]]
                text = (version or b"").decode()
                by_job[pk] = by_job[pk] + text if pk in by_job else text
        return [list(by_job.values()) for by_job in versions]

    async def _execute(self, calls: Sequence[Any]) -> list[Any]:
        try:
            return await self._connection.execute(calls)
        except Unavailable:
            raise
        except psycopg.OperationalError:  # the server has restarted, say: once more, anew
            return await self._connection.execute(calls)

    def close(self) -> None:
        """Closes the connection. A later read makes another."""
        self._connection.close()


# Rows --------------------------------------------------------------------------------------------


def _execute(select: str, jobs: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as db_cursor:
        return db_cursor.execute(_build_sql(select, jobs), params).fetchall()


def _build_jobs(rows: Sequence[tuple[Any, ...]]) -> dict[int, list[Job]]:
    """Returns by place the jobs with channel, files and the links that an answer shows."""
    found: dict[int, list[Job]] = {}
    channels: dict[int, Channel] = {}
    place = job = file = None
    for row in rows:
        if place != row[0] or job is None or job.pk != row[1]:
            place, job, file = row[0], _build_job(row, channels), None
            found.setdefault(place - 1, []).append(job)
        job.version += row[2]  # type: ignore[attr-defined]
        if row[_FILE_OFFSET] is None:
            continue
        if file is None or file.pk != row[_FILE_OFFSET]:
            file = File.from_db("default", _FILE_COLUMNS, row[_FILE_OFFSET:_LINK_OFFSET])
            file.job = job
            _prefetch_cache(job)["files"].append(file)
            _prefetch_cache(file)["links"] = []
        if row[_LINK_OFFSET] is not None:
            link = Link.from_db("default", _LINK_COLUMNS, row[_LINK_OFFSET:])
            link.file, link.is_usable, link.is_shared = file, True, False
            _prefetch_cache(file)["links"].append(link)
    jobs = [job for each in found.values() for job in each if job.callback_url or job.deliver_to]
    if jobs:
        prefetch_related_objects(jobs, "deliveries")
    return found


def _build_job(row: tuple[Any, ...], channels: dict[int, Channel]) -> Job:
    values = list(row[_JOB_OFFSET:_FILE_OFFSET])
    values[_CONFIG_OFFSET] = json.loads(values[_CONFIG_OFFSET])
    job: Any = Job.from_db("default", _JOB_COLUMNS, values)
    job.version = ""
    identifier, job.database_now, job.queue_position = row[3:_JOB_OFFSET]
    job.channel = channels.setdefault(
        job.channel_id, Channel(pk=job.channel_id, identifier=identifier)
    )
    _prefetch_cache(job)["files"] = []
    return job  # type: ignore[no-any-return]


def _prefetch_cache(row: Job | File) -> dict[str, Any]:
    """The cache that `row.files.all()` reads before it queries."""
    prefetched: dict[str, Any] = row.__dict__.setdefault("_prefetched_objects_cache", {})
    return prefetched
