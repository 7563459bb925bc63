"""What a format is: its name, its content type, and the body that makes bytes of cells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from exhaust.datasets.columns import Cell, Column


class FormatLimitExceeded(Exception):
    """What was asked for does not go into the format; the message is for the requester."""


class FormatWriter(Protocol):
    """One file on its way. Each call gives the bytes that are ready, often none."""

    unconvertible_cells: int  # cells left empty, because their column's type cannot hold them

    def start(self) -> bytes: ...

    def add(self, row: Sequence[Cell]) -> bytes:
        """Raises `Unfit`."""

    def end(self) -> bytes: ...


@dataclass(frozen=True)
class Format:
    """A format. `begin` is given the columns, and at how many bytes a part will end."""

    name: str  # also the suffix of a file
    content_type: str
    make_writer: Callable[[Sequence[Column], int], FormatWriter]
    max_rows: int | None = None
    is_splittable: bool = True  # into parts of `EXHAUST_PART_BYTES`
    has_add_lines: bool = False  # its body has `add_lines`, for what PostgreSQL's COPY writes
    empty_message: str = "the file holds only its header"
