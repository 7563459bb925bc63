"""Counts failed authentication, so that a guess costs neither a write nor a row.

A process counts by hour and network, and adds its counts to the hour's row every ten seconds. When
the hour is over, the row becomes one event of the audit log. A killed process loses the counts
since its last flush.
"""

import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import DatabaseError, close_old_connections, connection, transaction

from ingest import audit, logs
from ingest.audit import Actor
from ingest.db.clock import read_clock
from ingest.limits import token_bucket
from ingest.limits.token_bucket import HttpMessage
from ingest.models import AuthFailureCount

log = logs.get_logger(__name__)
FLUSH_SECONDS = 10.0
MAX_NETWORKS = 1000  # between two flushes; failures of further networks share one count
_ROLL_UP_DELAY = timedelta(minutes=2)  # for counts that a process has not flushed yet
_lock = threading.Lock()
pending_counts: Counter[tuple[datetime, str, str]] = Counter()
_flushed_at = 0.0
ADD_SQL = """
INSERT INTO ingest_authfailurecount (hour, action, address, count) VALUES (%s, %s, %s, %s)
ON CONFLICT (hour, action, address)
DO UPDATE SET count = ingest_authfailurecount.count + excluded.count
"""


def count_failure(action: str, request: HttpMessage | None) -> None:
    """Counts one failure. The credential is not stored: it may be a secret with a typing error."""
    address = (
        audit.truncate_address(token_bucket.get_client_address(request))
        if request is not None
        else ""
    )
    hour = read_clock().astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    with _lock:
        if len(pending_counts) >= MAX_NETWORKS and (hour, action, address) not in pending_counts:
            address = ""
        pending_counts[hour, action, address] += 1


def flush_when_due(**_: Any) -> None:
    """Flushes the counts, after any request (also a probe's) that finds them old enough."""
    if pending_counts and time.monotonic() - _flushed_at >= FLUSH_SECONDS:
        flush_counts()
        if not connection.in_atomic_block:
            close_old_connections()  # Django has closed the request's own before


def flush_counts() -> None:
    """Adds the counts to the hours' rows. A failed write keeps them for the next flush."""
    global _flushed_at
    with _lock:
        _flushed_at = time.monotonic()
        counts = dict(pending_counts)
        pending_counts.clear()
    adapt_datetime = connection.ops.adapt_datetimefield_value
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.executemany(
                ADD_SQL, [[adapt_datetime(hour), action, address, n] for (hour, action, address), n
                       in sorted(counts.items())]
            )  # fmt: skip
    except DatabaseError as error:
        log.warning("auth_failures.flush_failed", networks=len(counts), error=error)
        with _lock:
            pending_counts.update(counts)


def roll_up(now: datetime | None = None) -> int:
    """Moves the counts of past hours into the audit log. Returns the number of new events."""
    rolled_before = (now or read_clock()) - timedelta(hours=1) - _ROLL_UP_DELAY
    recorded = 0
    for row in AuthFailureCount.objects.filter(hour__lte=rolled_before).order_by("hour", "id")[
        :MAX_NETWORKS
    ]:
        with transaction.atomic():
            counted = (
                AuthFailureCount.objects.select_for_update(skip_locked=True)
                .filter(pk=row.pk)
                .first()
            )
            if counted is None:
                continue
            token = audit.current_actor.set(Actor("unknown", address=counted.address))
            try:
                audit.record(
                    counted.action,
                    outcome="rejected",
                    hour=counted.hour.isoformat(),
                    count=counted.count,
                )
            finally:
                audit.current_actor.reset(token)
            counted.delete()
        recorded += 1
    return recorded
