"""What of a channel a job is about, and what a dataset is."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.db import connection

from exhaust.datasets.supplement import _find_since_xid, _optional_text
from ingest.models import Application, Channel, Conversation
from ingest.privacy import device_hash


@dataclass(frozen=True)
class Selection:
    """What happened in [start, end) and arrived in [since, watermark), of one channel."""

    channel_id: int
    conversation_id: int | None  # 0 when the channel never saw it, None when all are asked for
    conversation: str
    conversation_name: str
    start: datetime
    end: datetime
    watermark: int
    since_xid: int = 0
    types: tuple[str, ...] = ()
    application_id: int | None = None  # 0 when the channel has none of that name
    limit: int | None = None
    device_key: bytes | None = field(default=None, repr=False)  # to hash devices with

    def event_filter(self, alias: str = "e") -> tuple[str, dict[str, Any]]:
        """The SQL condition over an event's alias, and its parameters.

        Of an event in several versions it is the one that stood at the watermark.
        """
        where, params = self.base_filter("occurred_at", alias)
        xid_cast = _xid_cast()
        where += (
            f" AND ({alias}.superseded_xid IS NULL"
            f" OR {alias}.superseded_xid >= %(watermark)s{xid_cast})"
        )
        if self.conversation_id is not None:
            where += f" AND {alias}.conversation_id = %(conversation_pk)s"
            params["conversation_pk"] = self.conversation_id
        if self.types:
            type_params = {f"type_{place}": name for place, name in enumerate(self.types)}
            where += f" AND {alias}.type IN ({', '.join(f'%({name})s' for name in type_params)})"
            params |= type_params
        return where, params

    def base_filter(self, time_column: str, alias: str = "e") -> tuple[str, dict[str, Any]]:
        """The same for any table with positions, whose days are of its column `moment`."""
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
        if self.application_id is not None:
            where += f" AND {alias}.application_id = %(application)s"
            params["application"] = self.application_id
        return where, params

    def displayed_device_id(self, device_id: str) -> str:
        """A device as response and private files name it."""
        if self.device_key is None or not device_id:
            return device_id
        return hmac.digest(self.device_key, device_id.encode(), hashlib.sha256)[:16].hex()

    def displayed_device_id_sql(self, cell_sql: str) -> tuple[str, dict[str, bytes]]:
        """The same of a cell in PostgreSQL, whose core has SHA-256 but no HMAC."""
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
        """What ends a query for its first rows only."""
        return "" if self.limit is None else f" LIMIT {self.limit:d}"


def _xid_cast() -> str:
    return "::xid8" if connection.vendor == "postgresql" else ""


def resolve_selection(
    dataset: str,
    channel_id: int,
    config: Mapping[str, Any],
    watermark: int,
    limit: int | None = None,
) -> Selection:
    """What a valid datasetConfig asks for. Raises `LookupError` where its `since` names no file."""
    conversation_id = _optional_text(config.get("conversationId"))
    conversation = Conversation.objects.filter(
        channel=channel_id, identifier=conversation_id
    ).first()
    start, end = day_range(
        date.fromisoformat(config["startDate"]),
        date.fromisoformat(config["endDate"]),
        config.get("timezone") or "UTC",
    )
    return Selection(
        channel_id=channel_id,
        conversation_id=None if conversation_id is None else _pk_or_zero(conversation),
        conversation=conversation_id or "",
        conversation_name=conversation.name if conversation else "",
        start=start,
        end=end,
        watermark=watermark,
        since_xid=_find_since_xid(dataset, channel_id, config),
        types=tuple(sorted({str(name) for name in config.get("types") or ()})),
        application_id=_find_application_id(channel_id, config),
        limit=limit,
        device_key=fetch_device_key(channel_id),
    )


def _pk_or_zero(row: Conversation | Application | None) -> int:
    return row.pk if row is not None else 0


def _find_application_id(channel_id: int, config: Mapping[str, Any]) -> int | None:
    identifier = _optional_text(config.get("application"))
    if identifier is None:
        return None
    return _pk_or_zero(
        Application.objects.filter(channel=channel_id, identifier=identifier).first()
    )


def fetch_device_key(channel_id: int) -> bytes | None:
    """What the channel's devices are hashed with; None where they are shown as they are."""
    if not Channel.objects.filter(pk=channel_id, hash_device_ids=True).exists():
        return None
    return device_hash.derive_key(channel_id, "device")


def load_zone(name: str) -> ZoneInfo:
    """The time zone of that name. Raises `ValueError` with the remedy."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("Unknown time zone; write one like UTC or Asia/Kolkata.") from None


def day_range(first: date, last: date, zone_name: str) -> tuple[datetime, datetime]:
    """Whole days in a time zone, both ends included, as the half-open range of moments."""
    tz = load_zone(zone_name)
    return (
        datetime.combine(first, time.min, tz),
        datetime.combine(last + timedelta(days=1), time.min, tz),
    )
