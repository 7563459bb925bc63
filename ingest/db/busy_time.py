"""The time for which a thread keeps a processor or the database busy.

What it waits for a processor is left out, so a caller hardly pays for the load that others make.
A database that is slow because of others counts.
"""

import threading
import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

Row = TypeVar("Row")
Result = TypeVar("Result")


class _Waited(threading.local):
    seconds = 0.0  # for the database


_waited = _Waited()


def read_busy_seconds() -> float:
    """Returns the seconds of this thread since it began. SQLite's count as the processor's."""
    return time.thread_time() + _waited.seconds


class Connection(psycopg.Connection[Row]):
    """A connection whose thread counts the time that it waits for answers."""

    def wait(self, gen: Generator[Any, Any, Result], *args: Any, **options: Any) -> Result:
        started_at = time.monotonic()
        try:
            return super().wait(gen, *args, **options)
        finally:
            _waited.seconds += time.monotonic() - started_at
