"""Seals: each day of the ledger digested with the day before, so that a changed row is found.

The daily run seals every day (UTC) that is over. Who can change rows in spite of the database's
guard can make the seals anew too; so a seal's digest goes into the log, which lies elsewhere.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta

from django.db import IntegrityError, transaction
from django.utils import timezone

from ingest.models import LedgerEntry, LedgerSeal

log = logging.getLogger(__name__)
_DAY = timedelta(days=1)
FIELDS = ("id", "at", "action", "outcome", "actor", "key", "channel", "subject", "address")


def seal_days(now: datetime | None = None) -> int:
    """Seals the days before today that are not sealed; how many. Two at once make one seal."""
    today = (now or timezone.now()).astimezone(UTC).date()
    last = LedgerSeal.objects.order_by("-day").first()
    day = last.day + _DAY if last else _first_day()
    count = 0
    while day is not None and day < today:
        entries, digest = _digest(day, last.digest if last else "")
        try:
            with transaction.atomic():
                last = LedgerSeal.objects.create(
                    day=day,
                    entries=entries,
                    previous=last.digest if last else "",
                    digest=digest,
                )
        except IntegrityError:  # another was first
            return count
        log.info("ledger.sealed day=%s entries=%s digest=%s", day, entries, digest)
        day += _DAY
        count += 1
    return count


def faults() -> Iterator[str]:
    """What does not agree with the seals, in sentences; nothing where all does.

    The first seal that there is begins the chain: older ones may have been exported and dropped.
    """
    previous: LedgerSeal | None = None
    first = _first_day()
    for seal in LedgerSeal.objects.order_by("day").iterator():
        if previous is None and first is not None and first < seal.day:
            yield f"{first}: there are entries from before the first seal."
        if previous is not None and seal.day != previous.day + _DAY:
            yield f"{seal.day}: the seals of the days before it are missing."
        elif previous is not None and seal.previous != previous.digest:
            yield f"{seal.day}: does not follow the seal of the day before."
        entries, digest = _digest(seal.day, seal.previous)
        if entries != seal.entries:
            yield f"{seal.day}: sealed with {seal.entries} entries, there are {entries}."
        elif digest != seal.digest:
            yield f"{seal.day}: an entry is not as it was sealed."
        previous = seal


def _first_day() -> date | None:
    first = LedgerEntry.objects.order_by("at", "id").first()
    return first.at.astimezone(UTC).date() if first else None


def _digest(day: date, previous: str) -> tuple[int, str]:
    """(entries, SHA-256 over the seal before and each entry in JSON, by id)."""
    begin = datetime.combine(day, time.min, UTC)
    found = LedgerEntry.objects.filter(at__gte=begin, at__lt=begin + _DAY).order_by("id")
    digest = hashlib.sha256(f"{previous}\n{day}\n".encode())
    count = 0
    for row in found.values_list(*FIELDS, "details").iterator():
        pk, at, *rest = row
        told = [pk, at.astimezone(UTC).isoformat(timespec="microseconds"), *rest]
        digest.update(json.dumps(told, sort_keys=True).encode() + b"\n")
        count += 1
    return count, digest.hexdigest()
