"""Proves that the feed misses and repeats nothing, and times pull and push.

    python -m benchmarks.feed [--seconds 60] [--writers 16] [--readers 4] [--events 2000000]
                              [--sessions 10000]

Needs the PostgreSQL server of DATABASE_URL. The proof runs writers with overlapping transactions,
some slow, some rolled back, against readers that read pages of random sizes; it compares the events
read with the events committed. For the rate one client reads all events of a channel in pages of
1,000 from one web process. Push sends sessions of 5 and of 20 events.
"""

import argparse
import http.client
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from typing import Any
from urllib.parse import urlencode

from benchmarks import export_data, harness, results
from benchmarks.harness import CHANNEL, Process
from benchmarks.results import Result
from exhaust.processes import web_command

PAGE_ITEMS = 1000


def main() -> None:
    parser = results.argument_parser("The feed: its proof and its rate.")
    parser.add_argument(
        "--seconds", type=float, default=60, help="Seconds of writing in the proof."
    )
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--events", type=int, default=2_000_000, help="Events to pull; 0 skips it.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--sessions", type=int, default=10_000, help="Sessions to push; 0 skips it."
    )
    parser.add_argument("--receiver", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receiver:
        run_receiver(options.receiver)
    harness.stop_on_term()
    with harness.temporary_folder() as var, harness.postgresql() as url:
        variables = harness.environment(url, var)
        variables["EXHAUST_PUSH_ALLOWED_NETWORKS"] = "ORG_001=127.0.0.0/8"
        variables["EXHAUST_DATABASE_POOL_SIZE"] = str(options.writers + options.readers + 4)
        harness.setup_django(variables)
        harness.migrate()
        ground_facts = harness.print_environment(url)
        is_complete = options.seconds <= 0 or prove_completeness(
            options.seconds, options.writers, options.readers, options.seed
        )
        records = time_push(variables, options.sessions) if options.sessions else []
        if options.events:
            records += time_pull(variables, options.events)
        results.print_report("feed", records, ground_facts, options.json)
    if not is_complete:
        raise SystemExit("The feed missed or repeated an event.")


# The proof ----------------------------------------------------------------------------------------


class RollBack(Exception):
    """Makes a writer roll back its transaction."""


def prove_completeness(seconds: float, writers: int, readers: int, seed: int) -> bool:
    from django.db import connections, transaction
    from django.utils import timezone

    from exhaust.feed import pages
    from ingest.adapters.telemetry.parser import parse
    from ingest.events import Call
    from ingest.feed import values
    from ingest.models import Channel
    from ingest.store import batches as store

    channel = Channel.objects.create(identifier="PROOF")
    committed: list[str] = []
    items_read: list[list[str]] = [[] for _ in range(readers)]
    errors: list[BaseException] = []
    deadline, written = time.monotonic() + seconds, threading.Event()
    undone = [0]

    def run_guarded(work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    def write(number: int) -> None:
        dice = random.Random(seed * 1000 + number)
        batch = 0
        while time.monotonic() < deadline:
            batch += 1
            mids = [f"{number}-{batch}-{each}" for each in range(dice.randint(1, 20))]
            body = json.dumps([make_event(mid) for mid in mids]).encode()
            nested = number % 2 == 0  # otherwise the store commits, as for most sources
            try:
                with transaction.atomic() if nested else nullcontext():
                    call = Call("PROOF", timezone.now())
                    store.append_batch(channel.pk, parse(body, call))
                    if nested:
                        time.sleep(2 if dice.random() < 0.001 else dice.choice([0, 0, 0.02]))
                        if dice.random() < 0.05:
                            raise RollBack
            except RollBack:
                undone[0] += 1
            else:
                committed.extend(mids)

    def read(number: int) -> None:
        dice = random.Random(-seed * 1000 - number)
        question = pages.FeedQuery(channel.pk, "events")
        position = values.START
        while True:
            last = written.is_set()
            page = pages.read_page(question, position, dice.randint(1, PAGE_ITEMS))
            position = page.position
            items_read[number].extend(json.loads(item)["payload"]["mid"] for item in page.items)
            if page.is_at_end and last:
                return

    writing = [threading.Thread(target=run_guarded, args=(write, n)) for n in range(writers)]
    reading = [threading.Thread(target=run_guarded, args=(read, n)) for n in range(readers)]
    for thread in (*writing, *reading):
        thread.start()
    for thread in writing:
        thread.join()
    written.set()
    for thread in reading:
        thread.join()
    if errors:
        raise errors[0]

    print(f"\nProof: {writers} writers, {readers} readers, {seconds:.0f} s, seed {seed}")
    print(f"{len(committed):,} events committed, {undone[0]:,} transactions undone\n")
    print("| reader | read | missed | doubled | out of nowhere |\n|---|---|---|---|---|")
    sound = len(committed) > 0
    expected = Counter(committed)
    for number, mids in enumerate(items_read):
        counts = Counter(mids)
        missing, foreign = expected - counts, counts.keys() - expected.keys()
        duplicates = sum(count - 1 for count in counts.values())
        print(
            f"| {number + 1} | {len(mids):,} | {missing.total():,} | {duplicates:,}"
            f" | {len(foreign):,} |"
        )
        sound = sound and counts == expected
    return sound


def make_event(mid: str) -> dict[str, Any]:
    return {
        "eid": "ASSESS", "ets": 1735689600000, "ver": "3.0", "mid": mid,
        "actor": {"id": "d", "type": "User"},
        "context": {"channel": "PROOF", "did": "d", "sid": "s"}, "edata": {},
    }  # fmt: skip


# The rate -----------------------------------------------------------------------------------------


def time_pull(variables: dict[str, str], events: int) -> list[Result]:
    from ingest.auth import keys
    from ingest.models import Channel

    events, _, data = export_data.load_rows(events, export_data.QUICK_MONTH_ROWS)
    print(f"\n{data}", flush=True)
    key = keys.create_key("puller", ["pull"], [Channel.objects.get(identifier=CHANNEL)])[1]
    times, count, size = run_puller(variables, key)
    archive_events()
    with_archive = variables | {"EXHAUST_ARCHIVE_URL": "archive"}
    archived_times, *archived = run_puller(with_archive, key)
    if archived != [count, size] or count != events:
        raise SystemExit(f"{count:,} events of {events:,} were read, {archived[0]:,} archived.")
    tenth = max(1, len(times) // 10)
    first, last = median(times[:tenth]), median(times[-tenth:])
    total_seconds = sum(times)
    return [
        Result("pull, pages of 1,000, one web process", "events/s", [count / total_seconds],
               bar=">= 30000", note=f"{size / total_seconds / 1e6:,.0f} MB/s"),
        Result("pull, a page of the last tenth", "ms", [last * 1000],
               "one of the first tenth", [first * 1000], "<= 1.2"),
        Result("pull, a page of archived events", "ms", [median(archived_times) * 1000],
               "one of rows", [median(times) * 1000], "<= 2"),
    ]  # fmt: skip


def archive_events() -> None:
    """Archives all events of the channel into the folder `archive`."""
    from django.conf import settings

    from exhaust.archive import runs
    from ingest.models import Channel

    settings.EXHAUST_ARCHIVE_URL, settings.EXHAUST_ARCHIVE_AFTER_DAYS = "archive", 0
    channel = Channel.objects.get(identifier=CHANNEL)
    while runs.archive_channel(channel.pk, is_forced=True):
        pass
    settings.EXHAUST_ARCHIVE_URL = ""


def run_puller(variables: dict[str, str], key: str) -> tuple[list[float], int, int]:
    """Reads all pages of a web process; see `pull_pages`."""
    port = harness.free_port()
    with Process([*web_command(port, workers=1), "--log-level", "error"], variables):
        return pull_pages(port, key)


def pull_pages(port: int, key: str) -> tuple[list[float], int, int]:
    """Reads all pages; returns the seconds per full page, events and bytes."""
    deadline = time.monotonic() + 30
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.connect()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    times: list[float] = []
    count, size, cursor = 0, 0, ""
    while True:
        query = urlencode({"pageSize": PAGE_ITEMS, "cursor": cursor})
        start_time = time.monotonic()
        connection.request("GET", f"/export/events?{query}", headers={"X-Api-Key": key})
        answer = connection.getresponse()
        body = answer.read()
        seconds = time.monotonic() - start_time
        if answer.status != 200:
            raise SystemExit(f"A page returned {answer.status}: {body[:300]!r}")
        # count without decoding, since the client shares the cores
        event_count = body.count(b',"payload":{"@type":')
        cursor = body[-200:].rpartition(b'"nextCursor":"')[2].removesuffix(b'"}').decode()
        if not event_count:
            return times, count, size
        times.append(seconds)
        count, size = count + event_count, size + len(body)


# Push ---------------------------------------------------------------------------------------------


def time_push(variables: dict[str, str], sessions: int) -> list[Result]:
    """Times one worker that pushes all documents to a receiver in its own process."""
    from django.db.models.functions import Now

    from exhaust.delivery import destinations, pump
    from exhaust.models import Destination
    from ingest.derive import deriver
    from ingest.feed.values import START
    from ingest.models import Session

    port = next(port for port in range(9000, 10_000) if is_free(port))
    receiver = [sys.executable, "-m", "benchmarks.feed", "--receiver", str(port)]
    records = []
    with Process(receiver, variables) as intake:
        while intake.is_alive and is_free(port):
            time.sleep(0.02)
        for each in (5, 20):
            channel = load_sessions(f"PUSH_{each}", sessions, each)
            deriver.derive_all(3600)
            closed = Session.objects.filter(channel=channel, closed=True)
            # documents that fill no batch wait for more
            count = closed.update(modified_at=datetime.now(UTC) - timedelta(hours=1))
            for kind in Destination.Kind.values:
                path = "_bulk" if kind == "elasticsearch" else "hook"
                url = f"http://127.0.0.1:{port}/{path}"
                destinations.save(
                    Destination(channel=channel, name=kind, kind=kind, url=url, index="sessions")
                )
                destination = Destination.objects.get(channel=channel, name=kind)
                destinations.rewind(destination, START)
                start_time = time.monotonic()
                pump.deliver_due(3600)
                seconds = time.monotonic() - start_time
                delivered = sum(
                    destination.deliveries.filter(status="delivered").values_list(
                        "documents", flat=True
                    )
                )
                batches = destination.deliveries.count()
                Destination.objects.filter(pk=destination.pk).update(paused_at=Now())
                if delivered != count:
                    raise SystemExit(f"{delivered:,} of {count:,} sessions were accepted.")
                name = f"push, one worker, {kind}, {each} events a session"
                records.append(
                    Result(name, "sessions/s", [delivered / seconds], bar=">= 10000",
                           note=f"{batches} batches")
                )  # fmt: skip
    return records


def load_sessions(identifier: str, sessions: int, each: int) -> Any:
    from ingest.adapters.telemetry.parser import parse
    from ingest.events import Call
    from ingest.models import Channel
    from ingest.store import batches as store

    channel = Channel.objects.create(identifier=identifier)
    call = Call(identifier, datetime.now(UTC))
    for first in range(0, sessions, 100):
        batch = [
            {
                **make_event(f"{identifier}-{number}-{index}"),
                "eid": ("START", "IMPRESSION", "ASSESS", "INTERACT", "END")[index % 5],
                "ets": 1735689600000 + number * 1000 + index * 30_000,
                "context": {"channel": identifier, "did": f"d-{number}", "sid": f"s-{number}"},
                "edata": {
                    "uri": f"https://bot.example/{index}",
                    "item": {"id": "q", "title": "?" * 200},
                },
            }
            for number in range(first, min(first + 100, sessions))
            for index in range(each)
        ]
        store.append_batch(channel.pk, parse(json.dumps(batch).encode(), call))
    return channel


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Receiver(BaseHTTPRequestHandler):
    """Accepts every request."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        reply = b"{}"
        if self.path.endswith("_bulk"):
            items = b",".join([b'{"index":{"status":201}}'] * (body.count(b"\n") // 2))
            reply = b'{"took":1,"errors":false,"items":[%b]}' % items
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_PUT = do_POST

    def log_message(self, *_: Any) -> None:
        pass


def run_receiver(port: int) -> None:
    ThreadingHTTPServer(("127.0.0.1", port), Receiver).serve_forever()


if __name__ == "__main__":
    main()
