"""Makes one part of a file from row groups of the archive, and stores it.

The same work makes the same bytes wherever it is done, and however often. It knows neither Django
nor a database, and has no key to the storage: addresses that expire name what it reads and writes.
"""

import hashlib
import platform
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from exhaust.archive import part
from exhaust.archive.merge import Unread, merge_tables
from exhaust.archive.part import PartPlan
from exhaust.archive.range_file import RangeFile
from exhaust.archive.rows import RowFilter, RowReader, fetch_group
from exhaust.archive.schema import ANSWERS
from exhaust.engines.access import Grant, open_file, write_file
from exhaust.engines.errors import PartError

LINES = {"csv lines": part.make_csv_lines, "json lines": part.make_json_lines}


@dataclass(frozen=True)
class Shared:
    """What all parts of a file have in common."""

    plan: PartPlan
    names: Sequence[str]  # of the archive's columns that are read
    lines: str  # of `LINES`
    header: bytes
    gzip_level: int  # 0 for none


@dataclass(frozen=True)
class Source:
    """A file of the archive."""

    grant: Grant = field(repr=False)
    byte_count: int


@dataclass(frozen=True)
class Group:
    """A row group that may hold rows of the part."""

    source: int  # its place in the list
    number: int
    first_us: int  # no selected row is earlier, here or in a later group of the source
    last_us: int
    is_whole: bool  # the part has all of its rows


@dataclass(frozen=True)
class PartWork:
    """Which rows make the part, and where it is stored."""

    sources: Sequence[Source]
    groups: Sequence[Group]  # sorted by their first time
    row_filter: RowFilter
    superseded: Sequence[int]  # ids of rows that were replaced since
    late: Sequence[Any]  # sorted tables of rows that are not in the archive
    target: Grant = field(repr=False)


@dataclass(frozen=True)
class PartResult:
    """What was stored; nothing for no row."""

    row_count: int
    byte_count: int
    sha256: str
    host: str


@dataclass(frozen=True)
class _UnreadGroup(Unread):
    number: int
    is_whole: bool


def make_part(shared: Shared, work: PartWork) -> PartResult:
    """Raises `FileNotFoundError` for a file that is gone, and `AccessError`."""
    with tempfile.TemporaryFile() as spool:
        writer = _Writer(spool, shared.gzip_level)
        writer.write(shared.header)
        row_count = 0
        for data, ends in _make_lines(shared, work):
            writer.write(memoryview(data)[: ends[-1]])
            row_count += len(ends)
        byte_count = writer.finish()
        if row_count:
            spool.seek(0)
            write_file(work.target, spool, byte_count)
    return PartResult(row_count, byte_count, writer.sha256, platform.node())


def try_part(shared: Shared, work: PartWork) -> Any:
    """Returns the result, or the error as `Engine.wait` has it."""
    try:
        return make_part(shared, work)
    except FileNotFoundError as error:
        return FileNotFoundError(str(error))
    except Exception as error:
        return PartError(f"{type(error).__name__}: {error}")


def _make_lines(shared: Shared, work: PartWork) -> Iterator[part.Lines]:
    make = LINES[shared.lines]
    reader = RowReader(ANSWERS, shared.names, pa.array(work.superseded, pa.int64()))
    opened: dict[int, tuple[RangeFile, Any]] = {}

    def read(unread: Any) -> Any:
        if unread.source not in opened:
            source = work.sources[unread.source]
            file = open_file(source.grant, source.byte_count)
            opened[unread.source] = file, pq.read_metadata(file)
        group = fetch_group(*opened[unread.source], unread.number)
        return reader.read(group, None if unread.is_whole else work.row_filter)

    unread = [
        _UnreadGroup(each.source, each.first_us, each.last_us, read, each.number, each.is_whole)
        for each in work.groups
    ]
    for table in merge_tables(unread, iter(work.late)):
        if isinstance(table, Unread):
            yield from make(read(table), shared.plan)
            continue
        for start in range(0, table.num_rows, part.SLICE_ROWS):
            yield from make(table.slice(start, part.SLICE_ROWS), shared.plan)


class _Writer:
    """Writes into a file, and hashes what is written."""

    def __init__(self, file: IO[bytes], gzip_level: int) -> None:
        self._file = file
        # zlib's gzip header holds no time and no name
        self._gzip = zlib.compressobj(gzip_level, wbits=31) if gzip_level else None
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> None:
        self._append(self._gzip.compress(data) if self._gzip else data)

    def finish(self) -> int:
        """Returns how many bytes the file has."""
        if self._gzip:
            self._append(self._gzip.flush())
        return self._file.tell()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _append(self, data: Any) -> None:
        self._hash.update(data)
        self._file.write(data)
