"""`exhaust send`: a file of events through one of the doors, in batches that the door takes."""

import gzip
import json
import sys
import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, cast
from urllib.parse import urlencode

import msgspec

from exhaust.cli.client import Exit, Failure, Server, environment, note, plain

_MIB = 1024 * 1024
_value = msgspec.json.Decoder(msgspec.Raw).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_list_or_null = msgspec.json.Decoder(list[msgspec.Raw] | None).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_NO_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
SHOWN = 20  # rejections told one by one


@dataclass(frozen=True)
class Door:
    """Where events of one format go: an address, who calls, and what a batch may hold."""

    path: str
    method: str
    most: int  # events in a batch
    most_bytes: int  # unfolded
    body: Callable[[list[bytes]], bytes]
    by_application: str = ""  # how the application is named: "basic", or the query's word
    content_type: str = "application/x-ndjson"
    checks: bool = False  # one line that is no JSON would spoil the batch


def _lines(events: list[bytes]) -> bytes:
    return b"\n".join(events) + b"\n"


def _array(events: list[bytes]) -> bytes:
    return b"[" + b",".join(events) + b"]"


def _rows(events: list[bytes]) -> bytes:
    """Skalin's two lists. A row with a name is a feature, one without says who somebody is."""
    identities = [row for row in events if "name" not in _members(row)]
    features = [row for row in events if "name" in _members(row)]
    return b'{"identities":%b,"features":%b}' % (_array(identities), _array(features))


# below the doors' own limits, so that an answer comes soon and progress shows
DOORS = {
    "telemetry": Door("/v1/telemetry", "POST", 2000, 4 * _MIB, _lines),
    "participants": Door("/v1/participants", "POST", 2000, 4 * _MIB, _lines),
    "desk": Door("/export/events", "PUT", 500, 4 * _MIB, _lines, "basic"),
    "skalin": Door(
        "/hit/bulk", "POST", 100, 900_000, _rows, "client_id", "application/json", checks=True
    ),
    "clickstream": Door(
        "/collect", "POST", 2000, 900_000, _array, "appId", "application/json", checks=True
    ),
}


@dataclass
class Counts:
    """What became of the events so far."""

    door: str
    sent: int = 0
    accepted: int = 0
    duplicate: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    rejections: list[dict[str, Any]] = field(default_factory=list)

    def reject(self, position: int, reason: str, detail: str) -> None:
        self.rejected += 1
        self._tell(position, reason, detail)

    def _tell(self, position: int, reason: str, detail: str) -> None:
        self.reasons[plain(reason)] += 1
        if len(self.rejections) < SHOWN:
            told = {"position": position, "reason": plain(reason), "detail": plain(detail)}
            self.rejections.append(told)

    def add(self, said: Any, positions: list[int]) -> None:
        """The door's answer to the events that stand at these positions of the file."""
        self.sent += len(positions)
        if said is None:  # Clickstream answers nothing: what cannot be read lies aside
            self.accepted += len(positions)
            return
        self.accepted += said.get("stored", said.get("accepted", 0))
        self.duplicate += said.get("duplicate", 0)
        self.rejected += said.get("rejected", 0)
        told = said.get("rejections", [])
        for each in told:
            at = each["position"]
            self._tell(positions[at] if at < len(positions) else at, each["reason"], each["detail"])
        if (untold := said.get("rejected", 0) - len(told)) > 0:
            self.reasons["(not told)"] += untold


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """The file, or standard input for "-"; unfolded where it is gzip. Raises `OSError`."""
    with ExitStack() as closing:
        stream = sys.stdin.buffer if name == "-" else closing.enter_context(open(name, "rb"))
        if stream.peek(2)[:2] == b"\x1f\x8b":  # type: ignore[union-attr]
            yield cast(IO[bytes], closing.enter_context(gzip.open(stream, "rb")))
        else:
            yield stream


def events(stream: IO[bytes]) -> Iterator[bytes]:
    """Each event's own text, on one line: of lines, of an array, or of one document.

    Lines are taken as they come, so that a file may be larger than memory. A line that is no JSON
    is given as it is: the door keeps it with its reason. Raises `Failure` when nothing is JSON.
    """
    first = b""
    for first in stream:
        first = first.removeprefix(b"\xef\xbb\xbf").strip()
        if first:
            break
    if not first:
        return
    if is_json(first):
        yield from _unfolded(first)
        for line in stream:
            if line := line.strip():
                yield from _unfolded(line)
        return
    whole = first + b"\n" + stream.read()
    try:
        _value(whole)
    except _NO_JSON as error:
        raise Failure(
            Exit.USAGE, f"This is neither JSON nor an event a line: {plain(error)}. Nothing sent."
        ) from None
    yield from _unfolded(whole.strip())


def is_json(text: bytes) -> bool:
    try:
        _value(text)
    except _NO_JSON:
        return False
    return True


def _unfolded(document: bytes) -> Iterator[bytes]:
    """What a document holds: an array's elements, a batch's events or rows, else itself."""
    found: list[bytes] = [document]
    try:
        if document.startswith(b"["):
            found = [bytes(raw) for raw in _list(document)]
        elif document.startswith(b"{"):
            members = _members(document)
            if "events" in members and "eid" not in members:
                found = [bytes(raw) for raw in _list(members["events"])]
            elif {"identities", "features"} & set(members):
                lists = [members.get(name) for name in ("identities", "features")]
                found = [bytes(raw) for each in lists if each for raw in _list_or_null(each) or ()]
    except _NO_JSON:
        found = [document]
    for raw in found:
        # a line break in JSON is a blank between two words, never part of a text
        yield raw.replace(b"\n", b" ").replace(b"\r", b" ")


def batches(found: Iterator[bytes], door: Door) -> Iterator[tuple[list[bytes], list[int]]]:
    """Events that go together, and the position of each in the file, counted from 0."""
    batch: list[bytes] = []
    positions: list[int] = []
    size = 0
    for position, event in enumerate(found):
        if batch and (len(batch) >= door.most or size + len(event) + 1 > door.most_bytes):
            yield batch, positions
            batch, positions, size = [], [], 0
        batch.append(event)
        positions.append(position)
        size += len(event) + 1
    if batch:
        yield batch, positions


def send(
    server: Server, name: str, door_name: str, application: str, progress: Callable[[Counts], None]
) -> Counts:
    """Sends all of a file. Raises `Failure`, which tells how far it came."""
    door = DOORS[door_name]
    path, headers = _calling(server, door, application)
    counts = Counts(door_name)
    with opened(name) as stream:
        for batch, positions in batches(_whole(events(stream)), door):
            if door.checks:
                batch, positions = _readable(batch, positions, counts)
            try:
                _post(server, door, path, headers, batch, positions, counts)
            except (Failure, KeyboardInterrupt):
                note(f"  {counts.sent} events were sent; send the file again: nothing doubles.")
                raise
            progress(counts)
    return counts


def _whole(found: Iterator[bytes]) -> Iterator[bytes]:
    """The same, where a file whose gzip is broken ends in a sentence. Raises `Failure`."""
    try:
        yield from found
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Failure(Exit.USAGE, f"The gzip of the file is cut off or broken: {error}") from None


def _readable(
    batch: list[bytes], positions: list[int], counts: Counts
) -> tuple[list[bytes], list[int]]:
    kept: list[tuple[bytes, int]] = []
    for event, position in zip(batch, positions, strict=True):
        try:
            _members(event)
            kept.append((event, position))
        except _NO_JSON:
            counts.sent += 1
            counts.reject(position, "not_json", "This is no JSON object; it was not sent.")
    return [event for event, _ in kept], [position for _, position in kept]


def _post(
    server: Server,
    door: Door,
    path: str,
    headers: dict[str, str],
    batch: list[bytes],
    positions: list[int],
    counts: Counts,
) -> None:
    if not batch:
        return
    if door.by_application == "client_id":  # the door counts identities first
        order = sorted(range(len(batch)), key=lambda at: "name" in _members(batch[at]))
        batch, positions = [batch[at] for at in order], [positions[at] for at in order]
    try:
        body = gzip.compress(door.body(batch), 5, mtime=0)
        answer = server.call(door.method, path, body=body, headers=headers)
    except Failure as failure:
        if failure.status != 413:
            raise
        if len(batch) == 1:
            counts.sent += 1
            counts.reject(positions[0], "too_large", str(failure))
            return
        middle = len(batch) // 2  # a limit that we do not know: half of it may pass
        _post(server, door, path, headers, batch[:middle], positions[:middle], counts)
        _post(server, door, path, headers, batch[middle:], positions[middle:], counts)
        return
    said = answer.said() if answer.body.strip() else None
    counts.add(said.get("result", said) if isinstance(said, dict) else None, positions)


def _calling(server: Server, door: Door, application: str) -> tuple[str, dict[str, str]]:
    """The address and headers of a door. Raises `Failure` where something is not set."""
    headers = {"Content-Type": door.content_type}
    if door.by_application != "appId":  # Clickstream tells gzip by its first bytes
        headers["Content-Encoding"] = "gzip"
    if not door.by_application:
        return door.path, headers | server.headers()
    application = application or environment("EXHAUST_APPLICATION")
    if not application:
        raise Failure(
            Exit.USAGE,
            "This door asks for an application: --application or EXHAUST_APPLICATION, an id that"
            " `manage.py create_application` made.",
        )
    secret = environment("EXHAUST_SECRET")
    if door.by_application == "basic":
        if not secret:
            raise Failure(Exit.USAGE, "EXHAUST_SECRET is not set: the application's password.")
        credentials = b64encode(f"{application}:{secret}".encode()).decode()
        return door.path, headers | {"Authorization": f"Basic {credentials}"}
    if secret and door.by_application == "appId":
        headers["Cookie"] = secret
    return f"{door.path}?{urlencode({door.by_application: application})}", headers


def told(counts: Counts, as_json: bool) -> str:
    """The counts at the end."""
    if as_json:
        return json.dumps(
            {
                "door": counts.door,
                "sent": counts.sent,
                "accepted": counts.accepted,
                "duplicate": counts.duplicate,
                "rejected": counts.rejected,
                "reasons": counts.reasons,
                "rejections": counts.rejections,
            },
            ensure_ascii=False,
        )
    lines = [
        f"{counts.sent} sent: {counts.accepted} accepted, {counts.duplicate} duplicate,"
        f" {counts.rejected} rejected"
    ]
    if counts.door == "clickstream":
        lines[0] += " (this door tells no more: a repeat counts as accepted)"
    lines += [f"  {count} x {reason}" for reason, count in counts.reasons.most_common()]
    lines += [
        f"  event {each['position'] + 1}: {each['reason']}: {each['detail']}"
        for each in counts.rejections
    ]
    return "\n".join(lines)
