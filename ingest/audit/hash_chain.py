"""Seals: each day of the ledger digested with the day before, so that a changed row is found.

The daily run seals every day (UTC) that is over. Who can change rows in spite of the database's
guard can make the seals anew too; so a seal's digest goes into the log, which lies elsewhere.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta

from django.db import IntegrityError, transaction
from django.utils import timezone

from ingest import logs
from ingest.models import AuditDigest, AuditEvent

log = logs.get_logger(__name__)
_DAY = timedelta(days=1)
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
    """Seals the days before today that are not sealed; how many. Two at once make one seal."""
    today = (now or timezone.now()).astimezone(UTC).date()
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
        except IntegrityError:  # another was first
            return count
        log.info("audit.day_digested", day=day, entries=entries, digest=digest)
        day += _DAY
        count += 1
    return count


def find_mismatches() -> Iterator[str]:
    """What does not agree with the seals, in sentences; nothing where all does.

    The first seal that there is begins the chain: older ones may have been exported and dropped.
    """
    previous: AuditDigest | None = None
    first = _fetch_first_day()
    for stored in AuditDigest.objects.order_by("day").iterator():
        if previous is None and first is not None and first < stored.day:
            yield f"{first}: there are entries from before the first seal."
        if previous is not None and stored.day != previous.day + _DAY:
            yield f"{stored.day}: the seals of the days before it are missing."
        elif previous is not None and stored.previous != previous.digest:
            yield f"{stored.day}: does not follow the seal of the day before."
        entries, digest = _digest_day(stored.day, stored.previous)
        if entries != stored.entries:
            yield f"{stored.day}: sealed with {stored.entries} entries, there are {entries}."
        elif digest != stored.digest:
            yield f"{stored.day}: an entry is not as it was sealed."
        previous = stored


def _fetch_first_day() -> date | None:
    first = AuditEvent.objects.order_by("recorded_at", "id").first()
    return first.recorded_at.astimezone(UTC).date() if first else None


def _digest_day(day: date, previous: str) -> tuple[int, str]:
    """(entries, SHA-256 over the seal before and each entry in JSON, by id)."""
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
