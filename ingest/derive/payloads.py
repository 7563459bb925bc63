"""What an event's payload tells of who was there and on which page, by source.

Payloads are as their senders wrote them: what has another shape than expected tells nothing.
"""

from collections.abc import Callable

import msgspec

from ingest.adapters.clickstream import _read_clickstream
from ingest.adapters.desk import _read_desk
from ingest.adapters.skalin import _read_skalin
from ingest.adapters.telemetry import _read_telemetry
from ingest.events import NO_CONTEXT, EventContext
from ingest.feed.values import EventRow

_READERS: dict[str, Callable[[EventRow], EventContext]] = {
    "telemetry": _read_telemetry,
    "clickstream": _read_clickstream,
    "skalin": _read_skalin,
    "desk": _read_desk,
}


def read_context(row: EventRow) -> EventContext:
    reader = _READERS.get(row.source)
    if reader is None:
        return NO_CONTEXT
    try:
        return reader(row)
    except (msgspec.MsgspecError, RecursionError):
        return NO_CONTEXT
