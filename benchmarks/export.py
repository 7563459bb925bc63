"""How fast an exhaust is made, and in how much memory, against `psql \\copy` and the peers.

    python -m benchmarks.export [--rows 2000000] [--rounds 3] [--peer-rows 200000]
        [--s3-rows 300000] [--same-plan] [--growth]

Needs psql and the PostgreSQL server of DATABASE_URL. Ours is the worker's whole path: claim,
heartbeat, COPY, SHA-256, fsync into the folder, publication. `psql \\copy` runs the very same query
and leaves the same bytes, by SHA-256. What the peers do stands in `benchmarks.peers`; their rows
are compared by a digest. DuckDB needs the extra `benchmarks`, Spark the extra `spark` and Java,
memory to S3 the extra `s3local`; what is not there is skipped.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import answers, ground, peers, results
from benchmarks.ground import Helper
from benchmarks.results import Result, compared

MEMORY_BAR = 48  # MiB over idle, whatever the size of the file
S3_MEMORY_BAR = 96
REFERENCE, SAME_PLAN = "psql \\copy", "psql \\copy, our plan"
PORTABLE = "worker without COPY"
ALONE = "in one statement"
SPARK_ALL = "Spark, all rows"
WORKER = [sys.executable, "-m", "benchmarks.export", "--worker"]
Side = Callable[[], dict[str, float]]


def main() -> None:
    arguments = results.arguments("Exports, against psql \\copy, ORM, pandas, DuckDB and Spark.")
    arguments.add_argument("--rows", type=int, default=2_000_000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--peer-rows", type=int, default=200_000, help="0: no peers.")
    arguments.add_argument("--s3-rows", type=int, default=300_000, help="0: no S3.")
    arguments.add_argument("--same-plan", action="store_true", help="psql planned as we do, too.")
    arguments.add_argument("--growth", action="store_true", help="Ours only: growth and memory.")
    arguments.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.worker:
        work()
        return
    ground.stop_on_term()
    with ground.folder() as var, ground.postgresql() as url:
        # one file, however large
        variables = ground.environment(url, var) | {"EXHAUST_PART_BYTES": "0"}
        ground.enter(variables)
        ground.migrate()
        rows, months, data = answers.load_rows(asked.rows)
        told = ground.print_ground(url, data=data, peers=peers.versions())
        place = Place(url, var, variables, rows // months)
        found = against_psql(place, months, asked)
        whole = found[0].ours
        found += memory(place, months, asked.s3_rows)
        if asked.peer_rows:
            span = min(months, max(1, asked.peer_rows // place.month_rows))
            found += against_peers(place, span, months, asked.rounds, whole)
        results.report("export", found, told, asked.json)


class Place:
    """The installation that is measured, and how many rows a month of it has."""

    def __init__(self, url: str, var: Path, variables: dict[str, str], month_rows: int) -> None:
        self.url, self.var, self.variables = url, var, variables
        self.month_rows = month_rows

    def rows(self, months: int) -> int:
        return self.month_rows * months

    def worker(self, months: int) -> str:
        """What the worker's row for so many months is called."""
        return f"worker, {self.rows(months):,} rows"


# Against psql ------------------------------------------------------------------------------------


def against_psql(place: Place, months: int, asked: argparse.Namespace) -> list[Result]:
    """Rates, what a row costs in a large file, and what the worker that made them all took.

    psql is in half of the rounds, and what has no like in them runs once.
    """
    digests: dict[str, str] = {}
    with Helper(WORKER, place.variables) as worker:
        idle = worker.memory("VmRSS")
        worker.ask({"job": answers.new_job("warm", months=1)})
        held = None if asked.growth else digests
        ours: list[Side] = [partial(time_worker, place, worker, months, held)]
        if months > 1:  # it comes first, while its rows are at hand
            ours.insert(0, partial(time_worker, place, worker, 1, None))
        names = [] if asked.growth else [REFERENCE, SAME_PLAN][: 1 + asked.same_plan]
        theirs = [partial(time_psql, place, months, digests, name) for name in names]
        first = (asked.rounds + 1) // 2
        found = ground.rounds(first, [*theirs, *ours])
        for name, rates in ground.rounds(asked.rounds - first, ours[::-1]).items():
            found[name] += rates
        most = worker.memory("VmHWM") - idle
        if not asked.growth:
            once = [
                partial(time_alone, place, worker, months, digests),
                partial(time_portable, place, worker),
            ]
            found |= ground.rounds(1, once)
    if len(set(digests.values())) > 1:
        raise SystemExit(f"The files differ: {digests}")
    whole, month = place.worker(months), place.worker(1)
    beside = [] if asked.growth else [
        compared(found, "rows/s", whole, REFERENCE, ">= 0.95", "same bytes"),
        *([compared(found, "rows/s", whole, SAME_PLAN)] if asked.same_plan else []),
        compared(found, "rows/s", whole, ALONE, ">= 1.5", "same bytes"),
        compared(found, "rows/s", PORTABLE, month, note=f"{place.month_rows:,} rows"),
    ]  # fmt: skip
    note = f"{idle:.0f} MiB idle, in all {asked.rounds} rounds"
    large = over_idle(place, months, "to the folder", MEMORY_BAR, most, note)
    return [
        *(beside or [Result(whole, "rows/s", found[whole])]),
        Result(f"time for a row of {place.rows(months):,}", "µs", per_row(found[whole]),
               f"of {place.month_rows:,}", per_row(found[month]), "<= 1.15"),
        *([large] if months > 1 else []),
    ]  # fmt: skip


def per_row(rates: list[float]) -> list[float]:
    return [1e6 / rate for rate in rates]


def time_psql(place: Place, months: int, digests: dict[str, str], name: str) -> dict[str, float]:
    import psycopg
    from django.conf import settings
    from django.db import connection

    from exhaust.datasets.response import RESPONSE
    from exhaust.files import parallel_copy

    connection.ensure_connection()
    sql, params = RESPONSE.copy(answers.selection(months), guarded=True) or ("", {})
    query = psycopg.ClientCursor(connection.connection).mogrify(sql, params).replace("\n", " ")
    target = place.var / "reference.csv"
    told = ["-c", "BEGIN", "-c", parallel_copy.PLANNING] if name == SAME_PLAN else []
    variables = {**os.environ, "PGOPTIONS": settings.DATABASES["default"]["OPTIONS"]["options"]}
    begun = time.monotonic()
    subprocess.run(
        ["psql", "-qX", *told, "-c", f"\\copy ({query}) TO '{target}' (FORMAT csv)", place.url],
        env=variables, check=True,
    )  # fmt: skip
    took = time.monotonic() - begun
    digests[name] = body_digest(target, header=False)
    target.unlink()
    return {name: place.rows(months) / took}


def time_worker(
    place: Place, worker: Helper, months: int, digests: dict[str, str] | None
) -> dict[str, float]:
    took, path = make(place, worker, months)
    if digests is not None:
        digests["worker"] = body_digest(path, header=True)
    path.unlink()
    return {place.worker(months): place.rows(months) / took}


def time_alone(
    place: Place, worker: Helper, months: int, digests: dict[str, str]
) -> dict[str, float]:
    worker.ask({"slices": False})
    took, path = make(place, worker, months)
    worker.ask({"slices": True})
    digests[ALONE] = body_digest(path, header=True)
    path.unlink()
    return {ALONE: place.rows(months) / took}


def make(place: Place, worker: Helper, months: int) -> tuple[float, Path]:
    """Seconds that the worker needs for a file, and the file."""
    from django.conf import settings

    from exhaust.models import File

    job = answers.new_job(f"round-{time.monotonic_ns()}", months)
    begun = time.monotonic()
    worker.ask({"job": job})
    took = time.monotonic() - begun
    file = File.objects.get(job=job)
    path = Path(settings.FILES_DIR) / file.key
    if file.row_count != place.rows(months) or file.sha256 != body_digest(path, header=False):
        raise SystemExit("The file is not what its row says.")
    return took, path


def time_portable(place: Place, worker: Helper) -> dict[str, float]:
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


# Memory ------------------------------------------------------------------------------------------


def memory(place: Place, months: int, s3_rows: int) -> list[Result]:
    found = [grown(place, 1, "to the folder", MEMORY_BAR)]
    if not s3_rows:
        return found
    if find_spec("swift") is None:
        return [*found, Result("memory over idle, to S3", "MiB", note="skipped: no extra s3local")]
    from tests import s3server

    with s3server.running(place.var / "s3") as endpoint:
        variables = {
            **place.variables,
            "S3_BUCKET": "benchmark",
            "S3_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": s3server.ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": s3server.SECRET_KEY,
        }
        served = Place(place.url, place.var, variables, place.month_rows)
        spans = {1, min(months, max(1, s3_rows // place.month_rows))}
        return found + [grown(served, span, "to S3", S3_MEMORY_BAR) for span in sorted(spans)]


def grown(place: Place, months: int, where: str, bar: int) -> Result:
    """What a fresh worker needs at most, over what it has when idle."""
    with Helper(WORKER, place.variables) as worker:
        if "S3_BUCKET" in place.variables:
            worker.ask({"bucket": True})
        idle = worker.memory("VmRSS")
        worker.ask({"job": answers.new_job(f"memory-{time.monotonic_ns()}", months)})
        most = worker.memory("VmHWM") - idle
    return over_idle(place, months, where, bar, most, f"{idle:.0f} MiB idle")


def over_idle(place: Place, months: int, where: str, bar: int, most: float, note: str) -> Result:
    name = f"memory over idle, {place.rows(months):,} rows, {where}"
    return Result(name, "MiB", [most], bar=f"<= {bar}", note=note)


# Against the peers -------------------------------------------------------------------------------


def against_peers(
    place: Place, span: int, months: int, times: int, whole: Sequence[float]
) -> list[Result]:
    """All at `span` months, ORM and pandas at one; Spark once more at all of them, of which our
    rates are there already."""
    chosen, month = peers.Chosen(span), peers.Chosen(1)
    there = peers.there()
    peers.load(there)
    lines = peers.extract(place.url, place.var / "lines", months) if there else []
    digests: dict[str, str] = {}

    def ours(worker: Helper) -> dict[str, float]:
        took, path = make(place, worker, span)
        keep("worker", [path], span)
        path.unlink()
        return {place.worker(span): place.rows(span) / took}

    def theirs(name: str, told: peers.Chosen, tool: peers.Tool) -> dict[str, float]:
        with TemporaryDirectory(dir=place.var) as folder:
            begun = time.monotonic()
            paths = tool(told, lines[: told.months], Path(folder) / "rows")
            took = time.monotonic() - begun
            keep(name, paths, told.months)
        return {name: place.rows(told.months) / took}

    def keep(name: str, paths: list[Path], months: int) -> None:
        """Each is looked at once; where there are very many rows, they are only counted."""
        if name not in digests:
            if name == SPARK_ALL:
                rows, digests[name] = peers.count(paths), ""
            else:
                rows, digests[name] = peers.digest(paths)
            if rows != place.rows(months):
                raise SystemExit(f"{name} made {rows:,} rows of {place.rows(months):,}.")

    with Helper(WORKER, place.variables) as worker:
        _, path = make(place, worker, 1)
        keep("worker, a month", [path], 1)
        path.unlink()
        sides: list[Side] = [
            partial(ours, worker),
            partial(theirs, peers.ORM, month, peers.orm),
            partial(theirs, peers.PANDAS, month, peers.pandas),
        ]
        if "duckdb" in there:
            parquet = peers.parquet(lines[:span], place.var / "answers.parquet")
            tool = partial(peers.duckdb, parquet)
            sides.append(partial(theirs, peers.DUCKDB, chosen, tool))
        if "pyspark" in there:
            sides.append(partial(theirs, peers.SPARK, chosen, peers.spark))
        found = ground.rounds(times, sides)
        large: dict[str, float] = {}
        if "pyspark" in there and months > span:
            large = theirs(SPARK_ALL, peers.Chosen(months), peers.spark)
    for name, wanted in (
        (peers.ORM, "worker, a month"), (peers.PANDAS, "worker, a month"),
        (peers.DUCKDB, "worker"), (peers.SPARK, "worker"),
    ):  # fmt: skip
        if digests.get(name, digests[wanted]) != digests[wanted]:
            raise SystemExit(f"The rows of {name} are not ours.")
    chunk = place.worker(span)
    said = [
        compared(found, "rows/s", chunk, peers.ORM, ">= 10", "same rows"),
        compared(found, "rows/s", chunk, peers.PANDAS, ">= 5", "same rows"),
    ]
    if peers.DUCKDB in found:
        note = "same rows; making the Parquet not counted"
        said.append(compared(found, "rows/s", chunk, peers.DUCKDB, note=note))
    else:
        said.append(Result(chunk, "rows/s", against=peers.DUCKDB, note="skipped: no duckdb"))
    if peers.SPARK not in found:
        note = "skipped: needs the extra spark and Java"
        return [*said, Result(chunk, "rows/s", against=peers.SPARK, note=note)]
    bar = ">= 20" if place.rows(span) <= 200_000 else ">= 5"
    said.append(compared(found, "rows/s", chunk, peers.SPARK, bar, "same rows"))
    if large:
        said.append(
            Result(place.worker(months), "rows/s", whole, peers.SPARK, [large[SPARK_ALL]], ">= 5",
                   "as many rows")
        )  # fmt: skip
    return said


# The worker's side -------------------------------------------------------------------------------


def work() -> None:
    """Claims the job it is told and makes its file."""
    ground.enter({})
    from exhaust.datasets.response import RESPONSE
    from exhaust.files import parallel_copy, storage, writer
    from exhaust.files.formats import CSV
    from exhaust.jobs import attempt, transitions

    slice_rows = parallel_copy.SLICE_ROWS

    def answer(asked: dict[str, Any]) -> dict[str, int]:
        if "bucket" in asked:
            storage.default().prepare()
            return {}
        if "slices" in asked:
            parallel_copy.SLICE_ROWS = slice_rows if asked["slices"] else sys.maxsize
            return {}
        if "portable" in asked:
            progress = writer.Progress()
            chosen = answers.selection(asked["portable"])
            blocks = writer.blocks(RESPONSE, chosen, progress, portable=True)
            store = storage.default()
            store.put("portable.csv", writer.Stream(blocks), CSV.content_type)  # type: ignore[arg-type]
            return {"rows": progress.rows}
        job = transitions.claim(asked["job"])
        if job is None or not attempt.run(job):
            raise SystemExit("The job did not succeed.")
        return {}

    ground.serve(answer)


if __name__ == "__main__":
    main()
