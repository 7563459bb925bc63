"""Times the dataset API and two pages of the console.

    python -m benchmarks.api [--jobs 100000] [--conversations 10000] [--seconds 8] [--rounds 5]
        [--flags ""]

Needs the PostgreSQL server of DATABASE_URL; the broker is the Redis of CELERY_BROKER_URL, or files.
The server is the shipped one with two workers and its own settings, without rate limits and limits
of waiting requests. One process on the same cores keeps 12 connections busy. One channel has all
the jobs, each with its file; `read` and `list` request different jobs each time, `submit` goes to
16 channels. The sides take turns. `benchmarks.reference` by WSGI is the reference
of `read`. The console's pages are fetched one after the other.
"""

import argparse
import http.client
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from itertools import cycle
from statistics import median
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from benchmarks import harness, results
from benchmarks.generator import CONNECTIONS, GENERATOR, NUMBER_PLACEHOLDER, percentile
from benchmarks.harness import CHANNEL, Helper, Process, wait_for_server
from benchmarks.results import Result
from exhaust.processes import web_command

JOBS_PER_TAG = 10  # jobs that a list shows
JOBS_READ = 1000  # jobs that are read in turns
CHANNELS = 16  # channels that submit
PAGES = 60
BARS = {"read": 2000, "list": 1000, "submit": 500}
P99_MS = {"read": 25}
PAGE_MS = {"exports page": 100, "conversation search": 50}
WORDS = ("lunch", "school", "a", "7", "bot 99", "bot-000123", "nothing like it")
_DAY = timedelta(days=1)


def main() -> None:
    parser = results.argument_parser("The dataset API and the console under load.")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--conversations", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=8, help="Seconds of each side in a round.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flags", default="", help="More flags for uvicorn.")
    options = parser.parse_args()
    harness.stop_on_term()
    broker = os.environ.get("CELERY_BROKER_URL", "")
    with harness.temporary_folder() as var, harness.postgresql() as url:
        variables = {
            **harness.environment(url, var),
            "EXHAUST_LOG_LEVEL": "INFO",
            "EXHAUST_RATE_LIMIT_MULTIPLIER": "0",
            "EXHAUST_MAX_QUEUED_PER_CHANNEL": "1000000",
        }
        if broker.startswith("redis"):
            variables["CELERY_BROKER_URL"] = broker
        harness.setup_django(variables)
        harness.migrate()
        port, reference_port = harness.free_port(), harness.free_port()
        command = [*web_command(port), *shlex.split(options.flags)]
        ground_facts = harness.print_environment(
            url,
            server=" ".join(["python", *command[1:]]),
            broker="Redis" if broker.startswith("redis") else "files",
            load=f"{CONNECTIONS} connections, {options.seconds:g} s a side,"
            f" {JOBS_PER_TAG} jobs in a list",
            rows=f"{options.jobs:,} jobs, {options.conversations:,} conversations in a channel",
        )
        requester, cookie = prepare(options.jobs, options.conversations)
        reference = harness.wsgi_command(
            reference_port, "benchmarks.reference:application", *shlex.split(options.flags)
        )
        output = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }  # nowhere, as a service's lines go to a collector
        with (
            Process(command, variables, **output) as web,
            Process(reference, variables, **output) as reference_server,
        ):
            wait_for_server(port, web)
            wait_for_server(reference_port, reference_server)
            with ExitStack() as running:
                generators = {
                    name: running.enter_context(Helper(GENERATOR, variables)) for name in requester
                }
                for name, requests in requester.items():
                    to = reference_port if name == "reference" else port
                    generators[name].call({"prepare": {"port": to, "requests": requests}})
                records = measure(generators, options)
            records += time_pages(port, cookie)
        results.print_report("api", records, ground_facts, options.json)


# The rows ----------------------------------------------------------------------------------------


def prepare(jobs: int, conversations: int) -> tuple[dict[str, list[str]], str]:
    """Fills the database; returns requests by side and the cookie of a signed-in user."""
    from django.conf import settings
    from django.contrib.auth import get_user_model
    from django.db import connection
    from django.test import Client
    from django.utils import timezone

    from exhaust.files import links
    from exhaust.models import File, Job
    from ingest.auth import keys
    from ingest.models import Channel, Conversation

    channel = Channel.objects.create(identifier=CHANNEL)
    Conversation.objects.bulk_create(
        Conversation(
            channel=channel,
            identifier=f"bot-{number:06}",
            name=f"{('Lunch', 'Road', 'School', 'Harvest')[number % 4]} bot {number}",
        )
        for number in range(conversations)
    )
    now = timezone.now()
    config = {
        "type": "uci-response-exhaust",
        "conversationId": "bot-000000",
        "startDate": "2025-01-01",
        "endDate": "2025-01-31",
    }
    print(f"filling {jobs:,} jobs", file=sys.stderr)
    new_jobs: list[Job] = []
    for start in range(0, jobs, 5000):
        rows = Job.objects.bulk_create(
            Job(
                channel=channel,
                tag=f"daily-{number // JOBS_PER_TAG}",
                request_id=uuid4().hex.upper(),
                dataset="uci-response-exhaust",
                config=config,
                fingerprint="f" * 64,
                requested_by="benchmark",
                status=Job.Status.SUCCESS,
                attempt=1,
                rows_done=1000,
                rows_estimated=1000,
                submitted_at=now - _DAY * 10 * (jobs - number) / jobs,
                started_at=now - _DAY * 10 * (jobs - number) / jobs,
                completed_at=now,
                execution_ms=800,
            )
            for number in range(start, min(jobs, start + 5000))
        )
        File.objects.bulk_create(
            File(
                job=row,
                key=f"response/{row.pk}/1.csv",
                name=f"{row.request_id}_response_20250131.csv",
                content_type="text/csv; charset=utf-8",
                row_count=1000,
                byte_count=500_000,
                sha256="0" * 64,
            )
            for row in rows
        )
        new_jobs = rows  # the newest are read
    _, key = keys.create_key("reader", ["export:response"], [channel])
    chosen_jobs = new_jobs[-JOBS_READ:]
    for file in File.objects.filter(job__in=chosen_jobs).select_related("job__channel"):
        links.get_or_create(file)  # so that no read creates one
    senders = []
    for number in range(CHANNELS):
        sending = Channel.objects.create(identifier=f"SENDS_{number}")
        senders.append(keys.create_key(f"sender {number}", ["export:response"], [sending])[1])
    asking = {
        "read": [
            get(f"/dataset/v1/request/read/{job.tag}?requestId={job.request_id}", key)
            for job in chosen_jobs
        ],
        "reference": [
            get(f"/reference/{job.tag}?requestId={job.request_id}", key) for job in chosen_jobs
        ],
        "list": [get(f"/dataset/v1/request/list/{tag}", key)
                 for tag in dict.fromkeys(job.tag for job in chosen_jobs)],
        "submit": [submission(config, each) for each in senders],
    }  # fmt: skip
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")  # as PostgreSQL does itself within a minute
    browser = Client()
    browser.force_login(get_user_model().objects.create_superuser("operator"))
    name = settings.SESSION_COOKIE_NAME
    return asking, f"{name}={browser.cookies[name].value}"


def get(path: str, key: str) -> str:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\n\r\n"


def submission(config: dict[str, str], key: str) -> str:
    """Returns a request with a tag of its own, so that each creates a job."""
    body = json.dumps(
        {
            "request": {
                "tag": f"t-{NUMBER_PLACEHOLDER.decode()}",
                "dataset": config["type"],
                "requestedBy": "benchmark",
                "datasetConfig": config,
            }
        }
    )
    return (
        "POST /dataset/v1/request/submit HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"X-API-Key: {key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"\r\n{body}"
    )


# The load ----------------------------------------------------------------------------------------


def measure(generators: dict[str, Helper], options: argparse.Namespace) -> list[Result]:
    """Runs all sides; returns their results."""
    runs_by_name: dict[str, list[dict[str, Any]]] = {name: [] for name in generators}
    for number in range(options.rounds + 1):  # the first round warms up
        sides = list(generators)
        for name in sides if number % 2 else reversed(sides):
            seconds = options.seconds if number else min(1.0, options.seconds)
            result = generators[name].call({"rate": 0, "seconds": seconds})
            if not set(result["answers"]) <= {"200", "503"}:  # 503: rejected and reported
                raise SystemExit(f"{name} returned {result['answers']}")
            if number:
                runs_by_name[name].append(result)
            if name == "submit":
                forget_statistics()
        rates_text = ", ".join(
            f"{name} {rate(each[-1]):,.0f}" for name, each in runs_by_name.items() if each
        )
        print(f"  round {number}: {rates_text or 'warm'}", file=sys.stderr, flush=True)
    rates = {name: [rate(each) for each in runs] for name, runs in runs_by_name.items()}
    lines = []
    for name, runs in runs_by_name.items():
        bar = f">= {BARS[name]}" if name in BARS else ""
        lines.append(Result(name, "requests/s", rates[name], bar=bar))
        if overloaded := sum(each["answers"].get("503", 0) for each in runs):
            lines.append(Result(f"{name}, sent away with 503", "answers", [overloaded]))
        for part in ("p50", "p99"):
            times = [each[f"accepted_{part}"] * 1000 for each in runs]
            bar = f"<= {P99_MS[name]}" if part == "p99" and name in P99_MS else ""
            lines.append(Result(f"{name}, {part}", "ms", times, bar=bar))
    lines.append(
        Result("read", "requests/s", rates["read"], "ModelSerializer and ORM", rates["reference"])
    )
    cpu = [each["cpu"] for each in runs_by_name["read"]]
    lines.append(Result("share of a core that the load took in read", "cores", cpu))
    return lines


def rate(result: dict[str, Any]) -> float:
    return float(result["accepted"] / result["seconds"])


def forget_statistics() -> None:
    """Deletes submitted jobs, so that each round finds the same rows."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM exhaust_job WHERE tag LIKE 't-%%'")


# The pages ---------------------------------------------------------------------------------------


def time_pages(port: int, cookie: str) -> list[Result]:
    """Times the two pages that must be fast."""
    searches = cycle(
        f"/console/{CHANNEL}/exports/new/conversations?q={quote(word)}" for word in WORDS
    )
    sides: dict[str, Callable[[], str]] = {
        "exports page": lambda: f"/console/{CHANNEL}/exports",
        "conversation search": lambda: next(searches),
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    records = []
    for name, path in sides.items():
        durations = []
        for _ in range(PAGES):
            start_time = time.perf_counter()
            connection.request("GET", path(), headers={"Cookie": cookie, "Host": "127.0.0.1"})
            answer = connection.getresponse()
            answer.read()
            durations.append((time.perf_counter() - start_time) * 1000)
            if answer.status != 200:
                raise SystemExit(f"{name} returned {answer.status}")
        ordered = sorted(durations[5:])  # the first ones warm up
        bar = f"<= {PAGE_MS[name]}"
        records += [
            Result(f"{name}, p50", "ms", [median(ordered)]),
            Result(f"{name}, p95", "ms", [percentile(ordered, 0.95)], bar=bar),
        ]
    return records


if __name__ == "__main__":
    main()
