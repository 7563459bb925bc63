"""Times an export and measures its memory, against `psql \\copy` and other tools.

    python -m benchmarks.export [--rows 2000000] [--rounds 3] [--peer-rows 200000]
        [--s3-rows 300000] [--same-plan] [--growth]

Needs psql and the PostgreSQL server of DATABASE_URL. Ours is the worker's whole path: claim,
heartbeat, COPY, SHA-256, fsync into the folder, publication. `psql \\copy` runs the same query and
writes the same bytes, by SHA-256. `benchmarks.baselines` has the other tools; a digest compares
their rows. DuckDB needs the extra `benchmarks`, Spark the extra `spark` and Java, memory with S3
the extra `s3local`. Missing tools are skipped.
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

from benchmarks import baselines, export_data, harness, results
from benchmarks.harness import Helper
from benchmarks.results import Result, compare

MEMORY_BAR = 48  # MiB above idle, at any file size
S3_MEMORY_BAR = 96
REFERENCE, SAME_PLAN = "psql \\copy", "psql \\copy, our plan"
PORTABLE = "worker without COPY"
ALONE = "in one statement"
SPARK_ALL = "Spark, all rows"
WORKER = [sys.executable, "-m", "benchmarks.export", "--worker"]
Side = Callable[[], dict[str, float]]


def main() -> None:
    parser = results.argument_parser("Exports against psql \\copy, ORM, pandas, DuckDB and Spark.")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peer-rows", type=int, default=200_000, help="Rows for other tools; 0 skips them."
    )
    parser.add_argument("--s3-rows", type=int, default=300_000, help="Rows for S3; 0 skips it.")
    parser.add_argument(
        "--same-plan", action="store_true", help="Also run psql with our planner settings."
    )
    parser.add_argument(
        "--growth", action="store_true", help="Measure only growth and memory of ours."
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve_work()
        return
    harness.stop_on_term()
    with harness.temporary_folder() as var, harness.postgresql() as url:
        # one file of any size
        variables = harness.environment(url, var) | {"EXHAUST_PART_BYTES": "0"}
        harness.setup_django(variables)
        harness.migrate()
        rows, months, data = export_data.load_rows(options.rows)
        ground_facts = harness.print_environment(url, data=data, peers=baselines.tool_versions())
        installation = Installation(url, var, variables, rows // months)
        records = compare_with_psql(installation, months, options)
        export_rates = records[0].ours
        records += measure_memory(installation, months, options.s3_rows)
        if options.peer_rows:
            span = min(months, max(1, options.peer_rows // installation.month_rows))
            records += compare_with_peers(installation, span, months, options.rounds, export_rates)
        results.print_report("export", records, ground_facts, options.json)


class Installation:
    """The measured installation and its rows per month."""

    def __init__(self, url: str, var: Path, variables: dict[str, str], month_rows: int) -> None:
        self.url, self.var, self.variables = url, var, variables
        self.month_rows = month_rows

    def row_count(self, months: int) -> int:
        return self.month_rows * months

    def worker_label(self, months: int) -> str:
        """Returns the row name of the worker for so many months."""
        return f"worker, {self.row_count(months):,} rows"


# Against psql ------------------------------------------------------------------------------------


def compare_with_psql(
    installation: Installation, months: int, options: argparse.Namespace
) -> list[Result]:
    """Returns rates, the cost of a row in a large file, and the memory of the worker.

    psql takes part in half of the rounds; sides without a counterpart run once.
    """
    digests: dict[str, str] = {}
    with Helper(WORKER, installation.variables) as worker:
        idle = worker.memory("VmRSS")
        worker.call({"job": export_data.create_job("warm", months=1)})
        known_digests = None if options.growth else digests
        our_sides: list[Side] = [partial(time_worker, installation, worker, months, known_digests)]
        if months > 1:  # first, while its rows are cached
            our_sides.insert(0, partial(time_worker, installation, worker, 1, None))
        names = [] if options.growth else [REFERENCE, SAME_PLAN][: 1 + options.same_plan]
        psql_sides = [partial(time_psql, installation, months, digests, name) for name in names]
        first = (options.rounds + 1) // 2
        figures = harness.run_rounds(first, [*psql_sides, *our_sides])
        for name, rates in harness.run_rounds(options.rounds - first, our_sides[::-1]).items():
            figures[name] += rates
        peak_memory = worker.memory("VmHWM") - idle
        if not options.growth:
            once = [
                partial(time_single_connection, installation, worker, months, digests),
                partial(time_portable, installation, worker),
            ]
            figures |= harness.run_rounds(1, once)
    if len(set(digests.values())) > 1:
        raise SystemExit(f"The files differ: {digests}")
    all_months, one_month = installation.worker_label(months), installation.worker_label(1)
    extra_sides = [] if options.growth else [
        compare(figures, "rows/s", all_months, REFERENCE, ">= 0.95", "same bytes"),
        *([compare(figures, "rows/s", all_months, SAME_PLAN)] if options.same_plan else []),
        compare(figures, "rows/s", all_months, ALONE, ">= 1.5", "same bytes"),
        compare(figures, "rows/s", PORTABLE, one_month, note=f"{installation.month_rows:,} rows"),
    ]  # fmt: skip
    note = f"{idle:.0f} MiB idle, in all {options.rounds} rounds"
    large = growth_result(installation, months, "to the folder", MEMORY_BAR, peak_memory, note)
    return [
        *(extra_sides or [Result(all_months, "rows/s", figures[all_months])]),
        Result(
            f"time for a row of {installation.row_count(months):,}",
            "µs",
            to_nanoseconds_per_row(figures[all_months]),
            f"of {installation.month_rows:,}",
            to_nanoseconds_per_row(figures[one_month]),
            "<= 1.15",
        ),
        *([large] if months > 1 else []),
    ]


def to_nanoseconds_per_row(rates: list[float]) -> list[float]:
    return [1e6 / rate for rate in rates]


def time_psql(
    installation: Installation, months: int, digests: dict[str, str], name: str
) -> dict[str, float]:
    import psycopg
    from django.db import connection

    from exhaust.datasets.response import RESPONSE
    from exhaust.files import parallel_copy

    connection.ensure_connection()
    sql, params = RESPONSE.copy_sql(export_data.build_selection(months), escape_formulas=True) or (
        "",
        {},
    )
    query = psycopg.ClientCursor(connection.connection).mogrify(sql, params).replace("\n", " ")
    target = installation.var / "reference.csv"
    setup = ["-c", "BEGIN", "-c", parallel_copy.PLANNER_SETTINGS] if name == SAME_PLAN else []
    variables = {**os.environ, "PGOPTIONS": harness.session_options()}
    start_time = time.monotonic()
    subprocess.run(
        [
            "psql",
            "-qX",
            *setup,
            "-c",
            f"\\copy ({query}) TO '{target}' (FORMAT csv)",
            installation.url,
        ],
        env=variables,
        check=True,
    )
    seconds = time.monotonic() - start_time
    digests[name] = digest_body(target, header=False)
    target.unlink()
    return {name: installation.row_count(months) / seconds}


def time_worker(
    installation: Installation, worker: Helper, months: int, digests: dict[str, str] | None
) -> dict[str, float]:
    seconds, path = make_file(installation, worker, months)
    if digests is not None:
        digests["worker"] = digest_body(path, header=True)
    path.unlink()
    return {installation.worker_label(months): installation.row_count(months) / seconds}


def time_single_connection(
    installation: Installation, worker: Helper, months: int, digests: dict[str, str]
) -> dict[str, float]:
    worker.call({"slices": False})
    seconds, path = make_file(installation, worker, months)
    worker.call({"slices": True})
    digests[ALONE] = digest_body(path, header=True)
    path.unlink()
    return {ALONE: installation.row_count(months) / seconds}


def make_file(installation: Installation, worker: Helper, months: int) -> tuple[float, Path]:
    """Makes a file; returns the seconds and its path."""
    from django.conf import settings

    from exhaust.models import File

    job = export_data.create_job(f"round-{time.monotonic_ns()}", months)
    start_time = time.monotonic()
    worker.call({"job": job})
    seconds = time.monotonic() - start_time
    file = File.objects.get(job=job)
    path = Path(settings.FILES_DIR) / file.key
    if file.row_count != installation.row_count(months) or file.sha256 != digest_body(
        path, header=False
    ):
        raise SystemExit("The file does not match its row.")
    return seconds, path


def time_portable(installation: Installation, worker: Helper) -> dict[str, float]:
    start_time = time.monotonic()
    rows = worker.call({"portable": 1})["rows"]
    return {PORTABLE: rows / (time.monotonic() - start_time)}


def digest_body(path: Path, *, header: bool) -> str:
    with path.open("rb") as file:
        if header:
            file.readline()
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# Memory ------------------------------------------------------------------------------------------


def measure_memory(installation: Installation, months: int, s3_rows: int) -> list[Result]:
    records = [measure_growth(installation, 1, "to the folder", MEMORY_BAR)]
    if not s3_rows:
        return records
    if find_spec("swift") is None:
        return [
            *records,
            Result("memory over idle, to S3", "MiB", note="skipped: no extra s3local"),
        ]
    from tests import s3server

    with s3server.running(installation.var / "s3") as endpoint:
        variables = {
            **installation.variables,
            "S3_BUCKET": "benchmark",
            "S3_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": s3server.ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": s3server.SECRET_KEY,
        }
        s3_installation = Installation(
            installation.url, installation.var, variables, installation.month_rows
        )
        spans = {1, min(months, max(1, s3_rows // installation.month_rows))}
        return records + [
            measure_growth(s3_installation, span, "to S3", S3_MEMORY_BAR) for span in sorted(spans)
        ]


def measure_growth(installation: Installation, months: int, where: str, bar: int) -> Result:
    """Measures the peak memory of a new worker above its idle size."""
    with Helper(WORKER, installation.variables) as worker:
        if "S3_BUCKET" in installation.variables:
            worker.call({"bucket": True})
        idle = worker.memory("VmRSS")
        worker.call({"job": export_data.create_job(f"memory-{time.monotonic_ns()}", months)})
        peak_memory = worker.memory("VmHWM") - idle
    return growth_result(installation, months, where, bar, peak_memory, f"{idle:.0f} MiB idle")


def growth_result(
    installation: Installation, months: int, where: str, bar: int, peak_memory: float, note: str
) -> Result:
    name = f"memory over idle, {installation.row_count(months):,} rows, {where}"
    return Result(name, "MiB", [peak_memory], bar=f"<= {bar}", note=note)


# Against the peers -------------------------------------------------------------------------------


def compare_with_peers(
    installation: Installation, span: int, months: int, times: int, export_rates: Sequence[float]
) -> list[Result]:
    """Compares all tools at `span` months, ORM and pandas at one, and Spark also at all months."""
    all_rows, one_month = baselines.SelectedRows(span), baselines.SelectedRows(1)
    available = baselines.available_tools()
    baselines.load_tools(available)
    lines = (
        baselines.extract_lines(installation.url, installation.var / "lines", months)
        if available
        else []
    )
    digests: dict[str, str] = {}

    def time_ours(worker: Helper) -> dict[str, float]:
        seconds, path = make_file(installation, worker, span)
        check_rows("worker", [path], span)
        path.unlink()
        return {installation.worker_label(span): installation.row_count(span) / seconds}

    def time_peer(
        name: str, selection: baselines.SelectedRows, tool: baselines.Tool
    ) -> dict[str, float]:
        with TemporaryDirectory(dir=installation.var) as folder:
            start_time = time.monotonic()
            paths = tool(selection, lines[: selection.months], Path(folder) / "rows")
            seconds = time.monotonic() - start_time
            check_rows(name, paths, selection.months)
        return {name: installation.row_count(selection.months) / seconds}

    def check_rows(name: str, paths: list[Path], months: int) -> None:
        """Checks the rows of a tool once; only counts them if there are very many."""
        if name not in digests:
            if name == SPARK_ALL:
                rows, digests[name] = baselines.count_rows(paths), ""
            else:
                rows, digests[name] = baselines.digest_rows(paths)
            if rows != installation.row_count(months):
                raise SystemExit(
                    f"{name} made {rows:,} rows of {installation.row_count(months):,}."
                )

    with Helper(WORKER, installation.variables) as worker:
        _, path = make_file(installation, worker, 1)
        check_rows("worker, a month", [path], 1)
        path.unlink()
        sides: list[Side] = [
            partial(time_ours, worker),
            partial(time_peer, baselines.ORM, one_month, baselines.export_by_orm),
            partial(time_peer, baselines.PANDAS, one_month, baselines.export_by_pandas),
        ]
        if "duckdb" in available:
            parquet = baselines.write_parquet(lines[:span], installation.var / "answers.parquet")
            tool = partial(baselines.export_by_duckdb, parquet)
            sides.append(partial(time_peer, baselines.DUCKDB, all_rows, tool))
        if "pyspark" in available:
            sides.append(partial(time_peer, baselines.SPARK, all_rows, baselines.export_by_spark))
        figures = harness.run_rounds(times, sides)
        large: dict[str, float] = {}
        if "pyspark" in available and months > span:
            large = time_peer(SPARK_ALL, baselines.SelectedRows(months), baselines.export_by_spark)
    for name, target in (
        (baselines.ORM, "worker, a month"), (baselines.PANDAS, "worker, a month"),
        (baselines.DUCKDB, "worker"), (baselines.SPARK, "worker"),
    ):  # fmt: skip
        if digests.get(name, digests[target]) != digests[target]:
            raise SystemExit(f"The rows of {name} differ from ours.")
    chunk = installation.worker_label(span)
    records = [
        compare(figures, "rows/s", chunk, baselines.ORM, ">= 10", "same rows"),
        compare(figures, "rows/s", chunk, baselines.PANDAS, ">= 5", "same rows"),
    ]
    if baselines.DUCKDB in figures:
        note = "same rows; making the Parquet not counted"
        records.append(compare(figures, "rows/s", chunk, baselines.DUCKDB, note=note))
    else:
        records.append(Result(chunk, "rows/s", against=baselines.DUCKDB, note="skipped: no duckdb"))
    if baselines.SPARK not in figures:
        note = "skipped: needs the extra spark and Java"
        return [*records, Result(chunk, "rows/s", against=baselines.SPARK, note=note)]
    bar = ">= 20" if installation.row_count(span) <= 200_000 else ">= 5"
    records.append(compare(figures, "rows/s", chunk, baselines.SPARK, bar, "same rows"))
    if large:
        records.append(
            Result(
                installation.worker_label(months),
                "rows/s",
                export_rates,
                baselines.SPARK,
                [large[SPARK_ALL]],
                ">= 5",
                "as many rows",
            )
        )
    return records


# The worker's side -------------------------------------------------------------------------------


def serve_work() -> None:
    """Runs in the worker: claims a job and makes its file."""
    harness.setup_django({})
    from exhaust.datasets.response import RESPONSE
    from exhaust.files import parallel_copy, storage, writer
    from exhaust.files.formats import CSV
    from exhaust.jobs import attempt, transitions

    slice_rows = parallel_copy.SLICE_ROWS

    def handle(request: dict[str, Any]) -> dict[str, int]:
        if "bucket" in request:
            storage.get_storage().prepare()
            return {}
        if "slices" in request:
            parallel_copy.SLICE_ROWS = slice_rows if request["slices"] else sys.maxsize
            return {}
        if "portable" in request:
            progress = writer.Progress()
            selection = export_data.build_selection(request["portable"])
            blocks = writer.iter_blocks(RESPONSE, selection, progress, portable=True)
            store = storage.get_storage()
            store.put("portable.csv", writer.BlockStream(blocks), CSV.content_type)  # type: ignore[arg-type]
            return {"rows": progress.rows}
        job = transitions.claim(request["job"])
        if job is None or not attempt.run(job):
            raise SystemExit("The job did not succeed.")
        return {}

    harness.serve_requests(handle)


if __name__ == "__main__":
    main()
