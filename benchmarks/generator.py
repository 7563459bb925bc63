"""Senders in one process and one loop, everything built before the clock runs.

A child of a benchmark (`ground.Helper`): it is told requests, and a rate or as fast as they are
answered, and remembers which batches were acknowledged.
"""

import selectors
import socket
import sys
import time
from collections import deque
from typing import Any

from benchmarks import ground

CONNECTIONS = 12  # that wait for each answer, where there is no rate
MOST_CONNECTIONS = 1500
PLACE = b"#########"  # a batch's number: the device of its events
GENERATOR = [sys.executable, "-m", "benchmarks.generator"]


class Connection:
    """A socket and the request that is under way on it."""

    def __init__(self, port: int, poll: selectors.BaseSelector) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", port))
        self.out = memoryview(b"")
        self.came = b""
        self.due = 0.0
        self.number = ""
        poll.register(self.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)


class Generator:
    def __init__(self, port: int, requests: list[str]) -> None:
        self._port = port
        self._parts = [each.encode() for each in requests]
        self._poll = selectors.DefaultSelector()
        self._free: deque[Connection] = deque()
        self._open = 0
        self._count = 0
        self.acknowledged: list[str] = []

    def run(self, rate: float, seconds: float, is_awake: bool = False) -> dict[str, Any]:
        """`rate` a second, waiting for nobody; 0 is as fast as a few connections are answered."""
        while self._free:
            self._drop(self._free.popleft())  # a server closes what was silent for long
        self._times: dict[bool, list[float]] = {True: [], False: []}
        self._answers: dict[str, int] = {}
        self._silent = sent = unsent = 0
        spent = time.process_time()
        begun = time.monotonic()
        due = begun
        end = begun + seconds
        self._busy = 0
        while (now := time.monotonic()) < end:
            if rate:
                while due <= now:
                    if self._send(due):
                        sent += 1
                    else:
                        unsent += 1
                    due += 1 / rate
            else:
                while self._busy < CONNECTIONS and self._send(now):
                    sent += 1
            patience = max(0.0, min(due, end) - time.monotonic()) if rate else 0.1
            self._turn(0 if is_awake else patience)
        took = time.monotonic() - begun
        cpu = (time.process_time() - spent) / took
        accepted = len(self._times[True])
        until = time.monotonic() + 15
        while self._busy and time.monotonic() < until:
            self._turn(0.1)
        good, shed = (sorted(self._times[each]) or [0.0] for each in (True, False))
        return {
            "seconds": took, "cpu": cpu, "sent": sent, "unsent": unsent, "accepted": accepted,
            "answers": self._answers, "silent": self._silent,
            "accepted_p50": at(good, 0.5), "accepted_p99": at(good, 0.99),
            "shed_p50": at(shed, 0.5), "shed_p99": at(shed, 0.99),
        }  # fmt: skip

    def _send(self, due: float) -> bool:
        if self._free:
            connection = self._free.popleft()
        elif self._open < MOST_CONNECTIONS:
            connection = Connection(self._port, self._poll)
            self._open += 1
        else:
            return False
        self._count += 1
        connection.number = f"{self._count:09}"
        whole = self._parts[self._count % len(self._parts)]
        connection.out = memoryview(whole.replace(PLACE, connection.number.encode()))
        connection.due = due
        connection.came = b""
        self._busy += 1
        if connection.socket in self._poll.get_map():
            self._poll.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE,
                              connection)  # fmt: skip
        return True

    def _turn(self, patience: float) -> None:
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
                self._end(connection, type(error).__name__)

    def _write(self, connection: Connection) -> None:
        try:
            while connection.out:
                connection.out = connection.out[connection.socket.send(connection.out) :]
        except (BrokenPipeError, ConnectionResetError):
            connection.out = memoryview(b"")  # the answer may be there already
        self._poll.modify(connection.socket, selectors.EVENT_READ, connection)

    def _read(self, connection: Connection) -> None:
        chunk = connection.socket.recv(65536)
        connection.came += chunk
        head, there, body = connection.came.partition(b"\r\n\r\n")
        if there:
            lower = head.lower()
            length = int(lower.partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(body) >= length:
                self._answered(connection, lower, body)
                return
        if not chunk:
            self._end(connection, "closed")

    def _answered(self, connection: Connection, head: bytes, body: bytes) -> None:
        status = head[9:12].decode()
        self._answers[status] = self._answers.get(status, 0) + 1
        self._times[status == "200"].append(time.monotonic() - connection.due)
        self._silent += status != "200" and b"retry-after" not in head
        if status == "200":
            self.acknowledged.append(connection.number)
        self._busy -= 1
        connection.number = ""
        connection.came = b""
        if connection.out or b"connection: close" in head:
            self._drop(connection)
        else:
            self._free.append(connection)

    def _end(self, connection: Connection, why: str) -> None:
        if connection.number:
            self._busy -= 1
            self._answers[why] = self._answers.get(why, 0) + 1
        else:
            self._free.remove(connection)
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._poll.unregister(connection.socket)
        connection.socket.close()
        self._open -= 1


def at(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def generate() -> None:
    made: list[Generator] = []

    def answer(asked: dict[str, Any]) -> Any:
        match asked:
            case {"prepare": told}:
                made.append(Generator(told["port"], told["requests"]))
                return {}
            case {"rate": rate, "seconds": seconds, **more}:
                return made[0].run(rate, seconds, **more)
            case {"acknowledged": True}:
                return made[0].acknowledged
        raise ValueError(asked)

    ground.serve(answer)


if __name__ == "__main__":
    generate()
