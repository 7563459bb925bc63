"""Times ingest over HTTP against raw COPY of the same rows.

    python -m benchmarks.ingest [--source all|telemetry|clickstream|skalin|desk]
        [--events 30000] [--rounds 5] [--peer-events 4000] [--flags "--blocking-threads 4"]

Needs the PostgreSQL server of DATABASE_URL. HTTP is the shipped server with two workers: it checks
senders, validates events, finds duplicates and commits before it responds. COPY does none of that;
it uses two connections and a table with the same indexes. Every side starts with an empty table,
commits durably, and is fed by `benchmarks.feeder`. `benchmarks.sources` has the events of each
source. `benchmarks.drf` has the same endpoints made of serializers; they get the first few of the
same events.
"""

import shlex
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks import harness, results
from benchmarks.feeder import BATCH, COLUMNS, CONNECTIONS, LARGE
from benchmarks.harness import CHANNEL, Helper, Process, wait_for_server
from benchmarks.results import Result, compare
from benchmarks.sources import APPLICATION, SOURCES
from exhaust.processes import web_command

COPY = "COPY, 2 connections"
COPY_BATCHED = f"COPY, commit every {BATCH}"
HTTP = f"HTTP, batches of {BATCH}"
HTTP_LARGE = f"HTTP, batches of {LARGE}"
REPLAY = f"replay, batches of {BATCH}"
ADAPTER = "decode, validate, map, one core"
DRF = f"DRF serializers + bulk_create, batches of {BATCH}"
ORM = f"ORM bulk_create, batches of {LARGE}"
DECODED = {"telemetry", "clickstream"}  # sources with a bar for it


def main() -> None:
    parser = results.argument_parser("HTTP to committed rows, against raw COPY.")
    parser.add_argument("--source", choices=[*SOURCES, "all"], default="all")
    parser.add_argument("--events", type=int, default=30_000, help="Rows per source.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-events", type=int, default=4_000, help="Events for ORM and DRF.")
    parser.add_argument("--flags", default="", help="More flags for uvicorn.")
    options = parser.parse_args()
    harness.stop_on_term()
    sources = list(SOURCES) if options.source == "all" else [options.source]
    with harness.temporary_folder() as var, harness.postgresql() as url:
        variables = harness.environment(url, var)
        harness.setup_django(variables)
        harness.migrate()
        ground_facts = harness.print_environment(
            url,
            data=f"{options.events:,} rows by {', '.join(sources)}",
            server=" ".join(["python", *web_command(0)[1:], options.flags]).rstrip(),
            load=f"{CONNECTIONS} keep-alive connections, one process, on the same cores",
        )
        with ExitStack() as running:
            setup = {**prepare_database(), "url": url}
            setup["port"] = running.enter_context(run_server(variables, options.flags))
            setup["drf_port"] = running.enter_context(run_drf(variables))
            feeders: dict[str, tuple[Helper, int, int]] = {}
            for source in sources:
                sizes = (options.events, options.peer_events)
                feeders[source] = running.enter_context(
                    start_feeder(variables, setup, source, *sizes)
                )
                if not rows_match(*feeders[source][:2]):
                    raise SystemExit(f"COPY and HTTP stored different rows of {source}.")
            sides = [
                partial(with_source_name, source, side)
                for source in sources
                for side in build_sides(source, *feeders[source])
            ]
            figures = harness.run_rounds(options.rounds, sides)
        results.print_report(
            "ingest",
            [line for source in sources for line in build_results(source, figures)],
            ground_facts,
            options.json,
        )


@contextmanager
def run_server(variables: dict[str, str], flags: str = "") -> Iterator[int]:
    """Runs the shipped web server; yields its port once it is ready."""
    port = harness.free_port()
    command = [*web_command(port), *shlex.split(flags)]
    with Process(command, variables, stdout=subprocess.DEVNULL) as server:
        wait_for_server(port, server)
        yield port


@contextmanager
def run_drf(variables: dict[str, str]) -> Iterator[int]:
    """Runs the endpoints of serializers; yields their port once they are ready."""
    port = harness.free_port()
    command = harness.wsgi_command(port, "benchmarks.drf:application")
    with Process(command, variables, stdout=subprocess.DEVNULL) as server:
        wait_for_server(port, server)
        yield port


@contextmanager
def start_feeder(
    variables: dict[str, str], setup: dict[str, Any], source: str, events: int, peer_events: int = 0
) -> Iterator[tuple[Helper, int, int]]:
    """Starts a warm feeder; returns it with its numbers of rows and of peer rows."""
    command = [sys.executable, "-m", "benchmarks.feeder", "--source", source]
    sizes = ["--events", str(events), "--peer-events", str(peer_events)]
    with Helper([*command, *sizes], variables) as feed:
        counted = feed.call({"prepare": setup})
        time_http(feed, BATCH, counted["rows"])  # connections, imports, the registry
        yield feed, counted["rows"], counted["peer_rows"]


def with_source_name(source: str, side: Callable[[], dict[str, float]]) -> dict[str, float]:
    return {f"{source}: {name}": rate for name, rate in side().items()}


def build_sides(
    source: str, feed: Helper, rows: int, peer_rows: int
) -> list[Callable[[], dict[str, float]]]:
    sides: list[Callable[[], dict[str, float]]] = [
        partial(time_copy, feed, rows, 0, COPY),
        partial(time_copy, feed, rows, BATCH, COPY_BATCHED),
        partial(send_twice, feed, rows),
        partial(time_adapter, feed),
    ]
    if SOURCES[source].max_events >= LARGE:
        sides.insert(3, partial(time_http, feed, LARGE, rows))
    if peer_rows:
        sides += [partial(time_peer, feed, "drf", DRF, peer_rows)]
        sides += [partial(time_peer, feed, "orm", ORM, peer_rows)]
    return sides


def build_results(source: str, figures: dict[str, list[float]]) -> list[Result]:
    """Returns the results of a source; every side has at least one."""
    each = (
        f"documents of {SOURCES[source].rows_per_event} rows"
        if SOURCES[source].rows_per_event > 1
        else ""
    )

    def add_result(work: str, against: str, bar: str = "", note: str = each) -> list[Result]:
        names = {f"{source}: {name}" for name in (work, against)}
        if not names <= figures.keys():
            return []
        result = compare(figures, "rows/s", f"{source}: {work}", f"{source}: {against}", bar, note)
        return [replace(result, against=against)]

    return [
        *add_result(HTTP, COPY, ">= 0.8"),
        *add_result(HTTP_LARGE, COPY, ">= 0.8"),
        *add_result(HTTP, COPY_BATCHED, note="which waits for the disk as often"),
        *add_result(HTTP, DRF, ">= 8"),
        *add_result(HTTP_LARGE, DRF, ">= 8"),
        *add_result(HTTP, ORM),
        *add_result(REPLAY, HTTP, ">= 1", "all duplicates, against the first time"),
        compare(figures, "rows/s", f"{source}: {ADAPTER}",
                 bar=">= 300000" if source in DECODED else "", note=each),
    ]  # fmt: skip


def prepare_database() -> dict[str, Any]:
    """Creates a channel, its senders, and COPY's table with the same indexes."""
    from django.db import connection

    from exhaust.demo.conversations import CONVERSATION_ID
    from ingest.auth import keys
    from ingest.models import Channel, Conversation

    channel = Channel.objects.create(identifier=CHANNEL)
    conversation = Conversation.objects.create(channel=channel, identifier=CONVERSATION_ID)
    application, password = keys.create_application(APPLICATION, channel)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE copied (LIKE ingest_storedevent INCLUDING ALL)")
    return {
        "channel": channel.pk,
        "conversation": conversation.pk,
        "application": application.pk,
        "key": keys.create_key("benchmark", ["ingest"], [channel])[1],
        "basic": b64encode(f"{APPLICATION}:{password}".encode()).decode(),
    }


def truncate(table: str) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {table}")
        cursor.execute("CHECKPOINT")


def time_copy(feed: Helper, events: int, each: int, name: str) -> dict[str, float]:
    truncate("copied")
    return {name: events / feed.call({"copy": each})["seconds"]}


def time_http(feed: Helper, each: int, events: int, stored: bool = True) -> dict[str, float]:
    """Exits unless every event is stored, or in a replay is a duplicate."""
    if stored:
        truncate("ingest_storedevent")
    response = feed.call({"http": each})
    expected = {"stored": events * stored, "duplicate": events * (not stored)}
    # Clickstream's responses have no body, so the tables are counted for every source
    if response["counts"] not in (expected, {}) or count_rows() != (events, 0, 0):
        raise SystemExit(f"The service returned {response} and stored {count_rows()}.")
    name = {BATCH: HTTP if stored else REPLAY, LARGE: HTTP_LARGE}[each]
    return {name: events / response["seconds"]}


def count_rows() -> tuple[int, ...]:
    """Returns the numbers of rows, of superseded rows and of rejected events."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), count(superseded_xid), (SELECT count(*) FROM ingest_rejectedevent)"
            " FROM ingest_storedevent"
        )
        return tuple(cursor.fetchone())


def send_twice(feed: Helper, events: int) -> dict[str, float]:
    return time_http(feed, BATCH, events) | time_http(feed, BATCH, events, stored=False)


def time_adapter(feed: Helper) -> dict[str, float]:
    return {ADAPTER: feed.call({"adapter": BATCH})["rate"]}


def time_peer(feed: Helper, kind: str, name: str, rows: int) -> dict[str, float]:
    truncate("ingest_storedevent")
    response = feed.call({kind: True})
    if count_rows()[0] != rows:
        raise SystemExit(f"{name} stored {count_rows()}.")
    return {name: rows / response["seconds"]}


def rows_match(feed: Helper, events: int) -> bool:
    """Returns whether COPY stores the same rows as HTTP."""
    from django.db import connection

    time_copy(feed, events, 0, COPY)
    columns = f"{COLUMNS.replace('received_at, ', '')}"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) FROM (SELECT {columns} FROM copied EXCEPT"
            f" SELECT {columns} FROM ingest_storedevent) AS missing"
        )
        return bool(cursor.fetchone()[0] == 0)  # and `http` has counted the rows


if __name__ == "__main__":
    main()
