"""The event loop of a server's process: uvloop's, which takes new connections in its own way.

libuv takes one new connection in each turn of the loop. A turn of a busy process is long, so a
connection would wait behind all those that came before it. An idle process would take all that come
at once, and leave none to the others.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

import uvloop

from ingest import logs

log = logs.get_logger(__name__)
FEW, MAX_CONNECTIONS_A_TURN = 4, 128
MAX_DELAY_MS, FULL_DELAY_MS = 5, 1000


class Loop(uvloop.Loop):
    """For `uvicorn --loop ingest.collector.loop:Loop`."""

    async def create_server(
        self, protocol_factory: Any, *args: Any, backlog: int = 100, **options: Any
    ) -> Any:
        options["start_serving"] = False
        server = await super().create_server(protocol_factory, *args, **options)
        return Server(self, server, protocol_factory, backlog, options.get("ssl"))


class Server:
    """A listening server of uvloop, whose connections we take.

    Processes that share a socket get about as many each. One waits a millisecond for each `FEW`
    connections that it has, so that one with fewer is first. Then it takes a quarter of what it
    has, so that a flood is soon taken.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server: Any,
        factory: Callable[[], asyncio.BaseProtocol],
        backlog: int,
        ssl: Any,
    ) -> None:
        self._loop = loop
        self._server = server
        self._factory = factory
        self._ssl = ssl
        self._tasks: set[asyncio.Task[Any]] = set()  # or they could be collected
        self._transports: list[asyncio.BaseTransport] = []  # and some that have ended
        self._is_full = False  # the process has no file left for a connection
        self._listening = [socket.socket(fileno=each.dup().detach()) for each in server.sockets]
        for each in self._listening:
            each.setblocking(False)
            each.listen(backlog)
            loop.add_reader(each, self._wait, each)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def close(self) -> None:
        """Takes no connection any more; those that there are go on."""
        for each in self._listening:
            self._loop.remove_reader(each)
            each.close()
        self._listening = []
        self._server.close()

    def _count_connections(self) -> int:
        self._transports = [each for each in self._transports if not each.is_closing()]
        return len(self._transports) + len(self._tasks)

    def _wait(self, listening: socket.socket) -> None:
        """Leaves a connection that waits to a process that has fewer, for some milliseconds."""
        delay_ms = min(self._count_connections() // FEW, MAX_DELAY_MS)
        if self._is_full:
            delay_ms = FULL_DELAY_MS
        if not delay_ms:
            self._accept(listening)
            return
        self._loop.remove_reader(listening)
        self._loop.call_later(delay_ms / 1000, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self._accept(listening)
            self._loop.add_reader(listening, self._wait, listening)

    def _accept(self, listening: socket.socket) -> None:
        count = min(max(FEW, self._count_connections() // 4), MAX_CONNECTIONS_A_TURN)
        try:
            for _ in range(count):
                connection, _ = listening.accept()
                connection.setblocking(False)
                if connection.family != socket.AF_UNIX:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                task = self._loop.create_task(self._connect(connection))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            self._is_full = False
        except BlockingIOError:  # none waits any more
            self._is_full = False
        except OSError as error:  # or it ended while it waited
            was_full, self._is_full = self._is_full, error.errno in {errno.EMFILE, errno.ENFILE}
            if self._is_full and not was_full:
                log.error("connection.refused", error=error)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            transport, _ = await self._loop.connect_accepted_socket(
                self._factory, connection, ssl=self._ssl
            )
            self._transports.append(transport)
        except OSError:  # it has gone, or speaks no TLS
            connection.close()
