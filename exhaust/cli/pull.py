"""`exhaust pull` and `exhaust tail`: the feed to standard output.

Delivery is at least once, by page: the cursor file moves only after a page is on disk or read, so
a run that is killed before repeats that page and loses none.
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

from exhaust.cli.client import CommandFailed, ExitCode, Server
from exhaust.cli.terminal import printable

if sys.platform != "win32":
    import fcntl
    import termios

POLL_SECONDS = 1.0  # between two looks at the end of the feed
NOW = "now"  # the cursor behind all events that have arrived


class _PageBody(msgspec.Struct):
    items: list[msgspec.Raw]
    nextCursor: str


_decode_page = msgspec.json.Decoder(_PageBody).decode


@dataclass(frozen=True)
class Page:
    """Documents, each on one line, and the cursor of the next page."""

    items: list[bytes]
    next_cursor: str
    is_last: bool


def fetch_pages(
    server: Server, resource: str, filters: list[tuple[str, str]], cursor: str, follow: bool
) -> Iterator[Page]:
    """Yields the pages behind a cursor, to the feed's end; with `follow` for ever.

    Raises `CommandFailed`.
    """
    while True:
        query = filters + ([("cursor", cursor)] if cursor else [])
        response = server.call("GET", f"/export/{resource}", query=query)
        try:
            body = _decode_page(response.content)
        except msgspec.MsgspecError:
            raise CommandFailed(
                ExitCode.UNAVAILABLE, "The answer is not a page of the feed. Is EXHAUST_URL right?"
            ) from None
        cursor = body.nextCursor
        # a page of a rare type may be empty and not the last one
        feed_end = response.headers.get("X-Feed-End")
        is_last = feed_end == "true" if feed_end else not body.items
        # a line break in JSON is a blank between two words, never part of a text
        yield Page([bytes(raw).replace(b"\n", b" ") for raw in body.items], cursor, is_last)
        if is_last:
            if not follow:
                return
            time.sleep(POLL_SECONDS)


def pull(
    server: Server,
    resource: str,
    filters: list[tuple[str, str]],
    cursor_file: Path | None,
    follow: bool,
    output: int = 1,
) -> int:
    """Writes one document a line to a file descriptor; returns their number.

    Raises `CommandFailed`, `OSError`.
    """
    cursor = _read_cursor(cursor_file) if cursor_file else ""
    count = 0
    _end_broken_line(output)
    for page in fetch_pages(server, resource, filters, cursor, follow):
        if page.items:
            write_all(output, b"\n".join(page.items) + b"\n")
            wait_until_taken(output)
            count += len(page.items)
        if cursor_file:
            _write_cursor(cursor_file, page.next_cursor)
    return count


def tail(server: Server, filters: list[tuple[str, str]], output: int = 1) -> None:
    """Writes a short line for each event as it arrives, until you interrupt it."""
    for page in fetch_pages(server, "events", filters, NOW, follow=True):
        for item in page.items:
            write_all(output, f"{format_event(msgspec.json.decode(item))}\n".encode())


def format_event(event: dict[str, object]) -> str:
    """Returns an event as one line: its times, type, source and ids, nothing of its content."""
    fields = [event.get(name) for name in ("type", "dialect", "deviceId", "sessionId", "id")]
    received = _format_time(event.get("receivedTime"), "%H:%M:%S")
    occurred = _format_time(event.get("timestamp"), "%Y-%m-%dT%H:%M:%SZ")
    return "  ".join([received, f"of {occurred}", *(printable(each or "-") for each in fields)])


def _format_time(milliseconds: object, pattern: str) -> str:
    if not isinstance(milliseconds, int):
        return "-"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime(pattern)


def parse_time(text: str) -> str:
    """Returns milliseconds since 1970 for a day, a time (UTC unless it names a zone) or a number.

    Raises `ValueError`.
    """
    if text.isascii() and text.isdigit():
        return text
    time_ = datetime.fromisoformat(text)
    if time_.tzinfo is None:
        time_ = time_.replace(tzinfo=UTC)
    return str(int(time_.timestamp() * 1000))


def write_all(output: int, content: bytes) -> None:
    """Writes all bytes past `sys.stdout`: its buffer would hide those not yet written."""
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[os.write(output, remaining) :]


def wait_until_taken(output: int, wait: Callable[[float], None] = time.sleep) -> None:
    """Returns when a file's bytes are on disk, or a pipe's bytes are read by its other end.

    Raises `BrokenPipeError` when that end closes with bytes still in the pipe.
    """
    mode = os.fstat(output).st_mode
    if stat.S_ISREG(mode):
        os.fsync(output)
    if sys.platform == "win32" or not stat.S_ISFIFO(mode):
        return
    closing = select.poll()
    closing.register(output, 0)
    seconds = 0.001
    while struct.unpack("i", fcntl.ioctl(output, termios.FIONREAD, b"\0\0\0\0"))[0]:
        if closing.poll(0):
            raise BrokenPipeError
        wait(seconds)
        seconds = min(0.05, seconds * 2)


def _end_broken_line(output: int) -> None:
    """Ends a line that a killed run left open in a file, so that it spoils no other."""
    with suppress(OSError):  # only a regular file has a last byte to look at
        status = os.fstat(output)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            with open(f"/dev/fd/{output}", "rb") as written:
                written.seek(-1, os.SEEK_END)
                if written.read(1) != b"\n":
                    write_all(output, b"\n")


def _read_cursor(path: Path) -> str:
    """Returns the cursor in a file, "" without the file. Raises `OSError` without its folder."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise
        return ""


def _write_cursor(path: Path, cursor: str) -> None:
    """Replaces the cursor in the file whole or not at all, and durably."""
    draft = path.with_name(f"{path.name}.part")
    with draft.open("w") as target:
        target.write(f"{cursor}\n")
        target.flush()
        os.fsync(target.fileno())
    draft.replace(path)
