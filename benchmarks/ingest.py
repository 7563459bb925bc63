"""How fast events come in over HTTP, against raw COPY of the same rows.

    python -m benchmarks.ingest [--events 60000] [--rounds 5] [--flags "--blocking-threads 4"]

Needs the PostgreSQL server of DATABASE_URL. HTTP is the shipped server with two workers: keys
checked, events validated, duplicates found, committed before the answer. COPY does none of it,
over two connections into a table with the same indexes. Every side starts with an empty table,
commits durably and is fed by one cheap process with everything built beforehand.
"""

import argparse
import itertools
import json
import shlex
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from statistics import median
from threading import Thread
from typing import Any
from urllib.request import urlopen

import msgspec
import psycopg

from benchmarks import ground
from benchmarks.ground import CHANNEL, FIRST_DAY, PAYLOAD_BYTES, Helper, Process, Row
from exhaust.demo.conversations import answers

SERVER = "-m granian --interface wsgi config.wsgi:application --workers 2 --respawn-failed-workers"
CONNECTIONS = 8
BATCH, LARGE = 100, 1000
RECEIVED_AT = datetime(2026, 1, 1, tzinfo=UTC)

COPY = "COPY, 2 connections"
COPY_BATCHED = f"COPY, commit every {BATCH}"
HTTP = f"HTTP, batches of {BATCH}"
HTTP_LARGE = f"HTTP, batches of {LARGE}"
REPLAY = f"replay, batches of {BATCH}"
ADAPTER = "adapter alone, 1 process"


def main() -> None:
    arguments = argparse.ArgumentParser(description="HTTP to committed rows, against raw COPY.")
    arguments.add_argument("--events", type=int, default=60_000)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--flags", default="", help="More flags for granian.")
    arguments.add_argument("--feeder", action="store_true", help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.feeder:
        feed(asked.events)
        return
    ground.stop_on_term()
    with ground.folder() as var, ground.postgresql() as url:
        variables = ground.environment(url, var)
        ground.enter(variables)
        ground.migrate()
        against_copy(url, variables, asked.events, asked.rounds, asked.flags)


def against_copy(url: str, variables: dict[str, str], events: int, times: int, flags: str) -> None:
    channel_id, conversation_id, key = prepare()
    port = ground.free_port()
    server = [sys.executable, *shlex.split(SERVER), *shlex.split(flags), "--port", str(port)]
    feeder = [sys.executable, "-m", "benchmarks.ingest", "--feeder", "--events", str(events)]
    ground.print_ground(
        url,
        data=f"{events:,} answers of {PAYLOAD_BYTES} bytes",
        server=f"python {SERVER} {flags}".rstrip(),
        load=f"{CONNECTIONS} keep-alive connections, one process, on the same cores",
    )
    with (
        Helper(feeder, variables) as feed,
        Process(server, variables, stdout=subprocess.DEVNULL) as granian,
    ):
        wait_for(port, granian)
        feed.ask(
            {
                "prepare": {
                    "port": port, "key": key, "url": url,
                    "channel": channel_id, "conversation": conversation_id,
                }
            }
        )  # fmt: skip
        http(feed, BATCH, events)  # warm: connections, imports, the registry
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


def prepare() -> tuple[int, int, str]:
    """A channel, its conversation, a key, and COPY's table with the same indexes."""
    from django.db import connection

    from exhaust.demo.conversations import CONVERSATION_ID
    from ingest import access
    from ingest.models import Channel, Conversation

    channel = Channel.objects.create(identifier=CHANNEL)
    conversation = Conversation.objects.create(channel=channel, identifier=CONVERSATION_ID)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE copied (LIKE ingest_storedevent INCLUDING ALL)")
    return channel.pk, conversation.pk, access.create_key("benchmark", ["ingest"], [channel])[1]


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
    if stored:
        empty("ingest_storedevent")
    told = feed.ask({"http": each})
    if told["stored" if stored else "duplicate"] != events:
        raise SystemExit(f"The service stored something else: {told}")
    name = {BATCH: HTTP if stored else REPLAY, LARGE: HTTP_LARGE}[each]
    return {name: events / told["seconds"]}


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
        missing = cursor.fetchone()[0]
        cursor.execute("SELECT count(*) FROM ingest_storedevent")
        return bool(missing == 0 and cursor.fetchone()[0] == events)


# The feeder: its own process, everything built before the clock runs ---------------------------

_COLUMNS = (
    "occurred_at, received_at, channel_id, conversation_id, is_answer, identity, dialect, type,"
    " device_id, session_id, note, payload"
)


def feed(count: int) -> None:
    from ingest.adapters import telemetry
    from ingest.events import Call

    made = answers(
        count, count // 30, start=FIRST_DAY, channel=CHANNEL, payload_bytes=PAYLOAD_BYTES
    )
    events = [json.dumps(event, ensure_ascii=False).encode() for event in made]
    batches = {each: [body(batch) for batch in grouped(events, each)] for each in (BATCH, LARGE)}
    prepared: dict[str, Any] = {}

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        match asked:
            case {"prepare": told}:
                port, key = told["port"], told["key"]
                prepared.update(
                    port=port,
                    url=told["url"],
                    lines=[
                        line
                        for sent in batches[LARGE]
                        for line in lines(sent, told["channel"], told["conversation"])
                    ],
                    requests={
                        each: [request(sent, port, key) for sent in bodies]
                        for each, bodies in batches.items()
                    },
                )
                return {}
            case {"copy": each}:
                half = -(-count // 2)
                blocks = [b"".join(rows) for rows in grouped(prepared["lines"], each or half)]
                return {"seconds": copy_in(prepared["url"], blocks)}
            case {"http": each}:
                return post(prepared["port"], prepared["requests"][each])
            case {"adapter": each}:
                begun = time.monotonic()
                for sent in batches[each]:
                    telemetry.parse(sent, Call(CHANNEL, RECEIVED_AT))
                return {"rate": count / (time.monotonic() - begun)}
        raise ValueError(asked)

    ground.serve(answer)


def grouped(things: Sequence[bytes], each: int) -> list[tuple[bytes, ...]]:
    things = iter(things)  # type: ignore[assignment]
    return list(iter(lambda: tuple(itertools.islice(things, each)), ()))


def body(events: Sequence[bytes]) -> bytes:
    return b'{"id": "api.telemetry", "ver": "3.0", "events": [' + b", ".join(events) + b"]}"


def request(sent: bytes, port: int, key: str) -> bytes:
    head = (
        f"POST /v1/telemetry HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    )
    return head.encode() + sent


def lines(sent: bytes, channel: int, conversation: int) -> list[bytes]:
    """A batch's rows as COPY takes them."""
    from ingest.adapters import telemetry
    from ingest.events import Call

    batch = telemetry.parse(sent, Call(CHANNEL, RECEIVED_AT))
    escapes = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
    return [
        "\t".join(
            text.translate(escapes)
            for text in (
                event.occurred_at.isoformat(), RECEIVED_AT.isoformat(), str(channel),
                str(conversation), "t" if event.is_answer else "f", event.identity.hex(),
                batch.dialect, event.type, event.device_id, event.session_id, event.note,
                event.payload.decode(),
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


class Answered(msgspec.Struct):
    result: dict[str, Any]


def post(port: int, requests: list[bytes]) -> dict[str, Any]:
    waiting = deque(requests)
    told = {"stored": 0, "duplicate": 0}
    answers: list[bytes] = []

    def work(connection: socket.socket) -> None:
        with connection:
            while True:
                try:
                    sent = waiting.popleft()
                except IndexError:
                    return
                connection.sendall(sent)
                answers.append(answer_of(connection))

    seconds = together(CONNECTIONS, work, partial(socket.create_connection, ("127.0.0.1", port)))
    for answered in answers:
        result = msgspec.json.decode(answered, type=Answered).result
        told = {name: told[name] + result[name] for name in told}
    return {"seconds": seconds, **told}


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


if __name__ == "__main__":
    main()
