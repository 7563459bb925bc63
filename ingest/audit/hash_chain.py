"""Digests each day of the audit log together with the day before, which reveals changed rows.

The daily run digests each past day (UTC). An attacker who gets past the triggers can make the
digests anew, so each digest is also logged: keep the log elsewhere.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta

from django.db import IntegrityError, transaction

from ingest import logs
from ingest.db.clock import read_clock
from ingest.models import AuditDigest, AuditEvent

log = logs.get_logger(__name__)
_DAY = timedelta(days=1)
_SETTLED_AFTER = timedelta(hours=2)  # no transaction of a day is open so long after its end
DIGESTED_FIELDS = (
    "id",
    "recorded_at",
    "action",
    "outcome",
    "actor",
    "key",
    "channel",
    "subject",
    "address",
)


def digest_days(now: datetime | None = None) -> int:
    """Digests the past days without a digest. Returns their number. Two runs at once are safe."""
    today = ((now or read_clock()) - _SETTLED_AFTER).astimezone(UTC).date()
    last = AuditDigest.objects.order_by("-day").first()
    day = last.day + _DAY if last else _fetch_first_day()
    count = 0
    while day is not None and day < today:
        entries, digest = _digest_day(day, last.digest if last else "")
        try:
            with transaction.atomic():
                last = AuditDigest.objects.create(
                    day=day,
                    entries=entries,
                    previous=last.digest if last else "",
                    digest=digest,
                )
        except IntegrityError:  # another run was first
            return count
        log.info("audit.day_digested", day=str(day), entries=entries, digest=digest)
        day += _DAY
        count += 1
    return count


def find_mismatches() -> Iterator[str]:
    """Yields a sentence for each day that does not match its digest.

    The oldest digest begins the chain: older ones may have been exported and deleted.
    """
    previous: AuditDigest | None = None
    first = _fetch_first_day()
    for stored in AuditDigest.objects.order_by("day").iterator():
        if previous is None and first is not None and first < stored.day:
            yield f"{first}: there are events from before the first digest."
        if previous is not None and stored.day != previous.day + _DAY:
            yield f"{stored.day}: the digests of the days before it are missing."
        elif previous is not None and stored.previous != previous.digest:
            yield f"{stored.day}: does not follow the digest of the day before."
        entries, digest = _digest_day(stored.day, stored.previous)
        if entries != stored.entries:
            yield f"{stored.day}: digested with {stored.entries} events, there are {entries}."
        elif digest != stored.digest:
            yield f"{stored.day}: an event is not as it was digested."
        previous = stored


def _fetch_first_day() -> date | None:
    first = AuditEvent.objects.order_by("recorded_at", "id").first()
    return first.recorded_at.astimezone(UTC).date() if first else None


def _digest_day(day: date, previous: str) -> tuple[int, str]:
    """Returns (number of events, SHA-256 over the previous digest and each event, by id)."""
    begins_at = datetime.combine(day, time.min, UTC)
    rows = AuditEvent.objects.filter(
        recorded_at__gte=begins_at, recorded_at__lt=begins_at + _DAY
    ).order_by("id")
    digest = hashlib.sha256(f"{previous}\n{day}\n".encode())
    count = 0
    for row in rows.values_list(*DIGESTED_FIELDS, "details").iterator():
        pk, recorded_at, *rest = row
        values = [pk, recorded_at.astimezone(UTC).isoformat(timespec="microseconds"), *rest]
        digest.update(json.dumps(values, sort_keys=True).encode() + b"\n")
        count += 1
    return count, digest.hexdigest()
