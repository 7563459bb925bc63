"""From a request's `datasetConfig` to the rows that it names."""

from collections.abc import Mapping
from datetime import date
from typing import Any

from exhaust.datasets.base import Dataset
from exhaust.datasets.selection import Selection, day_range
from exhaust.datasets.supplement import find_since_xid
from ingest.models import Application, Channel, Conversation, StoredEvent
from ingest.privacy import device_hash

FIRST_DAY, LAST_DAY = "1970-01-01", "9000-12-31"  # of a request for all days


def resolve_selection(
    dataset: Dataset,
    channel_id: int,
    config: Mapping[str, Any],
    watermark: int,
    limit: int | None = None,
) -> Selection:
    """The rows that a valid datasetConfig names.

    Raises `LookupError` where no supplement can follow the request in its `since`.
    """
    since = _optional_text(config.get("since"))
    conversation_id = _optional_text(config.get("conversationId"))
    conversation = Conversation.objects.filter(
        channel=channel_id, identifier=conversation_id
    ).first()
    start, end = day_range(
        date.fromisoformat(config.get("startDate") or FIRST_DAY),
        date.fromisoformat(config.get("endDate") or LAST_DAY),
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
        since_xid=0 if since is None else find_since_xid(dataset, channel_id, since),
        types=tuple(sorted({str(name) for name in config.get("types") or dataset.types})),
        application_id=_find_application_id(channel_id, config),
        limit=limit,
        device_key=fetch_device_key(channel_id),
        shares_events=conversation is not None
        and StoredEvent.objects.filter(
            channel_id=channel_id,
            other_conversations__isnull=False,
            other_conversations__contains=f",{conversation.pk},",
        ).exists(),
    )


def _optional_text(value: Any) -> str | None:
    return None if value is None else str(value)  # the configuration is stored as it was sent


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
    """The key that hashes the channel's device ids; None where they are shown as they are."""
    if not Channel.objects.filter(pk=channel_id, hash_device_ids=True).exists():
        return None
    return device_hash.derive_key(channel_id, "device")
