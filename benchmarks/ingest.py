"""Times ingest over HTTP against raw COPY of the same rows.

    python -m benchmarks.ingest [--source all|telemetry|clickstream|skalin|desk]
        [--events 30000] [--rounds 5] [--peer-events 4000] [--flags "--blocking-threads 4"]

Needs the PostgreSQL server of DATABASE_URL. HTTP is the shipped server with two workers: it checks
senders, validates events, finds duplicates and commits before it responds. COPY does none of that;
it uses two connections and a table with the same indexes. Every side starts with an empty table,
commits durably, and is fed by one cheap process that builds everything beforehand. Each connection
of the feeder has an address of its own, so that Skalin's rate limit per address does not apply.
`benchmarks.sources` has the events of each source. `benchmarks.drf` has the same endpoints made of
serializers; they get the first few of the same events.
"""

import argparse
import itertools
import json
import shlex
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from random import Random
from threading import Thread
from typing import Any

import msgspec
import psycopg

from benchmarks import harness, results
from benchmarks.harness import CHANNEL, Helper, Process, wait_for_server
from benchmarks.results import Result, compare
from benchmarks.sources import APPLICATION, RECEIVED_AT, SOURCES, build_request, parse_body
from exhaust.processes import web_command

CONNECTIONS = 8
BATCH, LARGE = 100, 1000

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
    parser.add_argument("--feeder", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.feeder:
        serve_feed(options.source, options.events, options.peer_events)
        return
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
    command = [sys.executable, "-m", "benchmarks.ingest", "--feeder", "--source", source]
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
    columns = f"{_COLUMNS.replace('received_at, ', '')}"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) FROM (SELECT {columns} FROM copied EXCEPT"
            f" SELECT {columns} FROM ingest_storedevent) AS missing"
        )
        return bool(cursor.fetchone()[0] == 0)  # and `http` has counted the rows


# The feeder: its own process, everything built before the clock runs ---------------------------

_COLUMNS = (
    "occurred_at, received_at, channel_id, application_id, conversation_id, is_answer, identity,"
    " source, type, device_id, session_id, note, payload"
)


def serve_feed(name: str, count: int, peer_count: int) -> None:
    source = SOURCES[name]
    events = source.make_events(count // source.rows_per_event, Random(f"1/{name}"))
    items = [source.encode_event(thing) for thing in events]
    sizes = (BATCH, LARGE) if source.max_events >= LARGE else (BATCH,)
    batches = {each: [source.join_events(batch) for batch in chunks(items, each)] for each in sizes}
    few = items[: peer_count // source.rows_per_event]
    prepared: dict[str, Any] = {}

    def handle(message: dict[str, Any]) -> dict[str, Any]:
        match message:
            case {"prepare": told}:
                read = [parse_body(name, sent, told["application"]) for sent in batches[BATCH]]
                prepared.update(
                    channel=told["channel"],
                    port=told["port"],
                    url=told["url"],
                    lines=[line for batch in read for line in copy_lines(batch, told)],
                    requests={
                        each: [build_request(source, sent, told) for sent in bodies]
                        for each, bodies in batches.items()
                    },
                )
                if few:
                    prepared["drf_port"] = told["drf_port"]
                    head = f"POST /{name}/{told['channel']} HTTP/1.1"
                    prepared["drf"] = [
                        build_request(source, sent, {"port": told["drf_port"]}, head)
                        for sent in map(source.join_events, chunks(few, BATCH))
                    ]
                rows = sum(len(batch.events) for batch in read)
                return {"rows": rows, "peer_rows": len(few) * source.rows_per_event}
            case {"copy": each}:
                half = -(-len(prepared["lines"]) // 2)
                blocks = [b"".join(rows) for rows in chunks(prepared["lines"], each or half)]
                return {"seconds": copy_blocks(prepared["url"], blocks)}
            case {"http": each}:
                return post_requests(prepared["port"], prepared["requests"][each])
            case {"drf": _}:
                return post_requests(prepared["drf_port"], prepared["drf"])
            case {"orm": _}:
                return {"seconds": bulk_create(name, few, prepared["channel"])}
            case {"adapter": each}:
                start_time = time.monotonic()
                for body in batches[each]:
                    parse_body(name, body, 1)
                return {"rate": count / (time.monotonic() - start_time)}
        raise ValueError(message)

    harness.serve_requests(handle)


def bulk_create(source: str, items: Sequence[bytes], channel: int) -> float:
    """Returns the seconds of the ORM alone, without parsing and building models."""
    harness.setup_django({})
    from benchmarks.drf import build_rows
    from ingest.models import StoredEvent

    start_time = time.monotonic()
    for batch in chunks(items, LARGE):
        rows = [row for thing in batch for row in build_rows(source, json.loads(thing), channel)]
        StoredEvent.objects.bulk_create(rows, ignore_conflicts=True)
    return time.monotonic() - start_time


def chunks(items: Sequence[bytes], each: int) -> list[tuple[bytes, ...]]:
    items = iter(items)  # type: ignore[assignment]
    return list(iter(lambda: tuple(itertools.islice(items, each)), ()))


def copy_lines(batch: Any, setup: dict[str, Any]) -> list[bytes]:
    """Returns the rows of a batch in COPY's text format."""
    escapes = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
    application = "\\N" if batch.application_id is None else str(batch.application_id)
    return [
        "\t".join(
            (
                event.occurred_at.isoformat(), RECEIVED_AT.isoformat(), str(setup["channel"]),
                application, str(setup["conversation"]) if event.conversation else "\\N",
                "t" if event.is_answer else "f", event.identity.hex(),
                *(
                    text.translate(escapes)
                    for text in (
                        batch.source, event.type, event.device_id, event.session_id, event.note,
                        event.payload.decode(),
                    )
                ),
            )
        ).encode() + b"\n"
        for event in batch.events
    ]  # fmt: skip


def run_threads(count: int, work: Callable[[Any], None], makers: Callable[[], Any]) -> float:
    """Runs `count` threads, each with the value its maker returned; returns the seconds."""
    failed: list[BaseException] = []

    def run_guarded(resource: Any) -> None:
        try:
            work(resource)
        except BaseException as error:
            failed.append(error)

    threads = [Thread(target=run_guarded, args=(makers(),)) for _ in range(count)]
    start_time = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start_time
    if failed:
        raise failed[0]
    return seconds


def copy_blocks(url: str, blocks: list[bytes]) -> float:
    """Copies each block in a transaction of its own."""
    pending = deque(blocks)

    def work(connection: psycopg.Connection[Any]) -> None:
        with connection, connection.cursor() as cursor:
            while True:
                try:
                    block = pending.popleft()
                except IndexError:
                    return
                with cursor.copy(f"COPY copied ({_COLUMNS}) FROM STDIN") as into:
                    into.write(block)

    return run_threads(2, work, partial(psycopg.connect, url, autocommit=True))


class Counts(msgspec.Struct):
    stored: int
    duplicate: int


class IngestResponse(msgspec.Struct):
    """The counts in a response: under `result`, at the top level, or absent."""

    result: Counts | None = None
    stored: int = 0
    duplicate: int = 0


def post_requests(port: int, requests: list[bytes]) -> dict[str, Any]:
    """Sends all requests; returns the seconds and the counts, {} if responses have none."""
    pending = deque(requests)
    answers: list[bytes] = []
    attempts = itertools.count(2)

    def connect() -> socket.socket:
        return socket.create_connection(
            ("127.0.0.1", port), source_address=(f"127.0.0.{next(attempts)}", 0)
        )

    def work(connection: socket.socket) -> None:
        while True:
            try:
                request = pending.popleft()
            except IndexError:
                connection.close()
                return
            try:
                connection.sendall(request)
                answers.append(read_response(connection))
            except OSError:  # rejected: connect and send again later, as a sender does
                connection.close()
                time.sleep(0.1)
                connection = connect()
                pending.appendleft(request)

    seconds = run_threads(CONNECTIONS, work, connect)
    counts: dict[str, int] = {}
    for body in filter(None, answers):
        response = msgspec.json.decode(body, type=IngestResponse)
        for name in ("stored", "duplicate"):
            counts[name] = counts.get(name, 0) + getattr(response.result or response, name)
    return {"seconds": seconds, "counts": counts}


def read_response(connection: socket.socket) -> bytes:
    """Reads the body of a 200 response with a Content-Length."""
    received = connection.recv(65536)
    while b"\r\n\r\n" not in received:
        received += _receive(connection)
    head, _, rest = received.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 503"):
        raise ConnectionAbortedError("all the places of a process are taken")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"The service returned {head!r} {rest!r}")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(rest) < length:
        rest += _receive(connection)
    return rest


def _receive(connection: socket.socket) -> bytes:
    chunk = connection.recv(65536)
    if not chunk:
        raise SystemExit("The service closed the connection.")
    return chunk


if __name__ == "__main__":
    main()
