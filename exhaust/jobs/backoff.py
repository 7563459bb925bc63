"""How often a failed job is tried again, and after which delay."""

import random
from datetime import timedelta

MAX_ATTEMPTS = 3
FIRST_RETRY_DELAY = timedelta(seconds=10)


def choose_retry_delay(failure_count: int) -> timedelta:
    """The delay after that many failures: four times the one before, give or take a quarter."""
    jitter = random.uniform(0.75, 1.25)  # noqa: S311
    return FIRST_RETRY_DELAY * (4.0 ** (failure_count - 1) * jitter)
