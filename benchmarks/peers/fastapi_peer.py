"""Ingest and polling as FastAPI, pydantic and asyncpg make them: a peer of `benchmarks.hot_paths`.

Ingest checks the types of an event, keeps the whole event, and inserts a request's events in one
statement. It needs no key. A read verifies the key by HMAC, and responds with the fields of ours,
from the same rows, with a link that it signs for a day.
"""

import hmac
import json
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

import asyncpg
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict

PEPPER = os.environ["EXHAUST_KEY_PEPPER"].encode()
LINK_SECONDS = 86_400


@asynccontextmanager
async def open_pool(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["DATABASE_URL"]) as app.state.pool:
        yield


app = FastAPI(lifespan=open_pool)


@app.get("/readyz")
async def report_ready() -> None:
    await app.state.pool.fetchval("SELECT 1")


# Ingest ------------------------------------------------------------------------------------------


class Context(BaseModel):
    model_config = ConfigDict(extra="allow")
    channel: str
    did: str
    sid: str


class Event(BaseModel):
    model_config = ConfigDict(extra="allow")
    eid: str
    ets: float
    mid: str
    context: Context
    edata: dict[str, Any]


class Batch(BaseModel):
    events: list[Event]


INSERT = """
INSERT INTO peer_event (identity, occurred_at, type, device_id, session_id, payload)
SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::jsonb[])
ON CONFLICT (identity) DO NOTHING
"""


@app.post("/v1/telemetry")
async def store_telemetry(batch: Batch) -> dict[str, int]:
    rows = [
        (
            event.mid,
            datetime.fromtimestamp(event.ets / 1000, UTC),
            event.eid,
            event.context.did,
            event.context.sid,
            event.model_dump_json(),
        )
        for event in batch.events
    ]
    status = await app.state.pool.execute(INSERT, *zip(*rows, strict=True))
    stored = int(status.rpartition(" ")[2])
    return {"stored": stored, "duplicate": len(rows) - stored}


# Polling -----------------------------------------------------------------------------------------

KEY = """
SELECT k.digest, c.id, c.identifier FROM ingest_apikey k
JOIN ingest_apikey_channels kc ON kc.apikey_id = k.id JOIN ingest_channel c ON c.id = kc.channel_id
WHERE k.public_id = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
"""
FILES = """
SELECT j.*, f.key, f.name, f.row_count, f.byte_count, f.sha256, f.deleted_at
FROM ({jobs}) j LEFT JOIN exhaust_file f ON f.job_id = j.id
ORDER BY j.submitted_at DESC, j.id DESC, f.part
"""
ONE_JOB = FILES.format(
    jobs="SELECT * FROM exhaust_job WHERE channel_id = $1 AND tag = $2 AND request_id = $3"
)
JOBS_OF_TAG = FILES.format(
    jobs="SELECT * FROM exhaust_job WHERE channel_id = $1 AND tag = $2"
    " ORDER BY submitted_at DESC, id DESC LIMIT $3"
)


Key = Annotated[str, Header(alias="x-api-key")]


@app.get("/dataset/v1/request/read/{tag}")
async def read_job(tag: str, requestId: str, key: Key) -> dict[str, Any]:
    async with app.state.pool.acquire() as connection:
        channel = await find_channel(connection, key)
        rows = await connection.fetch(ONE_JOB, channel["id"], tag, requestId)
    if not rows:
        raise HTTPException(404)
    return envelope("request.info", present_jobs(rows, channel["identifier"])[0])


@app.get("/dataset/v1/request/list/{tag}")
async def list_jobs(tag: str, key: Key, limit: int = 100) -> dict[str, Any]:
    async with app.state.pool.acquire() as connection:
        channel = await find_channel(connection, key)
        rows = await connection.fetch(JOBS_OF_TAG, channel["id"], tag, limit)
    jobs = present_jobs(rows, channel["identifier"])
    return envelope("request.list", {"count": len(jobs), "jobs": jobs, "nextCursor": None})


async def find_channel(connection: asyncpg.Connection, key: str) -> asyncpg.Record:
    """Returns the channel of a valid key."""
    row = await connection.fetchrow(KEY, key[4:12])
    digest = hmac.new(PEPPER, key.encode(), "sha256").hexdigest()
    if row is None or not hmac.compare_digest(row["digest"], digest):
        raise HTTPException(401)
    return row


def envelope(operation: str, result: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"ekstep.analytics.dataset.{operation}",
        "ver": "1.0",
        "ts": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "params": {"resmsgid": str(uuid4()), "status": "successful", "client_key": None},
        "responseCode": "OK",
        "result": result,
    }


def present_jobs(rows: Iterable[asyncpg.Record], channel: str) -> list[dict[str, Any]]:
    """Returns jobs in the order of their rows, of which each has one file."""
    expires_at = int(time.time()) + LINK_SECONDS
    jobs: dict[int, dict[str, Any]] = {}
    for row in rows:
        job = jobs.setdefault(row["id"], {}) or present_job(row, channel, expires_at)
        jobs[row["id"]] = job
        if row["key"] is not None:
            job["downloadUrls"].append(sign_link(row["key"], expires_at))
            job["files"].append(
                {
                    "name": row["name"],
                    "format": row["name"].partition(".")[2],
                    "rows": row["row_count"],
                    "bytes": row["byte_count"],
                    "sha256": row["sha256"],
                    "deleted": row["deleted_at"] is not None,
                }
            )
    return list(jobs.values())


def present_job(row: asyncpg.Record, channel: str, expires_at: int) -> dict[str, Any]:
    is_done = row["status"] == "SUCCESS"
    return {
        "requestId": row["request_id"],
        "tag": f"{row['tag']}:{channel}",
        "dataset": row["dataset"],
        "requestedBy": row["requested_by"],
        "requestedChannel": channel,
        "status": row["status"],
        "lastUpdated": milliseconds(row["completed_at"] or row["submitted_at"]),
        "datasetConfig": json.loads(row["config"]),
        "attempts": row["attempt"] - is_done,
        "jobStats": {
            "dtJobSubmitted": milliseconds(row["submitted_at"]),
            "dtJobCompleted": milliseconds(row["completed_at"]),
            "executionTime": row["execution_ms"],
        },
        "downloadUrls": [],
        "expiresAt": expires_at * 1000,
        "statusMessage": row["status_message"],
        "priority": row["priority"],
        "files": [],
        "progress": {
            "phase": "ended" if is_done else "queued",
            "queuePosition": None,
            "startedAt": milliseconds(row["started_at"]),
            "rows": row["rows_done"],
            "estimatedRows": row["rows_estimated"],
            "percent": 100 if is_done else 0,
        },
    }


def milliseconds(moment: datetime | None) -> int | None:
    return moment and int(moment.timestamp() * 1000)


def sign_link(key: str, expires_at: int) -> str:
    signature = hmac.new(PEPPER, f"{key}/{expires_at}".encode(), "sha256").hexdigest()
    return f"http://127.0.0.1/{key}?expires={expires_at}&signature={signature}"
