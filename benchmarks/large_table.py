"""Times ingest into a large table against an empty one.

    python -m benchmarks.large_table [--grown 500000] [--events 20000] [--rounds 5]

Needs the PostgreSQL server of DATABASE_URL. Two databases have a web server each. They get batches
of 100 in turns, from a source where the first event wins and from one where the last event wins.
Each round deletes its events at the end.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import psycopg

from benchmarks import export_data, harness, ingest, results
from benchmarks.feeder import BATCH
from benchmarks.harness import Helper
from benchmarks.results import Result
from exhaust.processes import web_command

SOURCE_NAMES = ("telemetry", "skalin")
COMMAND = [sys.executable, "-m", "benchmarks.large_table", "--installation"]


def main() -> None:
    parser = results.argument_parser("Ingest into a large table against an empty one.")
    parser.add_argument("--grown", type=int, default=500_000, help="Rows in the large table.")
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--installation", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.installation:
        serve_installation()
        return
    harness.stop_on_term()
    with ExitStack() as running:
        var = running.enter_context(harness.temporary_folder())
        sides, ground_facts = [], {"data": "", "rows": 0}
        for name, rows in (("empty", 0), ("grown", options.grown)):
            url = running.enter_context(harness.postgresql())
            variables = harness.environment(url, var / name)
            installation = running.enter_context(Helper(COMMAND, variables))
            setup = {**installation.call({"load": rows}), "url": url}
            ground_facts = {name: setup.pop(name) for name in ground_facts}
            setup["port"] = running.enter_context(ingest.run_server(variables))
            for source in SOURCE_NAMES:
                feed = running.enter_context(start_feeder(variables, setup, source, options.events))
                sides.append(partial(time_ingest, feed, url, source, name))
        facts = harness.print_environment(
            url, data=ground_facts["data"], server=" ".join(["python", *web_command(0)[1:]])
        )
        figures = harness.run_rounds(options.rounds, sides)
        into = f"HTTP, batches of {BATCH}, into {ground_facts['rows']:,} rows"
        lines = [
            Result(f"{source}: {into}", "rows/s", figures[f"{source}, grown"], "into none",
                   figures[f"{source}, empty"], ">= 0.85")
            for source in SOURCE_NAMES
        ]  # fmt: skip
        results.print_report("grown", lines, facts, options.json)


@contextmanager
def start_feeder(
    variables: dict[str, str], setup: dict[str, Any], source: str, events: int
) -> Iterator[Helper]:
    """Starts a warm feeder; leaves no events of it in the table."""
    command = [sys.executable, "-m", "benchmarks.feeder", "--source", source]
    sizes = ["--events", str(events), "--peer-events", "0"]
    with Helper([*command, *sizes], variables) as feed:
        feed.call({"prepare": setup})
        time_ingest(feed, setup["url"], source, "warm")
        yield feed


def time_ingest(feed: Helper, url: str, source: str, name: str) -> dict[str, float]:
    with psycopg.connect(url, autocommit=True) as connection:
        last_id = _fetch_value(connection, "SELECT coalesce(max(id), 0) FROM ingest_storedevent")
        connection.execute("CHECKPOINT")
        response = feed.call({"http": BATCH})
        new = f"FROM ingest_storedevent WHERE id > {last_id}"
        stored = _fetch_value(connection, f"SELECT count(*) {new}")
        if response["counts"] != {"stored": stored, "duplicate": 0}:
            raise SystemExit(f"The service returned {response['counts']} and stored {stored}.")
        connection.execute(f"DELETE {new}")
        connection.execute("VACUUM ingest_storedevent")
    return {f"{source}, {name}": stored / response["seconds"]}


def _fetch_value(connection: psycopg.Connection[Any], sql: str) -> int:
    row = connection.execute(sql).fetchone()
    return int(row[0]) if row else 0


def serve_installation() -> None:
    """Runs in an installation's process: creates its senders and its rows."""
    harness.setup_django({})
    harness.migrate()

    def handle(request: dict[str, int]) -> dict[str, Any]:
        facts: dict[str, Any] = {**ingest.prepare_database(), "data": "", "rows": 0}
        if request["load"]:
            facts["rows"], _, facts["data"] = export_data.load_rows(
                request["load"], export_data.QUICK_MONTH_ROWS
            )
        return facts

    harness.serve_requests(handle)


if __name__ == "__main__":
    main()
