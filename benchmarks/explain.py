"""What PostgreSQL does for a batch and for a file: EXPLAIN (ANALYZE, BUFFERS) of both statements.

    python -m benchmarks.explain [--rows 200000] [--door telemetry] [--batch 1000]

Needs the PostgreSQL server of DATABASE_URL. The batch is stored among `--rows` answers and undone;
the file is the whole of them, planned as a worker plans it.
"""

import argparse
from random import Random
from typing import Any

import psycopg

from benchmarks import answers, doors, ground, ingest


def main() -> None:
    arguments = argparse.ArgumentParser(description="What PostgreSQL does.")
    arguments.add_argument("--rows", type=int, default=200_000)
    arguments.add_argument("--door", choices=[*doors.DOORS], default="telemetry")
    arguments.add_argument("--batch", type=int, default=1000)
    asked = arguments.parse_args()
    ground.stop_on_term()
    with ground.folder() as var, ground.postgresql() as url:
        ground.enter(ground.environment(url, var))
        ground.migrate()
        told = ingest.prepare()
        _, months, data = answers.load_rows(asked.rows)
        ground.print_ground(url, data=data)
        store(asked.door, asked.batch, told)
        write(months)


def store(name: str, size: int, told: dict[str, Any]) -> None:
    from ingest.store import batches

    door = doors.DOORS[name]
    things = [door.encode(thing) for thing in door.make(size // door.rows, Random("explain"))]
    batch = doors.parse(name, door.join(things), told["application"])
    events = sorted(batch.events, key=lambda event: event.identity)
    sql = batches._LAST_WINS if batch.last_wins else batches._FIRST_WINS
    columns = batches._columns(told["channel"], batch, events)
    explain(f"A batch of {len(events):,} by {name}", batches._BY_INDEX, sql, columns, ", WAL")


def write(months: int) -> None:
    from exhaust.datasets.response import RESPONSE
    from exhaust.files import parallel_copy

    sql, params = RESPONSE.copy(answers.selection(months), guarded=True) or ("", {})
    explain("A file of uci-response-exhaust", parallel_copy.PLANNING, sql, params)


def explain(title: str, before: str, sql: str, params: Any, more: str = "") -> None:
    from django.db import connection

    connection.ensure_connection()
    with (
        connection.connection.transaction(force_rollback=True),
        psycopg.Cursor(connection.connection) as cursor,
    ):
        cursor.execute(before)
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS{more}) {sql}", params, prepare=False)
        print(f"\n{title}\n")
        print("\n".join(line for (line,) in cursor), flush=True)


if __name__ == "__main__":
    main()
