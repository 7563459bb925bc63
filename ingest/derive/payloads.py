"""What an event's payload tells of who was there and on which page, by dialect.

Payloads are as their senders wrote them: what has another shape than expected tells nothing.
"""

from collections.abc import Callable

import msgspec

from ingest.adapters.clickstream import _clickstream
from ingest.adapters.desk import _desk
from ingest.adapters.skalin import _skalin
from ingest.adapters.telemetry import _telemetry
from ingest.events import NOTHING, Traits
from ingest.feed.values import Arrived

_READERS: dict[str, Callable[[Arrived], Traits]] = {
    "telemetry": _telemetry,
    "clickstream": _clickstream,
    "skalin": _skalin,
    "desk": _desk,
}


def traits(row: Arrived) -> Traits:
    reader = _READERS.get(row.dialect)
    if reader is None:
        return NOTHING
    try:
        return reader(row)
    except (msgspec.MsgspecError, RecursionError):
        return NOTHING
