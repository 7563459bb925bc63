"""Connections that say nothing are cut: granian itself waits for a body as long as it takes.

Linux tells of each connection how many bytes came and how many the other side has taken. One that
took nothing for `SECONDS`, and brought less than `RATE` since, is shut; whoever reads its body then
finds its end, and whoever writes to it an error. Granian itself ends those without a request.
"""

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

IDLE_SECONDS = 20.0
OVERLOADED_IDLE_SECONDS = 3.0  # where too many are waited for
MIN_BYTES_PER_SECOND = 32 * 1024  # bytes for each second more
CHECK_SECONDS = 2.0
_TCP_INFO = struct.Struct("=120xQQ")  # bytes acknowledged, bytes received: since Linux 4.1


class IdleConnectionReaper:
    """Remembers of each connection when it last took something, and what it had brought then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._progress: dict[int, tuple[int, int, float]] = {}

    def close_idle(
        self, connections: Iterator[socket.socket], idle_seconds: float = IDLE_SECONDS
    ) -> int:
        """Shuts the silent ones among the connections; how many."""
        now = self._clock()
        progress: dict[int, tuple[int, int, float]] = {}
        closed_count = 0
        for connection in connections:
            with connection, suppress(OSError):
                acknowledged_bytes, received_bytes = _TCP_INFO.unpack(
                    connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
                )
                inode = os.fstat(connection.fileno()).st_ino
                previous = self._progress.get(inode)
                if previous is None or previous[0] != acknowledged_bytes:
                    previous = acknowledged_bytes, received_bytes, now
                elif (
                    now - previous[2]
                    > idle_seconds + (received_bytes - previous[1]) / MIN_BYTES_PER_SECOND
                ):
                    connection.shutdown(socket.SHUT_RDWR)
                    closed_count += 1
                progress[inode] = previous
        self._progress = progress
        return closed_count


def list_accepted() -> Iterator[socket.socket]:
    """This process's TCP connections that came in, each as a descriptor of its own."""
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
    """Looks for as long as the process lives, in a thread of its own; on Linux only."""

    def run() -> None:
        reaper = IdleConnectionReaper()
        while True:
            time.sleep(CHECK_SECONDS)
            reaper.close_idle(
                list_accepted(), OVERLOADED_IDLE_SECONDS if is_overloaded() else IDLE_SECONDS
            )

    if os.path.isdir("/proc/self/fd"):
        threading.Thread(target=run, name="idle-connections", daemon=True).start()
