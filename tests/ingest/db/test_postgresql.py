"""Connections to PostgreSQL: what DATABASE_URL says, why there is none, and when one is lost."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, cast

import psycopg
import pytest
from django.db import DatabaseError, InternalError, connection

from exhaust.processes import free_port
from ingest.db import outages
from ingest.db import pool as pools
from ingest.db.pool import Pool, Unavailable, Unsuitable
from ingest.db.postgresql.base import SESSION_SETTINGS, DatabaseWrapper
from ingest.db.prepared import fetch_all, retry_if_lost
from tests.postgres import SUPERUSER
from tests.service import until

pytestmark = [pytest.mark.postgresql, pytest.mark.django_db(transaction=True)]


def make_wrapper(**changes: Any) -> Any:
    """A wrapper of its own for the tests' database; lower-case names are libpq's."""
    words = {name: value for name, value in changes.items() if name.islower()}
    settings: Any = {**connection.settings_dict, **changes}
    settings["OPTIONS"] = {**settings["OPTIONS"], **words}
    return DatabaseWrapper(settings, alias="other")


@pytest.fixture
def pool() -> Iterator[Pool]:
    own = Pool(cast(Any, connection).open_connection, max_size=2, timeout=0.01)
    own.patience_seconds = 0.0
    yield own
    own.discard_idle()


def terminate(*lost: Any) -> None:
    for each in lost:
        fetch_all("SELECT pg_terminate_backend(%s, 10000)", [each.info.backend_pid])


# connecting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"USER": "nobody_here"}, 'role "nobody_here" does not exist'),
        ({"NAME": "no_such_database"}, 'database "no_such_database" does not exist'),
        ({"HOST": "db.invalid"}, "failed to resolve host 'db.invalid'"),
        ({"HOST": "127.0.0.1", "PORT": "1"}, "port 1 failed: Connection refused"),
        ({"HOST": "127.0.0.1,127.0.0.1", "PORT": "1,2"}, "port 1 failed: Connection refused"),
        ({"connect_timeout": "soon"}, "bad value for connect_timeout"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_reason_for_no_connection_is_one_sentence(changes: dict[str, str], reason: str):
    with pytest.raises(Unavailable) as caught:
        make_wrapper(**changes).open_connection()

    assert str(caught.value).startswith("DATABASE_URL: cannot connect: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("port 1 failed") <= 1


def test_serving_process_logs_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """In the words of the command's sentence, and once for an outage."""
    monkeypatch.setattr(Pool, "is_logging", False)
    monkeypatch.setattr(Pool, "patience_seconds", 0.0)
    refusing = make_wrapper(HOST="127.0.0.1", PORT="1")
    monkeypatch.setattr(outages, "connection", refusing)

    outages.log_unreachable()
    pool = Pool(refusing.open_connection, max_size=1, timeout=1)
    for _ in range(3):
        with pytest.raises(Unavailable):
            pool.getconn()

    messages = [record.message for record in caplog.records if record.name == "psycopg.pool"]
    assert len(messages) == 2
    assert "Connection refused" in messages[0]


def test_sslmode_is_never_dropped():
    wrapper = make_wrapper(sslmode="require")

    try:
        opened = wrapper.open_connection()
    except Unavailable as error:
        assert "server does not support SSL, but SSL was required" in str(error)  # noqa: PT017
    else:
        assert opened.pgconn.ssl_in_use
        opened.close()


def read_settings(opened: psycopg.Connection[Any]) -> tuple[str, str, str]:
    with opened:
        row = opened.execute(
            "SELECT current_setting('jit'), current_setting('lock_timeout'),"
            " current_setting('application_name')"
        ).fetchone()
    return cast(tuple[str, str, str], row)


def test_session_settings_need_no_startup_options():
    """PgBouncer refuses these."""
    assert "options" not in connection.get_connection_params()
    assert read_settings(make_wrapper().open_connection())[:2] == ("off", "20s")


def test_options_of_url_win_over_ours():
    wrapper = make_wrapper(options="-c lock-timeout=7s --application_name=mine")

    assert read_settings(wrapper.open_connection()) == ("off", "7s", "mine")


# lost connections ---------------------------------------------------------------------------------


def test_pool_gives_out_no_ended_connection(pool: Pool):
    lost = [pool.getconn() for _ in range(2)]
    for each in lost:
        pool.putconn(each)
    terminate(*lost)

    with pool.connection() as found:
        assert found not in lost
        assert found.execute("SELECT 1").fetchone() == (1,)


def test_pool_keeps_what_works(pool: Pool):
    with pool.connection() as first:
        first.autocommit = False
        first.execute("SELECT 1")  # in a transaction
    with pool.connection() as second:
        assert second is first
        assert second.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_pool_keeps_no_read_only_connection(pool: Pool):
    """A server that was demoted still answers reads, with old rows."""
    with pool.connection() as demoted:
        demoted.execute("SET default_transaction_read_only = on")
    with pool.connection() as found:
        assert found is not demoted


def test_full_pool_says_so(pool: Pool):
    taken = [pool.getconn() for _ in range(2)]

    with pytest.raises(Unavailable, match="All 2 connections of this process are in use"):
        pool.getconn()

    for each in taken:
        pool.putconn(each)


def test_patient_pool_waits_for_restart(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pools, "RETRY_SECONDS", 0.001)
    failures = [Unavailable("gone")] * 3
    connect = pool.connect

    def refuse_first() -> Any:
        if failures:
            raise failures.pop()
        return connect()

    pool.connect = refuse_first
    with pytest.raises(Unavailable, match="gone"):
        pool.getconn()

    pool.patience_seconds = 1.0
    pool.putconn(pool.getconn())

    assert failures == []


def test_ended_session_is_asked_again_once():
    connection.ensure_connection()
    lost = connection.connection
    with psycopg.connect(**connection.get_connection_params(), autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", [lost.info.backend_pid])

    assert retry_if_lost(lambda: fetch_all("SELECT 1", [])) == [(1,)]
    assert connection.connection is not lost


def test_ended_connection_of_thread_is_closed():
    connection.ensure_connection()
    lost = connection.connection
    outages.close_ended()
    assert connection.connection is lost

    with psycopg.connect(**connection.get_connection_params(), autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", [lost.info.backend_pid])
    outages.close_ended()

    assert connection.connection is None


def test_read_only_connections_are_discarded():
    """After a failover the old ones may lead to a server that only reads."""
    pool = cast(Any, connection).pool
    idle = pool.getconn()
    pool.putconn(idle)
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
        with pytest.raises(InternalError) as caught:
            cursor.execute("DELETE FROM exhaust_dailyrun")

    assert outages.describe_outage(caught.value) == "read-only"
    assert idle.closed or idle is connection.connection
    assert connection.connection.closed
    connection.close()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM exhaust_dailyrun")


def test_web_process_ends_long_statements(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SESSION_SETTINGS, "statement_timeout", "50")
    opened = cast(Any, connection).open_connection()
    try:
        with pytest.raises(psycopg.errors.QueryCanceled) as error:
            opened.execute("SELECT pg_sleep(10)")
    finally:
        opened.close()
    assert outages.describe_outage(error.value) == "too busy"
    assert not outages.is_lost(error.value)


def test_wrong_statement_is_no_outage():
    with connection.cursor() as cursor, pytest.raises(DatabaseError) as caught:
        cursor.execute("SELECT nonsense")

    assert outages.describe_outage(caught.value) == ""
    assert not connection.connection.closed


# PgBouncer ----------------------------------------------------------------------------------------

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""
needs_pgbouncer = pytest.mark.skipif(not PGBOUNCER, reason="needs Debian's pgbouncer")


def has_listener(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def run_pgbouncer(*settings: str) -> Iterator[Any]:
    """Yields a wrapper that connects through PgBouncer with these settings."""
    params = connection.get_connection_params()
    server = " ".join(
        f"{name}={params[name]}" for name in ("host", "port", "user", "password") if name in params
    )
    port = free_port()
    lines = (
        "[databases]", f"* = {server}", "[pgbouncer]", "listen_addr = 127.0.0.1",
        f"listen_port = {port}", "unix_socket_dir =", "auth_type = any", *settings,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        config = Path(folder, "pgbouncer.ini")
        config.write_text("\n".join(lines))
        if is_root := os.geteuid() == 0:  # as which it refuses to run
            shutil.chown(folder, SUPERUSER)
        user = ["-u", SUPERUSER] if is_root else []
        process = subprocess.Popen([PGBOUNCER, "-q", *user, str(config)])
        wrapper = make_wrapper(HOST="127.0.0.1", PORT=str(port))
        try:
            until(lambda: has_listener(port), "PgBouncer")
            yield wrapper
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def _unknown_pooler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DatabaseWrapper, "has_own_sessions", False)


def test_database_without_unicode_is_refused():
    name = f"ascii_{token_hex(4)}"
    with make_wrapper().open_connection() as server:
        try:
            server.execute(
                f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0"
                " LC_COLLATE 'C' LC_CTYPE 'C'"
            )
            with pytest.raises(Unsuitable, match="the encoding SQL_ASCII; create one with"):
                make_wrapper(NAME=name).open_connection()
        finally:
            server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@needs_pgbouncer
@pytest.mark.usefixtures("_unknown_pooler")
@pytest.mark.parametrize("round_robin", [0, 1])
@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_shared_sessions_are_refused(mode: str, round_robin: int):
    settings = (f"pool_mode = {mode}", f"server_round_robin = {round_robin}", "min_pool_size = 3")
    with run_pgbouncer(*settings) as wrapper:
        for _ in range(3):
            with pytest.raises(Unsuitable, match="set its pool_mode = session"):
                wrapper.open_connection()


@needs_pgbouncer
@pytest.mark.usefixtures("_unknown_pooler")
def test_own_sessions_are_looked_at_once():
    with run_pgbouncer("pool_mode = session") as wrapper:
        with wrapper.open_connection() as opened:
            assert opened.execute("SHOW jit").fetchone() == ("off",)
        assert DatabaseWrapper.has_own_sessions
        with wrapper.open_connection() as opened:
            assert opened.execute("SELECT 1").fetchone() == (1,)


@needs_pgbouncer
@pytest.mark.usefixtures("_unknown_pooler")
def test_full_pooler_delays_a_start_shortly():
    with run_pgbouncer("pool_mode = session", "default_pool_size = 1") as wrapper:
        started_at = monotonic()
        with wrapper.open_connection() as opened:
            assert opened.execute("SELECT 1").fetchone() == (1,)
        assert monotonic() - started_at < 5
    assert not DatabaseWrapper.has_own_sessions
