"""The values that pass between a source and the store. They know no rows and no requests."""

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec


class EventContext(NamedTuple):
    """The user, their attributes, the page and the device that an event's payload names."""

    user_id: str = ""
    url: str = ""
    attributes: dict[str, tuple[Any, int]] = {}  # by name: the value and when it was set
    details: dict[str, Any] = {}  # of `ingest.adapters.fields.SessionDetails`
    platform: str = ""


NO_CONTEXT = EventContext()


class Event(msgspec.Struct, frozen=True, gc=False):
    """One occurrence, whatever source brought it.

    `identity` is 16 bytes that tell this event from every other of its channel; `payload` is a
    JSON object as UTF-8 text. An answer's payload holds it as telemetry does: `edata.item`,
    `edata.resvalues`, `edata.score`, `edata.duration`, `context.rollup.l3` and `l4`.
    """

    identity: bytes
    type: str
    occurred_at: datetime
    device_id: str
    session_id: str
    conversation: str  # the bot's id, "" for none
    is_answer: bool
    payload: bytes
    note: str = ""  # what was repaired on the way in
    position: int = 0  # in its batch
    other_conversations: tuple[str, ...] = ()  # that an answer is in too
    alias: str = ""  # another name of the device in its application; the device's only one if equal
    other_identity: bytes = b""  # of a stored version, or where another type has `identity`


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """A part of a batch that is no event: its position from 0, a code, a sentence, its bytes.

    `raw` is a body that the same source can parse, so that it can be replayed.
    """

    position: int
    reason: str
    detail: str
    raw: bytes


class Profile(msgspec.Struct, frozen=True):
    """The data of a person. None means "not sent" and changes nothing that is stored."""

    device_id: str
    user_name: str | None
    phone: str | None  # E.164; "" removes the stored one
    consent: bool | None
    consent_at: datetime
    position: int = 0  # in its batch


class Batch(msgspec.Struct, frozen=True):
    """What one HTTP call brought.

    Of two events with one identity the first is stored, or the last where `last_wins`.
    """

    source: str
    received_at: datetime
    events: list[Event]
    rejections: list[Rejection]
    application_id: int | None = None
    last_wins: bool = False
    profiles: Sequence[Profile] = ()
    is_shared: bool = False  # whether an event is in several conversations
    details: Any = None  # what only the source's own response needs


class StoreResult(msgspec.Struct, frozen=True):
    """The outcome of a batch: counts that add up to what was sent, and what was not stored."""

    stored: int
    duplicate: int
    rejections: Sequence[Rejection]
    erased: Sequence[Profile] = ()  # not stored: of erased persons, without a newer consent


class Call(msgspec.Struct, frozen=True):
    """An HTTP call without its body."""

    channel: str
    received_at: datetime
    content_type: str = ""
    application: str = ""
    application_id: int | None = None
    parameters: dict[str, str] = {}  # of the query
    is_hash_required: bool = False  # by the application
    method: str = ""
    query: bytes = b""  # as sent
    content_encoding: str = "identity"
    route: dict[str, str] = {}  # the variable parts of the path
    device_id: str = ""  # of the header


class RequestError(Exception):
    """A batch, or one event, that cannot be read: a code and a sentence with the remedy."""

    def __init__(self, reason: str, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.status = status


def format_count(count: int, noun: str) -> str:
    """`1 request`, `2 requests`: for the sentences of answers, which stay English."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def event_identity(occurred_at: datetime | None, *parts: str, prefix: bytes = b"") -> bytes:
    """16 bytes: the time in milliseconds (6), then a digest of the parts (10).

    Led by the time, so that the unique index grows at one end; where an event keeps its identity
    at another time (None), all 16 are digest. `prefix` is `length_prefixed` of parts before these.
    """
    digest_input = prefix + length_prefixed(*parts)
    if occurred_at is None:
        return blake2b(digest_input, digest_size=16).digest()
    milliseconds = int(occurred_at.timestamp() * 1000)
    return milliseconds.to_bytes(6) + blake2b(digest_input, digest_size=10).digest()


def length_prefixed(*parts: str) -> bytes:
    """Each part behind its length, so that no two lists of parts are one."""
    pieces: list[bytes] = []
    for part in parts:
        encoded = part.encode()
        size = len(encoded)
        pieces += (_SIZES[size] if size < 256 else size.to_bytes(4), encoded)
    return b"".join(pieces)


_SIZES = [size.to_bytes(4) for size in range(256)]
EARLIEST_TIME = datetime(2000, 1, 1, tzinfo=UTC)
_EARLIEST_MS = int(EARLIEST_TIME.timestamp() * 1000)


def parse_timestamp(value: float, field: str) -> datetime:
    """The moment a number since 1970 names: seconds, milliseconds or microseconds, by its size."""
    if isinstance(value, int) and _EARLIEST_MS <= value < 10**14:
        return datetime.fromtimestamp(value / 1000, UTC)  # nearly always
    try:
        if abs(value) < 1e11:
            seconds = round(value, 3)
        elif abs(value) < 1e14:
            seconds = round(value / 1000, 3)
        else:
            seconds = round(value / 1_000_000, 3)
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        moment = datetime.min.replace(tzinfo=UTC)
    if moment < EARLIEST_TIME:
        raise RequestError("time_out_of_range", f"{field} lies before 2000 or beyond the calendar.")
    return moment
