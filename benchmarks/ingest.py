"""How fast events come in over HTTP, against raw COPY of the same rows.

    python -m benchmarks.ingest [--door telemetry|clickstream|skalin|desk|all]
        [--events 60000] [--rounds 5] [--flags "--blocking-threads 4"]

Needs the PostgreSQL server of DATABASE_URL. HTTP is the shipped server with two workers: senders
checked, events validated, duplicates found, committed before the answer. COPY does none of it,
over two connections into a table with the same indexes. Every side starts with an empty table,
commits durably and is fed by one cheap process with everything built beforehand. Telemetry has a
table of its own; the other doors, or all of them, have a row each. Each connection of the
feeder comes from an address of its own, so that Skalin's limit of calls per address is not met.
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
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from statistics import median
from threading import Thread
from typing import Any
from urllib.request import urlopen
from uuid import UUID

import msgspec
import psycopg

from benchmarks import ground
from benchmarks.ground import CHANNEL, FIRST_DAY, PAYLOAD_BYTES, Helper, Process, Row
from exhaust.demo.conversations import answers

SERVER = "-m granian --interface wsgi config.wsgi:application --workers 2 --respawn-failed-workers"
CONNECTIONS = 8
BATCH, LARGE = 100, 1000
RECEIVED_AT = datetime(2026, 1, 1, tzinfo=UTC)
APPLICATION = "benchmark"

COPY = "COPY, 2 connections"
COPY_BATCHED = f"COPY, commit every {BATCH}"
HTTP = f"HTTP, batches of {BATCH}"
HTTP_LARGE = f"HTTP, batches of {LARGE}"
REPLAY = f"replay, batches of {BATCH}"
ADAPTER = "adapter alone, 1 process"


def main() -> None:
    arguments = argparse.ArgumentParser(description="HTTP to committed rows, against raw COPY.")
    arguments.add_argument("--door", choices=[*DOORS, "all"], default="telemetry")
    arguments.add_argument("--events", type=int, default=60_000, help="Rows, for each door.")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--flags", default="", help="More flags for granian.")
    arguments.add_argument("--feeder", action="store_true", help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.feeder:
        feed(asked.door, asked.events)
        return
    ground.stop_on_term()
    with ground.folder() as var, ground.postgresql() as url:
        variables = ground.environment(url, var)
        ground.enter(variables)
        ground.migrate()
        told = {**prepare(), "url": url, "port": ground.free_port()}
        ground.print_ground(
            url,
            data=f"{asked.events:,} rows by {asked.door}",
            server=f"python {SERVER} {asked.flags}".rstrip(),
            load=f"{CONNECTIONS} keep-alive connections, one process, on the same cores",
        )
        flags = [*shlex.split(asked.flags), "--port", str(told["port"])]
        server = [sys.executable, *shlex.split(SERVER), *flags]
        with Process(server, variables, stdout=subprocess.DEVNULL) as granian:
            wait_for(told["port"], granian)
            if asked.door == "telemetry":
                against_copy(variables, told, asked.events, asked.rounds)
            else:
                doors = list(DOORS) if asked.door == "all" else [asked.door]
                by_door(variables, told, doors, asked.events, asked.rounds)


@contextmanager
def feeder(
    variables: dict[str, str], told: dict[str, Any], door: str, events: int
) -> Iterator[tuple[Helper, dict[str, int]]]:
    """A feeder for the door, warm, and what it has to send."""
    command = [sys.executable, "-m", "benchmarks.ingest", "--feeder"]
    with Helper([*command, "--door", door, "--events", str(events)], variables) as feed:
        made = feed.ask({"prepare": told})
        http(feed, BATCH, made["rows"])  # connections, imports, the registry
        yield feed, made


def by_door(
    variables: dict[str, str], told: dict[str, Any], doors: Sequence[str], events: int, times: int
) -> None:
    """A row for each door, one after another."""
    table = [
        "| door | payload bytes | COPY rows/s | HTTP rows/s | of COPY"
        " | replay rows/s | of COPY | replay's duplicates |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for door in doors:
        print(f"  {door}", file=sys.stderr, flush=True)
        with feeder(variables, told, door, events) as (feed, made):
            rows = made["rows"]
            sides = [partial(copy, feed, rows, 0, COPY), partial(http_twice, feed, rows)]
            found = ground.rounds(times, sides)
            if not compare(feed, rows):
                raise SystemExit(f"{door}: COPY and HTTP left different rows.")
        cells = [door, f"{made['bytes'] / rows:,.0f}", rate(found[COPY])]
        for name in (HTTP, REPLAY):
            cells += [rate(found[name]), share(found[name], found[COPY])]
        table.append(f"| {' | '.join(cells)} | {rows:,} of {rows:,} |")
    print("\nHTTP to committed rows by door, medians (min-max)\n")
    print("\n".join(table))
    print(f"\n{COPY}; HTTP and replay in batches of {BATCH} (desk: sessions of 4 rows each)")
    print("same rows in both tables: yes")


def rate(rates: Sequence[float]) -> str:
    return f"{median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"


def share(rates: Sequence[float], reference: Sequence[float]) -> str:
    within = ground.ratios(rates, reference)
    return f"{median(within):.2f} ({min(within):.2f}-{max(within):.2f})"


def against_copy(variables: dict[str, str], told: dict[str, Any], events: int, times: int) -> None:
    """Telemetry's table: besides the batches of a hundred, what changes with their size."""
    with feeder(variables, told, "telemetry", events) as (feed, _):
        found = ground.rounds(
            times,
            [
                partial(copy, feed, events, 0, COPY),
                partial(copy, feed, events, BATCH, COPY_BATCHED),
                partial(http_twice, feed, events),
                partial(http, feed, LARGE, events),
                partial(adapter, feed),
            ],
        )
        same = compare(feed, events)
    ground.print_rates(
        "HTTP to committed rows",
        "events/s",
        found,
        [
            Row(COPY),
            Row(COPY_BATCHED, COPY),
            Row(HTTP, COPY, 0.6),
            Row(HTTP_LARGE, COPY),
            Row(REPLAY, COPY, note="all duplicates"),
            Row(ADAPTER, COPY, note="decode, validate, map"),
        ],
    )
    within = ground.ratios(found[HTTP], found[COPY_BATCHED])
    print(f"\n{HTTP}: {median(within):.2f} of {COPY_BATCHED}, which as often waits for the disk")
    print(f"same rows in both tables: {'yes' if same else 'NO'}")
    if not same:
        raise SystemExit(1)


def prepare() -> dict[str, Any]:
    """A channel, its senders, and COPY's table with the same indexes."""
    from django.db import connection

    from exhaust.demo.conversations import CONVERSATION_ID
    from ingest import access
    from ingest.models import Channel, Conversation

    channel = Channel.objects.create(identifier=CHANNEL)
    conversation = Conversation.objects.create(channel=channel, identifier=CONVERSATION_ID)
    application, password = access.create_application(APPLICATION, channel)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE copied (LIKE ingest_storedevent INCLUDING ALL)")
    return {
        "channel": channel.pk,
        "conversation": conversation.pk,
        "application": application.pk,
        "key": access.create_key("benchmark", ["ingest"], [channel])[1],
        "basic": b64encode(f"{APPLICATION}:{password}".encode()).decode(),
    }


def empty(table: str) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {table}")
        cursor.execute("CHECKPOINT")


def wait_for(port: int, granian: Process) -> None:
    until = time.monotonic() + 30
    while granian.alive and time.monotonic() < until:
        try:
            with urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("The server did not start.")


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


def compare(feed: Helper, events: int) -> bool:
    """Whether COPY and HTTP left the same rows."""
    from django.db import connection

    copy(feed, events, 0, COPY)
    http(feed, BATCH, events)
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


def feed(name: str, count: int) -> None:
    door = DOORS[name]
    made = door.make(count // door.rows, Random(f"1/{name}"))
    things = [door.encode(thing) for thing in made]
    sizes = (BATCH, LARGE) if name == "telemetry" else (BATCH,)
    batches = {each: [door.join(batch) for batch in grouped(things, each)] for each in sizes}
    prepared: dict[str, Any] = {}

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        match asked:
            case {"prepare": told}:
                read = [parse(name, sent, told["application"]) for sent in batches[BATCH]]
                prepared.update(
                    port=told["port"],
                    url=told["url"],
                    lines=[line for batch in read for line in lines(batch, told)],
                    requests={
                        each: [request(door, sent, told) for sent in bodies]
                        for each, bodies in batches.items()
                    },
                )
                payloads = [len(event.payload) for batch in read for event in batch.events]
                return {"rows": len(payloads), "bytes": sum(payloads)}
            case {"copy": each}:
                half = -(-len(prepared["lines"]) // 2)
                blocks = [b"".join(rows) for rows in grouped(prepared["lines"], each or half)]
                return {"seconds": copy_in(prepared["url"], blocks)}
            case {"http": each}:
                return post(prepared["port"], prepared["requests"][each])
            case {"adapter": each}:
                begun = time.monotonic()
                for sent in batches[each]:
                    parse(name, sent, None)
                return {"rate": count / (time.monotonic() - begun)}
        raise ValueError(asked)

    ground.serve(answer)


def grouped(things: Sequence[bytes], each: int) -> list[tuple[bytes, ...]]:
    things = iter(things)  # type: ignore[assignment]
    return list(iter(lambda: tuple(itertools.islice(things, each)), ()))


def request(door: "Door", sent: bytes, told: dict[str, Any]) -> bytes:
    head = (
        f"{door.head.format(**told)}\r\nHost: 127.0.0.1:{told['port']}\r\n"
        f"Content-Type: {door.content_type}\r\nContent-Length: {len(sent)}\r\n\r\n"
    )
    return head.encode() + sent


def parse(name: str, sent: bytes, application_id: int | None) -> Any:
    """A body read by its door's own adapter."""
    from ingest.adapters import ADAPTERS
    from ingest.events import Call

    if name == "telemetry":
        return ADAPTERS[name].parse(sent, Call(CHANNEL, RECEIVED_AT))
    content_type = DOORS[name].content_type
    call = Call(CHANNEL, RECEIVED_AT, content_type, APPLICATION, application_id)
    return ADAPTERS[name].parse(sent, call)


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
    addresses = (f"127.0.0.{last}" for last in itertools.count(2))

    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), source_address=(next(addresses), 0))

    def work(connection: socket.socket) -> None:
        with connection:
            while True:
                try:
                    sent = waiting.popleft()
                except IndexError:
                    return
                connection.sendall(sent)
                answers.append(answer_of(connection))

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


# What each door is sent ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Door:
    """How a call begins, what it carries (seeded), and how that becomes a body."""

    head: str
    make: Callable[[int, Random], Iterator[dict[str, Any]]]
    join: Callable[[Sequence[bytes]], bytes]
    content_type: str = "application/json"
    encode: Callable[[Any], bytes] = msgspec.json.encode
    rows: int = 1  # that one thing becomes


def telemetry(count: int, _: Random) -> Iterator[dict[str, Any]]:
    return answers(
        count, count // 30, start=FIRST_DAY, channel=CHANNEL, payload_bytes=PAYLOAD_BYTES
    )


def spread(count: int, random: Random) -> Iterator[tuple[int, int, str]]:
    """(number, milliseconds since 1970, a person's id) for each of `count` things, in order."""
    first = datetime.combine(FIRST_DAY, datetime.min.time(), UTC)
    people = [str(UUID(int=random.getrandbits(128), version=4)) for _ in range(count // 30 + 1)]
    for number in range(count):
        at = first + timedelta(days=30) * (number / count)
        yield number, int(at.timestamp() * 1000), random.choice(people)


def clickstream(count: int, random: Random) -> Iterator[dict[str, Any]]:
    """Page views of a web shop, with thirty attributes each."""
    for number, at, device in spread(count, random):
        page = random.randrange(500)
        yield {
            "event_type": random.choice(["_page_view", "_scroll", "_click", "add_to_cart"]),
            "event_id": str(UUID(int=random.getrandbits(128), version=4)),
            "app_id": APPLICATION, "device_id": device, "timestamp": at, "platform": "Web",
            "sdk_name": "aws-solution-clickstream-sdk", "sdk_version": "0.12.2",
            "attributes": {
                "_session_id": f"{device[:8]}-{at // 1_800_000}", "_session_number": 3,
                "_session_start_timestamp": at - 4000, "_session_duration": 4000,
                "_page_title": f"Product {page}", "_page_url": f"https://shop.example/p/{page}",
                "_page_referrer": "https://shop.example/", "_page_referrer_title": "Shop",
                "_entrances": 0, "_engagement_time_msec": random.randrange(60_000),
                "_latest_referrer": "https://search.example/", "_is_first_time": False,
                "_latest_referrer_host": "search.example", "_traffic_source_medium": "cpc",
                "_traffic_source_source": "search", "category": f"c{page % 20}", "sku": f"s{page}",
                "price": random.randrange(10_000) / 100, "currency": "EUR", "quantity": 1,
                "position": number % 40, "list": "new", "color": "green", "size": "M",
                "in_stock": True, "rating": 4.5, "reviews": page, "theme": "dark",
                "variant": "B", "depth": random.randrange(100),
            },
        }  # fmt: skip


def skalin(count: int, random: Random) -> Iterator[dict[str, Any]]:
    """Features that people of a hundred customers used."""
    for number, at, person in spread(count, random):
        yield {
            "name": f"Feature {random.randrange(80)}",
            "eventId": f"e-{number}",
            "identity": {"id": person, "email": f"{person[:8]}@example.org"},
            "customerId": f"customer-{int(person[:4], 16) % 100}",
            "visitorId": person,
            "visitId": f"{person[:8]}-{at // 1_800_000}",
            "ts": datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S"),
            "event": {"plan": "team", "module": f"m-{number % 12}", "source": "web"},
        }


def desk(count: int, random: Random) -> Iterator[dict[str, Any]]:
    """Ended sessions of two user actions and one event: four rows each."""
    for number, at, person in spread(count, random):
        actions = [
            {
                "name": f"Loading of page /p/{random.randrange(500)}", "type": "Load",
                "startTime": at + 5000 * index, "endTime": at + 5000 * index + 900,
                "duration": 900, "domain": "shop.example", "application": "Shop",
                "targetUrl": f"https://shop.example/p/{index}", "apdexCategory": "SATISFIED",
                "networkTime": random.randrange(300), "serverTime": random.randrange(300),
                "domCompleteTime": random.randrange(900), "visuallyCompleteTime": 700,
                "requestErrorCount": 0, "javascriptErrorCount": 0, "keyUserAction": False,
            }
            for index in range(2)
        ]  # fmt: skip
        yield {
            "tenantId": "tenant-1", "userSessionId": f"SESSION{number:08}-0",
            "startTime": at, "endTime": at + 60_000, "duration": 60_000,
            "internalUserId": person, "userType": "REAL_USER", "applicationType": "WEB_APPLICATION",
            "bounce": False, "newUser": number % 3 == 0, "userExperienceScore": "SATISFIED",
            "browserFamily": "Chrome", "browserMajorVersion": "Chrome 120", "osFamily": "Windows",
            "country": "Germany", "city": "Berlin", "isp": "Example", "connectionType": "CABLE",
            "screenWidth": 1920, "screenHeight": 1080, "userActionCount": 2, "totalErrorCount": 0,
            "stringProperties": [], "longProperties": [], "stringTags": {"plan": "team"},
            "userActions": actions, "errors": [], "syntheticEvents": [],
            "events": [{"type": "PageChange", "name": "/cart", "startTime": at + 9000,
                        "application": "Shop", "domain": "shop.example"}],
        }  # fmt: skip


DOORS = {
    "telemetry": Door(
        "POST /v1/telemetry HTTP/1.1\r\nAuthorization: Bearer {key}",
        telemetry,
        lambda events: (
            b'{"id": "api.telemetry", "ver": "3.0", "events": [%b]}' % b", ".join(events)
        ),
        encode=lambda event: json.dumps(event, ensure_ascii=False).encode(),
    ),
    "clickstream": Door(
        f"POST /collect?appId={APPLICATION}&platform=Web HTTP/1.1",
        clickstream,
        lambda events: b"[%b]" % b",".join(events),
    ),
    "skalin": Door(
        f"POST /hit/bulk?client_id={APPLICATION} HTTP/1.1",
        skalin,
        lambda features: b'{"identities":[],"features":[%b]}' % b",".join(features),
    ),
    "desk": Door(
        "PUT /export/events HTTP/1.1\r\nAuthorization: Basic {basic}",
        desk,
        b"\n".join,
        "application/x-ndjson",
        rows=4,
    ),
}


if __name__ == "__main__":
    main()
