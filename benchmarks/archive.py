"""Times exports from the archive against `psql \\copy` and against rows, and the archiving itself.

    python -m benchmarks.archive [--rows 2000000] [--rounds 3] [--format-rows 200000]

Needs psql and the PostgreSQL server of DATABASE_URL. Each export is the worker's whole path: claim,
heartbeat, rows, SHA-256, fsync into the folder, publication. Every file has the SHA-256 of the one
that is made of rows, and of what `psql \\copy` writes.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import export, export_data, harness, results
from benchmarks.export import REFERENCE, WORKER, Installation
from benchmarks.harness import Helper
from benchmarks.results import Result, compare

RESPONSE = "uci-response-exhaust"
OWN: dict[str, Any] = {
    "name": "scores",
    "title": "Scores",
    "columns": [
        {"header": "Device", "path": "device_id"},
        {"header": "Time", "path": "occurred_at"},
        {"header": "Question", "path": "payload.edata.item.id"},
        {"header": "Score", "path": "payload.edata.score", "type": "number"},
        {"header": "Answer", "path": "payload.edata.resvalues", "type": "json"},
    ],
}
# files by name: the dataset, the format, and the bar against the same of rows
FILES = {
    "csv": (RESPONSE, "csv", ""),
    "parquet": (RESPONSE, "parquet", ">= 2"),
    "jsonl": (RESPONSE, "jsonl", ">= 2"),
    "xlsx": (RESPONSE, "xlsx", ">= 2"),
    "survey": ("uci-survey-exhaust", "csv", ""),
    "summary": ("uci-summary-exhaust", "csv", ""),
    "own dataset": (OWN["name"], "csv", ""),
}
MEMORY_BAR, GROWTH_BAR = 192, 16  # MiB


def main() -> None:
    parser = results.argument_parser("The archive against psql \\copy and against rows.")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--format-rows", type=int, default=200_000, help="Rows of each other file.")
    options = parser.parse_args()
    harness.stop_on_term()
    with harness.temporary_folder() as var, harness.postgresql() as url:
        variables = harness.environment(url, var) | {
            "EXHAUST_PART_BYTES": "0",
            "EXHAUST_ARCHIVE_URL": str(var / "archive"),
        }
        harness.setup_django(variables)
        harness.migrate()
        rows, months, data = export_data.load_rows(options.rows)
        ground_facts = harness.print_environment(url, data=data)
        installation = Installation(url, var, variables, rows // months)
        records = measure(installation, months, options.rounds, options.format_rows)
        results.print_report("archive", records, ground_facts, options.json)


def measure(installation: Installation, months: int, rounds: int, format_rows: int) -> list[Result]:
    """Archives half of the rows, and then the others; measures behind each."""
    rows = installation.row_count(months)
    digests: dict[str, str] = {}
    psql = partial(export.time_psql, installation, months, digests, REFERENCE)
    hot_variables = installation.variables | {"EXHAUST_ARCHIVE_URL": ""}
    two_variables = installation.variables | {"EXHAUST_PROCESSES": "2"}
    with (
        Helper(WORKER, installation.variables) as archived,
        Helper(WORKER, two_variables) as two,
        Helper(WORKER, hot_variables) as hot,
    ):
        for number, worker in enumerate((archived, two, hot)):
            worker.call({"job": export_data.create_job(f"warm-{number}", 1)})

        def time_file(name: str, worker: Helper, span: int) -> dict[str, float]:
            seconds, path = export.make_file(installation, worker, span)
            if span == months:
                digests[name] = export.digest_body(path, header=True)
            path.unlink()
            return {name: installation.row_count(span) / seconds}

        archiving = [archive_half(rows)]
        half = "half archived"
        figures = harness.run_rounds(rounds, [psql, partial(time_file, half, archived, months)])
        half_result = compare(
            figures, "rows/s", half, REFERENCE, ">= 1.5", f"{rows:,} rows, same bytes"
        )
        archiving.append(archive_half(rows))
        whole, by_two, part = "archived", "archived, 2 processes", "archived, half of the rows"
        part_hot = "half of the rows, as rows"
        span = max(1, months // 2)
        sides = [
            psql,
            partial(time_file, whole, archived, months),
            partial(time_file, by_two, two, months),
            partial(time_file, part, archived, span),
            partial(time_file, part_hot, hot, span),
        ]
        figures = harness.run_rounds(rounds, sides)
        if len(set(digests.values())) > 1:
            raise SystemExit(f"The files differ: {digests}")
        figures["archiving"] = archiving
        records = [
            compare(figures, "rows/s", whole, REFERENCE, ">= 3.5", f"{rows:,} rows, same bytes"),
            compare(figures, "rows/s", by_two, REFERENCE, ">= 4.4", f"{rows:,} rows, same bytes"),
            half_result,
            Result(
                f"ask to file, {installation.row_count(span):,} archived rows",
                "s",
                [installation.row_count(span) / rate for rate in figures[part]],
                "as rows",
                [installation.row_count(span) / rate for rate in figures[part_hot]],
                "<= 0.35",
            ),
            compare(figures, "rows/s", "archiving", REFERENCE, ">= 0.3", "both tables"),
        ]
        span = min(months, max(1, format_rows // installation.month_rows))
        records += compare_files(installation, archived, hot, span, rounds)
    return records + measure_sizes(rows) + measure_memory(installation, months)


def archive_half(rows: int) -> float:
    """Archives the next half of the rows. Returns the rate."""
    from django.conf import settings

    from exhaust.archive import runs
    from ingest.models import Channel

    settings.EXHAUST_ARCHIVE_AFTER_DAYS = 0
    runs.RUN_ROWS = -(-rows // 2)
    channel = Channel.objects.get(identifier=harness.CHANNEL)
    start_time = time.monotonic()
    if runs.archive_channel(channel.pk, is_forced=True) is None:
        raise SystemExit("Nothing was archived.")
    return runs.RUN_ROWS / (time.monotonic() - start_time)


def compare_files(
    installation: Installation, archived: Helper, hot: Helper, span: int, rounds: int
) -> list[Result]:
    """Compares each file with the same one made of rows."""
    from django.conf import settings

    from exhaust.jobs import own_datasets
    from exhaust.models import File
    from ingest.models import Channel

    rows = installation.row_count(span)
    own_datasets.save(Channel.objects.get(identifier=harness.CHANNEL).pk, OWN)
    digests: dict[str, set[str]] = {name: set() for name in FILES}

    def time_file(name: str, worker: Helper, work: str) -> dict[str, float]:
        dataset, output_format, _ = FILES[name]
        job = export_data.create_job(f"{time.monotonic_ns()}", span, output_format, dataset)
        start_time = time.monotonic()
        worker.call({"job": job})
        seconds = time.monotonic() - start_time
        file = File.objects.get(job=job)
        (Path(settings.FILES_DIR) / file.key).unlink()
        digests[name].add(file.sha256)
        return {work: rows / seconds}

    sides = [
        partial(time_file, name, worker, f"{name} {where}")
        for name in FILES
        for worker, where in ((archived, "archived"), (hot, "as rows"))
    ]
    figures = harness.run_rounds(rounds, sides)
    if different := [name for name in FILES if len(digests[name]) > 1]:
        raise SystemExit(f"The files differ: {different}")
    note = f"{rows:,} rows, same bytes"
    return [
        compare(figures, "rows/s", f"{name} archived", f"{name} as rows", bar, note)
        for name, (_, _, bar) in FILES.items()
    ]


def measure_sizes(rows: int) -> list[Result]:
    """Measures the bytes of an event in the archive, against those of its row with indexes."""
    from django.db import connection
    from django.db.models import Sum

    from exhaust.models import ArchiveFile

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_total_relation_size('ingest_storedevent')")
        row_size = cursor.fetchone()[0] / rows
    totals: dict[str, Any] = dict(
        ArchiveFile.objects.values_list("table").annotate(total=Sum("byte_count"))
    )
    sizes = {
        "bytes of an event, answers": (totals["answers"], "<= 0.055"),
        "bytes of an event, both tables": (sum(totals.values()), "<= 0.22"),
    }
    return [
        Result(work, "B", [size / rows], "a row with its indexes", [row_size], bar)
        for work, (size, bar) in sizes.items()
    ]


def measure_memory(installation: Installation, months: int) -> list[Result]:
    """Measures the peak memory of a new worker above its idle size, for few rows and for all."""
    small = min(months, max(1, 200_000 // installation.month_rows))
    few, all_rows = (
        export.measure_growth(installation, span, "archived", MEMORY_BAR)
        for span in (small, months)
    )
    growth = all_rows.ours[0] - few.ours[0]
    work = f"growth of memory to {installation.row_count(months):,} rows"
    return [few, all_rows, Result(work, "MiB", [growth], bar=f"<= {GROWTH_BAR}")]


if __name__ == "__main__":
    main()
