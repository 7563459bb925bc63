"""Which of a channel's rows a request reads, as SQL conditions; and days in a time zone."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.db import connection

from exhaust.feed import vocabulary
from ingest.feed.values import START, FeedPosition
from ingest.ids import hash_device


class ArchivedRows(Protocol):
    """The archived rows of a selection. See `exhaust.archive.archived`."""

    def iterate_rows(
        self, dataset: Any, selection: "Selection", file_format: Any, queries: Any
    ) -> Generator[Any]: ...

    def iterate_answers(
        self, selection: "Selection", columns: Sequence[Any], order: str, limit: int | None
    ) -> Generator[Sequence[Any]]: ...


@dataclass(frozen=True)
class Selection:
    """A channel's rows that occurred in [start, end) and arrived in [since_xid, watermark)."""

    channel_id: int
    conversation_id: int | None  # 0 for an unknown one, None for all
    conversation: str
    conversation_name: str
    start: datetime
    end: datetime
    watermark: int
    since_xid: int = 0
    after: FeedPosition = START  # they arrived after it
    types: tuple[str, ...] = ()
    application_id: int | None = None  # 0 for an unknown one, None for all
    limit: int | None = None
    device_key: bytes | None = field(default=None, repr=False)  # to hash devices with
    shares_events: bool = False  # whether some are in another conversation first
    archive: ArchivedRows | None = field(default=None, repr=False)  # None to read rows alone

    def event_filter(self, alias: str = "e") -> tuple[str, dict[str, Any]]:
        """The SQL condition on events and its parameters.

        Selects the version of an event that was current at the watermark.
        """
        where, params = self.base_filter("occurred_at", alias)
        xid_cast = _xid_cast()
        where += (
            f" AND ({alias}.superseded_xid IS NULL"
            f" OR {alias}.superseded_xid >= %(watermark)s{xid_cast})"
        )
        if self.conversation_id is not None:
            is_inside = f"{alias}.conversation_id = %(conversation_pk)s"
            params["conversation_pk"] = self.conversation_id
            if self.shares_events:
                is_inside = f"({is_inside} OR {alias}.other_conversations LIKE %(shared)s)"
                params["shared"] = f"%,{self.conversation_id},%"
            where += f" AND {is_inside}"
        if self.types:
            types, table = vocabulary.expand_types(self.types)
            listed = {f"type_{number}": name for number, name in enumerate(types)}
            others = {f"other_{number}": name for number, name in enumerate(table)}
            is_selected = f"{alias}.type IN ({', '.join(f'%({name})s' for name in listed)})"
            if others:
                named = ", ".join(f"%({name})s" for name in others)
                is_selected = f"({is_selected} OR {alias}.type NOT IN ({named}))"
            where += f" AND {is_selected}"
            params |= listed | others
        return where, params

    def base_filter(self, time_column: str, alias: str = "e") -> tuple[str, dict[str, Any]]:
        """The SQL condition on any table with feed positions, and its parameters."""
        xid_cast = _xid_cast()
        adapt = connection.ops.adapt_datetimefield_value
        where = (
            f"{alias}.channel_id = %(channel)s"
            f" AND {alias}.{time_column} >= %(start)s AND {alias}.{time_column} < %(end)s"
            f" AND {alias}.xid < %(watermark)s{xid_cast}"
        )
        params = {
            "channel": self.channel_id,
            "start": adapt(self.start),
            "end": adapt(self.end),
            "watermark": str(self.watermark) if xid_cast else self.watermark,
        }
        if self.since_xid:
            where += f" AND {alias}.xid >= %(since)s{xid_cast}"
            params["since"] = str(self.since_xid) if xid_cast else self.since_xid
        if self.after != START:
            where += f" AND ({alias}.xid, {alias}.id) > (%(after_xid)s{xid_cast}, %(after_id)s)"
            params |= {"after_xid": str(self.after.xid) if xid_cast else self.after.xid}
            params |= {"after_id": self.after.id}
        if self.application_id is not None:
            where += f" AND {alias}.application_id = %(application)s"
            params["application"] = self.application_id
        return where, params

    def displayed_device_id(self, device_id: str) -> str:
        """The device id as files show it: hashed where the channel asks for it."""
        if self.device_key is None or not device_id:
            return device_id
        return hash_device(self.device_key, device_id)

    def displayed_device_id_sql(self, cell_sql: str) -> tuple[str, dict[str, bytes]]:
        """The same as SQL: PostgreSQL has SHA-256 but no HMAC."""
        if self.device_key is None:
            return cell_sql, {}
        block = self.device_key.ljust(64, b"\0")
        pads = {
            name: bytes(byte ^ pad for byte in block)
            for name, pad in (("inner_pad", 0x36), ("outer_pad", 0x5C))
        }
        inner = f"sha256(%(inner_pad)s::bytea || convert_to({cell_sql}, 'UTF8'))"
        return f"encode(substr(sha256(%(outer_pad)s::bytea || {inner}), 1, 16), 'hex')", pads

    @property
    def limit_clause(self) -> str:
        """The LIMIT of a query for the first rows only."""
        return "" if self.limit is None else f" LIMIT {self.limit:d}"


def _xid_cast() -> str:
    return "::xid8" if connection.vendor == "postgresql" else ""


def load_zone(name: str) -> ZoneInfo:
    """The time zone of that name. Raises `ValueError` with the remedy."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("Unknown time zone; write one like UTC or Asia/Kolkata.") from None


def day_range(first: date, last: date, zone_name: str) -> tuple[datetime, datetime]:
    """The half-open range of whole days in a time zone, both ends included."""
    tz = load_zone(zone_name)
    return (
        datetime.combine(first, time.min, tz),
        datetime.combine(last + timedelta(days=1), time.min, tz),
    )
