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

SECONDS = 20.0
CROWDED_SECONDS = 3.0  # where too many are waited for
RATE = 32 * 1024  # bytes for each second more
LOOK_SECONDS = 2.0
_TCP_INFO = struct.Struct("=120xQQ")  # bytes acknowledged, bytes received: since Linux 4.1


class Watch:
    """Remembers of each connection when it last took something, and what it had brought then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[int, tuple[int, int, float]] = {}

    def look(self, connections: Iterator[socket.socket], seconds: float = SECONDS) -> int:
        """Shuts the silent ones among the connections; how many."""
        now = self._clock()
        seen: dict[int, tuple[int, int, float]] = {}
        cut = 0
        for connection in connections:
            with connection, suppress(OSError):
                taken, brought = _TCP_INFO.unpack(
                    connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
                )
                inode = os.fstat(connection.fileno()).st_ino
                before = self._seen.get(inode)
                if before is None or before[0] != taken:
                    before = taken, brought, now
                elif now - before[2] > seconds + (brought - before[1]) / RATE:
                    connection.shutdown(socket.SHUT_RDWR)
                    cut += 1
                seen[inode] = before
        self._seen = seen
        return cut


def accepted() -> Iterator[socket.socket]:
    """This process's TCP connections that came in, each as a descriptor of its own."""
    found: list[socket.socket] = []
    ports = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.append(socket.socket(fileno=os.dup(int(name))))
    for each in found:
        if each.type == socket.SOCK_STREAM and each.family in {socket.AF_INET, socket.AF_INET6}:
            if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                ports.add(each.getsockname()[1])
                each.close()
                continue
        else:
            each.close()
    for each in found:
        if each.fileno() < 0:
            continue
        if each.getsockname()[1] in ports:
            yield each
        else:
            each.close()


def watch(is_crowded: Callable[[], bool]) -> None:
    """Looks for as long as the process lives, in a thread of its own; on Linux only."""

    def run() -> None:
        watching = Watch()
        while True:
            time.sleep(LOOK_SECONDS)
            watching.look(accepted(), CROWDED_SECONDS if is_crowded() else SECONDS)

    if os.path.isdir("/proc/self/fd"):
        threading.Thread(target=run, name="silence", daemon=True).start()
