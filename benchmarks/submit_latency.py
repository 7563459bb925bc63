"""Times an export from submit to its file, through Celery's worker.

    python -m benchmarks.submit_latency [--rows 1000000] [--rounds 3]

First embedded (SQLite, a broker of files) with 20,000 rows, then with the PostgreSQL server of
DATABASE_URL, and the Redis of CELERY_BROKER_URL if it names one.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import export_data, harness, results
from benchmarks.harness import Helper, Process
from benchmarks.results import Result

EMBEDDED_ROWS = 20_000
CELERY = "-m celery -A config worker -B -l WARNING --concurrency 2"


def main() -> None:
    parser = results.argument_parser("From submit to the finished file.")
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="Rows on PostgreSQL; 0 skips it."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--submitter", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.submitter:
        serve_submissions(options.submitter)
        return
    harness.stop_on_term()
    with harness.temporary_folder() as var, harness.postgresql() as url:
        ground_facts = harness.print_environment(url, worker=f"python {CELERY}")
        embedded = harness.environment("", var / "sqlite")
        records = [measure("embedded", embedded, EMBEDDED_ROWS, options.rounds, 3)]
        if options.rows:
            server_variables = harness.environment(url, var / "postgresql")
            broker = os.environ.get("CELERY_BROKER_URL", "")
            if broker.startswith("redis"):
                server_variables["CELERY_BROKER_URL"] = broker
            records.append(
                measure("PostgreSQL", server_variables, options.rows, options.rounds, 10)
            )
        results.print_report("asking", records, ground_facts, options.json)


def measure(where: str, variables: dict[str, str], rows: int, times: int, bar: int) -> Result:
    command = [sys.executable, "-m", "benchmarks.submit_latency", "--submitter", str(rows)]
    with Helper(command, variables) as submitter:
        worker = [sys.executable, *CELERY.split()]
        with Process(worker, variables, stdout=subprocess.DEVNULL):
            submitter.call("warm")  # the worker is up; one month is enough
            timings = [submitter.call(f"round-{number}") for number in range(times)]
    name = f"submit to SUCCESS, {where}, {timings[0]['rows']:,} rows"
    return Result(name, "s", [each["seconds"] for each in timings], bar=f"<= {bar}")


def serve_submissions(rows: int) -> None:
    """Runs in the submitting process: loads its installation, then submits."""
    harness.setup_django({})
    harness.migrate()
    from django.conf import settings
    from django.db import connection

    if connection.vendor == "postgresql":
        rows, months, _ = export_data.load_rows(rows, export_data.QUICK_MONTH_ROWS)
    else:
        export_data.load(rows, 1)
        months = 1
    from exhaust.models import File, Job

    export_data.prune_and_derive()

    def handle(tag: str) -> dict[str, float]:
        start_time = time.monotonic()
        span = 1 if tag == "warm" else months
        pk = export_data.create_job(tag, span)
        while (status := Job.objects.values_list("status", flat=True).get(pk=pk)) != "SUCCESS":
            if status == "FAILED" or time.monotonic() - start_time > 600:
                raise SystemExit(f"The job is {status}.")
            time.sleep(0.02)
        seconds = time.monotonic() - start_time
        file = File.objects.get(job=pk)
        if file.row_count != rows // months * span:
            raise SystemExit("The file does not have all rows.")
        (Path(settings.FILES_DIR) / file.key).unlink()
        return {"seconds": seconds, "rows": rows}

    harness.serve_requests(handle)


if __name__ == "__main__":
    main()
