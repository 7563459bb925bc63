import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from ingest.collector.fresh import FreshCache
from ingest.collector.groups import (
    FEW_PARTIES,
    MAX_WAIT_SECONDS,
    MIN_REQUESTS,
    Backlog,
    FairQueue,
    GroupWorker,
    LoopWorker,
    ShareFull,
    Shares,
)


def test_owners_take_turns():
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.put(item[0], item, 1)

    assert queue.take(4) == ["a1", "b1", "c1", "a2"]
    assert queue.take(4) == ["c2", "a3"]
    assert not queue


def test_parties_of_an_owner_take_turns():
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3"):
        queue.put("own", item, 1, "outsider")
    queue.put("own", "key", 1, "key")
    for item in ("b1", "b2"):
        queue.put("other", item, 1)

    assert queue.take(10) == ["a1", "b1", "key", "b2", "a2", "a3"]
    assert not queue


def test_group_is_bounded_by_cost():
    queue: FairQueue[str] = FairQueue()
    for owner, cost in (("big", 900), ("big", 900), ("small", 1)):
        queue.put(owner, f"{owner}-{cost}", cost)

    assert queue.take(1000) == ["big-900", "small-1"]
    assert queue.take(1000) == ["big-900"]


def test_item_above_the_cost_goes_alone():
    queue: FairQueue[str] = FairQueue()
    queue.put("a", "huge", 5000)
    queue.put("b", "small", 1)

    assert queue.take(1000) == ["huge"]
    assert queue.take(1000) == ["small"]


def test_share_of_one_owner_is_bounded():
    shares = Shares(requests=2, size=100)
    shares.add("a", 1, 90)

    with pytest.raises(ShareFull):
        shares.add("a", 0, 11)
    shares.add("a", 1)
    with pytest.raises(ShareFull):
        shares.add("a", 1)
    shares.add("b", 1, 100)  # another owner has its own


def test_share_of_all_is_bounded():
    shares = Shares(requests=2, total_requests=3)
    shares.add("a", 1)
    shares.add("a", 1)
    shares.add("b", 1)

    with pytest.raises(ShareFull):
        shares.add("c", 1)
    shares.remove("a", 0)
    shares.add("c", 1)


def test_backlog_is_what_is_done_in_time():
    now = 0.0
    backlog = Backlog(lambda: now)
    mebibyte = 1024 * 1024
    backlog.enter("a", 20 * mebibyte)  # alone, whatever it is
    with pytest.raises(ShareFull):
        backlog.enter("a", mebibyte)
    backlog.enter("b", mebibyte)  # another is admitted
    backlog.check("b", mebibyte)  # and again, as it has less than its part
    with pytest.raises(ShareFull):
        backlog.check("b", 4 * mebibyte)
    with pytest.raises(ShareFull):
        backlog.check("a", 1)
    now = 1.0
    backlog.leave("a", 20 * mebibyte)  # so 20 MiB were done in a second
    assert_room(backlog, int(20 * MAX_WAIT_SECONDS), mebibyte)


def test_backlog_admits_each_party_of_an_owner():
    backlog = Backlog(lambda: 0.0)
    mebibyte = 1024 * 1024
    backlog.enter("a", 20 * mebibyte, "outsider")
    with pytest.raises(ShareFull):
        backlog.enter("a", mebibyte, "outsider")
    backlog.enter("a", mebibyte, "key")
    backlog.check("a", mebibyte, "key")  # again: it has less than its part
    with pytest.raises(ShareFull):
        backlog.check("a", 8 * mebibyte, "key")
    backlog.leave("a", mebibyte, "key")
    backlog.leave("a", 20 * mebibyte, "outsider")
    backlog.enter("a", mebibyte, "outsider")


def test_backlog_does_not_grow_with_the_parties():
    backlog = Backlog(lambda: 0.0)
    mebibyte = 1024 * 1024
    for number in range(FEW_PARTIES):
        backlog.enter("a", 4 * mebibyte, f"key {number}")
    with pytest.raises(ShareFull):
        backlog.check("a", 4 * mebibyte, "another key")
    backlog.check("a", 1, "another key")  # less than its part
    backlog.check("b", 4 * mebibyte)


def test_stranger_has_half_of_a_share():
    shares = Shares(requests=4, size=100)
    shares.add("a", 1, 50, stranger="network")
    with pytest.raises(ShareFull):
        shares.add("a", 0, 1, stranger="network")
    shares.add("a", 1, stranger="network")
    with pytest.raises(ShareFull):
        shares.add("a", 1, stranger="network")
    shares.add("a", 1, 50)
    with pytest.raises(ShareFull):  # and nothing is added to either share
        shares.add("a", 0, 1, stranger="other")
    shares.add("a", 1, stranger="other")
    with pytest.raises(ShareFull):
        shares.add("a", 1)
    shares.remove("a", 50, stranger="network")
    shares.add("a", 1, 50, stranger="other")


def test_backlog_of_a_slow_database_shrinks():
    now = 0.0
    backlog = Backlog(lambda: now)
    kibibyte = 1024
    backlog.enter("a", kibibyte)
    for _ in range(40):  # never idle, a kibibyte a second
        backlog.enter("a", kibibyte)
        now += 1.0
        backlog.leave("a", kibibyte)
    for _ in range(MIN_REQUESTS - 1):
        backlog.enter("a", kibibyte)
    with pytest.raises(ShareFull):
        backlog.enter("a", kibibyte)


def test_idle_time_does_not_shrink_the_backlog():
    now = 0.0
    backlog = Backlog(lambda: now)
    mebibyte = 1024 * 1024
    for _ in range(10):
        backlog.enter("a", mebibyte)
        now += 10.0
        backlog.leave("a", mebibyte)
    assert_room(backlog, 8, mebibyte)  # as at first


def assert_room(backlog: Backlog, count: int, size: int) -> None:
    """There is room for at most so much work of one caller, and for nearly as much."""
    for _ in range(round(count * 0.7)):
        backlog.enter("a", size)
    rest = count - round(count * 0.7)
    with pytest.raises(ShareFull):
        backlog.check("a", (rest + 1) * size)


def test_waiting_items_go_in_one_group():
    entered, release = threading.Event(), threading.Event()
    groups: list[list[int]] = []

    def work(items: Sequence[int]) -> list[int | Exception]:
        groups.append(list(items))
        entered.set()
        release.wait(10)
        return [ValueError(str(item)) if item == 3 else item * 2 for item in items]

    async def run() -> list[int | BaseException]:
        worker: GroupWorker[int, int] = GroupWorker("test", work)
        first = asyncio.ensure_future(worker.run("a", 1))
        await asyncio.to_thread(entered.wait, 10)
        rest = [asyncio.ensure_future(worker.run("a", number)) for number in (2, 3, 4)]
        await asyncio.sleep(0)
        release.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    outcomes = asyncio.run(run())

    assert groups == [[1], [2, 3, 4]]
    assert [outcomes[0], outcomes[1], outcomes[3]] == [2, 4, 8]
    assert isinstance(outcomes[2], ValueError)


def test_failed_work_fails_its_group_only():
    def work(items: Sequence[int]) -> list[int]:
        if 1 in items:
            raise OSError
        return list(items)

    async def run() -> list[int | BaseException]:
        worker: GroupWorker[int, int] = GroupWorker("test", work, max_cost=1)
        return await asyncio.gather(worker.run("a", 1), worker.run("a", 2), return_exceptions=True)

    failed, done = asyncio.run(run())
    assert isinstance(failed, OSError)
    assert done == 2


def test_group_of_one_owner_holds_up_no_other():
    # given a busy owner, whose group is in progress and who has more that waits
    groups: list[list[str]] = []

    async def run() -> list[str]:
        is_over = asyncio.Event()

        async def work(items: Sequence[str]) -> list[str]:
            groups.append(list(items))
            if "busy-0" in items:
                await is_over.wait()
            return list(items)

        worker: LoopWorker[str, str] = LoopWorker(work, work, max_cost=10)
        busy = [asyncio.ensure_future(worker.run("busy", "busy-0"))]
        await asyncio.sleep(0.01)
        busy += [asyncio.ensure_future(worker.run("busy", f"busy-{n}")) for n in (1, 2)]
        await asyncio.sleep(0.01)
        results = [await worker.run("other", "other-0"), await worker.run("other", "other-1")]
        is_over.set()
        return [*results, *await asyncio.gather(*busy)]

    results = asyncio.run(asyncio.wait_for(run(), 10))

    assert results == ["other-0", "other-1", "busy-0", "busy-1", "busy-2"]
    assert groups == [["busy-0"], ["other-0"], ["other-1"], ["busy-1", "busy-2"]]


def test_thread_of_one_owner_holds_up_no_other():
    is_over = threading.Event()
    groups: list[list[str]] = []

    def work(items: Sequence[str]) -> list[str]:
        groups.append(list(items))
        if "busy-0" in items:
            assert is_over.wait(10)
        return list(items)

    async def run() -> list[str]:
        worker: GroupWorker[str, str] = GroupWorker("test", work, threads=2)
        busy = [asyncio.ensure_future(worker.run("busy", "busy-0"))]
        while not groups:
            await asyncio.sleep(0.01)
        busy += [asyncio.ensure_future(worker.run("busy", f"busy-{n}")) for n in (1, 2)]
        results = [await worker.run("other", "other-0"), await worker.run("other", "other-1")]
        is_over.set()
        results += await asyncio.gather(*busy)
        worker.close()
        return results

    results = asyncio.run(asyncio.wait_for(run(), 10))

    assert results == ["other-0", "other-1", "busy-0", "busy-1", "busy-2"]
    assert groups == [["busy-0"], ["other-0"], ["other-1"], ["busy-1", "busy-2"]]


def test_ended_loop_takes_no_answer_of_the_next():
    is_started, may_go_on = threading.Event(), threading.Event()

    def work(items: Sequence[int]) -> list[int]:
        is_started.set()
        assert may_go_on.wait(10)
        return [10 * item for item in items]

    worker: GroupWorker[int, int] = GroupWorker("test", work)

    async def leave() -> list[asyncio.Task[int]]:
        first = asyncio.ensure_future(worker.run("first", 1))
        await asyncio.to_thread(is_started.wait, 10)
        left = asyncio.ensure_future(worker.run("owner", 2))
        await asyncio.sleep(0)
        return [first, left]  # which are cancelled

    async def wait() -> int:
        asyncio.get_running_loop().call_later(0.05, may_go_on.set)
        async with asyncio.timeout(10):
            return await worker.run("owner", 3)

    asyncio.run(leave())
    try:
        assert asyncio.run(wait()) == 30
    finally:
        may_go_on.set()
        worker.close()


def test_failed_group_lets_its_owner_go_on():
    async def work(items: Sequence[int]) -> list[int]:
        if 1 in items:
            raise OSError
        return list(items)

    async def run() -> tuple[Any, int]:
        worker: LoopWorker[int, int] = LoopWorker(work)
        failed = await asyncio.gather(worker.run("a", 1), return_exceptions=True)
        return failed[0], await worker.run("a", 2)

    failed, done = asyncio.run(asyncio.wait_for(run(), 10))
    assert isinstance(failed, OSError)
    assert done == 2


# Fresh values ------------------------------------------------------------------------------------


def test_value_is_loaded_again_after_a_second(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("ingest.collector.fresh.monotonic", lambda: now)
    values = iter(range(10))

    async def run() -> list[int]:
        nonlocal now
        cache = FreshCache()

        async def load() -> int:
            return next(values)

        seen = [await cache.get("k", load)]
        now += 0.4
        seen.append(await cache.get("k", load))  # from memory
        now += 0.2
        seen.append(await cache.get("k", load))  # from memory, and renewed meanwhile
        await asyncio.sleep(0.01)
        seen.append(await cache.get("k", load))
        now += 1.0
        seen.append(await cache.get("k", load))
        return seen

    assert asyncio.run(run()) == [0, 0, 0, 1, 2]


def test_refused_value_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("ingest.collector.fresh.monotonic", lambda: now)
    is_revoked = False

    async def run() -> None:
        nonlocal now, is_revoked
        cache = FreshCache()

        async def load() -> int:
            if is_revoked:
                raise PermissionError
            return 1

        assert await cache.get("k", load) == 1
        is_revoked = True
        now += 0.6
        assert await cache.get("k", load) == 1
        await asyncio.sleep(0.01)
        with pytest.raises(PermissionError):
            await cache.get("k", load)

    asyncio.run(run())


def test_requests_that_miss_share_one_load():
    loads = 0

    async def run() -> list[int]:
        cache = FreshCache()

        async def load() -> int:
            nonlocal loads
            loads += 1
            await asyncio.sleep(0.01)
            return loads

        return await asyncio.gather(*(cache.get("k", load) for _ in range(20)))

    assert asyncio.run(run()) == [1] * 20
