"""How fast events come in over HTTP, against raw COPY of the same rows.

    python -m benchmarks.ingest [--door all|telemetry|clickstream|skalin|desk]
        [--events 30000] [--rounds 5] [--peer-events 4000] [--flags "--blocking-threads 4"]

Needs the PostgreSQL server of DATABASE_URL. HTTP is the shipped server with two workers: senders
checked, events validated, duplicates found, committed before the answer. COPY does none of it,
over two connections into a table with the same indexes. Every side starts with an empty table,
commits durably and is fed by one cheap process with everything built beforehand. Each connection
of the feeder comes from an address of its own, so that Skalin's limit of calls per address is not
met. `benchmarks.doors` has what each door is sent, `benchmarks.drf` the doors made of serializers,
which get the first few of the same events.
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

from benchmarks import ground, results
from benchmarks.doors import APPLICATION, DOORS, RECEIVED_AT, parse, request
from benchmarks.ground import CHANNEL, Helper, Process, wait_for
from benchmarks.results import Result, compared

GRANIAN = "-m granian --interface wsgi --workers 2 --respawn-failed-workers"
SERVER = f"{GRANIAN} config.wsgi:application"
DRF_SERVER = f"{GRANIAN} benchmarks.drf:application"
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
DECODED = {"telemetry", "clickstream"}  # that have a bar for it


def main() -> None:
    arguments = results.arguments("HTTP to committed rows, against raw COPY.")
    arguments.add_argument("--door", choices=[*DOORS, "all"], default="all")
    arguments.add_argument("--events", type=int, default=30_000, help="Rows, for each door.")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--peer-events", type=int, default=4_000, help="For ORM and DRF.")
    arguments.add_argument("--flags", default="", help="More flags for granian.")
    arguments.add_argument("--feeder", action="store_true", help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.feeder:
        feed(asked.door, asked.events, asked.peer_events)
        return
    ground.stop_on_term()
    doors = list(DOORS) if asked.door == "all" else [asked.door]
    with ground.folder() as var, ground.postgresql() as url:
        variables = ground.environment(url, var)
        ground.enter(variables)
        ground.migrate()
        said = ground.print_ground(
            url,
            data=f"{asked.events:,} rows by {', '.join(doors)}",
            server=f"python {SERVER} {asked.flags}".rstrip(),
            load=f"{CONNECTIONS} keep-alive connections, one process, on the same cores",
        )
        with ExitStack() as running:
            told = {**prepare(), "url": url}
            for name, command in (("port", f"{SERVER} {asked.flags}"), ("drf_port", DRF_SERVER)):
                told[name] = running.enter_context(serving(command, variables))
            fed: dict[str, tuple[Helper, int, int]] = {}
            for door in doors:
                sizes = (asked.events, asked.peer_events)
                fed[door] = running.enter_context(feeder(variables, told, door, *sizes))
                if not same(*fed[door][:2]):
                    raise SystemExit(f"COPY and HTTP left other rows by {door}.")
            sides = [
                partial(named, door, side) for door in doors for side in sides_of(door, *fed[door])
            ]
            found = ground.rounds(asked.rounds, sides)
        results.report(
            "ingest", [line for door in doors for line in told_of(door, found)], said, asked.json
        )


@contextmanager
def serving(command: str, variables: dict[str, str]) -> Iterator[int]:
    """A web server that is up; gives its port."""
    port = ground.free_port()
    line = [sys.executable, *shlex.split(command), "--port", str(port)]
    with Process(line, variables, stdout=subprocess.DEVNULL) as server:
        wait_for(port, server)
        yield port


@contextmanager
def feeder(
    variables: dict[str, str], told: dict[str, Any], door: str, events: int, peer_events: int = 0
) -> Iterator[tuple[Helper, int, int]]:
    """A feeder for the door, warm; how many rows it has to send, and how many to the peers."""
    command = [sys.executable, "-m", "benchmarks.ingest", "--feeder", "--door", door]
    sizes = ["--events", str(events), "--peer-events", str(peer_events)]
    with Helper([*command, *sizes], variables) as feed:
        counted = feed.ask({"prepare": told})
        http(feed, BATCH, counted["rows"])  # connections, imports, the registry
        yield feed, counted["rows"], counted["peer_rows"]


def named(door: str, side: Callable[[], dict[str, float]]) -> dict[str, float]:
    return {f"{door}: {what}": rate for what, rate in side().items()}


def sides_of(
    door: str, feed: Helper, rows: int, peer_rows: int
) -> list[Callable[[], dict[str, float]]]:
    sides: list[Callable[[], dict[str, float]]] = [
        partial(copy, feed, rows, 0, COPY),
        partial(copy, feed, rows, BATCH, COPY_BATCHED),
        partial(http_twice, feed, rows),
        partial(adapter, feed),
    ]
    if DOORS[door].most >= LARGE:
        sides.insert(3, partial(http, feed, LARGE, rows))
    if peer_rows:
        sides += [partial(peer, feed, "drf", DRF, peer_rows)]
        sides += [partial(peer, feed, "orm", ORM, peer_rows)]
    return sides


def told_of(door: str, found: dict[str, list[float]]) -> list[Result]:
    """The door's lines of the table; each side stands in it once at least."""
    each = f"documents of {DOORS[door].rows} rows" if DOORS[door].rows > 1 else ""

    def line(what: str, against: str, bar: str = "", note: str = each) -> list[Result]:
        wanted = {f"{door}: {name}" for name in (what, against)}
        if not wanted <= found.keys():
            return []
        told = compared(found, "rows/s", f"{door}: {what}", f"{door}: {against}", bar, note)
        return [replace(told, against=against)]

    return [
        *line(HTTP, COPY, ">= 0.8"),
        *line(HTTP_LARGE, COPY, ">= 0.8"),
        *line(HTTP, COPY_BATCHED, note="which waits for the disk as often"),
        *line(HTTP, DRF, ">= 8"),
        *line(HTTP_LARGE, DRF, ">= 8"),
        *line(HTTP, ORM),
        *line(REPLAY, HTTP, ">= 1", "all duplicates, against the first time"),
        compared(found, "rows/s", f"{door}: {ADAPTER}",
                 bar=">= 300000" if door in DECODED else "", note=each),
    ]  # fmt: skip


def prepare() -> dict[str, Any]:
    """A channel, its senders, and COPY's table with the same indexes."""
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


def empty(table: str) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {table}")
        cursor.execute("CHECKPOINT")


def copy(feed: Helper, events: int, each: int, name: str) -> dict[str, float]:
    empty("copied")
    return {name: events / feed.ask({"copy": each})["seconds"]}


def http(feed: Helper, each: int, events: int, stored: bool = True) -> dict[str, float]:
    """Ends the run unless all is stored, or, in a replay, all of it was there already."""
    if stored:
        empty("ingest_storedevent")
    told = feed.ask({"http": each})
    expected = {"stored": events * stored, "duplicate": events * (not stored)}
    # Clickstream's answers have no body, so every door's tables are asked besides
    if told["counts"] not in (expected, {}) or left() != (events, 0, 0):
        raise SystemExit(f"The service told {told} and left {left()}.")
    name = {BATCH: HTTP if stored else REPLAY, LARGE: HTTP_LARGE}[each]
    return {name: events / told["seconds"]}


def left() -> tuple[int, ...]:
    """How many rows are there, superseded, and kept aside as rejected."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), count(superseded_xid), (SELECT count(*) FROM ingest_rejected)"
            " FROM ingest_storedevent"
        )
        return tuple(cursor.fetchone())


def http_twice(feed: Helper, events: int) -> dict[str, float]:
    return http(feed, BATCH, events) | http(feed, BATCH, events, stored=False)


def adapter(feed: Helper) -> dict[str, float]:
    return {ADAPTER: feed.ask({"adapter": BATCH})["rate"]}


def peer(feed: Helper, kind: str, name: str, rows: int) -> dict[str, float]:
    empty("ingest_storedevent")
    told = feed.ask({kind: True})
    if left()[0] != rows:
        raise SystemExit(f"{name} left {left()}.")
    return {name: rows / told["seconds"]}


def same(feed: Helper, events: int) -> bool:
    """Whether COPY leaves the rows that HTTP has left when it was warmed."""
    from django.db import connection

    copy(feed, events, 0, COPY)
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
    " dialect, type, device_id, session_id, note, payload"
)


def feed(name: str, count: int, peer_count: int) -> None:
    door = DOORS[name]
    made = door.make(count // door.rows, Random(f"1/{name}"))
    things = [door.encode(thing) for thing in made]
    sizes = (BATCH, LARGE) if door.most >= LARGE else (BATCH,)
    batches = {each: [door.join(batch) for batch in grouped(things, each)] for each in sizes}
    few = things[: peer_count // door.rows]
    prepared: dict[str, Any] = {}

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        match asked:
            case {"prepare": told}:
                read = [parse(name, sent, told["application"]) for sent in batches[BATCH]]
                prepared.update(
                    channel=told["channel"],
                    port=told["port"],
                    url=told["url"],
                    lines=[line for batch in read for line in lines(batch, told)],
                    requests={
                        each: [request(door, sent, told) for sent in bodies]
                        for each, bodies in batches.items()
                    },
                )
                if few:
                    prepared["drf_port"] = told["drf_port"]
                    head = f"POST /{name}/{told['channel']} HTTP/1.1"
                    prepared["drf"] = [
                        request(door, sent, {"port": told["drf_port"]}, head)
                        for sent in map(door.join, grouped(few, BATCH))
                    ]
                rows = sum(len(batch.events) for batch in read)
                return {"rows": rows, "peer_rows": len(few) * door.rows}
            case {"copy": each}:
                half = -(-len(prepared["lines"]) // 2)
                blocks = [b"".join(rows) for rows in grouped(prepared["lines"], each or half)]
                return {"seconds": copy_in(prepared["url"], blocks)}
            case {"http": each}:
                return post(prepared["port"], prepared["requests"][each])
            case {"drf": _}:
                return post(prepared["drf_port"], prepared["drf"])
            case {"orm": _}:
                return {"seconds": bulk_create(name, few, prepared["channel"])}
            case {"adapter": each}:
                begun = time.monotonic()
                for sent in batches[each]:
                    parse(name, sent, 1)
                return {"rate": count / (time.monotonic() - begun)}
        raise ValueError(asked)

    ground.serve(answer)


def bulk_create(door: str, things: Sequence[bytes], channel: int) -> float:
    """What the ORM alone needs, with the things read and its models made."""
    ground.enter({})
    from benchmarks.drf import model_of
    from ingest.models import StoredEvent

    begun = time.monotonic()
    for batch in grouped(things, LARGE):
        rows = [row for thing in batch for row in model_of(door, json.loads(thing), channel)]
        StoredEvent.objects.bulk_create(rows, ignore_conflicts=True)
    return time.monotonic() - begun


def grouped(things: Sequence[bytes], each: int) -> list[tuple[bytes, ...]]:
    things = iter(things)  # type: ignore[assignment]
    return list(iter(lambda: tuple(itertools.islice(things, each)), ()))


def lines(batch: Any, told: dict[str, Any]) -> list[bytes]:
    """A batch's rows as COPY takes them."""
    escapes = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
    application = "\\N" if batch.application_id is None else str(batch.application_id)
    return [
        "\t".join(
            (
                event.occurred_at.isoformat(), RECEIVED_AT.isoformat(), str(told["channel"]),
                application, str(told["conversation"]) if event.conversation else "\\N",
                "t" if event.is_answer else "f", event.identity.hex(),
                *(
                    text.translate(escapes)
                    for text in (
                        batch.dialect, event.type, event.device_id, event.session_id, event.note,
                        event.payload.decode(),
                    )
                ),
            )
        ).encode() + b"\n"
        for event in batch.events
    ]  # fmt: skip


def together(count: int, work: Callable[[Any], None], makers: Callable[[], Any]) -> float:
    """Seconds that `count` threads need, each with what `makers` gave it beforehand."""
    failed: list[BaseException] = []

    def guarded(held: Any) -> None:
        try:
            work(held)
        except BaseException as error:
            failed.append(error)

    threads = [Thread(target=guarded, args=(makers(),)) for _ in range(count)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begun
    if failed:
        raise failed[0]
    return took


def copy_in(url: str, blocks: list[bytes]) -> float:
    """Each block is a COPY and a commit of its own."""
    waiting = deque(blocks)

    def work(connection: psycopg.Connection[Any]) -> None:
        with connection, connection.cursor() as cursor:
            while True:
                try:
                    block = waiting.popleft()
                except IndexError:
                    return
                with cursor.copy(f"COPY copied ({_COLUMNS}) FROM STDIN") as into:
                    into.write(block)

    return together(2, work, partial(psycopg.connect, url, autocommit=True))


class Counts(msgspec.Struct):
    stored: int
    duplicate: int


class Answered(msgspec.Struct):
    """What a door tells of its batch: under `result`, at the top, or not at all."""

    result: Counts | None = None
    stored: int = 0
    duplicate: int = 0


def post(port: int, requests: list[bytes]) -> dict[str, Any]:
    """Counts are {} where the answers tell none."""
    waiting = deque(requests)
    answers: list[bytes] = []
    lasts = itertools.count(2)

    def connect() -> socket.socket:
        return socket.create_connection(
            ("127.0.0.1", port), source_address=(f"127.0.0.{next(lasts)}", 0)
        )

    def work(connection: socket.socket) -> None:
        while True:
            try:
                sent = waiting.popleft()
            except IndexError:
                connection.close()
                return
            try:
                connection.sendall(sent)
                answers.append(answer_of(connection))
            except OSError:  # sent away: as a sender does, it comes again, later and anew
                connection.close()
                time.sleep(0.1)
                connection = connect()
                waiting.appendleft(sent)

    seconds = together(CONNECTIONS, work, connect)
    counts: dict[str, int] = {}
    for answered in filter(None, answers):
        told = msgspec.json.decode(answered, type=Answered)
        for name in ("stored", "duplicate"):
            counts[name] = counts.get(name, 0) + getattr(told.result or told, name)
    return {"seconds": seconds, "counts": counts}


def answer_of(connection: socket.socket) -> bytes:
    """The body of a 200 answer that has a Content-Length."""
    received = connection.recv(65536)
    while b"\r\n\r\n" not in received:
        received += _more(connection)
    head, _, rest = received.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 503"):
        raise ConnectionAbortedError("all the places of a process are taken")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"The service answered {head!r} {rest!r}")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(rest) < length:
        rest += _more(connection)
    return rest


def _more(connection: socket.socket) -> bytes:
    chunk = connection.recv(65536)
    if not chunk:
        raise SystemExit("The service closed the connection.")
    return chunk


if __name__ == "__main__":
    main()
