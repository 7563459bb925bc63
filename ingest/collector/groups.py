"""Work on all that waits: a thread takes it in groups, in turns between those who sent it."""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Generic, TypeVar

from django.db import DatabaseError, InterfaceError, connection, connections

from ingest.db import outages
from ingest.db.prepared import retry_if_lost

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Sequence[Item]], Sequence[Result | Exception]]
LoopWork = Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]]


MAX_WAIT_SECONDS = 0.4  # of admitted work
MIN_REQUESTS, MIN_BYTES = 8, 8 * 1024 * 1024  # in progress, however long they take
FEW_PARTIES = 4  # of an owner
MEASURE_SECONDS = 0.25


class ShareFull(Exception):
    """The caller's share, or the whole, is used up; ask again later."""


class Shares:
    """Bounds what one caller, and all together, have in progress: requests and bytes.

    A stranger, who calls by an owner's public name, has at most half of what the owner has.
    """

    def __init__(
        self, requests: int, size: int = 0, total_requests: int = 0, total_size: int = 0
    ) -> None:
        self._limit = requests, size
        self._stranger_limit = max(1, requests // 2), size // 2
        self._total_limit = total_requests or 4 * requests, total_size or 2 * size
        self._used: dict[Hashable, list[int]] = {}
        self._total = [0, 0]

    def add(self, owner: Hashable, requests: int, size: int = 0, stranger: Hashable = None) -> None:
        """Raises `ShareFull`, and then adds nothing."""
        _check(self._total, self._total_limit, requests, size)
        _check(self._used.get(owner, _NOTHING), self._limit, requests, size)
        if stranger is not None:
            name = owner, stranger
            _check(self._used.get(name, _NOTHING), self._stranger_limit, requests, size)
            self._count(name, requests, size)
        self._count(owner, requests, size)
        self._total[0] += requests
        self._total[1] += size

    def remove(self, owner: Hashable, size: int, stranger: Hashable = None) -> None:
        """Takes back one request and its bytes."""
        if stranger is not None:
            self._count((owner, stranger), -1, -size)
        self._count(owner, -1, -size)
        self._total[0] -= 1
        self._total[1] -= size

    def _count(self, name: Hashable, requests: int, size: int) -> None:
        used = self._used.get(name)
        if used is None:
            used = self._used[name] = [0, 0]
        used[0] += requests
        used[1] += size
        if not used[0]:
            del self._used[name]


_NOTHING = 0, 0


def _check(used: Sequence[int], limit: tuple[int, int], requests: int, size: int) -> None:
    if used[0] + requests > limit[0] or (size and used[1] + size > limit[1]):
        raise ShareFull


class Backlog:
    """Bounds the work in progress to what is done within a wait that callers accept.

    It measures the bytes that are done a second, and admits no more than are done in
    `MAX_WAIT_SECONDS`, or `MIN_REQUESTS`. An owner with nothing in progress, or with less than an
    equal part of it, is always admitted, so that a busy one shuts out no other. So is a party of a
    busy owner with less than an equal part of its owner's, and one of `FEW_PARTIES` with nothing in
    progress: each of many would make all others wait longer.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._owners: dict[Hashable, dict[Hashable, int]] = {}  # bytes in progress, by party
        self._total = 0
        self._count = 0  # requests
        self._rate = MIN_BYTES / MAX_WAIT_SECONDS  # bytes a second; a first guess
        self._done = 0  # bytes, since then
        self._since = clock()
        self._was_idle = True  # at some time since then: the rate may be higher

    def check(self, owner: Hashable, size: int, party: Hashable = "") -> None:
        """Raises `ShareFull` where work of so many bytes would have to wait too long."""
        limit = self._rate * MAX_WAIT_SECONDS
        total = self._total + size
        parties = self._owners.get(owner)
        if not parties or total <= limit or (self._count < MIN_REQUESTS and total <= MIN_BYTES):
            return
        part = limit / len(self._owners)
        if sum(parties.values()) + size <= part:
            return
        own = parties.get(party, 0)
        if (own or len(parties) >= FEW_PARTIES) and own + size > part / len(parties):
            raise ShareFull

    def enter(self, owner: Hashable, size: int, party: Hashable = "") -> None:
        """Adds work, or raises `ShareFull` as `check` does."""
        self.check(owner, size, party)
        parties = self._owners.setdefault(owner, {})
        parties[party] = parties.get(party, 0) + size
        self._total += size
        self._count += 1

    def leave(self, owner: Hashable, size: int, party: Hashable = "") -> None:
        """Takes back the work of one `enter`."""
        parties = self._owners[owner]
        parties[party] -= size
        if not parties[party]:
            del parties[party]
            if not parties:
                del self._owners[owner]
        self._total -= size
        self._count -= 1
        self._done += size
        self._was_idle |= not self._total
        elapsed = self._clock() - self._since
        if elapsed >= MEASURE_SECONDS:
            rate = self._done / elapsed
            self._rate = max(self._rate, rate) if self._was_idle else (self._rate + rate) / 2
            self._done, self._since, self._was_idle = 0, self._clock(), not self._total


class FairQueue(Generic[Item]):
    """A queue in which the owners of items take turns, and in each one's turns its parties do."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, dict[Hashable, deque[tuple[Item, int]]]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, owner: Hashable, item: Item, cost: int, party: Hashable = "") -> None:
        parties = self._waiting.setdefault(owner, {})
        queue = parties.get(party)
        if queue is None:
            queue = parties[party] = deque()
        queue.append((item, cost))

    def take(self, max_cost: int, without: Collection[Hashable] = ()) -> list[Item]:
        """Returns the next items, in turns of their owners, of at most that cost together.

        The first one is taken whatever it costs. Owners in `without` wait on.
        """
        group: list[Item] = []
        total = 0
        while turn := next((o for o in self._waiting.items() if o[0] not in without), None):
            owner, parties = turn
            party, queue = next(iter(parties.items()))
            item, cost = queue[0]
            if group and total + cost > max_cost:
                break  # it is the first of the next group
            queue.popleft()
            group.append(item)
            total += cost
            del parties[party], self._waiting[owner]
            if queue:
                parties[party] = queue  # behind the others
            if parties:
                self._waiting[owner] = parties
        return group


class GroupWorker(Generic[Item, Result]):
    """Calls `work` with all items that wait, one group at a time, in a thread of its own.

    `work` returns for each item its result or an error. With two threads two groups are in
    progress. An owner is in one group at a time, so nobody waits for a group of one busy owner.
    """

    def __init__(
        self, name: str, work: Work[Item, Result], max_cost: int = 1000, threads: int = 1
    ) -> None:
        self._name = name
        self._work = work
        self._max_cost = max_cost
        self._max_threads = threads
        self._condition = threading.Condition()
        self._queue: FairQueue[tuple[Hashable, Item, asyncio.Future[Result]]] = FairQueue()
        self._busy: set[Hashable] = set()  # owners with items in a group
        self._idle_count = 0
        self._threads: list[threading.Thread] = []

    async def run(self, owner: Hashable, item: Item, cost: int = 1, party: Hashable = "") -> Result:
        """Returns the item's result, or raises its error."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        with self._condition:
            self._queue.put(owner, (owner, item, future), cost, party)
            if owner in self._busy:
                pass  # its thread goes on with it
            elif self._idle_count:
                self._condition.notify()
            elif len(self._threads) < self._max_threads:
                thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return await future

    def close(self) -> None:
        """Ends the threads after what waits, and their connections. A later call starts others."""
        with self._condition:
            threads, self._threads = self._threads, []
            self._condition.notify_all()
        for thread in threads:
            thread.join()

    def _serve(self) -> None:
        while group := self._take():
            outcomes: Sequence[Result | Exception]
            try:
                outages.close_ended()
                outcomes = self._work([item for _, item, _ in group])
            except Exception as error:
                outcomes = [error] * len(group)
            with self._condition:
                self._busy.difference_update(owner for owner, _, _ in group)
            futures = [future for _, _, future in group]
            # a process has one, unless another begins while a thread still works for the last one
            for loop in {future.get_loop() for future in futures}:
                with suppress(RuntimeError):  # it has ended, and nobody waits
                    loop.call_soon_threadsafe(deliver, futures, outcomes)
        connections.close_all()

    def _take(self) -> list[tuple[Hashable, Item, asyncio.Future[Result]]]:
        """Waits for the next group. Returns an empty one when the worker is closed."""
        with self._condition:
            while True:
                group = self._queue.take(self._max_cost, self._busy)
                if group or threading.current_thread() not in self._threads:
                    self._busy.update(owner for owner, _, _ in group)
                    return group
                self._idle_count += 1
                self._condition.wait()
                self._idle_count -= 1


def deliver(futures: Sequence[asyncio.Future[Any]], outcomes: Sequence[Any]) -> None:
    """Ends each future of the running loop with its result or its error."""
    loop = asyncio.get_running_loop()
    for future, outcome in zip(futures, outcomes, strict=True):
        if future.done() or future.get_loop() is not loop:
            continue  # its client has gone
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


class LoopWorker(Generic[Item, Result]):
    """Does the same on the event loop, where work waits and takes no thread.

    Each of `works` has one group in progress, and an owner is in one group at a time. So with two
    of them nobody waits for a group of one busy owner.
    """

    def __init__(self, *works: LoopWork[Item, Result], max_cost: int = 1000) -> None:
        self._idle = list(works)
        self._max_cost = max_cost
        self._queue: FairQueue[tuple[Hashable, Item, asyncio.Future[Result]]] = FairQueue()
        self._busy: set[Hashable] = set()  # owners with items in a group
        self._tasks: set[asyncio.Task[None]] = set()  # or they could be collected

    async def run(self, owner: Hashable, item: Item, cost: int = 1, party: Hashable = "") -> Result:
        """Returns the item's result, or raises its error."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put(owner, (owner, item, future), cost, party)
        if self._idle and owner not in self._busy:
            task = asyncio.ensure_future(self._serve(self._idle.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _serve(self, work: LoopWork[Item, Result]) -> None:
        try:
            while group := self._queue.take(self._max_cost, self._busy):
                owners = {owner for owner, _, _ in group}
                self._busy |= owners
                outcomes: Sequence[Result | Exception]
                try:
                    outcomes = await work([item for _, item, _ in group])
                except Exception as error:  # each of them is answered, whatever happens
                    outcomes = [error] * len(group)
                finally:
                    self._busy -= owners
                deliver([future for _, _, future in group], outcomes)
        finally:
            self._idle.append(work)


class InlineWorker(Generic[Item, Result]):
    """The same in the calling thread, an item at a time, without an event loop."""

    def __init__(self, work: Work[Item, Result]) -> None:
        self._work = work

    def close(self) -> None:
        """Has nothing to end."""

    async def run(self, owner: Hashable, item: Item, cost: int = 1, party: Hashable = "") -> Result:
        outcome = self._work([item])[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def call_each(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Returns for each call its result or its error."""
    outcomes: list[Any] = []
    for call in calls:
        try:
            outcomes.append(retry_if_lost(call))
        except Exception as error:  # the caller's own
            outcomes.append(error)
            if isinstance(error, DatabaseError | InterfaceError):
                connection.close_if_unusable_or_obsolete()
    return outcomes


def run_inline(coroutine: Any) -> Any:
    """Returns the result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("The coroutine waits for an event loop.")
