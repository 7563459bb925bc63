"""Requests as the handlers on the event loop read them."""

from ingest.collector.exchange import Request
from ingest.collector.servers import AsgiRequest


def make_request(address: str, method: str = "GET", **headers: str) -> Request:
    """Returns a request without a body."""
    path, _, query = address.partition("?")
    scope = {
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), text.encode()) for name, text in headers.items()],
        "client": ("127.0.0.1", 1),
        "scheme": "http",
    }
    return AsgiRequest(scope, None)
