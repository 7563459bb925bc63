"""The connection of the event loop, and how it finds out that it is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import psycopg
import pytest
from django.db import connection

from ingest.db.loop_connection import LoopConnection, Row
from ingest.db.pool import Unavailable

pytestmark = [pytest.mark.postgresql, pytest.mark.django_db(transaction=True)]

PID = "SELECT int8send(pg_backend_pid() + %(a)b)"
MAKE_READ_ONLY = "SELECT set_config('default_transaction_read_only', 'on', false), %(a)b"
COUNT_PLANS = """
SELECT int8send(sum(custom_plans)::bigint) FROM pg_prepared_statements WHERE %(a)b = 0
"""
WRITE = "WITH done AS (DELETE FROM ingest_storedevent WHERE id = %(a)b) SELECT 1"


def run_with_connection(use: Callable[[LoopConnection], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        loop_connection = LoopConnection((PID, MAKE_READ_ONLY, WRITE, COUNT_PLANS), {"a": 20})
        try:
            return await use(loop_connection)
        finally:
            loop_connection.close()

    return asyncio.run(run())


async def execute(loop_connection: LoopConnection, sql: str) -> list[list[Row]]:
    return await loop_connection.execute([(sql, {"a": 0})])


def terminate(pid: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    connection.close()


def test_loss_that_the_loop_does_not_tell():
    """uvloop stops watching some reset sockets; each request then waited for 30 seconds."""

    async def use(loop_connection: LoopConnection) -> list[list[Row]]:
        (((pid,),),) = await execute(loop_connection, PID)
        asyncio.get_running_loop().remove_reader(loop_connection._socket)
        await asyncio.to_thread(terminate, int.from_bytes(pid or b""))
        with pytest.raises(psycopg.OperationalError) as lost:
            await execute(loop_connection, PID)
        assert "does not answer" not in str(lost.value)  # as after waiting to the end
        return await execute(loop_connection, PID)

    assert len(run_with_connection(use)) == 1


def test_plans_are_made_once():
    """To plan for the values of each call took longer than to execute."""

    async def use(loop_connection: LoopConnection) -> Any:
        for _ in range(3):
            counts = await execute(loop_connection, COUNT_PLANS)
        return counts

    assert run_with_connection(use) == [[(bytes(8),)]]


def test_read_only_connection_is_made_again():
    """After a failover the old connection may lead to a server that only reads."""

    async def use(loop_connection: LoopConnection) -> list[list[Row]]:
        await execute(loop_connection, MAKE_READ_ONLY)  # which the server reports
        return await execute(loop_connection, WRITE)

    assert len(run_with_connection(use)) == 1


def test_discarded_connection_is_made_again():
    """Another call has found that the server only reads, or has gone."""

    async def use(loop_connection: LoopConnection) -> list[Row]:
        ((first,),) = await execute(loop_connection, PID)
        cast(Any, connection).pool.discard_idle()
        ((second,),) = await execute(loop_connection, PID)
        return [first, second]

    first, second = run_with_connection(use)
    assert first != second


def test_server_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: Any) -> None:
        raise psycopg.OperationalError("connection refused")

    async def use(loop_connection: LoopConnection) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(psycopg.Connection, "connect", refuse)
            with pytest.raises(Unavailable, match="connection refused"):
                await execute(loop_connection, PID)
        assert len(await execute(loop_connection, PID)) == 1

    run_with_connection(use)
