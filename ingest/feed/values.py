"""Positions and rows of the feed."""

from typing import NamedTuple


class FeedPosition(NamedTuple):
    """A reader's position: it has read everything up to and including it."""

    xid: int = 0
    id: int = 0


START = FeedPosition()


class EventRow(NamedTuple):
    """A stored event for its readers; the payload is JSON text."""

    xid: int
    id: int
    superseded_xid: int | None
    occurred_us: int  # microseconds since 1970
    received_us: int
    application_id: int | None
    is_answer: bool
    identity: str
    source: str
    type: str
    device_id: str
    session_id: str
    is_consent_refused: bool | None  # of the participant who answered, now
    payload: bytes

    @property
    def position(self) -> FeedPosition:
        return FeedPosition(self.xid, self.id)
