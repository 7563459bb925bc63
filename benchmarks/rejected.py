"""Times batches that are rejected whole against good ones, over HTTP.

    python -m benchmarks.rejected [--batches 200] [--rounds 3]

Needs the PostgreSQL server of DATABASE_URL. Eight connections send telemetry to the shipped server
with two workers. Every side sends as many batches, each with texts that were never sent before. A
batch of rejected events must cost less than a good one of as many bytes, and than a good one of as
many events.
"""

import json
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks import harness, results
from benchmarks.harness import Helper
from benchmarks.ingest import CONNECTIONS, SERVER, post_requests, prepare_database, run_server
from benchmarks.results import compare
from benchmarks.sources import SOURCES, build_request

NUMBERS = 9_999  # of a batch
FEW_BATCHES = 20  # of as many events as that takes megabytes
NUMBERS_BATCH = f"arrays of {NUMBERS:,} numbers"
OBJECTS_BATCH = "events without a time"
GOOD_BYTES = "good events, as many bytes"
GOOD_EVENTS = f"good events, {NUMBERS:,} of them"


def main() -> None:
    parser = results.argument_parser("Rejected batches against good ones.")
    parser.add_argument("--batches", type=int, default=200, help="Batches of a side and round.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--feeder", action="store_true")
    options = parser.parse_args()
    if options.feeder:
        harness.serve_requests(handle_request)
        return
    harness.stop_on_term()
    with harness.temporary_folder() as var, harness.postgresql() as url:
        variables = harness.environment(url, var)
        harness.setup_django(variables)
        harness.migrate()
        ground_facts = harness.print_environment(
            url, server=f"python {SERVER}", load=f"{CONNECTIONS} keep-alive connections"
        )
        command = [sys.executable, "-m", "benchmarks.rejected", "--feeder"]
        with run_server(SERVER, variables) as port, Helper(command, variables) as feeder:
            setup = {**prepare_database(), "port": port}
            sides = [partial(time_batches, feeder, setup, name, options.batches) for name in MAKERS]
            for side in sides:
                side()  # connections, imports
            figures = harness.run_rounds(options.rounds, sides)
        results.print_report(
            "rejected",
            [
                compare(figures, "batches/s", bad, good, ">= 1")
                for bad in (NUMBERS_BATCH, OBJECTS_BATCH)
                for good in (GOOD_BYTES, GOOD_EVENTS)
            ],
            ground_facts,
            options.json,
        )


def time_batches(feeder: Helper, setup: dict[str, Any], name: str, count: int) -> dict[str, float]:
    count = min(count, FEW_BATCHES) if name == GOOD_EVENTS else count
    feeder.call({"make": name, "count": count, "setup": setup})
    answer = feeder.call({"send": setup["port"]})
    expected = 0 if name in (NUMBERS_BATCH, OBJECTS_BATCH) else None
    if answer["counts"].get("stored") == (None if expected is None else 1):
        raise SystemExit(f"The service stored {answer['counts']} of {name}.")
    return {name: count / answer["seconds"]}


# The feeder: its own process, everything built before the clock runs ---------------------------

_generator = random.Random(1)
_prepared: list[bytes] = []


def handle_request(request: dict[str, Any]) -> dict[str, Any]:
    if "send" in request:
        return post_requests(request["send"], _prepared)
    source = SOURCES["telemetry"]
    make = MAKERS[request["make"]]
    _prepared[:] = [
        build_request(source, make(), request["setup"]) for _ in range(request["count"])
    ]
    return {}


def make_event(**fields: Any) -> dict[str, Any]:
    return {
        "eid": "ASSESS", "ets": 1648785600000 + _generator.randrange(10**9), "ver": "3.0",
        "mid": f"ASSESS:{_generator.getrandbits(128):032x}",
        "actor": {"id": f"{_generator.getrandbits(128):032x}", "type": "User"},
        "context": {"channel": harness.CHANNEL, "did": f"{_generator.getrandbits(128):032x}",
                    "sid": f"{_generator.getrandbits(128):032x}"},
        "edata": {"item": {"id": "q-1", "title": "How was lunch?"}, "score": 1, "duration": 12},
        **fields,
    }  # fmt: skip


def encode_events(events: Sequence[dict[str, Any]]) -> bytes:
    return json.dumps({"id": "api.telemetry", "ver": "3.0", "events": events}).encode()


def make_numbers() -> bytes:
    start = _generator.randrange(10**6, 10**9)
    return json.dumps(list(range(start, start + NUMBERS))).encode()


def count_events(size: int) -> int:
    return max(1, size // len(json.dumps(make_event())))


def make_objects() -> bytes:
    return encode_events([make_event(ets="now") for _ in range(count_events(NUMBERS * 10))])


def make_good_bytes() -> bytes:
    return encode_events([make_event() for _ in range(count_events(NUMBERS * 10))])


def make_good_events() -> bytes:
    return encode_events([make_event() for _ in range(NUMBERS)])


MAKERS: dict[str, Callable[[], bytes]] = {
    NUMBERS_BATCH: make_numbers,
    OBJECTS_BATCH: make_objects,
    GOOD_BYTES: make_good_bytes,
    GOOD_EVENTS: make_good_events,
}


if __name__ == "__main__":
    main()
