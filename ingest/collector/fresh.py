"""Values that are at most a second old: a revoked key is refused everywhere within that time."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from time import monotonic
from typing import Any, TypeVar

FRESH_SECONDS = 1.0
MAX_ENTRIES = 10_000
Value = TypeVar("Value")
Load = Callable[[], Awaitable[Value]]


class FreshCache:
    """Remembers loaded values for a second.

    A value that is asked for all the time is loaded again when half of the second is over, while
    the old one still answers. Requests that miss at the same time wait for one load.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._loading: dict[Hashable, asyncio.Task[Any]] = {}

    async def get(self, key: Hashable, load: Load[Value]) -> Value:
        """Returns the value of the key. Raises what `load` raises."""
        entry = self._entries.get(key)
        if entry is not None:
            age = monotonic() - entry[0]
            if age < FRESH_SECONDS:
                if age > FRESH_SECONDS / 2 and key not in self._loading:
                    self._start(key, load)
                value: Value = entry[1]
                return value
        task = self._loading.get(key)
        if task is None:
            task = self._start(key, load)
            return await asyncio.shield(task)
        try:
            return await asyncio.shield(task)
        except Exception:
            return await load()  # the failure may have been the other caller's

    def _start(self, key: Hashable, load: Load[Value]) -> asyncio.Task[Value]:
        task = self._loading[key] = asyncio.ensure_future(self._load(key, load))
        task.add_done_callback(partial(self._end, key))
        return task

    def _end(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._loading[key]
        if not task.cancelled():
            task.exception()  # told to those who wait, and to nobody where it was a renewal

    async def _load(self, key: Hashable, load: Load[Value]) -> Value:
        started_at = monotonic()
        try:
            value = await load()
        except BaseException:
            self._entries.pop(key, None)
            raise
        self._entries[key] = started_at, value
        self._entries.move_to_end(key)
        if len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)
        return value


class NoCache:
    """Loads at each call, without an event loop."""

    async def get(self, key: Hashable, load: Load[Value]) -> Value:
        return await load()
