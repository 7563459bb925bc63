"""Times each format against CSV, and measures the memory of a worker.

    python -m benchmarks.formats [--rows 300000] [--rounds 3]

Each run covers the worker's whole path: claim, heartbeat, rows, SHA-256, fsync into the folder and
publication.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks import export_data, harness, results
from benchmarks.export import MEMORY_BAR
from benchmarks.harness import Helper
from benchmarks.results import Result, compare

BARS = {"parquet": ">= 0.5"}
COMMAND = [sys.executable, "-m", "benchmarks.formats", "--worker"]


def main() -> None:
    parser = results.argument_parser("Formats against CSV.")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve_work()
        return
    harness.stop_on_term()
    with harness.temporary_folder() as var, harness.postgresql() as url:
        variables = harness.environment(url, var)
        harness.setup_django(variables)
        harness.migrate()
        rows, months, data = export_data.load_rows(options.rows)
        ground_facts = harness.print_environment(url, data=data)
        records = measure_rates(variables, months, rows, options.rounds) + measure_memory(
            variables, months, rows
        )
        results.print_report("formats", records, ground_facts, options.json)


def measure_rates(variables: dict[str, str], months: int, rows: int, times: int) -> list[Result]:
    from exhaust.files.formats import FORMATS

    sizes: dict[str, int] = {}
    with Helper(COMMAND, variables) as worker:
        worker.call({"job": export_data.create_job("warm", 1)})
        for name in FORMATS:
            worker.call({"load": name})
        sides = [partial(time_format, worker, name, months, rows, sizes) for name in FORMATS]
        figures = harness.run_rounds(times, sides)
    return [
        compare(figures, "rows/s", name, "" if name == "csv" else "csv", BARS.get(name, ""),
                 f"{size / rows:,.0f} B/row")
        for name, size in sizes.items()
    ]  # fmt: skip


def measure_memory(variables: dict[str, str], months: int, rows: int) -> list[Result]:
    """Measures a worker's memory above its size with the format's libraries loaded."""
    from exhaust.files.formats import FORMATS

    records = []
    for name in FORMATS:
        for span in sorted({1, months}):
            with Helper(COMMAND, variables) as worker:
                idle = worker.memory("VmRSS")
                worker.call({"load": name})
                loaded = worker.memory("VmRSS")
                worker.call({"job": export_data.create_job(f"memory-{name}-{span}", span, name)})
                peak_memory = worker.memory("VmHWM") - loaded
            work = f"memory of a worker, {name}, {span * rows // months:,} rows"
            note = f"{idle:.0f} MiB idle, libraries {loaded - idle:.0f} MiB"
            records.append(Result(work, "MiB", [peak_memory], bar=f"<= {MEMORY_BAR}", note=note))
    return records


def time_format(
    worker: Helper, name: str, months: int, rows: int, sizes: dict[str, int]
) -> dict[str, float]:
    from django.conf import settings

    from exhaust.models import File

    job = export_data.create_job(f"round-{time.monotonic_ns()}", months, name)
    start_time = time.monotonic()
    worker.call({"job": job})
    seconds = time.monotonic() - start_time
    file = File.objects.get(job=job)
    if file.row_count != rows:
        raise SystemExit("The file does not have all rows.")
    sizes[name] = file.byte_count
    (Path(settings.FILES_DIR) / file.key).unlink()
    return {name: rows / seconds}


def serve_work() -> None:
    """Runs in the worker: makes the file of a job, or a file of one row to load libraries."""
    harness.setup_django({})
    from exhaust.datasets.response import RESPONSE
    from exhaust.files.formats import FORMATS
    from exhaust.jobs import attempt, transitions

    def handle(request: dict[str, object]) -> dict[str, int]:
        if "load" in request:
            body = FORMATS[str(request["load"])].make_writer(RESPONSE.columns, sys.maxsize)
            body.start()
            body.add([None] * len(RESPONSE.columns))
            body.end()
            return {}
        job = transitions.claim(int(str(request["job"])))
        if job is None or not attempt.run(job):
            raise SystemExit("The job did not succeed.")
        return {}

    harness.serve_requests(handle)


if __name__ == "__main__":
    main()
