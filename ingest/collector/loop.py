"""The event loop of a server's process: uvloop's, which also takes many new connections in a turn.

libuv takes one new connection in each turn of the loop. A turn of a busy process is long, so a
connection would wait behind all those that came before it, while the clients of the others are
served.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvloop

CONNECTIONS_A_TURN = 128


class Loop(uvloop.Loop):
    """For `uvicorn --loop ingest.collector.loop:Loop`."""

    async def create_server(self, protocol_factory: Any, *args: Any, **options: Any) -> Any:
        server = await super().create_server(protocol_factory, *args, **options)
        return Server(self, server, protocol_factory, options.get("ssl"))


class Server:
    """A listening server of uvloop, and a second taker of the connections that wait for it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server: Any,
        factory: Callable[[], asyncio.BaseProtocol],
        ssl: Any,
    ) -> None:
        self._loop = loop
        self._server = server
        self._factory = factory
        self._ssl = ssl
        self._tasks: set[asyncio.Task[Any]] = set()  # or they could be collected
        self._listening = [socket.socket(fileno=each.dup().detach()) for each in server.sockets]
        for each in self._listening:
            each.setblocking(False)
            loop.add_reader(each, self._accept, each)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def close(self) -> None:
        """Takes no connection any more; those that there are go on."""
        for each in self._listening:
            self._loop.remove_reader(each)
            each.close()
        self._listening = []
        self._server.close()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):  # none waits any more; or no file is left, which the server logs
            for _ in range(CONNECTIONS_A_TURN):
                connection, _ = listening.accept()
                connection.setblocking(False)
                if connection.family != socket.AF_UNIX:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                task = self._loop.create_task(self._connect(connection))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, connection, ssl=self._ssl)
        except OSError:  # it has gone, or speaks no TLS
            connection.close()
