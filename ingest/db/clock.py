"""The database's clock, which all processes share, whatever their machines' clocks show.

Times that are stored or compared come from here, or from `Now()` in a statement.
"""

from datetime import UTC, datetime, timedelta
from functools import cache
from time import monotonic

from django.db import Error, connection

from ingest.db.prepared import fetch_all

SAMPLE_SECONDS = 60.0
sample: tuple[datetime, float] | None = None  # the database's time, and ours when it came
retry_at = 0.0


def read_clock(*, may_ask: bool = True) -> datetime:
    """Returns the database's time, at most a round trip behind it.

    Asks once a minute, and counts on from there. Where it may not ask (on an event loop, or beside
    a failed database) it counts on for longer; a process that never asked has its own time.
    """
    global sample, retry_at
    if not _has_server():
        return datetime.now(UTC)  # noqa: TID251
    now = monotonic()
    is_old = sample is None or now > sample[1] + SAMPLE_SECONDS
    if may_ask and is_old and now >= retry_at:
        retry_at = now + 1  # one thread is enough
        try:
            ((database_time,),) = fetch_all("SELECT clock_timestamp()", [])
        except Error:
            pass
        else:
            sample, retry_at = (database_time, monotonic()), 0.0
    if sample is None:
        return datetime.now(UTC)  # noqa: TID251
    return sample[0] + timedelta(seconds=monotonic() - sample[1])


@cache
def _has_server() -> bool:
    """Whether the database has a clock of its own.

    Asked once: on an event loop Django makes a connection object for each task that asks for one.
    """
    return connection.vendor == "postgresql"
