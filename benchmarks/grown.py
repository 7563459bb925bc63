"""How fast events come into a table that holds many, against the same into an empty one.

    python -m benchmarks.grown [--grown 500000] [--events 20000] [--rounds 5]

Needs the PostgreSQL server of DATABASE_URL: two databases with a web server on each, and batches
of 100 to one and the other in turns, by a door where the first one wins and by one where the last
does. What came in is taken out again after each round.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import psycopg

from benchmarks import answers, ground, ingest, results
from benchmarks.ground import Helper
from benchmarks.results import Result

DOORS = ("telemetry", "skalin")
COMMAND = [sys.executable, "-m", "benchmarks.grown", "--installation"]


def main() -> None:
    arguments = results.arguments("Ingest into a grown table, against an empty one.")
    arguments.add_argument("--grown", type=int, default=500_000, help="Rows that are there.")
    arguments.add_argument("--events", type=int, default=20_000)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--installation", action="store_true", help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.installation:
        install()
        return
    ground.stop_on_term()
    with ExitStack() as running:
        var = running.enter_context(ground.folder())
        sides, there = [], {"data": "", "rows": 0}
        for name, rows in (("empty", 0), ("grown", asked.grown)):
            url = running.enter_context(ground.postgresql())
            variables = ground.environment(url, var / name)
            installation = running.enter_context(Helper(COMMAND, variables))
            told = {**installation.ask({"load": rows}), "url": url}
            there = {name: told.pop(name) for name in there}
            told["port"] = running.enter_context(ingest.serving(ingest.SERVER, variables))
            for door in DOORS:
                feed = running.enter_context(feeder(variables, told, door, asked.events))
                sides.append(partial(time_one, feed, url, door, name))
        facts = ground.print_ground(url, data=there["data"], server=f"python {ingest.SERVER}")
        found = ground.rounds(asked.rounds, sides)
        into = f"HTTP, batches of {ingest.BATCH}, into {there['rows']:,} rows"
        lines = [
            Result(f"{door}: {into}", "rows/s", found[f"{door}, grown"], "into none",
                   found[f"{door}, empty"], ">= 0.85")
            for door in DOORS
        ]  # fmt: skip
        results.report("grown", lines, facts, asked.json)


@contextmanager
def feeder(
    variables: dict[str, str], told: dict[str, Any], door: str, events: int
) -> Iterator[Helper]:
    """One that is warm, and has nothing left in the table."""
    command = [sys.executable, "-m", "benchmarks.ingest", "--feeder", "--door", door]
    sizes = ["--events", str(events), "--peer-events", "0"]
    with Helper([*command, *sizes], variables) as feed:
        feed.ask({"prepare": told})
        time_one(feed, told["url"], door, "warm")
        yield feed


def time_one(feed: Helper, url: str, door: str, name: str) -> dict[str, float]:
    with psycopg.connect(url, autocommit=True) as connection:
        before = _one(connection, "SELECT coalesce(max(id), 0) FROM ingest_storedevent")
        connection.execute("CHECKPOINT")
        told = feed.ask({"http": ingest.BATCH})
        new = f"FROM ingest_storedevent WHERE id > {before}"
        stored = _one(connection, f"SELECT count(*) {new}")
        if told["counts"] != {"stored": stored, "duplicate": 0}:
            raise SystemExit(f"The service told {told['counts']} and stored {stored}.")
        connection.execute(f"DELETE {new}")
        connection.execute("VACUUM ingest_storedevent")
    return {f"{door}, {name}": stored / told["seconds"]}


def _one(connection: psycopg.Connection[Any], sql: str) -> int:
    row = connection.execute(sql).fetchone()
    return int(row[0]) if row else 0


def install() -> None:
    """An installation's own process: makes its senders, and the rows that are to be there."""
    ground.enter({})
    ground.migrate()

    def answer(asked: dict[str, int]) -> dict[str, Any]:
        told: dict[str, Any] = {**ingest.prepare(), "data": "", "rows": 0}
        if asked["load"]:
            told["rows"], _, told["data"] = answers.load_rows(
                asked["load"], answers.QUICK_MONTH_ROWS
            )
        return told

    ground.serve(answer)


if __name__ == "__main__":
    main()
