"""Positions and rows of the feed."""

from typing import NamedTuple


class Place(NamedTuple):
    """A position: everything up to and including it has been read."""

    xid: int = 0
    id: int = 0


START = Place()


class Arrived(NamedTuple):
    """A stored event as its readers need it; the payload is its JSON text."""

    xid: int
    id: int
    superseded_xid: int | None
    occurred: int  # microseconds since 1970
    received: int
    application_id: int | None
    is_answer: bool
    identity: str
    dialect: str
    type: str
    device_id: str
    session_id: str
    refused: bool | None  # consent, by whoever answered, now
    payload: bytes

    @property
    def place(self) -> Place:
        return Place(self.xid, self.id)
