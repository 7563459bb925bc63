"""Event loops of tests."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ingest.collector.exchange import Request
from ingest.collector.servers import AsgiRequest


def run_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Returns the result of a coroutine on a loop in a thread of its own.

    Playwright leaves a loop running in the thread of the tests.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def make_request(address: str, method: str = "GET", **headers: str) -> Request:
    """Returns a request without a body, as the event loop's handlers read it."""
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
