"""Prints EXPLAIN (ANALYZE, BUFFERS) of the statements of a batch and of an export.

    python -m benchmarks.explain [--rows 200000] [--source telemetry] [--batch 1000]

Needs the PostgreSQL server of DATABASE_URL. It stores the batch among `--rows` answers and rolls it
back; the export has all of them, with the planner settings of a worker.
"""

import argparse
from random import Random
from typing import Any

import psycopg

from benchmarks import export_data, harness, ingest, sources


def main() -> None:
    parser = argparse.ArgumentParser(description="Query plans of a batch and of an export.")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--source", choices=[*sources.SOURCES], default="telemetry")
    parser.add_argument("--batch", type=int, default=1000)
    options = parser.parse_args()
    harness.stop_on_term()
    with harness.temporary_folder() as var, harness.postgresql() as url:
        harness.setup_django(harness.environment(url, var))
        harness.migrate()
        installation = ingest.prepare_database()
        _, months, data = export_data.load_rows(options.rows)
        harness.print_environment(url, data=data)
        explain_store(options.source, options.batch, installation)
        explain_export(months)


def explain_store(name: str, size: int, installation: dict[str, Any]) -> None:
    from ingest.store import batches

    source = sources.SOURCES[name]
    items = [
        source.encode_event(thing)
        for thing in source.make_events(size // source.rows_per_event, Random("explain"))
    ]
    batch = sources.parse_body(name, source.join_events(items), installation["application"])
    pending = [batches.Pending(installation["channel"], batch)]
    (group,) = batches.group_events(pending)
    sql, columns = group.build_statement(pending)
    settings = f"SET LOCAL {batches.NO_SEQSCAN}"
    print_plan(f"A batch of {len(batch.events):,} by {name}", settings, sql, columns, ", WAL")


def explain_export(months: int) -> None:
    from exhaust.datasets.response import RESPONSE
    from exhaust.files import parallel_copy

    sql, params = RESPONSE.copy_sql(export_data.build_selection(months), escape_formulas=True) or (
        "",
        {},
    )
    print_plan("A file of uci-response-exhaust", parallel_copy.PLANNER_SETTINGS, sql, params)


def print_plan(title: str, setup: str, sql: str, params: Any, more: str = "") -> None:
    from django.db import connection

    connection.ensure_connection()
    with (
        connection.connection.transaction(force_rollback=True),
        psycopg.Cursor(connection.connection) as cursor,
    ):
        cursor.execute(setup)
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS{more}) {sql}", params, prepare=False)
        print(f"\n{title}\n")
        print("\n".join(line for (line,) in cursor), flush=True)


if __name__ == "__main__":
    main()
