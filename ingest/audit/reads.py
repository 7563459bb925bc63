"""Counts what is pulled and pushed, by reader and hour; a past hour enters the audit log.

A count is written when the page is read, or when the receiver has taken the batch: none is lost.
"""

from datetime import UTC, datetime, timedelta

from django.db import connection, transaction

from ingest import audit
from ingest.audit import Actor
from ingest.db.clock import read_clock
from ingest.models import ReadCount

MAX_ROLLED_UP = 1000  # in one sweep
_ADD_SQL = """
INSERT INTO ingest_readcount
    (hour, action, actor, key, address, channel, subject, call_count, row_count)
VALUES (%s, %s, %s, %s, %s, %s, %s, 1, %s)
ON CONFLICT (hour, action, actor, key, address, channel, subject) DO UPDATE SET
    call_count = ingest_readcount.call_count + 1,
    row_count = ingest_readcount.row_count + excluded.row_count
"""


def count_read(action: str, channel: str, subject: str, row_count: int) -> None:
    """Counts the rows that the current actor has read; nothing where there are none."""
    if not row_count:
        return
    actor = audit.current_actor.get()
    hour = read_clock().astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    values = [
        connection.ops.adapt_datetimefield_value(hour),
        action,
        actor.name[:255],
        actor.key,
        actor.address,
        channel,
        subject[:255],
        row_count,
    ]
    with connection.cursor() as cursor:
        cursor.execute(_ADD_SQL, values)


def roll_up(now: datetime | None = None) -> int:
    """Moves the counts of past hours into the audit log. Returns the number of new events."""
    past = ReadCount.objects.filter(hour__lte=(now or read_clock()) - timedelta(hours=1))
    with transaction.atomic():
        rows = list(past.order_by("hour", "id").select_for_update(skip_locked=True)[:MAX_ROLLED_UP])
        for row in rows:
            with audit.act_as(Actor(row.actor, row.key, row.address)):
                audit.record(
                    row.action,
                    channel=row.channel,
                    subject=row.subject,
                    hour=row.hour.isoformat(),
                    calls=row.call_count,
                    rows=row.row_count,
                )
        ReadCount.objects.filter(pk__in=[row.pk for row in rows]).delete()
    return len(rows)
