"""A busy loop takes new connections as they come."""

import asyncio
import errno
import inspect
import socket
import time
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest

from ingest.collector.loop import Loop, Server

WAITING = 100


class Echo(asyncio.Protocol):
    """Counts connections, and sends back what it receives."""

    connected: list[Any]

    def connection_made(self, transport: Any) -> None:
        self.connected.append(transport)

    def data_received(self, data: bytes) -> None:
        self.connected[-1].write(data)


@pytest.fixture
def echo() -> type[Echo]:
    Echo.connected = []
    return Echo


def test_busy_loop_takes_many_connections(echo: type[Echo]):
    async def count_taken() -> int:
        server = await asyncio.get_running_loop().create_server(echo, "127.0.0.1", 0, backlog=500)
        address = server.sockets[0].getsockname()
        clients = [socket.create_connection(address) for _ in range(WAITING)]
        for _ in range(WAITING // 2):  # long turns, of which each could take one
            time.sleep(0.005)
            await asyncio.sleep(0)
        server.close()
        for client in clients:
            client.close()
        return len(echo.connected)

    with asyncio.Runner(loop_factory=Loop) as runner:
        assert runner.run(count_taken()) == WAITING


class Process:
    """The loop of a process whose time stands still between its steps."""

    def __init__(self, listening: socket.socket) -> None:
        self.readers: dict[Any, Any] = {}
        self.timers: list[tuple[int, Any, Any]] = []
        self.now_ms = 0
        self.taken: list[Any] = []
        shared = SimpleNamespace(sockets=[listening], close=lambda: None)
        self.server = Server(cast(Any, self), shared, asyncio.Protocol, 100, None)

    def add_reader(self, listening: Any, callback: Any, *_: Any) -> None:
        self.readers[listening] = callback

    def remove_reader(self, listening: Any) -> None:
        self.readers.pop(listening, None)

    def call_later(self, seconds: float, callback: Any, listening: Any) -> None:
        self.timers.append((self.now_ms + round(seconds * 1000), callback, listening))

    def create_task(self, connecting: Any) -> Any:
        self.taken.append(connecting)
        inspect.getcoroutinelocals(connecting)["connection"].close()
        connecting.close()
        return Mock()

    def step(self, now_ms: int) -> None:
        self.now_ms = now_ms
        for timer in [each for each in self.timers if each[0] <= now_ms]:
            self.timers.remove(timer)
            timer[1](timer[2])
        for listening, callback in list(self.readers.items()):
            callback(listening)


def test_processes_share_a_burst():
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        clients = [socket.create_connection(listening.getsockname()) for _ in range(16)]
        first, second = Process(listening), Process(listening)
        first.step(0)  # which is quicker by far
        first.step(0)
        for now_ms in range(30):
            first.step(now_ms)
            second.step(now_ms)
        more = [socket.create_connection(listening.getsockname()) for _ in range(48)]
        for now_ms in range(30, 90):
            first.step(now_ms)
            second.step(now_ms)
        for each in (*clients, *more, first.server, second.server):
            each.close()

    assert len(first.taken) + len(second.taken) == 64
    assert min(len(first.taken), len(second.taken)) >= 20


def test_process_without_files_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    tries: list[int] = []

    def accept(_: socket.socket) -> None:
        tries.append(process.now_ms)
        raise OSError(errno.EMFILE, "no file is left")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        process = Process(listening)
        monkeypatch.setattr(socket.socket, "accept", accept)
        for now_ms in range(1500):
            process.step(now_ms)
        process.server.close()

    assert len(tries) == 2
    assert tries[1] >= 1000
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_closed_server_keeps_its_connections(echo: type[Echo]):
    async def use_after_close() -> bytes:
        server = await asyncio.get_running_loop().create_server(echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"before")
        assert await reader.read(6) == b"before"
        server.close()
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        writer.write(b"after")
        answer = await reader.read(5)
        writer.close()
        return answer

    with asyncio.Runner(loop_factory=Loop) as runner:
        assert runner.run(use_after_close()) == b"after"
        assert all(each.get_extra_info("peername") for each in echo.connected)
