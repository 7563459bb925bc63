"""Times batches that are rejected whole against good ones, over HTTP.

    python -m benchmarks.rejected [--batches 300] [--rounds 3]

Needs the PostgreSQL server of DATABASE_URL. Eight connections send telemetry to the shipped server
with two workers. Each side sends texts that were never sent before. A rejected batch must cost less
than a good one of as many events, and one of objects also less than a good one of as many bytes.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from benchmarks import harness, results
from benchmarks.feeder import CONNECTIONS, post_requests
from benchmarks.harness import CHANNEL, Helper
from benchmarks.ingest import prepare_database, run_server
from benchmarks.results import compare
from benchmarks.sources import SOURCES, build_request
from exhaust.processes import web_command

NUMBERS = 9_999  # of a batch
SAME_BYTES = 285  # events that take as many bytes
LARGE_SHARE = 30  # of a good batch's events, one batch in so many takes long enough
NUMBERS_BATCH = f"rejected: {NUMBERS:,} numbers"
OBJECTS_BATCH = f"rejected: {SAME_BYTES} events without a time"
GOOD_BYTES = f"stored: {SAME_BYTES} events, as many bytes"
GOOD_EVENTS = f"stored: {NUMBERS:,} events"


def main() -> None:
    parser = results.argument_parser("Rejected batches against good ones.")
    parser.add_argument("--batches", type=int, default=300, help="Batches of a side and round.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--feeder", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.feeder:
        serve_feed()
        return
    harness.stop_on_term()
    with harness.temporary_folder() as var, harness.postgresql() as url:
        variables = harness.environment(url, var)
        harness.setup_django(variables)
        harness.migrate()
        ground_facts = harness.print_environment(
            url,
            server=" ".join(["python", *web_command(0)[1:]]),
            load=f"{CONNECTIONS} keep-alive connections, one process, on the same cores",
        )
        command = [sys.executable, "-m", "benchmarks.rejected", "--feeder"]
        with run_server(variables) as port, Helper(command, variables) as feeder:
            setup = {**prepare_database(), "port": port}
            sides = [partial(time_side, feeder, setup, name, options.batches) for name in SIDES]
            for side in sides:
                side()  # connections, imports
            figures = harness.run_rounds(options.rounds, sides)
        results.print_report(
            "rejected",
            [
                compare(figures, "batches/s", NUMBERS_BATCH, GOOD_EVENTS, ">= 1"),
                compare(figures, "batches/s", NUMBERS_BATCH, GOOD_BYTES),
                compare(figures, "batches/s", OBJECTS_BATCH, GOOD_BYTES, ">= 1"),
            ],
            ground_facts,
            options.json,
        )


def time_side(feeder: Helper, setup: dict[str, Any], name: str, batches: int) -> dict[str, float]:
    """Exits unless the service stores each event of the good batches, and none of the others."""
    count = max(1, batches // LARGE_SHARE) if name == GOOD_EVENTS else batches
    events = feeder.call({"prepare": setup, "side": name, "count": count})["events"]
    answer = feeder.call({"send": setup["port"]})
    if answer["counts"] != {"stored": events, "duplicate": 0}:
        raise SystemExit(f"The service returned {answer} for {name}.")
    return {name: count / answer["seconds"]}


# The feeder: its own process, everything built before the clock runs ---------------------------


def serve_feed() -> None:
    random = Random(1)
    requests: list[bytes] = []

    def handle(message: dict[str, Any]) -> dict[str, Any]:
        if "send" in message:
            return post_requests(message["send"], requests)
        bodies = [SIDES[message["side"]](random) for _ in range(message["count"])]
        requests[:] = [
            build_request(SOURCES["telemetry"], json.dumps(body).encode(), message["prepare"])
            for body in bodies
        ]
        return {"events": sum(map(count_good, bodies))}

    harness.serve_requests(handle)


def count_good(body: list[Any]) -> int:
    return sum(isinstance(item, dict) and isinstance(item["ets"], int) for item in body)


def make_event(random: Random) -> dict[str, Any]:
    """Returns an event of some 430 bytes."""
    return {
        "eid": "ASSESS", "ets": 1648785600000 + random.randrange(10**9), "ver": "3.0",
        "mid": f"ASSESS:{random.getrandbits(128):032x}",
        "actor": {"id": f"{random.getrandbits(128):032x}", "type": "User"},
        "context": {"channel": CHANNEL, "did": f"{random.getrandbits(128):032x}",
                    "sid": f"{random.getrandbits(128):032x}"},
        "edata": {"item": {"id": "q-1", "title": "How was lunch?"}, "score": 1, "duration": 12},
    }  # fmt: skip


def make_numbers(random: Random) -> list[Any]:
    start = random.randrange(10**6, 10**9)
    return list(range(start, start + NUMBERS))


def make_objects(random: Random) -> list[Any]:
    return [{**make_event(random), "ets": "now"} for _ in range(SAME_BYTES)]


SIDES: dict[str, Callable[[Random], list[Any]]] = {
    NUMBERS_BATCH: make_numbers,
    OBJECTS_BATCH: make_objects,
    GOOD_BYTES: lambda random: [make_event(random) for _ in range(SAME_BYTES)],
    GOOD_EVENTS: lambda random: [make_event(random) for _ in range(NUMBERS)],
}


if __name__ == "__main__":
    main()
