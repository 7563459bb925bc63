"""Sends requests from one process and one loop; all requests are built beforehand.

It runs as a child of a benchmark (`harness.Helper`). The benchmark sends it requests and a rate, or
0 for as fast as responses come. It remembers the acknowledged batches.
"""

import selectors
import socket
import sys
import time
from collections import deque
from typing import Any

from benchmarks import harness

CONNECTIONS = 12  # connections that wait for each response, without a rate
MOST_CONNECTIONS = 1500
NUMBER_PLACEHOLDER = b"#########"  # a batch's number: the device of its events
GENERATOR = [sys.executable, "-m", "benchmarks.generator"]


class Connection:
    """A socket and its current request."""

    def __init__(self, port: int, poll: selectors.BaseSelector) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", port))
        self.out = memoryview(b"")
        self.received = b""
        self.due_at = 0.0
        self.number = ""
        self.events = selectors.EVENT_READ | selectors.EVENT_WRITE
        poll.register(self.socket, self.events, self)


class Generator:
    def __init__(self, port: int, requests: list[str]) -> None:
        self._port = port
        self._parts = [each.encode() for each in requests]
        self._poll = selectors.DefaultSelector()
        self._free: deque[Connection] = deque()
        self._open = 0
        self._count = 0
        self.acknowledged: list[str] = []

    def run(
        self,
        rate: float,
        seconds: float,
        is_awake: bool = False,
        connections: int = CONNECTIONS,
    ) -> dict[str, Any]:
        """Sends `rate` requests per second without waiting; 0 waits for each response."""
        while self._free:
            self._close(self._free.popleft())  # a server closes idle connections
        self._times: dict[bool, list[float]] = {True: [], False: []}
        self._answers: dict[str, int] = {}
        self._silent = sent = unsent = 0
        spent = time.process_time()
        start_time = time.monotonic()
        due_at = start_time
        end = start_time + seconds
        self._busy = 0
        while (now := time.monotonic()) < end:
            if rate:
                while due_at <= now:
                    if self._send(due_at):
                        sent += 1
                    else:
                        unsent += 1
                    due_at += 1 / rate
            else:
                while self._busy < connections and self._send(now):
                    sent += 1
            patience = max(0.0, min(due_at, end) - time.monotonic()) if rate else 0.1
            self._poll_once(0 if is_awake else patience)
        elapsed = time.monotonic() - start_time
        cpu = (time.process_time() - spent) / elapsed
        accepted = len(self._times[True])
        deadline = time.monotonic() + 15
        while self._busy and time.monotonic() < deadline:
            self._poll_once(0.1)
        accepted_times, rejected_times = (
            sorted(self._times[each]) or [0.0] for each in (True, False)
        )
        return {
            "seconds": elapsed,
            "cpu": cpu,
            "sent": sent,
            "unsent": unsent,
            "accepted": accepted,
            "answers": self._answers,
            "silent": self._silent,
            "accepted_p50": percentile(accepted_times, 0.5),
            "accepted_p99": percentile(accepted_times, 0.99),
            "rejected_p50": percentile(rejected_times, 0.5),
            "rejected_p99": percentile(rejected_times, 0.99),
        }

    def _send(self, due_at: float) -> bool:
        if self._free:
            connection = self._free.popleft()
        elif self._open < MOST_CONNECTIONS:
            connection = Connection(self._port, self._poll)
            self._open += 1
        else:
            return False
        self._count += 1
        connection.number = f"{self._count:09}"
        request = self._parts[self._count % len(self._parts)]
        connection.out = memoryview(request.replace(NUMBER_PLACEHOLDER, connection.number.encode()))
        connection.due_at = due_at
        connection.received = b""
        self._busy += 1
        try:
            self._write(connection)
        except OSError:  # not connected, or the rest later: `_poll_once` tries again
            self._watch(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
        return True

    def _poll_once(self, patience: float) -> None:
        for key, ready in self._poll.select(patience):
            connection: Connection = key.data
            try:
                if ready & selectors.EVENT_WRITE:
                    self._write(connection)
                if ready & selectors.EVENT_READ:
                    self._read(connection)
            except BlockingIOError:
                pass
            except OSError as error:
                self._fail(connection, type(error).__name__)

    def _write(self, connection: Connection) -> None:
        try:
            while connection.out:
                connection.out = connection.out[connection.socket.send(connection.out) :]
        except (BrokenPipeError, ConnectionResetError):
            connection.out = memoryview(b"")  # the response may have arrived
        self._watch(connection, selectors.EVENT_READ)

    def _watch(self, connection: Connection, events: int) -> None:
        if connection.events != events:
            connection.events = events
            self._poll.modify(connection.socket, events, connection)

    def _read(self, connection: Connection) -> None:
        chunk = connection.socket.recv(65536)
        connection.received += chunk
        head, separator, body = connection.received.partition(b"\r\n\r\n")
        if separator:
            lower = head.lower()
            length = int(lower.partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(body) >= length:
                self._record_response(connection, lower, body)
                return
        if not chunk:
            self._fail(connection, "closed")

    def _record_response(self, connection: Connection, head: bytes, body: bytes) -> None:
        status = head[9:12].decode()
        self._answers[status] = self._answers.get(status, 0) + 1
        self._times[status == "200"].append(time.monotonic() - connection.due_at)
        self._silent += status != "200" and b"retry-after" not in head
        if status == "200":
            self.acknowledged.append(connection.number)
        self._busy -= 1
        connection.number = ""
        connection.received = b""
        if connection.out or b"connection: close" in head:
            self._close(connection)
        else:
            self._free.append(connection)

    def _fail(self, connection: Connection, reason: str) -> None:
        if connection.number:
            self._busy -= 1
            self._answers[reason] = self._answers.get(reason, 0) + 1
        else:
            self._free.remove(connection)
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._poll.unregister(connection.socket)
        connection.socket.close()
        self._open -= 1


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def serve_generator() -> None:
    generators: list[Generator] = []

    def handle(request: dict[str, Any]) -> Any:
        match request:
            case {"prepare": told}:
                generators.append(Generator(told["port"], told["requests"]))
                return {}
            case {"rate": rate, "seconds": seconds, **more}:
                return generators[0].run(rate, seconds, **more)
            case {"acknowledged": True}:
                return generators[0].acknowledged
        raise ValueError(request)

    harness.serve_requests(handle)


if __name__ == "__main__":
    serve_generator()
