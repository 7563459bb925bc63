"""What the doors count; `exhaust/monitoring/metrics.py` shows it."""

from prometheus_client import Counter

EVENTS = Counter(
    "exhaust_events",
    "What was sent, by door and by what became of it.",
    ["door", "outcome"],
)
LIMITED = Counter(
    "exhaust_limiter_decisions", "Calls of known callers, by class.", ["limit", "decision"]
)
SHED = Counter("exhaust_shed", "Requests answered 503 because too many were at work.")


def count(door: str, stored: int, duplicate: int, rejected: int) -> None:
    """What became of one batch."""
    for outcome, number in (("stored", stored), ("duplicate", duplicate), ("rejected", rejected)):
        if number:
            EVENTS.labels(door, outcome).inc(number)
