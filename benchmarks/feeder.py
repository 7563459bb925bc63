"""Feeds `benchmarks.ingest`: a process of its own that builds everything before the clock runs.

Each connection has an address of its own, so that rate limits per address do not apply.
"""

import argparse
import itertools
import json
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from threading import Thread
from typing import Any

import msgspec
import psycopg

from benchmarks import harness
from benchmarks.sources import RECEIVED_AT, SOURCES, build_request, parse_body

CONNECTIONS = 8
BATCH, LARGE = 100, 1000
COLUMNS = (
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
                with cursor.copy(f"COPY copied ({COLUMNS}) FROM STDIN") as into:
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--peer-events", type=int, required=True)
    options = parser.parse_args()
    serve_feed(options.source, options.events, options.peer_events)
