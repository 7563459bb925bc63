"""Failed tries to get in, counted: whoever guesses must cost neither a write nor a row each.

A process counts by hour and network and adds that to the hour's row every ten seconds. When the
hour is over the row becomes an entry of the ledger. A process that is killed forgets what it
counted since.
"""

import logging
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import DatabaseError, close_old_connections, connection, transaction
from django.http import HttpRequest
from django.utils import timezone

from ingest import audit
from ingest.audit import Actor
from ingest.limits import token_bucket
from ingest.models import Refusal

log = logging.getLogger(__name__)
EVERY_SECONDS = 10.0
MAX_NETWORKS = 1000  # told apart between two writes; the rest is counted without address
_LATE = timedelta(minutes=2)  # for what is still on its way from a process
_lock = threading.Lock()
_counted: Counter[tuple[datetime, str, str]] = Counter()
_written = 0.0
_ADD = """
INSERT INTO ingest_refusal (hour, action, address, count) VALUES (%s, %s, %s, %s)
ON CONFLICT (hour, action, address) DO UPDATE SET count = ingest_refusal.count + excluded.count
"""


def count(action: str, request: HttpRequest | None) -> None:
    """One more; what was tried is not kept, it may be a secret with one letter wrong."""
    address = audit.shortened(token_bucket.address(request)) if request is not None else ""
    hour = timezone.now().astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    with _lock:
        if len(_counted) >= MAX_NETWORKS and (hour, action, address) not in _counted:
            address = ""
        _counted[hour, action, address] += 1


def flush_when_due(**_: Any) -> None:
    """At the end of any request, so also of a probe's."""
    if _counted and time.monotonic() - _written >= EVERY_SECONDS:
        flush()
        if not connection.in_atomic_block:
            close_old_connections()  # Django has closed those of this request before


def flush() -> None:
    """Adds what this process counted to the hour's rows; what the database does not take, later."""
    global _written
    with _lock:
        _written = time.monotonic()
        taken = dict(_counted)
        _counted.clear()
    when = connection.ops.adapt_datetimefield_value
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.executemany(
                _ADD, [[when(hour), action, address, n] for (hour, action, address), n
                       in sorted(taken.items())]
            )  # fmt: skip
    except DatabaseError:
        log.warning("refusals.not_written networks=%s", len(taken))
        with _lock:
            _counted.update(taken)


def settle(now: datetime | None = None) -> int:
    """Moves the hours that are over into the ledger; how many entries that made."""
    over = (now or timezone.now()) - timedelta(hours=1) - _LATE
    settled = 0
    for row in Refusal.objects.filter(hour__lte=over).order_by("hour", "id")[:MAX_NETWORKS]:
        with transaction.atomic():
            held = Refusal.objects.select_for_update(skip_locked=True).filter(pk=row.pk).first()
            if held is None:
                continue
            token = audit.acting.set(Actor("unknown", address=held.address))
            try:
                audit.record(
                    held.action, outcome="refused", hour=held.hour.isoformat(), count=held.count
                )
            finally:
                audit.acting.reset(token)
            held.delete()
        settled += 1
    return settled
