"""Readers of the events that a campaign sends, and receivers of its callbacks, one of them hung.

Each event that is stored has to reach the page reader, the destination and the file. Probes measure
how late a callback and a push of an uninvolved channel come, at any time and beside hung receivers.
"""

import http.client
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any
from urllib.parse import quote

from exhaust.delivery.http_client import ALLOWED_PORTS
from tools.faults.checks import FIRST_DAY, LAST_DAY, Store
from tools.faults.installation import Installation
from tools.faults.sender import CHANNEL

UNINVOLVED = "ORG_004"
PROBES = PUSH, CALLBACK = "/push", "/callback"
CALLBACKS = 12  # to the hung receiver
DESTINATIONS = 8  # that are hung
MAX_HUNG_SECONDS = 120.0  # until a request must have waited in vain
COMPLETE_SECONDS = 180.0  # a delivery whose worker lost the database waits for its lease
_MID = re.compile(rb'"mid": ?"(sent:[0-9:]+)"')


def bind_receiver() -> socket.socket:
    """Returns a listening socket at a port that a callback may name."""
    ports = sorted(ALLOWED_PORTS - {80, 443})
    for port in Random().sample(ports, len(ports)):
        with suppress(OSError):
            return socket.create_server(("127.0.0.1", port), backlog=256)
    raise SystemExit("No port is free for a receiver.")


class Receiver:
    """Accepts every callback and push: keeps when each address had one, and the events in it."""

    def __init__(self) -> None:
        self.arrivals: dict[str, float] = {}  # address: the last one
        self.mids: set[str] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path == "/all":
                    receiver.mids.update(find_mids(body))
                receiver.arrivals[self.path] = time.monotonic()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_PUT = do_POST

            def log_message(self, *_: Any) -> None:
                """Logs nothing; the campaign reports."""

        listener = bind_receiver()
        self._server = ThreadingHTTPServer(listener.getsockname(), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    @contextmanager
    def running(self) -> Iterator[None]:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()


def find_mids(text: bytes) -> set[str]:
    return {mid.decode() for mid in _MID.findall(text)}


class Readers:
    """A page reader, a destination and files of all events; probes of another channel."""

    def __init__(self, installation: Installation) -> None:
        from exhaust.delivery import destinations
        from exhaust.models import Destination
        from ingest.auth import keys
        from ingest.models import Channel

        self._installation, self._stop = installation, threading.Event()
        self._tags: set[str] = set()
        self.receiver = Receiver()
        self._channel = Channel.objects.get(identifier=CHANNEL)
        self._key = keys.create_key("puller", ("pull",), [self._channel])[1]
        self.page_mids: set[str] = set()
        self.page_statuses: Counter[str] = Counter()
        self._first_file = self._submit_file({})
        destinations.save(
            Destination(channel=self._channel, name="all", resource="events",
                        url=f"{self.receiver.url}/all")
        )  # fmt: skip
        self._violations: list[tuple[str, str]] = []
        self.samples: list[tuple[str, float, float]] = []  # kind, from, to
        self.disturbed: list[tuple[float, float]] = []
        self.hung: list[tuple[float, float]] = []

    def build_url(self, tag: str) -> str:
        """Returns where the callback of a job is awaited."""
        self._tags.add(tag)
        return f"{self.receiver.url}/{tag}"

    # Every event reaches each reader --------------------------------------------------------------

    def _submit_file(self, more: dict[str, str], channel: Any = None, callback: str = "") -> Any:
        from exhaust.datasets.events import EVENTS
        from exhaust.jobs import submit

        channel = channel or self._channel
        config = {"startDate": FIRST_DAY.isoformat(), "endDate": LAST_DAY.isoformat(), **more}
        tag = f"file-{time.time_ns()}"
        return submit.submit(
            submit.Submission(
                channel.pk, channel.identifier, tag, EVENTS.name,
                {"type": EVENTS.name, **config}, "campaign", callback_url=callback,
            )
        )  # fmt: skip

    def _pull_pages(self) -> None:
        cursor = ""
        while not self._stop.wait(0.3):
            is_at_end = False
            while not is_at_end:
                status, body, is_at_end = self._pull(cursor)
                self.page_statuses[status] += 1
                if status != "200":
                    break
                self.page_mids |= find_mids(body)
                cursor = json.loads(body)["nextCursor"]

    def _pull(self, cursor: str) -> tuple[str, bytes, bool]:
        port = self._installation.web_port
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as web:
            try:
                path = f"/export/events?pageSize=1000&cursor={quote(cursor)}"
                web.request("GET", path, headers={"X-Api-Key": self._key})
                answer = web.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException):
                return "cut", b"", False
            return str(answer.status), body, answer.headers.get("X-Feed-End") == "true"

    def check(self, stored: set[str]) -> list[tuple[str, str]]:
        """Waits until each reader has all stored events. Returns the violations."""
        deadline = time.monotonic() + COMPLETE_SECONDS
        callbacks = {f"/{tag}" for tag in self._tags}
        while time.monotonic() < deadline and not (
            stored <= self.page_mids
            and stored <= self.receiver.mids
            and callbacks <= self.receiver.arrivals.keys()
        ):
            time.sleep(0.2)
        readers = {
            "a page": self.page_mids, "the destination": self.receiver.mids,
            "a file": self._read_files(deadline),
        }  # fmt: skip
        return [
            *self._violations,
            *(
                ("lost", f"{len(missing)} events never came to {name}: {sorted(missing)[:3]}")
                for name, mids in readers.items()
                if (missing := stored - mids)
            ),
            *(("lost", f"callback {url}") for url in callbacks - self.receiver.arrivals.keys()),
            *(
                ("error" if status.startswith("5") else "not met", f"{count} pages were {status}")
                for status, count in self.page_statuses.items()
                if status not in {"200", "409", "503", "cut"}
            ),
        ]

    def _read_files(self, deadline: float) -> set[str]:
        """Returns the events in the file from the start of the leg, and in what follows it."""
        from exhaust.models import Job

        later = self._submit_file({"since": self._first_file.request_id})
        store, mids = Store(self._installation), set()
        for pk in (self._first_file.pk, later.pk):
            job = Job.objects.get(pk=pk)
            while job.status in {"SUBMITTED", "PROCESSING"} and time.monotonic() < deadline:
                time.sleep(0.2)
                job.refresh_from_db()
            for file in job.files.all():
                # CSV doubles the quotes of a cell
                mids |= find_mids(store.read(file.key).replace(b'""', b'"'))
        return mids

    # How late an uninvolved channel's deliveries are ----------------------------------------------

    def _prepare_probes(self) -> dict[str, Callable[[], bool]]:
        from exhaust.delivery import callbacks, destinations
        from exhaust.models import Callback, Destination
        from ingest.feed.values import START
        from ingest.models import Channel

        channel = Channel.objects.get(identifier=UNINVOLVED)
        destination = destinations.save(
            Destination(channel=channel, name="probe", resource="events",
                        url=f"{self.receiver.url}{PUSH}")
        )  # fmt: skip
        job = self._submit_file({}, channel, f"{self.receiver.url}{CALLBACK}")

        def rewind() -> bool:
            destinations.rewind(destination, START)
            return True

        def requeue() -> bool:
            return bool(callbacks.requeue(Callback.objects.filter(job=job.pk)))

        return {PUSH: rewind, CALLBACK: requeue}

    def _measure(self, kind: str, trigger: Callable[[], bool]) -> None:
        from django.db import DatabaseError, InterfaceError, connections

        while not self._stop.wait(1):
            start = time.monotonic()
            try:
                if not trigger():
                    continue  # the last one is not recorded yet
            except (DatabaseError, InterfaceError):
                continue
            finally:
                connections.close_all()
            while (arrival := self.receiver.arrivals.get(kind, 0.0)) < start:
                if self._stop.wait(0.05) or time.monotonic() > self._next_try(start):
                    arrival = time.monotonic()
                    break
            self.samples.append((kind, start, arrival))

    def _next_try(self, start: float) -> float:
        """Returns when a delivery since `start` may be lost: with the database that knew it."""
        return next((late for _, late in self.disturbed if late > start), start + COMPLETE_SECONDS)

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._pull_pages, daemon=True)]
        threads += [
            threading.Thread(target=self._measure, args=probe, daemon=True)
            for probe in self._prepare_probes().items()
        ]
        with ExitStack() as stack:
            stack.enter_context(self.receiver.running())
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._stop.set()
                for thread in threads:
                    thread.join(60)

    @contextmanager
    def disturb(self) -> Iterator[None]:
        """Marks the time in which deliveries may be late, because the database is away."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.disturbed.append((start, time.monotonic() + 5))

    def is_calm(self) -> bool:
        """Returns whether deliveries of each kind have come since the last trouble."""
        last_trouble = max((late for _, late in self.disturbed), default=0.0)
        return len({kind for kind, start, _ in self.samples if start > last_trouble}) == len(PROBES)

    def list_delays(self) -> dict[str, list[float]]:
        """Returns the seconds of the probes: `usual`, and `hung` for those beside a hung host."""
        delays: dict[str, list[float]] = {"usual": [], "hung": []}
        for _, start, end in self.samples:
            if any(start < late and early < end for early, late in self.disturbed):
                continue
            if any(early <= start < late for early, late in self.hung):
                delays["hung"].append(end - start)
            elif not any(start < late and early < end for early, late in self.hung):
                delays["usual"].append(end - start)
        return delays

    # Hung receivers -------------------------------------------------------------------------------

    def hang(self, kind: str, job: Any) -> Callable[[], bool]:
        """Has callbacks or pushes of the job's channel sent to the hung receiver.

        Returns what ends it once a request waited in vain, and says whether it did. A channel that
        has a hung receiver already waits for that one first.
        """
        from django.db.models import Q

        from exhaust.delivery import callbacks, destinations
        from exhaust.models import Callback, Delivery, Destination
        from ingest.feed.values import START

        start = time.monotonic()
        # the kernel connects, and nothing reads; a host that was silent before is left alone
        receiver = bind_receiver()
        url = f"http://127.0.0.1:{receiver.getsockname()[1]}"
        hung_destinations = []
        if kind == "hung callbacks":
            job.callback_url = url  # not saved: the job's own goes elsewhere
            for _ in range(CALLBACKS):
                callbacks.create_callback(job)
        else:
            for number in range(DESTINATIONS):
                destination = Destination(
                    channel=job.channel,
                    name=f"hung-{job.pk}-{number}",
                    resource="events",
                    url=url,
                )
                hung_destinations.append(destinations.save(destination))
                destinations.rewind(hung_destinations[-1], START)

        def end() -> bool:
            silent = Delivery.objects.filter(error__startswith="No answer within")
            if not silent.filter(Q(url=url) | Q(destination__url=url)).exists():
                if time.monotonic() < start + MAX_HUNG_SECONDS:
                    return False
                self._violations.append(("not met", f"{kind}: no request waited in vain"))
            self.hung.append((start, time.monotonic()))
            Callback.objects.filter(url=url).delete()
            for destination in hung_destinations:
                destinations.delete(destination)
            receiver.close()
            return True

        return end
