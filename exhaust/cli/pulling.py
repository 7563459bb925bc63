"""`exhaust pull` and `exhaust tail`: the feed to standard output.

At least once by page: the cursor file moves only after a page was taken, so whoever dies in
between gets that page again, and nothing less.
"""

import os
import select
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from exhaust.cli.client import Exit, Failure, Server, plain

if sys.platform != "win32":
    import fcntl
    import termios

LOOK_AGAIN = 1.0  # seconds between two looks at the end of the feed
NOW = "now"  # the cursor that stands behind all that arrived


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]
    nextCursor: str


_page = msgspec.json.Decoder(_Page).decode


@dataclass(frozen=True)
class Page:
    """Documents, each on one line, and where the feed goes on."""

    items: list[bytes]
    cursor: str
    ended: bool


def pages(
    server: Server, resource: str, filters: list[tuple[str, str]], cursor: str, follow: bool
) -> Iterator[Page]:
    """The feed behind a cursor, to its end; with `follow` for ever. Raises `Failure`."""
    while True:
        fields = filters + ([("cursor", cursor)] if cursor else [])
        answer = server.call("GET", f"/export/{resource}", fields=fields)
        try:
            read = _page(answer.body)
        except msgspec.MsgspecError:
            raise Failure(
                Exit.UNREACHABLE, "The answer is no page of a feed. Is EXHAUST_URL right?"
            ) from None
        cursor = read.nextCursor
        ended = answer.headers.get("X-Feed-End") == "true" or not read.items
        # a line break in JSON is a blank between two words, never part of a text
        yield Page([bytes(raw).replace(b"\n", b" ") for raw in read.items], cursor, ended)
        if ended:
            if not follow:
                return
            time.sleep(LOOK_AGAIN)


def pull(
    server: Server,
    resource: str,
    filters: list[tuple[str, str]],
    cursor_file: Path | None,
    follow: bool,
    output: int = 1,
) -> int:
    """Writes documents a line to a file descriptor; how many. Raises `Failure`, `OSError`."""
    cursor = _read(cursor_file) if cursor_file else ""
    count = 0
    _end_line(output)
    for page in pages(server, resource, filters, cursor, follow):
        if page.items:
            write(output, b"\n".join(page.items) + b"\n")
            taken(output)
            count += len(page.items)
        if cursor_file:
            _keep(cursor_file, page.cursor)
    return count


def tail(server: Server, filters: list[tuple[str, str]], output: int = 1) -> None:
    """A short line for each event as it arrives, until somebody ends it."""
    for page in pages(server, "events", filters, NOW, follow=True):
        for item in page.items:
            write(output, f"{short(msgspec.json.decode(item))}\n".encode())


def short(event: dict[str, object]) -> str:
    """An event in a line: when it arrived, when it was, what, whose. Nothing of what was said."""
    words = [event.get(name) for name in ("type", "dialect", "deviceId", "sessionId", "id")]
    times = [_clock(event.get("receivedTime"), "%H:%M:%S"), _clock(event.get("timestamp"))]
    return "  ".join([times[0], f"of {times[1]}", *(plain(word or "-") for word in words)])


def _clock(milliseconds: object, form: str = "%Y-%m-%dT%H:%M:%SZ") -> str:
    if not isinstance(milliseconds, int):
        return "-"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime(form)


def milliseconds(said: str) -> str:
    """A day, a moment (UTC unless it says a zone) or a number since 1970, as the feed asks for it.

    Raises `ValueError`.
    """
    if said.isascii() and said.isdigit():
        return said
    moment = datetime.fromisoformat(said)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return str(int(moment.timestamp() * 1000))


def write(output: int, content: bytes) -> None:
    """All of it; standard output's own buffer would hide what is not yet written."""
    left = memoryview(content)
    while left:
        left = left[os.write(output, left) :]


def taken(output: int, wait: Callable[[float], None] = time.sleep) -> None:
    """Returns when what was written is on disk, or was read from the pipe by its other end.

    Raises `BrokenPipeError` when that end closed with something still in the pipe.
    """
    mode = os.fstat(output).st_mode
    if stat.S_ISREG(mode):
        os.fsync(output)
    if sys.platform == "win32" or not stat.S_ISFIFO(mode):
        return
    closed = select.poll()
    closed.register(output, 0)
    pause = 0.001
    while struct.unpack("i", fcntl.ioctl(output, termios.FIONREAD, b"\0\0\0\0"))[0]:
        if closed.poll(0):
            raise BrokenPipeError
        wait(pause)
        pause = min(0.05, pause * 2)


def _end_line(output: int) -> None:
    """Ends a line that a killed run left open in a file, so that it spoils no other."""
    with suppress(OSError):  # only a regular file has a last byte to look at
        status = os.fstat(output)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            with open(f"/dev/fd/{output}", "rb") as written:
                written.seek(-1, os.SEEK_END)
                if written.read(1) != b"\n":
                    write(output, b"\n")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise
        return ""


def _keep(path: Path, cursor: str) -> None:
    """Puts the cursor in the file whole or not at all, and lastingly."""
    draft = path.with_name(f"{path.name}.part")
    with draft.open("w") as target:
        target.write(f"{cursor}\n")
        target.flush()
        os.fsync(target.fileno())
    draft.replace(path)
