"""What of a channel a job is about, and what a dataset is."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.db import connection

from exhaust.datasets.supplement import _since, _text
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
    since: int = 0
    types: tuple[str, ...] = ()
    application_id: int | None = None  # 0 when the channel has none of that name
    limit: int | None = None
    device_key: bytes | None = field(default=None, repr=False)  # to hash devices with

    def where(self, event: str = "e") -> tuple[str, dict[str, Any]]:
        """The SQL condition over an event's alias, and its parameters.

        Of an event in several versions it is the one that stood at the watermark.
        """
        where, params = self.standing("occurred_at", event)
        cast = _xid()
        where += (
            f" AND ({event}.superseded_xid IS NULL"
            f" OR {event}.superseded_xid >= %(watermark)s{cast})"
        )
        if self.conversation_id is not None:
            where += f" AND {event}.conversation_id = %(conversation_pk)s"
            params["conversation_pk"] = self.conversation_id
        if self.types:
            types = {f"type_{place}": name for place, name in enumerate(self.types)}
            where += f" AND {event}.type IN ({', '.join(f'%({name})s' for name in types)})"
            params |= types
        return where, params

    def standing(self, moment: str, row: str = "e") -> tuple[str, dict[str, Any]]:
        """The same for any table with positions, whose days are of its column `moment`."""
        cast = _xid()
        adapt = connection.ops.adapt_datetimefield_value
        where = (
            f"{row}.channel_id = %(channel)s"
            f" AND {row}.{moment} >= %(start)s AND {row}.{moment} < %(end)s"
            f" AND {row}.xid < %(watermark)s{cast}"
        )
        params = {
            "channel": self.channel_id,
            "start": adapt(self.start),
            "end": adapt(self.end),
            "watermark": str(self.watermark) if cast else self.watermark,
        }
        if self.since:
            where += f" AND {row}.xid >= %(since)s{cast}"
            params["since"] = str(self.since) if cast else self.since
        if self.application_id is not None:
            where += f" AND {row}.application_id = %(application)s"
            params["application"] = self.application_id
        return where, params

    def device(self, device_id: str) -> str:
        """A device as response and private files name it."""
        if self.device_key is None or not device_id:
            return device_id
        return hmac.digest(self.device_key, device_id.encode(), hashlib.sha256)[:16].hex()

    def device_sql(self, cell: str) -> tuple[str, dict[str, bytes]]:
        """The same of a cell in PostgreSQL, whose core has SHA-256 but no HMAC."""
        if self.device_key is None:
            return cell, {}
        block = self.device_key.ljust(64, b"\0")
        pads = {
            name: bytes(byte ^ pad for byte in block)
            for name, pad in (("inner_pad", 0x36), ("outer_pad", 0x5C))
        }
        inner = f"sha256(%(inner_pad)s::bytea || convert_to({cell}, 'UTF8'))"
        return f"encode(substr(sha256(%(outer_pad)s::bytea || {inner}), 1, 16), 'hex')", pads

    @property
    def tail(self) -> str:
        """What ends a query for its first rows only."""
        return "" if self.limit is None else f" LIMIT {self.limit:d}"


def _xid() -> str:
    return "::xid8" if connection.vendor == "postgresql" else ""


def selected(
    dataset: str,
    channel_id: int,
    config: Mapping[str, Any],
    watermark: int,
    limit: int | None = None,
) -> Selection:
    """What a valid datasetConfig asks for. Raises `LookupError` where its `since` names no file."""
    identifier = _text(config.get("conversationId"))
    conversation = Conversation.objects.filter(channel=channel_id, identifier=identifier).first()
    start, end = days(
        date.fromisoformat(config["startDate"]),
        date.fromisoformat(config["endDate"]),
        config.get("timezone") or "UTC",
    )
    return Selection(
        channel_id=channel_id,
        conversation_id=None if identifier is None else _pk(conversation),
        conversation=identifier or "",
        conversation_name=conversation.name if conversation else "",
        start=start,
        end=end,
        watermark=watermark,
        since=_since(dataset, channel_id, config),
        types=tuple(sorted({str(name) for name in config.get("types") or ()})),
        application_id=_application(channel_id, config),
        limit=limit,
        device_key=device_key(channel_id),
    )


def _pk(row: Conversation | Application | None) -> int:
    return row.pk if row is not None else 0


def _application(channel_id: int, config: Mapping[str, Any]) -> int | None:
    identifier = _text(config.get("application"))
    if identifier is None:
        return None
    return _pk(Application.objects.filter(channel=channel_id, identifier=identifier).first())


def device_key(channel_id: int) -> bytes | None:
    """What the channel's devices are hashed with; None where they are shown as they are."""
    if not Channel.objects.filter(pk=channel_id, hash_device_ids=True).exists():
        return None
    return device_hash.key_for(channel_id, "device")


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
