"""What of the stored events a job is about, and what a dataset is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.db import connection

from exhaust.datasets.columns import Cell, Column


@dataclass(frozen=True)
class Selection:
    """Events of one conversation that occurred in [start, end) and arrived below the watermark."""

    channel_id: int
    conversation_id: int  # 0 when the channel never saw it
    conversation: str
    conversation_name: str
    start: datetime
    end: datetime
    watermark: int

    def where(self, event: str = "e") -> tuple[str, dict[str, Any]]:
        """The SQL condition over the event's alias, and its parameters."""
        cast = "::xid8" if connection.vendor == "postgresql" else ""
        adapt = connection.ops.adapt_datetimefield_value
        mark = str(self.watermark) if cast else self.watermark
        return (
            f"{event}.channel_id = %(channel)s AND {event}.conversation_id = %(conversation_pk)s"
            f" AND {event}.occurred_at >= %(start)s AND {event}.occurred_at < %(end)s"
            f" AND {event}.xid < %(watermark)s{cast}"
            f" AND ({event}.superseded_xid IS NULL"
            f" OR {event}.superseded_xid >= %(watermark)s{cast})",
            {
                "channel": self.channel_id,
                "conversation_pk": self.conversation_id,
                "start": adapt(self.start),
                "end": adapt(self.end),
                "watermark": mark,
            },
        )


def zone(name: str) -> ZoneInfo:
    """The time zone of that name. Raises `ValueError` with the remedy."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("Unknown time zone; write one like UTC or Asia/Kolkata.") from None


def days(first: date, last: date, zone_name: str) -> tuple[datetime, datetime]:
    """Whole days in a time zone, both ends included, as the half-open range of moments."""
    tz = zone(zone_name)
    return (
        datetime.combine(first, time.min, tz),
        datetime.combine(last + timedelta(days=1), time.min, tz),
    )


class Dataset(ABC):
    """A named, documented query: its columns, and rows in a fixed order."""

    name: str
    title: str
    private: bool  # picks scope, storage prefix and link kind
    suffix: str  # of the downloaded name
    columns: Sequence[Column]

    @abstractmethod
    def rows(self, selection: Selection) -> Iterator[list[Cell]]:
        """The cells, row by row, on any database."""

    def copy(self, selection: Selection) -> tuple[str, dict[str, Any]] | None:
        """The query PostgreSQL writes as CSV by itself; None where Python must finish a cell."""
        return None

    @abstractmethod
    def count_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        """A query whose rows are as many as the file's."""


FETCH = 2000


@contextmanager
def streaming(sql: str, params: dict[str, Any]) -> Iterator[Iterator[Sequence[Any]]]:
    """Rows of a query in bounded memory: a server-side cursor where there is a server."""
    if connection.vendor == "postgresql":
        connection.ensure_connection()
        with (
            connection.wrap_database_errors,
            connection.connection.transaction(),
            connection.connection.cursor(name="exhaust") as cursor,
        ):
            cursor.itersize = FETCH
            cursor.execute(sql, params)
            yield iter(cursor)
    else:
        with connection.cursor() as cursor:
            cursor.execute(sql, params)
            yield (row for batch in iter(lambda: cursor.fetchmany(FETCH), []) for row in batch)
