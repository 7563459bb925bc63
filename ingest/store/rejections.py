"""What of a batch was no event or no profile is kept, with the reason, beside the good."""

import hashlib
from collections.abc import Sequence
from datetime import datetime

from ingest.events import Rejection
from ingest.models import Rejected
from ingest.privacy.encryption import seal

RAW_KEPT = 256 * 1024


def keep(
    channel_id: int,
    dialect: str,
    received_at: datetime,
    rejected: Sequence[Rejection],
    application_id: int | None = None,
) -> None:
    """In the transaction that stores the good ones; what was kept before is not kept twice."""
    if not rejected:
        return
    rows = [
        Rejected(
            channel_id=channel_id,
            application_id=application_id,
            dialect=dialect,
            received_at=received_at,
            position=rejection.position,
            reason=rejection.reason[:64],
            detail=rejection.detail,
            digest=hashlib.sha256(rejection.raw).hexdigest(),
            size=len(rejection.raw),
            sealed=seal(rejection.raw[:RAW_KEPT]),
        )
        for rejection in rejected
    ]
    rows.sort(key=lambda row: row.digest)  # one order of locking
    Rejected.objects.bulk_create(rows, ignore_conflicts=True)
