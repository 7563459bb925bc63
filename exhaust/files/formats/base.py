"""What a format is: its name, its content type, and the body that makes bytes of cells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from exhaust.datasets.columns import Cell, Column


class Unfit(Exception):
    """What was asked for does not go into the format; the message is for the requester."""


class Body(Protocol):
    """One file on its way. Each call gives the bytes that are ready, often none."""

    misfits: int  # cells left empty, because their column's type cannot hold them

    def start(self) -> bytes: ...

    def add(self, row: Sequence[Cell]) -> bytes:
        """Raises `Unfit`."""

    def end(self) -> bytes: ...


@dataclass(frozen=True)
class Format:
    """A format. `begin` is given the columns, and at how many bytes a part will end."""

    name: str  # also the suffix of a file
    content_type: str
    begin: Callable[[Sequence[Column], int], Body]
    max_rows: int | None = None
    splits: bool = True  # into parts of `EXHAUST_PART_BYTES`
    copied: bool = False  # its body has `add_lines`, for what PostgreSQL's COPY writes
    empty: str = "the file holds only its header"
