"""How fast each format is made, against CSV, and what a worker needs for it.

    python -m benchmarks.formats [--rows 300000] [--rounds 3]

Each is the worker's whole path: claim, heartbeat, rows, SHA-256, fsync into the folder and
publication.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks import answers, ground, results
from benchmarks.export import MEMORY_BAR
from benchmarks.ground import Helper
from benchmarks.results import Result, compared

BARS = {"parquet": ">= 0.5"}
COMMAND = [sys.executable, "-m", "benchmarks.formats", "--worker"]


def main() -> None:
    arguments = results.arguments("Formats, against CSV.")
    arguments.add_argument("--rows", type=int, default=300_000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.worker:
        work()
        return
    ground.stop_on_term()
    with ground.folder() as var, ground.postgresql() as url:
        variables = ground.environment(url, var)
        ground.enter(variables)
        ground.migrate()
        rows, months, data = answers.load_rows(asked.rows)
        told = ground.print_ground(url, data=data)
        found = rates(variables, months, rows, asked.rounds) + memory(variables, months, rows)
        results.report("formats", found, told, asked.json)


def rates(variables: dict[str, str], months: int, rows: int, times: int) -> list[Result]:
    from exhaust.files.formats import FORMATS

    sizes: dict[str, int] = {}
    with Helper(COMMAND, variables) as worker:
        worker.ask({"job": answers.new_job("warm", 1)})
        for name in FORMATS:
            worker.ask({"load": name})
        sides = [partial(time_one, worker, name, months, rows, sizes) for name in FORMATS]
        found = ground.rounds(times, sides)
    return [
        compared(found, "rows/s", name, "" if name == "csv" else "csv", BARS.get(name, ""),
                 f"{size / rows:,.0f} B/row")
        for name, size in sizes.items()
    ]  # fmt: skip


def memory(variables: dict[str, str], months: int, rows: int) -> list[Result]:
    """Of a worker, over what it has with the format's libraries loaded."""
    from exhaust.files.formats import FORMATS

    found = []
    for name in FORMATS:
        for span in sorted({1, months}):
            with Helper(COMMAND, variables) as worker:
                idle = worker.memory("VmRSS")
                worker.ask({"load": name})
                loaded = worker.memory("VmRSS")
                worker.ask({"job": answers.new_job(f"memory-{name}-{span}", span, name)})
                most = worker.memory("VmHWM") - loaded
            work = f"memory of a worker, {name}, {span * rows // months:,} rows"
            note = f"{idle:.0f} MiB idle, libraries {loaded - idle:.0f} MiB"
            found.append(Result(work, "MiB", [most], bar=f"<= {MEMORY_BAR}", note=note))
    return found


def time_one(
    worker: Helper, name: str, months: int, rows: int, sizes: dict[str, int]
) -> dict[str, float]:
    from django.conf import settings

    from exhaust.models import File

    job = answers.new_job(f"round-{time.monotonic_ns()}", months, name)
    begun = time.monotonic()
    worker.ask({"job": job})
    took = time.monotonic() - begun
    file = File.objects.get(job=job)
    if file.row_count != rows:
        raise SystemExit("The file has not all rows.")
    sizes[name] = file.byte_count
    (Path(settings.FILES_DIR) / file.key).unlink()
    return {name: rows / took}


def work() -> None:
    """The worker's side: makes the job it is told; or a file of a row, to load what that takes."""
    ground.enter({})
    from exhaust.datasets.response import RESPONSE
    from exhaust.files.formats import FORMATS
    from exhaust.jobs import attempt, transitions

    def answer(asked: dict[str, object]) -> dict[str, int]:
        if "load" in asked:
            body = FORMATS[str(asked["load"])].begin(RESPONSE.columns, sys.maxsize)
            body.start()
            body.add([None] * len(RESPONSE.columns))
            body.end()
            return {}
        job = transitions.claim(int(str(asked["job"])))
        if job is None or not attempt.run(job):
            raise SystemExit("The job did not succeed.")
        return {}

    ground.serve(answer)


if __name__ == "__main__":
    main()
