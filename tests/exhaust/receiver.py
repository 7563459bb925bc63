"""A receiver of pushes: a real socket with scripted behaviour."""

import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

Behaviour = Callable[[socket.socket], None]


@dataclass
class Received:
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Listens on an allowed port and follows `script`, then repeats its last entry."""

    script: list[Behaviour] = field(default_factory=lambda: [respond_with(200)])
    choose_behaviour: "Callable[[Received], Behaviour] | None" = None  # in place of the script
    tls: ssl.SSLContext | None = None
    received: list[Received] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> "Receiver":
        self.is_closed = threading.Event()
        self._socket = open_listener()
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/hook?job=1"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.is_closed.set()
        for thread in self._threads:
            thread.join(5)
        self._socket.close()

    def _accept(self) -> None:
        while not self.is_closed.is_set():
            with suppress(TimeoutError):
                peer = self._socket.accept()[0]
                behaviour = self.script[min(self.connections, len(self.script) - 1)]
                self.connections += 1
                thread = threading.Thread(target=self._act, args=[peer, behaviour])
                self._threads.append(thread)
                thread.start()

    def _act(self, peer: socket.socket, behaviour: Behaviour) -> None:
        peer.settimeout(5)
        try:
            if self.tls and not isinstance(behaviour, Silent):
                peer = self.tls.wrap_socket(peer, server_side=True)
            if isinstance(behaviour, Silent):
                behaviour(peer, self.is_closed)
                return
            request = _read_request(peer)
            self.received.append(request)
            if self.choose_behaviour:
                behaviour = self.choose_behaviour(request)
            behaviour(peer)
        except OSError:
            pass  # the sender closed the connection
        finally:
            peer.close()


@dataclass(frozen=True)
class Silent:
    """Accepts a connection without reading; sends `start`, then `drop` repeatedly."""

    start: bytes = b""
    drop: bytes = b""

    def __call__(self, peer: socket.socket, over: threading.Event | None = None) -> None:
        peer.sendall(self.start)
        while over and not over.wait(0.05):
            peer.sendall(self.drop)


def respond_with(status: int, body: bytes = b"", **headers: str) -> Behaviour:
    def act(peer: socket.socket) -> None:
        head = {"Content-Length": str(len(body)), "Connection": "close", **headers}
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in head.items()]
        peer.sendall("\r\n".join([f"HTTP/1.1 {status} So", *lines, "", ""]).encode() + body)

    return act


def reset_connection(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drip(start: bytes, drop: bytes) -> Behaviour:
    """Sends `start` at once, then a drop every 50 ms until the peer closes."""

    def act(peer: socket.socket) -> None:
        peer.sendall(start)
        end = time.monotonic() + 8
        while time.monotonic() < end:
            peer.sendall(drop)
            time.sleep(0.05)

    return act


def flood(peer: socket.socket) -> None:
    """Sends a body without an end."""
    peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        peer.sendall(b"x" * 65536)


def open_listener() -> socket.socket:
    for port in random.sample(range(8100, 10000), 200):
        candidate = socket.socket()
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            candidate.close()
            continue
        candidate.listen(32)
        candidate.settimeout(0.05)
        return candidate
    raise AssertionError("No port from 8100 to 9999 is free.")


def _read_request(peer: socket.socket) -> Received:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(peer)
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (text.split(": ", 1) for text in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += _receive(peer)
    return Received(line, headers, body)


def _receive(peer: socket.socket) -> bytes:
    data = peer.recv(65536)
    if not data:
        raise ConnectionResetError
    return data
