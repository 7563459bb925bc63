"""Stores the rejections of a batch with their reasons, encrypted."""

import hashlib
from collections.abc import Sequence
from datetime import datetime

from ingest.events import Rejection
from ingest.models import RejectedEvent
from ingest.privacy.encryption import encrypt

MAX_STORED_BYTES = 256 * 1024


def store_rejections(
    channel_id: int,
    source: str,
    received_at: datetime,
    rejections: Sequence[Rejection],
    application_id: int | None = None,
) -> None:
    """Inserts rejections in the transaction of the batch. Equal bytes are stored once."""
    if not rejections:
        return
    rows = [
        RejectedEvent(
            channel_id=channel_id,
            application_id=application_id,
            source=source,
            received_at=received_at,
            position=rejection.position,
            reason=rejection.reason[:64],
            detail=rejection.detail,
            digest=hashlib.sha256(rejection.raw).hexdigest(),
            size=len(rejection.raw),
            encrypted_body=encrypt(rejection.raw[:MAX_STORED_BYTES]),
        )
        for rejection in rejections
    ]
    rows.sort(key=lambda row: row.digest)  # one order of locking
    RejectedEvent.objects.bulk_create(rows, ignore_conflicts=True)
