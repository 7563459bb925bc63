"""Group commit on the event loop: one statement for all that a channel and a source bring."""

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import psycopg
from django.db import OperationalError
from msgspec import structs

from ingest import metrics
from ingest.collector.groups import GroupWorker, LoopWorker
from ingest.db import binary_arrays
from ingest.db.loop_connection import LoopConnection
from ingest.events import StoreResult
from ingest.store import batches, resolve
from ingest.store.batches import Group, Outcome, Pending


class LoopWriter:
    """Stores events on PostgreSQL. What needs more than one statement goes to the fallback.

    Those are profiles, rejections, versions that supersede others, events of several conversations,
    and those that the database refuses. Over each of `connections`
    one group is stored at a time.
    """

    def __init__(
        self, fallback: "GroupWorker[Pending, StoreResult]", max_cost: int, connections: int = 1
    ) -> None:
        self._fallback = fallback
        self._connections = [
            LoopConnection(
                batches.LOOP_STATEMENTS, batches.PARAMETER_TYPES, f"SET {batches.NO_SEQSCAN}"
            )
            for _ in range(connections)
        ]
        works = [partial(self._store, each) for each in self._connections]
        self._worker: LoopWorker[Pending, StoreResult | None] = LoopWorker(
            *works, max_cost=max_cost
        )

    async def run(
        self, owner: Hashable, pending: Pending, cost: int = 1, party: Hashable = ""
    ) -> StoreResult:
        """Returns the result after the commit, or raises `django.db.Error`."""
        batch = pending.batch
        if not batch.events or batch.profiles or batch.is_shared:
            return await self._fallback.run(owner, pending, cost, party)
        result = await self._worker.run(owner, pending, cost, party)
        if result is None:
            return await self._fallback.run(owner, pending, cost, party)
        if batch.rejections:  # without the events, which are committed
            rest = pending._replace(batch=structs.replace(batch, events=[]))
            await self._fallback.run(owner, rest, party=party)
        return result

    def close(self) -> None:
        """Closes the connections, and the fallback's. A later call makes them again."""
        for each in self._connections:
            each.close()
        self._fallback.close()

    async def _store(self, connection: LoopConnection, pending: Sequence[Pending]) -> list[Any]:
        """Returns the results; None for a batch that the fallback has to store."""
        outcomes: list[Outcome | None] = [None] * len(pending)
        try:
            pending = await self._complete(connection, pending)
            groups = batches.group_events(pending)
            is_stored = await self._insert(connection, groups, pending, outcomes)
            if not is_stored and len(groups) > 1:
                for each in groups:  # the one that fails does not fail the others
                    await self._insert(connection, [each], pending, outcomes)
        except batches.WAITED_IN_VAIN as error:
            failure = OperationalError(str(error))  # the rest would wait as long for the same
            return [failure if outcome is None else outcome for outcome in outcomes]
        except psycopg.Error:  # of the lookup: the fallback tries, and tells what it is
            pass
        return outcomes

    async def _complete(
        self, connection: LoopConnection, pending: Sequence[Pending]
    ) -> Sequence[Pending]:
        """Returns the batches with what stored events say of theirs, by one round trip."""
        incomplete = batches.find_incomplete_events(pending)
        if not incomplete:
            return pending
        calls: list[tuple[str, dict[str, Any]]] = []
        for application_id, _, events in incomplete:
            identities, aliases = resolve.list_names(events)
            names = {"application": application_id, "c": binary_arrays.texts(aliases)}
            calls += [
                (resolve.TYPES_STATEMENT, {"i": binary_arrays.uuids(identities)}),
                (resolve.DEVICES_STATEMENT, names),
            ]
        answers = iter(await connection.execute(calls))
        completed = []
        for _, _, events in incomplete:
            types = {(i or b"").hex(): found.decode() for i, found in next(answers) if found}
            devices = {(c or b"").decode(): found.decode() for c, found in next(answers) if found}
            completed.append(resolve.complete_events(events, types, devices))
        return batches.replace_events(pending, incomplete, completed)

    async def _insert(
        self,
        connection: LoopConnection,
        groups: Sequence[Group],
        pending: Sequence[Pending],
        outcomes: list[Outcome | None],
    ) -> bool:
        try:
            rows = await connection.execute([group.build_statement(pending) for group in groups])
        except batches.WAITED_IN_VAIN:
            raise
        except psycopg.Error:
            return False
        for group, ((count, needs_slow_path, stored),) in zip(groups, rows, strict=True):
            row = int.from_bytes(count or b""), needs_slow_path == b"\1", stored
            group.count(row, pending, outcomes)
            if not row[1]:
                sent = sum(len(pending[index].batch.events) for index in group.indexes)
                metrics.count_batch(group.key[1], row[0], sent - row[0], 0)
        return True
