"""The web pages that may send, and read our responses (CORS), by the origins of applications."""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from ingest.adapters.base import Cors
from ingest.db.prepared import fetch_all

_ORIGINS_SQL = """
SELECT channel_id, allowed_origins FROM ingest_application
WHERE disabled_at IS NULL AND allowed_origins <> ''
"""


class Origins(NamedTuple):
    """The origins of all enabled applications."""

    by_channel: Mapping[int, frozenset[str]]
    anywhere: frozenset[str]

    def allow(self, origin: str, channel_id: int | None = None) -> bool:
        """Whether a page may send to the channel; for an unknown channel, to any."""
        if channel_id is None:
            return origin in self.anywhere
        return origin in self.by_channel.get(channel_id, ())


def fetch_origins() -> Origins:
    """Returns the origins as they are now. The caller may keep them for a second."""
    by_channel: dict[int, set[str]] = defaultdict(set)
    for channel_id, allowed_origins in fetch_all(_ORIGINS_SQL, []):
        by_channel[channel_id].update(allowed_origins.split())
    return Origins(
        {channel_id: frozenset(origins) for channel_id, origins in by_channel.items()},
        frozenset().union(*by_channel.values()),
    )


def build_cors_headers(cors: Cors, method: str, origin: str, *, is_allowed: bool) -> dict[str, str]:
    """Returns the headers by which a browser lets the page send, and read the response.

    Each response varies by origin, so that no cache gives it to another page.
    """
    headers = {"Vary": "Origin"}
    if not origin or not is_allowed:
        return headers
    headers |= {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Expose-Headers": cors.exposed,
    }
    if method == "OPTIONS":
        headers |= {
            "Access-Control-Allow-Methods": cors.methods,
            "Access-Control-Allow-Headers": cors.headers,
            "Access-Control-Max-Age": str(cors.max_age_seconds),
        }
    return headers
