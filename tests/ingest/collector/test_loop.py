"""A busy loop takes new connections as they come."""

import asyncio
import socket
from typing import Any

import pytest

from ingest.collector.loop import Loop

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


def test_many_connections_are_taken_in_a_turn(echo: type[Echo]):
    async def count_taken() -> int:
        server = await asyncio.get_running_loop().create_server(echo, "127.0.0.1", 0, backlog=500)
        address = server.sockets[0].getsockname()
        clients = [socket.create_connection(address) for _ in range(WAITING)]
        for _ in range(5):  # one takes them, and one connects each of them
            await asyncio.sleep(0)
        server.close()
        for client in clients:
            client.close()
        return len(echo.connected)

    with asyncio.Runner(loop_factory=Loop) as runner:
        assert runner.run(count_taken()) == WAITING


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
