"""Probes: what they say, to whom, and how soon."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from socket import create_server
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection, connections
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.utils import timezone

from exhaust.files import storage
from exhaust.jobs import wakeup
from exhaust.models import DailyRun, Wakeup
from exhaust.monitoring import checks, health
from exhaust.monitoring.checks import Check
from ingest.db.pool import Unsuitable
from tests.conftest import bearer

WELL = {
    "status": "ok", "database": "ok", "migrations": "ok", "broker": "ok", "storage": "ok",
    "queue_wait_seconds": 0, "sweep": "ok",
}  # fmt: skip
on_server = pytest.mark.postgresql
committed = pytest.mark.django_db(transaction=True)


looking = pytest.mark.usefixtures("probed")


def probe(**headers: str) -> tuple[int, dict[str, Any]]:
    answer = Client(headers=headers).get("/readyz")
    return answer.status_code, answer.json()


@looking
@committed
def test_ready_when_all_is_well() -> None:
    assert probe() == (200, WELL)
    assert not DailyRun.objects.exists()


@pytest.mark.django_db
@looking
def test_pending_migration_is_not_ready() -> None:
    MigrationRecorder.Migration.objects.filter(app="exhaust").last().delete()
    state = health.check_database()
    assert state["migrations"] == "missing: run manage.py migrate"
    assert health.determine_status({**WELL, **state}) == "failed"


@looking
@committed
def test_read_only_database_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise DatabaseError("read-only")

    monkeypatch.setattr(health, "require_writable", refuse)
    code, state = probe()
    assert (code, state["database"]) == (503, "unreachable or read-only")


@looking
@committed
def test_shared_sessions_are_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OperationalError from Unsuitable("PgBouncer: set its pool_mode = session.")

    monkeypatch.setattr(health, "require_writable", refuse)
    code, state = probe()
    assert (code, state["database"]) == (503, "PgBouncer: set its pool_mode = session.")


@looking
@committed
def test_degraded_without_sweeps() -> None:
    for age, sweep in ((50, "ok"), (61, "stalled: start a worker")):
        started_at = timezone.now() - timedelta(seconds=age)
        Wakeup.objects.update_or_create(kind=wakeup.SWEEP, defaults={"started_at": started_at})
        state = health.check_database()
        assert state["sweep"] == sweep
        assert age <= int(str(state["sweep_age_seconds"])) <= age + 5
    assert health.determine_status({**WELL, **state}) == "degraded"


@looking
@committed
def test_degraded_without_broker_and_storage(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings.FILES_DIR = tmp_path / "file" / "below"
    settings.CELERY_BROKER_URL = "redis://127.0.0.1:1/0"
    storage.get_storage.cache_clear()
    without = {"status": "degraded", "broker": "unreachable", "storage": "unreachable"}
    assert probe() == (200, {**WELL, **without})


@on_server
@looking
@committed
def test_standby_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    options = connections.settings["default"]["OPTIONS"]
    monkeypatch.setitem(options, "options", "-c default_transaction_read_only=on")
    assert probe()[0] == 503


@on_server
@looking
@committed
def test_cut_connection_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    pids = []

    def check_database() -> dict[str, Any]:
        state = health.check_database()
        pids.append(connection.connection.info.backend_pid)
        return state

    database = health.CHECKS[0]
    monkeypatch.setattr(database, "run", check_database)
    for _ in range(2):
        assert probe() == (200, WELL)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pids[-1]])
        database.expires_at = 0.0
    assert len(set(pids)) == 2


@on_server
@looking
@committed
def test_exhausted_pool_is_ready() -> None:
    pool: Any = connection.pool
    taken = []
    try:
        while len(taken) < pool.max_size:
            taken.append(pool.getconn())
        assert probe() == (200, WELL)
    finally:
        for each in taken:
            pool.putconn(each)


# What hangs --------------------------------------------------------------------------------------


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch, probed: None) -> Iterator[Callable[[str], None]]:
    """Lets the check of a part hang, and probes wait a fiftieth of a second."""
    released = threading.Event()
    monkeypatch.setattr(checks, "LIMIT_SECONDS", 0.02)

    def start(part: str) -> None:
        (check,) = (check for check in health.CHECKS if check.name == part)
        monkeypatch.setattr(check, "run", lambda: {part: released.wait(10) and "ok"})

    yield start
    released.set()


@committed
@pytest.mark.parametrize(
    ("part", "code", "status"),
    [("database", 503, "failed"), ("broker", 200, "degraded"), ("storage", 200, "degraded")],
)
def test_hung_part_is_named(
    part: str, code: int, status: str, hang: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hang(part)
    for check in health.CHECKS:  # the others have their time
        if check.name != part:
            check.start()
            monkeypatch.setattr(check, "started_at", time.monotonic() + 10)
    answer_code, state = probe()
    assert (answer_code, state["status"]) == (code, status)
    assert state[part] == "no answer in 0.02 seconds"
    assert {value for name, value in state.items() if name in WELL} >= {"ok"}


def test_limit_is_within_two_seconds() -> None:
    assert checks.LIMIT_SECONDS <= 1.5


def test_hung_check_holds_no_second_probe(hang: Callable[[str], None]) -> None:
    hang("broker")
    check = health.CHECKS[1]
    for _ in range(2):
        check.start()
        assert check.read() == {"broker": "no answer in 0.02 seconds"}
    started_at = time.monotonic()
    check.start()
    check.read()
    assert time.monotonic() - started_at < 0.02
    assert threading.active_count() < 30


@pytest.mark.redis
def test_silent_broker_is_unreachable(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "BROKER_TIMEOUT_SECONDS", 0.05)
    with create_server(("127.0.0.1", 0)) as silent:
        settings.CELERY_BROKER_URL = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        assert health.check_broker() == {"broker": "unreachable"}


def test_answer_is_kept_a_second() -> None:
    runs: list[int] = []
    check = Check("counted", lambda: {"counted": runs.append(len(runs)) or len(runs)})
    for _ in range(10):
        check.start()
        assert check.read() == {"counted": 1}
    check.expires_at = time.monotonic()
    check.start()
    assert check.read() == {"counted": 2}
    check.close()


def test_careless_check_is_failed() -> None:
    check = Check("storage", lambda: {}["nothing"])
    check.start()
    assert check.read() == {"storage": "failed; the cause is in the log"}
    check.close()


# Who asks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "address", "headers", "is_shown"),
    [
        ("", "127.0.0.1", {}, True),
        ("", "::1", {}, True),
        ("", "10.0.3.17", {}, False),
        ("", "", {}, False),
        ("", "127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, False),  # of a proxy on this machine
        ("secret", "127.0.0.1", {}, False),
        ("secret", "127.0.0.1", bearer("wrong"), False),
        ("secret", "10.0.3.17", bearer("secret"), True),
    ],
)
def test_details_need_token(
    token: str, address: str, headers: dict[str, str], is_shown: bool, settings: Any
) -> None:
    settings.EXHAUST_METRICS_TOKEN = token
    answer = Client(headers=headers, REMOTE_ADDR=address).get("/readyz")
    assert (answer.status_code, answer.json()) == (200, WELL if is_shown else {"status": "ok"})


@pytest.mark.parametrize("host", ["10.0.3.17:8000", "evil.example", "not a host", ""])
def test_probes_answer_any_host(host: str, settings: Any) -> None:
    settings.EXHAUST_METRICS_TOKEN = ""
    settings.SECURE_SSL_REDIRECT = False
    client = Client(HTTP_HOST=host)
    codes = {path: client.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")}
    assert codes == {"/healthz": 200, "/readyz": 200, "/metrics": 404}  # without a token


def test_refused_host_names_its_setting(caplog: pytest.LogCaptureFixture) -> None:
    client = Client(HTTP_HOST="evil.example")
    answer = client.get("/v1/participants")
    assert (answer.status_code, answer["Content-Type"]) == (400, "application/problem+json")
    assert "ALLOWED_HOSTS" in answer.json()["detail"]

    page = client.get("/console/", headers={"Accept": "text/html,*/*"})
    assert (page.status_code, page["Content-Type"]) == (400, "text/html; charset=utf-8")
    assert b"ALLOWED_HOSTS" in page.content
    # once each, and without the host, which may be anything
    refusals = [record for record in caplog.records if record.levelname != "INFO"]
    assert [record.msg["setting"] for record in refusals] == ["ALLOWED_HOSTS"] * 2  # type: ignore[index]
    assert "evil" not in caplog.text
