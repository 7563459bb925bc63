"""When a failed delivery is tried again."""

import random
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Backoff:
    """A schedule of retries: `delays_seconds[n]` is the delay after failure n + 1.

    Each delay is multiplied by a random factor from `jitter`. A receiver's `Retry-After` counts up
    to the last delay: it replaces the delay, or only lengthens it where `can_shorten` is false.
    """

    delays_seconds: tuple[int, ...]
    jitter: tuple[float, float]
    can_shorten: bool

    @property
    def max_attempts(self) -> int:
        return len(self.delays_seconds) + 1

    def delay(self, failures: int, retry_after_seconds: int = 0) -> timedelta:
        """The time to wait after that many failures in a row."""
        seconds = self.delays_seconds[failures - 1] * random.uniform(*self.jitter)  # noqa: S311
        requested = min(retry_after_seconds, self.delays_seconds[-1])
        if requested:
            seconds = float(requested) if self.can_shorten else max(seconds, requested)
        return timedelta(seconds=seconds)
