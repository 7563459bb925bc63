"""Event loops of tests."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def run_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Returns the result of a coroutine on a loop in a thread of its own.

    Playwright leaves a loop running in the thread of the tests.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
