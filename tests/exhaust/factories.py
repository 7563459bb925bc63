"""Factories of the tests of exhaust; plain functions with overrides."""

import hashlib
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.utils import timezone

from exhaust.files import storage
from exhaust.jobs import transitions
from exhaust.jobs.submit import Submission
from exhaust.models import File, Job
from ingest.adapters import telemetry
from ingest.events import Batch, Call, Event, event_identity
from ingest.store import batches
from tests.conftest import make_channel

RESPONSE = "uci-response-exhaust"
PRIVATE = "uci-private-exhaust"
BOT = "c63b6faa-11a9-4259-b941-11cd2f8446c6"
CONFIG = {
    "type": RESPONSE,
    "conversationId": BOT,
    "startDate": "2022-03-01",
    "endDate": "2022-04-01",
}
FIRST_ANSWER = datetime(2022, 3, 5, 10, tzinfo=UTC)


def make_submission(**overrides: Any) -> Submission:
    channel = make_channel(overrides.pop("channel", "ORG_001"))
    values: dict[str, Any] = {
        "tag": "daily",
        "dataset": RESPONSE,
        "config": CONFIG,
        "requested_by": "user_id",
        **overrides,
    }
    return Submission(channel_id=channel.pk, channel=channel.identifier, **values)


def make_job(**overrides: Any) -> Job:
    values: dict[str, Any] = {
        "tag": "daily",
        "request_id": uuid4().hex.upper(),
        "dataset": RESPONSE,
        "config": CONFIG,
        "fingerprint": "f" * 64,
        "requested_by": "user_id",
        # SQLite's clock has milliseconds: a job submitted in this one is due in the next
        "due_at": timezone.now() - timedelta(seconds=1),
        **overrides,
    }
    values["channel"] = make_channel(values.get("channel", "ORG_001"))
    return Job.objects.create(**values)


def make_claimed(**overrides: Any) -> Job:
    job = transitions.claim(make_job(**overrides).pk)
    assert job is not None
    return job


def make_finished(content: bytes = b"a,b\n1,2\n", **overrides: Any) -> Job:
    """Returns a job with status SUCCESS and one stored file."""
    job = make_claimed(**overrides)
    key = f"response/{job.pk}/{job.attempt}-{uuid4().hex}.csv"
    storage.get_storage().put(key, io.BytesIO(content), "text/csv; charset=utf-8")
    assert transitions.publish(job, [make_file(job, key=key, content=content)], "")
    job.refresh_from_db()
    return job


def unfinished_key(job: Job, attempt: int, area: str = "response") -> str:
    """Writes the draft that a killed attempt leaves in the folder; returns its path."""
    name = f"{area}/{job.pk}/.part-{attempt}-{uuid4().hex}.csv"
    path = Path(settings.FILES_DIR) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half a fi")
    return name


def leave_orphan(job: Job, attempt: int, area: str = "response", suffix: str = "csv") -> str:
    """Stores the object that a superseded attempt leaves; returns its key."""
    key = f"{area}/{job.pk}/{attempt}-{uuid4().hex}.{suffix}"
    storage.get_storage().put(key, io.BytesIO(b"a whole file"), "text/csv; charset=utf-8")
    return key


def make_file(job: Job, content: bytes = b"", **overrides: Any) -> File:
    """A file's row, not saved: publishing does that."""
    values: dict[str, Any] = {
        "key": f"response/{job.pk}/{uuid4().hex}.csv",
        "name": f"{BOT}_response_20220401.csv",
        "content_type": "text/csv; charset=utf-8",
        "row_count": max(0, content.count(b"\n") - 1),
        "byte_count": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **overrides,
    }
    return File(job=job, **values)


def make_answer(number: int, text: str = "") -> dict[str, Any]:
    """One ASSESS event; the number makes it another."""
    answered_at = FIRST_ANSWER + timedelta(minutes=number)
    return {
        "eid": "ASSESS",
        "ets": int(answered_at.timestamp() * 1000),
        "ver": "3.0",
        "mid": f"ASSESS:{number}",
        "actor": {"id": f"device-{number}", "type": "User"},
        "context": {
            "channel": "ORG_001",
            "did": f"device-{number}",
            "sid": "session",
            "cdata": [{"type": "Conversation", "id": BOT}],
            "rollup": {"l3": "question./data/one", "l4": "false"},
        },
        "edata": {
            "item": {"id": "q1", "type": "ftp", "title": "Why?", "params": []},
            "resvalues": [{"ans1": text or f"because {number}"}],
            "score": 1,
            "duration": 12,
        },
    }


def send_events(*events: dict[str, Any], channel: str = "ORG_001") -> None:
    """Stores events like the telemetry endpoint."""
    batch = telemetry.parse(json.dumps(list(events)).encode(), Call(channel, timezone.now()))
    assert not batch.rejections
    outcome = batches.append_batch(make_channel(channel).pk, batch)
    assert outcome.stored == len(events)


def revise_answer(number: int, text: str) -> None:
    """Stores a new version of an answer, which supersedes the one of this number."""
    revised = make_answer(number, text)
    event = Event(
        identity=event_identity(FIRST_ANSWER, "revised", str(number)),
        type="ASSESS",
        occurred_at=FIRST_ANSWER + timedelta(minutes=number),
        device_id=f"device-{number}",
        session_id="session",
        conversation=BOT,
        is_answer=True,
        payload=json.dumps(revised).encode(),
    )
    batch = Batch("skalin", timezone.now(), [event], [], last_wins=True)
    assert batches.append_batch(make_channel().pk, batch).stored == 1


def fetch_job_row(job: Job) -> dict[str, Any]:
    """Returns a job's row."""
    return Job.objects.filter(pk=job.pk).values().get()


def stored_paths(folder: Path) -> list[str]:
    """Every file under a folder, drafts too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
