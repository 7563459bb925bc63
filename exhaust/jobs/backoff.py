"""How often a job is tried again, and after which delay."""

import random
from datetime import timedelta

MAX_ATTEMPTS = 3
MAX_UNCOUNTED = 10  # attempts that lost the database
FIRST_RETRY_DELAY = timedelta(seconds=10)
LONGEST_OUTAGE_DELAY = timedelta(minutes=5)
OUTAGE_LIMIT = timedelta(hours=24)  # from the first attempt; then the job is FAILED


def choose_retry_delay(failure_count: int) -> timedelta:
    """The delay after that many failures: four times the one before, give or take a quarter."""
    jitter = random.uniform(0.75, 1.25)  # noqa: S311
    return FIRST_RETRY_DELAY * (4.0 ** (failure_count - 1) * jitter)


def choose_outage_delay(previous_delay: timedelta | None) -> timedelta:
    """The delay until a storage that cannot be reached is tried again: twice the one before."""
    delay = previous_delay * 2 if previous_delay else FIRST_RETRY_DELAY
    return min(max(delay, FIRST_RETRY_DELAY), LONGEST_OUTAGE_DELAY)
