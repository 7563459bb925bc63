"""What the doors count; `exhaust/monitoring/metrics.py` shows it."""

from prometheus_client import Counter

EVENTS = Counter(
    "exhaust_events",
    "What was sent, by door and by what became of it.",
    ["source", "outcome"],
)
RATE_LIMIT_DECISIONS = Counter(
    "exhaust_rate_limit_decisions", "Calls of known callers, by class.", ["limit", "decision"]
)
OVERLOAD_REJECTIONS = Counter(
    "exhaust_http_overload_rejections", "Requests answered 503 because too many were at work."
)


def count_batch(source: str, stored: int, duplicate: int, rejected: int) -> None:
    """What became of one batch."""
    for outcome, number in (("stored", stored), ("duplicate", duplicate), ("rejected", rejected)):
        if number:
            EVENTS.labels(source, outcome).inc(number)
