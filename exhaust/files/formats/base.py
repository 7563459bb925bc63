"""The interface of a format: its name, its content type, and the writer of its files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from django.utils.translation import gettext_noop

from exhaust.datasets.cells import Cell, Column


class FormatLimitExceeded(Exception):
    """The result exceeds a limit of the format. The message is for the requester."""


class FormatWriter(Protocol):
    """Writes one file. Each call returns the bytes that are ready, often none."""

    unconvertible_cells: int  # left empty or cut: the format cannot hold them

    def start(self) -> bytes: ...

    def add(self, row: Sequence[Cell]) -> bytes:
        """Adds a row. Raises `FormatLimitExceeded`."""

    def end(self) -> bytes: ...


@dataclass
class CellChunk:
    """Rows as columns: an Arrow array of texts for each, and how many of the rows are written."""

    columns: Sequence[Any]
    row_count: int
    rows_taken: int = 0

    @property
    def rows_left(self) -> int:
        return self.row_count - self.rows_taken


@dataclass(frozen=True)
class Format:
    """A format. `make_writer` takes the columns and the bytes at which a part will end."""

    name: str
    content_type: str
    make_writer: Callable[[Sequence[Column], int], FormatWriter]
    max_rows: int | None = None
    is_splittable: bool = True  # into parts of `EXHAUST_PART_BYTES`
    has_add_lines: bool = False  # its writer takes chunks of lines as PostgreSQL copies them
    # what its writer takes of the archive: finished lines, a `CellChunk`, or a list for each row
    archive_rows: Literal["csv lines", "json lines", "cells", "rows"] = "rows"
    empty_message: str = gettext_noop("the file holds only its header")
    unconvertible_message: str = ""  # what became of unconvertible cells, with {} for their number
    file_suffix: str = ""  # by default the name

    @property
    def suffix(self) -> str:
        return self.file_suffix or self.name
