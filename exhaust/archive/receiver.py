"""Receives the erasures of persons. It imports pyarrow only where a channel has an archive."""

from collections.abc import Callable
from typing import Any

from exhaust.models import ArchiveRun


def erase_device(
    channel_id: int, device_id: str, record_rows: Callable[[int], None], **_: Any
) -> int | None:
    """Receives `ingest.privacy.erasure.archive_erasing`; 0 where nothing was ever archived."""
    if not ArchiveRun.objects.filter(channel=channel_id).exists():
        return 0
    from exhaust.archive import erase

    return erase.erase_device(channel_id, device_id, record_rows)
