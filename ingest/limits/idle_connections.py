"""Closes stalled connections; granian has no body-read timeout.

Linux counts the bytes that a connection received and the bytes that the client acknowledged. A
connection is closed when it acknowledged nothing for `IDLE_SECONDS` and received fewer than
`MIN_BYTES_PER_SECOND` since. Its reader then finds the end of the body, its writer an error.
granian itself closes connections without a request.
"""

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

IDLE_SECONDS = 20.0
OVERLOADED_IDLE_SECONDS = 3.0  # while too many bodies are awaited
MIN_BYTES_PER_SECOND = 32 * 1024  # of patience
CHECK_SECONDS = 2.0
_TCP_INFO = struct.Struct("=120xQQ")  # bytes acknowledged, bytes received: since Linux 4.1


class IdleConnectionReaper:
    """Remembers the progress of each connection, and closes those without any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.progress: dict[int, tuple[int, int, float]] = {}

    def close_idle(
        self, connections: Iterator[socket.socket], idle_seconds: float = IDLE_SECONDS
    ) -> int:
        """Closes the idle ones among the connections. Returns their number."""
        now = self._clock()
        progress: dict[int, tuple[int, int, float]] = {}
        closed_count = 0
        for connection in connections:
            with connection, suppress(OSError):
                acknowledged_bytes, received_bytes = _TCP_INFO.unpack(
                    connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
                )
                inode = os.fstat(connection.fileno()).st_ino
                previous = self.progress.get(inode)
                if previous is None or previous[0] != acknowledged_bytes:
                    previous = acknowledged_bytes, received_bytes, now
                elif (
                    now - previous[2]
                    > idle_seconds + (received_bytes - previous[1]) / MIN_BYTES_PER_SECOND
                ):
                    connection.shutdown(socket.SHUT_RDWR)
                    closed_count += 1
                progress[inode] = previous
        self.progress = progress
        return closed_count


def list_accepted() -> Iterator[socket.socket]:
    """Yields this process's accepted TCP connections, each as a duplicate descriptor."""
    sockets: list[socket.socket] = []
    ports = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                sockets.append(socket.socket(fileno=os.dup(int(name))))
    for candidate in sockets:
        if candidate.type == socket.SOCK_STREAM and candidate.family in {
            socket.AF_INET,
            socket.AF_INET6,
        }:
            if candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                ports.add(candidate.getsockname()[1])
                candidate.close()
                continue
        else:
            candidate.close()
    for candidate in sockets:
        if candidate.fileno() < 0:
            continue
        if candidate.getsockname()[1] in ports:
            yield candidate
        else:
            candidate.close()


def start_reaper(is_overloaded: Callable[[], bool]) -> None:
    """Starts the thread that closes idle connections, on Linux only."""

    def run() -> None:
        reaper = IdleConnectionReaper()
        while True:
            time.sleep(CHECK_SECONDS)
            reaper.close_idle(
                list_accepted(), OVERLOADED_IDLE_SECONDS if is_overloaded() else IDLE_SECONDS
            )

    if os.path.isdir("/proc/self/fd"):
        threading.Thread(target=run, name="idle-connections", daemon=True).start()
