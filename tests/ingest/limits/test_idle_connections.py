import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from fcntl import ioctl

import pytest

from ingest.limits import idle_connections
from ingest.limits.idle_connections import IDLE_SECONDS, MIN_BYTES_PER_SECOND, IdleConnectionReaper
from tests.ingest.limits.test_token_bucket import Clock
from tests.service import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what a socket took")
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """(ours, theirs) of an accepted connection."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname(), timeout=5) as theirs,
        listening.accept()[0] as ours,
    ):
        yield ours, theirs


def check_idle(watch: IdleConnectionReaper, ours: socket.socket) -> int:
    return watch.close_idle(iter([ours.dup()]))


def wait_acknowledged(ours: socket.socket) -> None:
    """Returns once the other side's kernel has acknowledged what we sent."""

    def is_acknowledged() -> bool:
        return struct.unpack("i", ioctl(ours, termios.TIOCOUTQ, b"\0" * 4)) == (0,)

    until(is_acknowledged, "an acknowledgement")


def send_bytes(pair: Pair, size: int) -> None:
    """Their bytes, read by us."""
    ours, theirs = pair
    theirs.sendall(b"x" * size)
    while size:
        size -= len(ours.recv(size))


def test_idle_connection_is_closed(pair: Pair, clock: Clock):
    watch = IdleConnectionReaper(clock.seconds)
    assert check_idle(watch, pair[0]) == 0
    clock.now += IDLE_SECONDS
    assert check_idle(watch, pair[0]) == 0

    clock.now += 1

    assert check_idle(watch, pair[0]) == 1
    assert pair[1].recv(1) == b""
    assert pair[0].recv(1) == b""


def test_trickle_is_closed_upload_stays(pair: Pair, clock: Clock):
    watch = IdleConnectionReaper(clock.seconds)
    check_idle(watch, pair[0])
    for _ in range(60):
        clock.now += 1
        send_bytes(pair, MIN_BYTES_PER_SECOND)
        assert check_idle(watch, pair[0]) == 0

    cut = 0
    for _ in range(70):
        clock.now += 1
        if cut := check_idle(watch, pair[0]):
            break
        send_bytes(pair, 1)
    assert cut == 1


def test_reading_client_stays(pair: Pair, clock: Clock):
    watch = IdleConnectionReaper(clock.seconds)
    for _ in range(10):
        pair[0].sendall(b"x")
        assert pair[1].recv(1) == b"x"
        wait_acknowledged(pair[0])
        assert check_idle(watch, pair[0]) == 0
        clock.now += IDLE_SECONDS - 1


def test_client_that_stops_reading_is_closed(pair: Pair, clock: Clock):
    watch = IdleConnectionReaper(clock.seconds)
    pair[0].setblocking(False)
    with suppress(BlockingIOError):
        while True:
            pair[0].send(b"x" * 65536)
    time.sleep(0.05)
    check_idle(watch, pair[0])

    clock.now += IDLE_SECONDS + 1

    assert check_idle(watch, pair[0]) == 1


def test_only_accepted_sockets_are_checked(pair: Pair):
    names = set()
    for each in idle_connections.list_accepted():
        with each:
            names.add(each.getpeername())

    assert pair[1].getsockname() in names
    assert pair[0].getsockname() not in names  # a connection that we made: a database's


def test_closed_connections_are_forgotten(pair: Pair, clock: Clock):
    watch = IdleConnectionReaper(clock.seconds)
    check_idle(watch, pair[0])

    watch.close_idle(iter([]))
    clock.now += IDLE_SECONDS + 1

    assert watch.progress == {}
    assert check_idle(watch, pair[0]) == 0  # seen for the first time again
