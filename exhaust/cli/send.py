"""`exhaust send`: the events of a file, in batches that the source's ingest endpoint accepts."""

import gzip
import os
import stat
import sys
import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, Literal, cast
from urllib.parse import urlencode

import msgspec
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from exhaust.cli.client import CommandFailed, ExitCode, Server, read_environment, read_json
from exhaust.cli.terminal import format_count, open_progress, print_note, printable

SourceName = Literal["telemetry", "clickstream", "skalin", "desk", "participants"]

MAX_SHOWN_REJECTIONS = 20
_MIB = 1024 * 1024
_NOT_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_decode_value = msgspec.json.Decoder(msgspec.Raw).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_optional_list = msgspec.json.Decoder(list[msgspec.Raw] | None).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(frozen=True)
class Source:
    """How events of one format are sent: the address, the sender's credentials, the limits."""

    path: str
    method: str
    max_events: int  # of a batch
    max_bytes: int  # of a batch, before gzip
    encode: Callable[[list[bytes]], bytes]
    application_in: str = ""  # "basic" for HTTP Basic, else a query parameter's name
    content_type: str = "application/x-ndjson"
    needs_json: bool = False  # one line that is not JSON would spoil its batch


def _encode_lines(events: list[bytes]) -> bytes:
    return b"\n".join(events) + b"\n"


def _encode_array(events: list[bytes]) -> bytes:
    return b"[" + b",".join(events) + b"]"


def _encode_skalin(events: list[bytes]) -> bytes:
    """Returns Skalin's two lists: a row with a name is a feature, one without an identity."""
    identities = [row for row in events if "name" not in _decode_object(row)]
    features = [row for row in events if "name" in _decode_object(row)]
    lists = (_encode_array(identities), _encode_array(features))
    return b'{"identities":%b,"features":%b}' % lists


# below the endpoints' own limits, so that an answer comes soon and progress shows
SOURCES: dict[SourceName, Source] = {
    "telemetry": Source("/v1/telemetry", "POST", 2000, 4 * _MIB, _encode_lines),
    "participants": Source("/v1/participants", "POST", 2000, 4 * _MIB, _encode_lines),
    "desk": Source("/export/events", "PUT", 500, 4 * _MIB, _encode_lines, "basic"),
    "skalin": Source(
        "/hit/bulk",
        "POST",
        100,
        900_000,
        _encode_skalin,
        "client_id",
        "application/json",
        needs_json=True,
    ),
    "clickstream": Source(
        "/collect",
        "POST",
        2000,
        900_000,
        _encode_array,
        "appId",
        "application/json",
        needs_json=True,
    ),
}


@dataclass
class Counts:
    """How many events were sent, accepted, known already (duplicate) and rejected so far."""

    source: str
    sent: int = 0
    accepted: int = 0
    duplicate: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    rejections: list[dict[str, Any]] = field(default_factory=list)

    def add_rejection(self, position: int, reason: str, detail: str) -> None:
        """Counts an event that was not accepted, by its position in the file from 0."""
        self.rejected += 1
        self._add_reason(position, reason, detail)

    def _add_reason(self, position: int, reason: str, detail: str) -> None:
        self.reasons[printable(reason)] += 1
        if len(self.rejections) < MAX_SHOWN_REJECTIONS:
            shown = {"position": position, "reason": printable(reason), "detail": printable(detail)}
            self.rejections.append(shown)

    def add_answer(self, result: dict[str, Any] | None, positions: list[int]) -> None:
        """Counts an endpoint's answer to the events at these positions of the file."""
        self.sent += len(positions)
        if result is None:  # Clickstream's protocol has an empty answer
            self.accepted += len(positions)
            return
        self.accepted += result.get("stored", result.get("accepted", 0))
        self.duplicate += result.get("duplicate", 0)
        rejected = result.get("rejected", 0)
        self.rejected += rejected
        rejections = result.get("rejections", [])
        for rejection in rejections:
            index = rejection["position"]
            position = positions[index] if index < len(positions) else index
            self._add_reason(position, rejection["reason"], rejection["detail"])
        if (unlisted := rejected - len(rejections)) > 0:
            self.reasons["(not listed)"] += unlisted

    def to_json(self) -> dict[str, Any]:
        """Returns the counts as `--json` prints them."""
        return {
            "source": self.source,
            "sent": self.sent,
            "accepted": self.accepted,
            "duplicate": self.duplicate,
            "rejected": self.rejected,
            "reasons": self.reasons,
            "rejections": self.rejections,
        }

    def to_text(self) -> str:
        """Returns the counts, the reasons and the first rejections, a line each."""
        lines = [
            f"{self.sent} sent: {self.accepted} accepted, {self.duplicate} duplicate,"
            f" {self.rejected} rejected"
        ]
        if self.source == "clickstream":
            lines[0] += " (its answer is empty: a duplicate counts as accepted)"
        lines += [f"  {count} x {reason}" for reason, count in self.reasons.most_common()]
        lines += [
            f"  event {each['position'] + 1}: {each['reason']}: {each['detail']}"
            for each in self.rejections
        ]
        return "\n".join(lines)


def send(server: Server, file_name: str, source_name: SourceName, application: str) -> Counts:
    """Sends all events of a file, "-" for standard input. Raises `CommandFailed`, `OSError`."""
    source = SOURCES[source_name]
    path, headers = _address(server, source, application)
    counts = Counts(source_name)
    progress = open_progress(
        BarColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        quiet=server.quiet,
    )
    with open_events(file_name) as (content, file, size), progress:
        task = progress.add_task("", total=size)
        for batch, positions in batch_events(_check_gzip(read_events(content)), source):
            if source.needs_json:
                batch, positions = _drop_broken(batch, positions, counts)
            try:
                _post(server, source, path, headers, batch, positions, counts)
            except (CommandFailed, KeyboardInterrupt):
                print_note(
                    f"  Sent: {format_count(counts.sent, 'event')}. Send the file again: no event"
                    " is stored twice."
                )
                raise
            progress.update(
                task,
                description=f"{counts.sent:,} sent, {counts.rejected:,} rejected",
                completed=file.tell() if size is not None else None,
            )
    return counts


@contextmanager
def open_events(name: str) -> Iterator[tuple[IO[bytes], IO[bytes], int | None]]:
    """Opens a file, "-" for standard input.

    Gives the content (unpacked where it is gzip), the file itself, and the file's size in bytes,
    None where it has none. Raises `OSError`.
    """
    with ExitStack() as stack:
        file = sys.stdin.buffer if name == "-" else stack.enter_context(open(name, "rb"))
        size = None
        if name != "-" and stat.S_ISREG((status := os.fstat(file.fileno())).st_mode):
            size = status.st_size
        if file.peek(2)[:2] == b"\x1f\x8b":  # type: ignore[union-attr]
            yield cast(IO[bytes], stack.enter_context(gzip.open(file, "rb"))), file, size
        else:
            yield file, file, size


def read_events(content: IO[bytes]) -> Iterator[bytes]:
    """Yields each event's own bytes, on one line: of lines, of an array, or of one document.

    Lines are read one by one, so that a file may be larger than memory. A line that is not JSON
    comes as it is, for the server keeps it with its reason. Raises `CommandFailed` when the whole
    file is not JSON.
    """
    first = b""
    for first in content:
        first = first.removeprefix(b"\xef\xbb\xbf").strip()
        if first:
            break
    if not first:
        return
    if is_json(first):
        yield from _split(first)
        for line in content:
            if line := line.strip():
                yield from _split(line)
        return
    whole = first + b"\n" + content.read()
    try:
        _decode_value(whole)
    except _NOT_JSON as error:
        raise CommandFailed(
            ExitCode.USAGE,
            f"The file is neither JSON nor one event a line: {printable(error)}. Nothing was sent.",
        ) from None
    yield from _split(whole.strip())


def is_json(text: bytes) -> bool:
    """Whether this is one JSON value."""
    try:
        _decode_value(text)
    except _NOT_JSON:
        return False
    return True


def _split(document: bytes) -> Iterator[bytes]:
    """Yields an array's elements, a batch's events or rows, else the document itself."""
    events: list[bytes] = [document]
    try:
        if document.startswith(b"["):
            events = [bytes(raw) for raw in _decode_list(document)]
        elif document.startswith(b"{"):
            members = _decode_object(document)
            if "events" in members and "eid" not in members:
                events = [bytes(raw) for raw in _decode_list(members["events"])]
            elif {"identities", "features"} & set(members):
                lists = [members.get(name) for name in ("identities", "features")]
                rows = [_decode_optional_list(each) or () for each in lists if each]
                events = [bytes(raw) for each in rows for raw in each]
    except _NOT_JSON:
        events = [document]
    for raw in events:
        # a line break in JSON is a blank between two words, never part of a text
        yield raw.replace(b"\n", b" ").replace(b"\r", b" ")


def batch_events(
    events: Iterator[bytes], source: Source
) -> Iterator[tuple[list[bytes], list[int]]]:
    """Yields events that go together, and each one's position in the file, from 0."""
    batch: list[bytes] = []
    positions: list[int] = []
    size = 0
    for position, event in enumerate(events):
        is_full = len(batch) >= source.max_events or size + len(event) + 1 > source.max_bytes
        if batch and is_full:
            yield batch, positions
            batch, positions, size = [], [], 0
        batch.append(event)
        positions.append(position)
        size += len(event) + 1
    if batch:
        yield batch, positions


def _check_gzip(events: Iterator[bytes]) -> Iterator[bytes]:
    """Yields the same events. Raises `CommandFailed` where the file's gzip is broken."""
    try:
        yield from events
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CommandFailed(
            ExitCode.USAGE, f"The gzip of the file is truncated or broken: {error}"
        ) from None


def _drop_broken(
    batch: list[bytes], positions: list[int], counts: Counts
) -> tuple[list[bytes], list[int]]:
    """Returns the JSON objects of a batch and their positions; counts the rest as rejected."""
    objects: list[tuple[bytes, int]] = []
    for event, position in zip(batch, positions, strict=True):
        try:
            _decode_object(event)
            objects.append((event, position))
        except _NOT_JSON:
            counts.sent += 1
            counts.add_rejection(position, "not_json", "It is not a JSON object; it was not sent.")
    return [event for event, _ in objects], [position for _, position in objects]


def _post(
    server: Server,
    source: Source,
    path: str,
    headers: dict[str, str],
    batch: list[bytes],
    positions: list[int],
    counts: Counts,
) -> None:
    if not batch:
        return
    if source.encode is _encode_skalin:  # its answer counts identities first
        order = sorted(range(len(batch)), key=lambda index: "name" in _decode_object(batch[index]))
        batch = [batch[index] for index in order]
        positions = [positions[index] for index in order]
    try:
        body = gzip.compress(source.encode(batch), 5, mtime=0)
        response = server.call(source.method, path, body=body, headers=headers)
    except CommandFailed as failure:
        if failure.status != 413:
            raise
        if len(batch) == 1:
            counts.sent += 1
            counts.add_rejection(positions[0], "too_large", str(failure))
            return
        middle = len(batch) // 2  # the server's limit is lower than ours
        _post(server, source, path, headers, batch[:middle], positions[:middle], counts)
        _post(server, source, path, headers, batch[middle:], positions[middle:], counts)
        return
    answer = read_json(response) if response.content.strip() else None
    result = answer.get("result", answer) if isinstance(answer, dict) else None
    counts.add_answer(result, positions)


def _address(server: Server, source: Source, application: str) -> tuple[str, dict[str, str]]:
    """Returns a source's path, with its query, and headers.

    Raises `CommandFailed` where the environment lacks the key, the application or its secret.
    """
    headers = {"Content-Type": source.content_type}
    if source.application_in != "appId":  # Clickstream tells gzip by its first bytes
        headers["Content-Encoding"] = "gzip"
    if not source.application_in:
        return source.path, headers | server.key_headers()
    if not application:
        raise CommandFailed(
            ExitCode.USAGE,
            "This source needs an application: set --application or EXHAUST_APPLICATION to an id"
            " that `manage.py create_application` created.",
        )
    secret = read_environment("EXHAUST_SECRET")
    if source.application_in == "basic":
        if not secret:
            raise CommandFailed(
                ExitCode.USAGE, "EXHAUST_SECRET is not set. Set it to the application's password."
            )
        credentials = b64encode(f"{application}:{secret}".encode()).decode()
        return source.path, headers | {"Authorization": f"Basic {credentials}"}
    if secret and source.application_in == "appId":
        headers["Cookie"] = secret
    return f"{source.path}?{urlencode({source.application_in: application})}", headers
