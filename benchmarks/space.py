"""How many bytes an event takes, and what each index costs in bytes and in time.

    python -m benchmarks.space [--events 50000] [--rounds 5]

Needs the PostgreSQL server of DATABASE_URL. The table's raw columns are what `pg_column_size` says
of each, compressed as they lie. For each index that has rows the same rows go by COPY over one
connection into the table without it.
"""

import time
from functools import partial
from typing import Any

import psycopg

from benchmarks import answers, ground, results
from benchmarks.results import Result

TABLE = "ingest_storedevent"
EMPTY = 8192  # bytes of an index that none of the rows is in


def main() -> None:
    arguments = results.arguments("Bytes of an event, and what each index costs.")
    arguments.add_argument("--events", type=int, default=50_000)
    arguments.add_argument("--rounds", type=int, default=5)
    asked = arguments.parse_args()
    ground.stop_on_term()
    with ground.folder() as var, ground.postgresql() as url:
        ground.enter(ground.environment(url, var))
        ground.migrate()
        rows, _, data = answers.load_rows(asked.events)
        told = ground.print_ground(url, data=data)
        with psycopg.connect(url, autocommit=True) as connection:
            found = [*sizes(connection, rows), *costs(connection, rows, asked.rounds)]
        results.report("space", found, told, asked.json)


def sizes(connection: psycopg.Connection[Any], rows: int) -> list[Result]:
    heap, whole = _one(
        connection,
        f"SELECT pg_table_size('{TABLE}'), pg_total_relation_size('{TABLE}')",
    )
    columns = " + ".join(f"coalesce(pg_column_size({name}), 0)" for name in _columns(connection))
    (raw,) = _one(connection, f"SELECT sum({columns}) FROM {TABLE}")
    return [
        Result("an event with its indexes", "B", [whole / rows], "raw columns",
               [float(raw) / rows], "<= 1.15"),
        Result("an event without its indexes", "B", [heap / rows], "raw columns",
               [float(raw) / rows]),
        *(
            Result(f"index {name}", "B/event", [size / rows], "raw columns", [float(raw) / rows])
            for name, size in indexes(connection)
        ),
    ]  # fmt: skip


def _columns(connection: psycopg.Connection[Any]) -> list[str]:
    found = connection.execute(
        "SELECT attname FROM pg_attribute"
        f" WHERE attrelid = '{TABLE}'::regclass AND attnum > 0 AND NOT attisdropped"
    )
    return [name for (name,) in found]


def indexes(connection: psycopg.Connection[Any]) -> list[tuple[str, int]]:
    """Each by its name, with its bytes."""
    found = connection.execute(
        "SELECT relname, pg_relation_size(oid) FROM pg_index JOIN pg_class ON oid = indexrelid"
        f" WHERE indrelid = '{TABLE}'::regclass ORDER BY 2 DESC"
    )
    return [(name, size) for name, size in found]


def _one(connection: psycopg.Connection[Any], sql: str) -> tuple[Any, ...]:
    row = connection.execute(sql).fetchone()
    assert row is not None  # noqa: S101
    return row


# Time ---------------------------------------------------------------------------------------------


def costs(connection: psycopg.Connection[Any], rows: int, times: int) -> list[Result]:
    """COPY with every index, and without one of them at a time."""
    out = f"COPY {TABLE} TO STDOUT (FORMAT binary)"
    with connection.cursor() as cursor, cursor.copy(out) as copy:
        blocks = [bytes(block) for block in copy]
    names = [name for name, size in indexes(connection) if size > EMPTY]
    without = {name: f"COPY without {name}" for name in names}
    every = "COPY with every index"

    def side(name: str, left_out: str) -> dict[str, float]:
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
        begun = time.monotonic()
        into = "COPY copied FROM STDIN (FORMAT binary)"
        with connection.cursor() as cursor, cursor.copy(into) as copy:
            for block in blocks:
                copy.write(block)
        return {name: rows / (time.monotonic() - begun)}

    found = ground.rounds(
        times,
        [partial(side, every, ""), *(partial(side, without[name], name) for name in names)],
    )
    return [
        Result(every, "rows/s", found[every], without[name], found[without[name]])
        for name in names
    ]  # fmt: skip


if __name__ == "__main__":
    main()
