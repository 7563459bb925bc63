"""Times reads of a job during exports and ingest.

    python -m benchmarks.mixed_load [--rows 100000] [--seconds 5] [--rounds 1]

Needs the PostgreSQL server of DATABASE_URL; the broker is the Redis of CELERY_BROKER_URL, or files.
Two open-loop generators send requests at fixed times; a time counts from the moment a request is
due. One reads jobs of a channel from the shipped server, 50 per second: a fifteenth of its
capacity, so that a read meets other work rather than other reads. The second side does the same
while Celery's worker exports the channel's `--rows` answers again and again, and another channel
receives 20 batches of 100 telemetry events per second: 2,000 events, an eighth of the source's own
capacity. All processes share the cores. The run fails unless exports ran all the time, and every
batch was acknowledged and is stored.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import api, export_data, harness, overload, results, submit_latency
from benchmarks.generator import GENERATOR
from benchmarks.harness import Helper, Process, wait_for_server
from benchmarks.results import Result
from exhaust.processes import web_command

JOBS = 300  # jobs that are read in turns
READS, BATCHES, BATCH = 50, 20, 100  # per second, per second, events per batch
SENDS_PER_SECOND = "SENDS"  # receives the events, so that the exports stay the same
P99_MS = 25
FILES_MADE = 0.8  # minimum share of the time


def main() -> None:
    parser = results.argument_parser("Reads of a job during exports and ingest.")
    parser.add_argument("--rows", type=int, default=100_000, help="Rows of an export.")
    parser.add_argument("--seconds", type=float, default=5, help="Seconds of each side in a round.")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    harness.stop_on_term()
    broker = os.environ.get("CELERY_BROKER_URL", "")
    with harness.temporary_folder() as var, harness.postgresql() as url:
        variables = {
            **harness.environment(url, var),
            "EXHAUST_LOG_LEVEL": "INFO",
            "EXHAUST_RATE_LIMIT_MULTIPLIER": "10000",
            "EXHAUST_MAX_RUNNING_PER_CHANNEL": "1",
        }
        if broker.startswith("redis"):
            variables["CELERY_BROKER_URL"] = broker
        harness.setup_django(variables)
        harness.migrate()
        port = harness.free_port()
        requests, _ = api.prepare(JOBS, 0)
        _, months, data = export_data.load_rows(options.rows, export_data.QUICK_MONTH_ROWS)
        batches = overload.start_generators(port, BATCH, SENDS_PER_SECOND)
        export_data.prune_and_derive()
        ground_facts = harness.print_environment(
            url,
            data=data,
            server=" ".join(["python", *web_command(port)[1:]]),
            worker=f"python {submit_latency.CELERY}",
            broker="Redis" if broker.startswith("redis") else "files",
            load=f"{READS} reads a second; {BATCHES} batches of {BATCH} events a second",
        )
        quiet = partial(Process, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with ExitStack() as running:
            web = running.enter_context(quiet(web_command(port), variables))
            running.enter_context(
                quiet([sys.executable, *submit_latency.CELERY.split()], variables)
            )
            wait_for_server(port, web)
            reader, sender = (running.enter_context(Helper(GENERATOR, variables)) for _ in range(2))
            reader.call({"prepare": {"port": port, "requests": requests["read"]}})
            sender.call({"prepare": batches})
            records = measure(reader, sender, months, options.seconds, options.rounds)
        results.print_report("busy", records, ground_facts, options.json)


def measure(
    reader: Helper, sender: Helper, months: int, seconds: float, times: int
) -> list[Result]:
    """Returns the times of reads, alone and under load."""
    for each in (sender, reader):
        each.call({"rate": 0, "seconds": 0.5})  # both web processes are warm
    wait_for_job(submit_job(months))  # the worker is up

    def run_alone() -> dict[str, float]:
        return to_milliseconds(reader.call({"rate": READS, "seconds": seconds}), "alone")

    def run_under_load() -> dict[str, float]:
        files, read, came = run_with_exports(reader, sender, months, seconds)
        if came["answers"] != {"200": came["sent"]}:
            raise SystemExit(f"{came['sent']} batches returned {came['answers']}.")
        events = came["answers"]["200"] * BATCH / came["seconds"]
        return to_milliseconds(read, "busy") | files | {"events": events}

    figures = harness.run_rounds(times, [run_alone, run_under_load])
    stored = overload.stored_counts()
    if lost_batches := [
        each for each in sender.call({"acknowledged": True}) if stored.get(each) != BATCH
    ]:
        raise SystemExit(f"{len(lost_batches)} acknowledged batches are not stored whole.")
    under = "while files are made and events come"
    return [
        Result(f"read, p99, {under}", "ms", figures["p99 busy"], bar=f"<= {P99_MS}"),
        *(
            Result(f"read, {part}, {under}", "ms", figures[f"{part} busy"], "nothing else",
                   figures[f"{part} alone"])
            for part in ("p50", "p99")
        ),
        Result("files made meanwhile", "of the time", figures["share"],
               note=f"{sum(figures['files']):.0f} ended"),
        Result("events acknowledged meanwhile", "events/s", figures["events"]),
    ]  # fmt: skip


def to_milliseconds(result: dict[str, Any], side: str) -> dict[str, float]:
    if result["answers"] != {"200": result["sent"]}:
        raise SystemExit(f"{result['sent']} reads returned {result['answers']}.")
    return {f"{part} {side}": result[f"accepted_{part}"] * 1000 for part in ("p50", "p99")}


# The load ----------------------------------------------------------------------------------------


def run_with_exports(
    reader: Helper, sender: Helper, months: int, seconds: float
) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
    """Runs exports, reads and ingest; returns their results."""
    from django.utils import timezone

    from exhaust.jobs import transitions

    files = [submit_job(months)]
    while not fetch_job(files[0]).started_at:
        time.sleep(0.02)
    start_time = timezone.now()
    with ThreadPoolExecutor() as pool:
        sides = [
            pool.submit(each.call, {"rate": rate, "seconds": seconds})
            for each, rate in ((reader, READS), (sender, BATCHES))
        ]
        while not all(side.done() for side in sides):
            if fetch_job(files[-1]).started_at:
                files.append(submit_job(months))  # one job is always queued
            time.sleep(0.05)
    read, sent_result = (side.result() for side in sides)
    if not (last := fetch_job(files[-1])).started_at:
        transitions.cancel(last, "The time is over.")
        files.pop()
    file_spans = [wait_for_job(each) for each in files]
    ended_count, share = overlap(file_spans, start_time, start_time + timedelta(seconds=seconds))
    if not ended_count or share < FILES_MADE:
        raise SystemExit(f"{ended_count} exports finished, and one ran {share:.0%} of the time.")
    return {"files": ended_count, "share": share}, read, sent_result


def overlap(
    file_spans: Sequence[tuple[datetime, datetime]], window_start: datetime, window_end: datetime
) -> tuple[int, float]:
    """Returns how many exports ended in the window, and the share of it in which one ran."""
    ended_count = sum(window_start <= completed <= window_end for _, completed in file_spans)
    covered = sum(
        max(0.0, (min(completed, window_end) - max(started, window_start)).total_seconds())
        for started, completed in file_spans
    )
    return ended_count, covered / (window_end - window_start).total_seconds()


def submit_job(months: int) -> int:
    return export_data.create_job(f"busy-{time.monotonic_ns()}", months)


def fetch_job(pk: int) -> Any:
    from exhaust.models import Job

    job = Job.objects.get(pk=pk)
    if job.status in (Job.Status.FAILED, Job.Status.CANCELLED):
        raise SystemExit(f"The job is {job.status}.")
    return job


def wait_for_job(pk: int) -> tuple[datetime, datetime]:
    """Waits for an export and deletes it; returns its start and its end."""
    from django.conf import settings

    from exhaust.models import File

    deadline = time.monotonic() + 600
    while not (job := fetch_job(pk)).completed_at:
        if time.monotonic() > deadline:
            raise SystemExit(f"The job is {job.status}.")
        time.sleep(0.05)
    (Path(settings.FILES_DIR) / File.objects.get(job=pk).key).unlink()
    return job.started_at, job.completed_at


if __name__ == "__main__":
    main()
