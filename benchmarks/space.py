"""Measures the bytes of an event, and the cost of each index in bytes and in time.

    python -m benchmarks.space [--events 50000] [--rounds 5]

Needs the PostgreSQL server of DATABASE_URL. The bytes of a column are `pg_column_size`, compressed
as stored. For each index with rows, COPY over one connection writes the same rows into the table
without it.
"""

import time
from functools import partial
from typing import Any

import psycopg

from benchmarks import export_data, harness, results
from benchmarks.results import Result

TABLE = "ingest_storedevent"
EMPTY = 8192  # bytes of an index without rows


def main() -> None:
    parser = results.argument_parser("Bytes per event, and the cost of each index.")
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    harness.stop_on_term()
    with harness.temporary_folder() as var, harness.postgresql() as url:
        harness.setup_django(harness.environment(url, var))
        harness.migrate()
        rows, _, data = export_data.load_rows(options.events)
        ground_facts = harness.print_environment(url, data=data)
        with psycopg.connect(url, autocommit=True) as connection:
            records = [
                *measure_sizes(connection, rows),
                *measure_index_cost(connection, rows, options.rounds),
            ]
        results.print_report("space", records, ground_facts, options.json)


def measure_sizes(connection: psycopg.Connection[Any], rows: int) -> list[Result]:
    heap, table_bytes = _fetch_row(
        connection,
        f"SELECT pg_table_size('{TABLE}'), pg_total_relation_size('{TABLE}')",
    )
    columns = " + ".join(
        f"coalesce(pg_column_size({name}), 0)" for name in _column_sizes(connection)
    )
    (raw,) = _fetch_row(connection, f"SELECT sum({columns}) FROM {TABLE}")
    return [
        Result("an event with its indexes", "B", [table_bytes / rows], "raw columns",
               [float(raw) / rows], "<= 1.15"),
        Result("an event without its indexes", "B", [heap / rows], "raw columns",
               [float(raw) / rows]),
        *(
            Result(f"index {name}", "B/event", [size / rows], "raw columns", [float(raw) / rows])
            for name, size in list_indexes(connection)
        ),
    ]  # fmt: skip


def _column_sizes(connection: psycopg.Connection[Any]) -> list[str]:
    rows = connection.execute(
        "SELECT attname FROM pg_attribute"
        f" WHERE attrelid = '{TABLE}'::regclass AND attnum > 0 AND NOT attisdropped"
    )
    return [name for (name,) in rows]


def list_indexes(connection: psycopg.Connection[Any]) -> list[tuple[str, int]]:
    """Returns the indexes and their bytes."""
    rows = connection.execute(
        "SELECT relname, pg_relation_size(oid) FROM pg_index JOIN pg_class ON oid = indexrelid"
        f" WHERE indrelid = '{TABLE}'::regclass ORDER BY 2 DESC"
    )
    return [(name, size) for name, size in rows]


def _fetch_row(connection: psycopg.Connection[Any], sql: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(sql).fetchone()
    assert row is not None  # noqa: S101
    return row


# Time ---------------------------------------------------------------------------------------------


def measure_index_cost(connection: psycopg.Connection[Any], rows: int, times: int) -> list[Result]:
    """Times COPY with every index, and without one of them at a time."""
    copy_sql = f"COPY {TABLE} TO STDOUT (FORMAT binary)"
    with connection.cursor() as cursor, cursor.copy(copy_sql) as copy:
        blocks = [bytes(block) for block in copy]
    names = [name for name, size in list_indexes(connection) if size > EMPTY]
    without = {name: f"COPY without {name}" for name in names}
    every = "COPY with every index"

    def time_copy(name: str, left_out: str) -> dict[str, float]:
        connection.execute("DROP TABLE IF EXISTS copied")
        connection.execute(f"CREATE TABLE copied (LIKE {TABLE} INCLUDING DEFAULTS)")
        definitions = connection.execute(
            "SELECT relname, pg_get_indexdef(oid) FROM pg_index JOIN pg_class ON oid = indexrelid"
            f" WHERE indrelid = '{TABLE}'::regclass"
        ).fetchall()
        for index, definition in definitions:
            if index != left_out:
                head, _, tail = definition.partition(f" ON public.{TABLE} ")
                unique = "UNIQUE " if "UNIQUE" in head else ""
                connection.execute(f"CREATE {unique}INDEX ON copied {tail}")
        connection.execute("CHECKPOINT")
        start_time = time.monotonic()
        into = "COPY copied FROM STDIN (FORMAT binary)"
        with connection.cursor() as cursor, cursor.copy(into) as copy:
            for block in blocks:
                copy.write(block)
        return {name: rows / (time.monotonic() - start_time)}

    figures = harness.run_rounds(
        times,
        [
            partial(time_copy, every, ""),
            *(partial(time_copy, without[name], name) for name in names),
        ],
    )
    return [
        Result(every, "rows/s", figures[every], without[name], figures[without[name]])
        for name in names
    ]  # fmt: skip


if __name__ == "__main__":
    main()
