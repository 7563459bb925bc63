"""How fast an exhaust is made, against `psql \\copy` of the very same query.

    python -m benchmarks.export [--rows 1000000] [--rounds 5]

Needs psql and the PostgreSQL server of DATABASE_URL. Both sides read one database with the same
settings and leave a file; their rows are compared by SHA-256. Ours is the worker's whole path:
claim, heartbeat, COPY, SHA-256, fsync into the folder, publication.
"""

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import ground
from benchmarks.ground import CHANNEL, FIRST_DAY, PAYLOAD_BYTES, Helper, Process, Row
from exhaust.demo.conversations import CONVERSATION_ID, CONVERSATION_NAME, answers, participants

MONTH = timedelta(days=30)
MONTH_ROWS = 100_000
DEVICES = 3_000
EMBEDDED_ROWS = 20_000
MEMORY_BAR = 48  # MiB over idle, whatever the size of the file
REFERENCE, SAME_PLAN = "psql \\copy", "psql \\copy, our plan"
OURS, PORTABLE = "worker", "portable"


def main() -> None:
    arguments = argparse.ArgumentParser(description="Exports, against psql \\copy.")
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments.add_argument("--embedded", action="store_true", help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.worker:
        work()
    elif asked.embedded:
        submit_embedded()
    else:
        ground.stop_on_term()
        with ground.folder() as var:
            with ground.postgresql() as url:
                against_psql(url, var / "postgresql", asked.rows, asked.rounds)
            embedded(var / "sqlite", asked.rounds)


# Against psql ------------------------------------------------------------------------------------


def against_psql(url: str, var: Path, rows: int, times: int) -> None:
    variables = ground.environment(url, var)
    ground.enter(variables)
    ground.migrate()
    from exhaust.datasets.response import RESPONSE

    months = max(1, rows // MONTH_ROWS)
    rows = months * min(rows, MONTH_ROWS)
    begun = time.monotonic()
    load(min(rows, MONTH_ROWS), months)
    ground.print_ground(
        url,
        data=f"{rows:,} answers of {PAYLOAD_BYTES} bytes, loaded in"
        f" {time.monotonic() - begun:.0f} s, {len(RESPONSE.columns)} columns",
    )
    command = [sys.executable, "-m", "benchmarks.export", "--worker"]
    digests: dict[str, str] = {}

    with Helper(command, variables) as worker:
        worker.ask({"job": new_job("warm", months=1)})
        found = ground.rounds(
            times,
            [
                partial(time_psql, url, var, months, rows, digests, REFERENCE),
                partial(time_psql, url, var, months, rows, digests, SAME_PLAN),
                partial(time_worker, worker, months, rows, digests),
                partial(time_portable, worker, digests),
            ],
        )
    ground.print_rates(
        "Export to CSV",
        "rows/s",
        found,
        [
            Row(REFERENCE),
            Row(SAME_PLAN, REFERENCE, note="the planner told what the worker tells it"),
            Row(OURS, REFERENCE, 0.85),
            Row(PORTABLE, REFERENCE, note=f"{min(rows, MONTH_ROWS):,} rows, no COPY"),
        ],
    )
    within = ground.ratios(found[OURS], found[SAME_PLAN])
    print(f"\n{OURS}: {median(within):.2f} ({min(within):.2f}-{max(within):.2f}) of {SAME_PLAN}")
    same = digests[REFERENCE] == digests[SAME_PLAN] == digests[OURS]
    print(f"\nsame rows, by SHA-256 of the lines below the header: {'yes' if same else 'NO'}")

    growths = []
    for span in sorted({1, months}):
        with Helper(command, variables) as worker:
            idle = worker.memory("VmRSS")
            worker.ask({"job": new_job(f"memory-{span}", span)})
            growths.append(worker.memory("VmHWM") - idle)
        print(
            f"memory of a worker, {span * rows // months:,} rows: "
            f"{idle:.0f} MiB idle, {growths[-1]:.1f} MiB more at most (bar: < {MEMORY_BAR})"
        )
    if not same or max(growths) >= MEMORY_BAR:
        raise SystemExit("The files differ, or memory grew beyond its bar.")


def load(month_rows: int, months: int) -> None:
    """A month of answers through the adapter, then the same people again in later months."""
    from django.db import connection

    from ingest import store
    from ingest.adapters import participants as profiles_adapter
    from ingest.adapters import telemetry
    from ingest.events import Call
    from ingest.models import Channel, Conversation

    channel = Channel.objects.create(identifier=CHANNEL)
    Conversation.objects.create(channel=channel, identifier=CONVERSATION_ID, name=CONVERSATION_NAME)
    now = datetime.now(UTC)
    devices = min(DEVICES, month_rows // 5)
    for body in bodies(
        answers(
            month_rows, devices, start=FIRST_DAY, days=MONTH.days, channel=CHANNEL,
            payload_bytes=PAYLOAD_BYTES,
        )
    ):  # fmt: skip
        store.append(channel.pk, telemetry.parse(body, Call(CHANNEL, now)))
    profiles = json.dumps(list(participants(devices, start=FIRST_DAY))).encode()
    store.keep_participants(
        channel.pk, now, *profiles_adapter.parse(profiles, "application/json", now)
    )
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        for month in range(1, months):
            values: dict[str, Any] = {
                "later": MONTH * month,
                "later_ms": MONTH.total_seconds() * 1000 * month,
                "month": str(month),
                "until": FIRST_DAY + MONTH,
            }
            cursor.execute(_LATER, values)
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("CHECKPOINT")


_LATER = """
INSERT INTO ingest_storedevent (occurred_at, received_at, channel_id, conversation_id, is_answer,
    identity, dialect, type, device_id, session_id, note, payload)
SELECT occurred_at + %(later)s, received_at, channel_id, conversation_id, is_answer,
    md5(identity::text || %(month)s)::uuid, dialect, type, device_id,
    md5(session_id || %(month)s)::uuid::text, note,
    jsonb_set(payload, '{ets}', to_jsonb((payload->>'ets')::numeric + %(later_ms)s))
FROM ingest_storedevent WHERE occurred_at < %(until)s ORDER BY id
"""


def bodies(events: Iterable[dict[str, Any]], each: int = 1000) -> Iterator[bytes]:
    events = iter(events)
    while batch := list(itertools.islice(events, each)):
        yield json.dumps({"events": batch}, ensure_ascii=False).encode()


def config(months: int) -> dict[str, str]:
    last = FIRST_DAY + MONTH * months - timedelta(days=1)
    return {
        "conversationId": CONVERSATION_ID,
        "startDate": FIRST_DAY.isoformat(),
        "endDate": last.isoformat(),
    }


def new_job(tag: str, months: int) -> int:
    from exhaust import submissions
    from exhaust.datasets.response import RESPONSE
    from ingest.models import Channel

    channel = Channel.objects.get(identifier=CHANNEL)
    return submissions.submit(
        submissions.Submission(channel.pk, CHANNEL, tag, RESPONSE.name, config(months), "benchmark")
    ).pk


def selection(months: int) -> Any:
    from exhaust.datasets.selection import Selection, days
    from ingest.models import Conversation
    from ingest.positions import watermark

    conversation = Conversation.objects.get(identifier=CONVERSATION_ID)
    last = FIRST_DAY + MONTH * months - timedelta(days=1)
    start, end = days(FIRST_DAY, last, "UTC")
    return Selection(
        conversation.channel_id, conversation.pk, CONVERSATION_ID, CONVERSATION_NAME, start, end,
        watermark(),
    )  # fmt: skip


def time_psql(
    url: str, var: Path, months: int, rows: int, digests: dict[str, str], name: str
) -> dict[str, float]:
    import psycopg
    from django.conf import settings
    from django.db import connection

    from exhaust import writer
    from exhaust.datasets.response import RESPONSE

    connection.ensure_connection()
    sql, params = RESPONSE.copy(selection(months)) or ("", {})
    query = psycopg.ClientCursor(connection.connection).mogrify(sql, params).replace("\n", " ")
    target = var / "reference.csv"
    told = ["-c", "BEGIN", "-c", writer._PLANNING] if name == SAME_PLAN else []
    variables = {**os.environ, "PGOPTIONS": settings.DATABASES["default"]["OPTIONS"]["options"]}
    begun = time.monotonic()
    subprocess.run(
        ["psql", "-qX", *told, "-c", f"\\copy ({query}) TO '{target}' (FORMAT csv)", url],
        env=variables, check=True,
    )  # fmt: skip
    took = time.monotonic() - begun
    digests[name] = body_digest(target, header=False)
    target.unlink()
    return {name: rows / took}


def time_worker(
    worker: Helper, months: int, rows: int, digests: dict[str, str]
) -> dict[str, float]:
    from django.conf import settings

    from exhaust.models import File

    job = new_job(f"round-{time.monotonic_ns()}", months)
    begun = time.monotonic()
    worker.ask({"job": job})
    took = time.monotonic() - begun
    file = File.objects.get(job=job)
    path = Path(settings.FILES_DIR) / file.key
    if file.row_count != rows or file.sha256 != body_digest(path, header=False):
        raise SystemExit("The file is not what its row says.")
    digests[OURS] = body_digest(path, header=True)
    path.unlink()
    return {OURS: rows / took}


def time_portable(worker: Helper, digests: dict[str, str]) -> dict[str, float]:
    begun = time.monotonic()
    rows = worker.ask({"portable": 1})["rows"]
    return {PORTABLE: rows / (time.monotonic() - begun)}


def body_digest(path: Path, *, header: bool) -> str:
    with path.open("rb") as file:
        if header:
            file.readline()
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def work() -> None:
    """The worker's side: claims the job it is told and makes its file."""
    ground.enter({})
    from exhaust import jobs, runner, storage, writer
    from exhaust.datasets.response import RESPONSE

    def answer(asked: dict[str, int]) -> dict[str, int]:
        if "portable" in asked:
            progress = writer.Progress()
            blocks = writer.blocks(RESPONSE, selection(asked["portable"]), progress, portable=True)
            store = storage.default()
            store.put("portable.csv", writer.Stream(blocks), writer.CONTENT_TYPE)  # type: ignore[arg-type]
            return {"rows": progress.rows}
        job = jobs.claim(asked["job"])
        if job is None or not runner.run(job):
            raise SystemExit("The job did not succeed.")
        return {}

    ground.serve(answer)


# Embedded ----------------------------------------------------------------------------------------


def embedded(var: Path, times: int) -> None:
    """From submit to SUCCESS on SQLite, with Celery's solo worker on the filesystem broker."""
    variables = {**ground.environment("", var)}
    with Helper([sys.executable, "-m", "benchmarks.export", "--embedded"], variables) as submitter:
        command = [sys.executable, "-m", "celery", "-A", "config", "worker", "-B", "-l", "WARNING"]
        with Process(command, variables, stdout=subprocess.DEVNULL):
            submitter.ask("warm")  # the worker is up
            seconds = [submitter.ask(f"round-{n}") for n in range(times)]
    held = "holds" if median(seconds) < 3 else "MISSED"
    print(
        f"\nembedded (SQLite, solo worker), submit to SUCCESS, {EMBEDDED_ROWS:,} rows: median "
        f"{median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f}), bar < 3 s: {held}"
    )


def submit_embedded() -> None:
    ground.enter({})
    ground.migrate()
    load(EMBEDDED_ROWS, 1)
    from exhaust.models import File, Job

    def answer(tag: str) -> float:
        begun = time.monotonic()
        pk = new_job(tag, 1)
        while (status := Job.objects.values_list("status", flat=True).get(pk=pk)) != "SUCCESS":
            if status == "FAILED" or time.monotonic() - begun > 60:
                raise SystemExit(f"The job is {status}.")
            time.sleep(0.02)
        took = time.monotonic() - begun
        if File.objects.get(job=pk).row_count != EMBEDDED_ROWS:
            raise SystemExit("The file has not all rows.")
        return took

    ground.serve(answer)


if __name__ == "__main__":
    main()
