"""Encodes a batch's columns as PostgreSQL's binary arrays.

psycopg asks a dumper for each element, and for nine columns that took as long as the database
did. As text every quote of every payload would be escaped besides.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.adapt import Dumper, PyFormat
from psycopg.pq import Format


@dataclass(frozen=True, slots=True)
class Column:
    """An array without NULL in the server's binary format, for `%b`."""

    oid: int  # of the array's type
    data: bytes


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_pack_header = struct.Struct(
    "!iiIii"
).pack  # dimensions, has NULL, element's type, length, first index


def booleans(values: Iterable[bool]) -> Column:
    return _column(1000, 16, [b"\0\0\0\1\1" if value else b"\0\0\0\1\0" for value in values])


def moments(values: Iterable[datetime]) -> Column:
    """Encodes timestamptz: microseconds since 2000."""
    items: list[bytes] = []
    last, item = None, b""
    for value in values:
        if value is not last:  # as when the events of a batch arrived
            since = value - _EPOCH
            microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
            last, item = value, b"\0\0\0\x08" + microseconds.to_bytes(8, signed=True)
        items.append(item)
    return _column(1185, 1184, items)


def integers(values: Iterable[int]) -> Column:
    """Encodes bigint."""
    return _column(1016, 20, [b"\0\0\0\x08" + value.to_bytes(8, signed=True) for value in values])


def texts(values: Iterable[str]) -> Column:
    return utf8([value.encode() for value in values])


def utf8(values: Iterable[bytes]) -> Column:
    """Encodes text that is UTF-8 already."""
    return _column(1009, 25, [len(value).to_bytes(4) + value for value in values])


def byte_strings(values: Iterable[bytes]) -> Column:
    """Encodes bytea."""
    return _column(1001, 17, [len(value).to_bytes(4) + value for value in values])


def uuids(values: Iterable[bytes]) -> Column:
    """Encodes UUIDs of sixteen bytes each."""
    return _column(2951, 2950, [b"\0\0\0\x10" + value for value in values])


def _column(oid: int, element: int, items: list[bytes]) -> Column:
    if not items:
        return Column(oid, struct.pack("!iiI", 0, 0, element))
    return Column(oid, _pack_header(1, 0, element, len(items), 1) + b"".join(items))


class _ColumnDumper(Dumper):
    format = Format.BINARY

    def get_key(self, obj: Column, format: PyFormat) -> Any:
        return (self.cls, obj.oid)

    def upgrade(self, obj: Column, format: PyFormat) -> "_ColumnDumper":
        dumper = _ColumnDumper(self.cls)
        dumper.oid = obj.oid
        return dumper

    def dump(self, obj: Column) -> bytes:
        return obj.data


def register_dumper() -> None:
    """Teaches psycopg columns. Call it before the first connection, which copies the dumpers."""
    psycopg.adapters.register_dumper(Column, _ColumnDumper)
