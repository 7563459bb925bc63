"""Counters of ingest. `exhaust/monitoring/metrics.py` serves them."""

from collections.abc import Iterable
from functools import cache

from prometheus_client import Counter

EVENTS = Counter(
    "exhaust_events",
    "Events and profiles that were sent, by source and outcome.",
    ["source", "outcome"],
)
REJECTED_NOT_KEPT = Counter(
    "exhaust_rejected_events_not_kept",
    "Rejected events that are only counted: beyond the bounds of a `batch`, or of a `day`.",
    ["bound"],
)
RATE_LIMIT_DECISIONS = Counter(
    "exhaust_rate_limit_decisions",
    "Calls of authenticated callers, by rate limit.",
    ["limit", "decision"],
)
OVERLOAD_REJECTIONS = Counter(
    "exhaust_http_overload_rejections", "Requests that were rejected with 503 because of overload."
)


_find_counter = cache(lambda counter, *labels: counter.labels(*labels))


def begin_counts(sources: Iterable[str]) -> None:
    """Shows 0 for what an alert counts: Prometheus sees no rise in a count's first value."""
    for source in sources:
        for outcome in ("stored", "rejected"):
            EVENTS.labels(source, outcome)


def count_batch(source: str, stored: int, duplicate: int, rejected: int) -> None:
    """Counts the outcomes of a batch."""
    for outcome, number in (("stored", stored), ("duplicate", duplicate), ("rejected", rejected)):
        if number:
            _find_counter(EVENTS, source, outcome).inc(number)


def count_decision(limit: str, decision: str) -> None:
    """Counts a call that a rate limit allowed or rejected."""
    _find_counter(RATE_LIMIT_DECISIONS, limit, decision).inc()
