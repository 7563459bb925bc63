"""Fixtures and factories of all tests; the factories are plain functions with overrides."""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import psycopg
import pytest
from django.db import connection, transaction
from django.test import Client, TransactionTestCase
from django.test.utils import setup_databases, teardown_databases

from exhaust.files import storage
from exhaust.monitoring import health
from ingest import audit
from ingest.auth import failures, keys
from ingest.db import clock
from ingest.models import Channel
from ingest.tenancy import session

pytest_plugins = ("tests.service",)
READ_STATE = health.read_state

# CI repeats the same inputs for a commit; elsewhere each run tries new ones
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Gives each process of a parallel run a folder and Redis databases of its own."""
    from django.conf import settings

    broker = urlsplit(settings.CELERY_BROKER_URL)
    for number, spec in enumerate(specs):
        spec.env["EXHAUST_DATA_DIR"] = str(settings.DATA_DIR / f"tests-{number}")
        if broker.scheme.startswith("redis"):
            # one for the tests, and two for the services that they start
            database = (int(broker.path.strip("/") or 0) + 3 * number) % 16
            spec.env["CELERY_BROKER_URL"] = broker._replace(path=f"/{database}").geturl()


def pytest_configure() -> None:
    """Leaves out what would take most of a test: a real hash, and a list of all static files."""
    from django.conf import settings

    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.WHITENOISE_AUTOREFRESH = True  # else each client makes the list anew


def pytest_xdist_auto_num_workers() -> int:
    """Returns one more than the cores: tests wait a third of their time for other processes."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--with-database",
        action="store_true",
        help="leave out tests that no database takes part in: they are equal on each",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Runs the longest files first, and skips tests whose server is missing, with the remedy."""
    from django.conf import settings

    servers = {
        "postgresql": "postgresql" in settings.DATABASES["default"]["ENGINE"],
        "redis": settings.CELERY_BROKER_URL.startswith("redis"),
        "s3": find_spec("swift") is not None,
        "ray": find_spec("ray") is not None,
    }
    remedies = {
        "postgresql": "needs DATABASE_URL=postgresql://…",
        "redis": "needs CELERY_BROKER_URL=redis://…",
        "s3": "needs the s3local extra: pip install '.[s3local]'",
        "ray": "needs the ray extra: pip install '.[ray]'",
    }
    left_out = {
        item
        for item in items
        if (servers["postgresql"] and item.get_closest_marker("sqlite"))
        or (config.option.with_database and not _uses_servers(item))
    }
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: not _starts_processes(item))
    for item in items:
        for name, is_there in servers.items():
            if item.get_closest_marker(name) and not is_there:
                item.add_marker(pytest.mark.skip(reason=remedies[name]))


_MARKS = ("django_db", "postgresql", "redis", "s3", "ray", "browser", "node", "index")
_FIXTURES = {"db", "transactional_db", "service", "chromium", "place"}


def _uses_servers(item: pytest.Item) -> bool:
    return any(map(item.get_closest_marker, _MARKS)) or not _FIXTURES.isdisjoint(
        getattr(item, "fixturenames", ())
    )


def _starts_processes(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    return bool({"service", "chromium", "place"}.intersection(fixtures)) or any(
        map(item.get_closest_marker, ("s3", "ray"))
    )


@pytest.fixture(scope="session")
def django_db_setup(
    django_test_environment: None, django_db_modify_db_settings: None, django_db_blocker: Any
) -> Iterator[None]:
    """The database of the tests, dropped with the sessions that killed processes left in it."""
    with django_db_blocker.unblock():
        created = setup_databases(verbosity=0, interactive=False)
    yield
    with django_db_blocker.unblock():
        if connection.vendor != "postgresql":
            teardown_databases(created, verbosity=0)
            return
        server = {**connection.get_connection_params(), "dbname": "postgres"}
        with closing(psycopg.connect(**server)) as admin:
            admin.autocommit = True
            admin.execute(f'DROP DATABASE "{connection.settings_dict["NAME"]}" WITH (FORCE)')


@pytest.fixture(autouse=True)
def files(tmp_path: Path, settings: Any) -> Iterator[Path]:
    """A folder of the test's own in place of the installation's storage."""
    settings.FILES_DIR = tmp_path / "files"
    settings.S3_BUCKET = ""
    storage.get_storage.cache_clear()
    yield settings.FILES_DIR
    storage.get_storage.cache_clear()


@pytest.fixture(autouse=True, scope="session")
def one_clock() -> Iterator[None]:
    """Tests and their database share a machine, and so one clock.

    Asked over a socket it would be a moment behind, and a test that counts from now would see that.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "sample", (datetime(1970, 1, 1, tzinfo=UTC), 0.0))
        patch.setattr(clock, "monotonic", time.time)
        patch.setattr(clock, "SAMPLE_SECONDS", float("inf"))
        yield


_APPEND_ONLY_TABLES = (
    "ingest_auditevent",
    "ingest_auditdigest",
)  # triggers of the database protect these
_PRESERVED_TABLES = {"django_content_type", "auth_permission"}  # as the migrations leave them


@pytest.fixture(autouse=True, scope="session")
def emptied_between_tests() -> Iterator[None]:
    """Empties the tables with rows after a test that commits.

    Django truncates all tables and signals all apps, which takes longer than most tests.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", lambda _: _empty_tables())
        yield


def _empty_tables() -> None:
    table_names = connection.introspection.django_table_names(
        only_existing=True, include_views=False
    )
    names = sorted(set(table_names) - _PRESERVED_TABLES)
    query = " UNION ALL ".join(
        f"SELECT '{name}' WHERE EXISTS (SELECT 1 FROM {name})" for name in names
    )
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(query)
        for (name,) in cursor.fetchall():
            off, on = _guard_statements(cursor, name) if name in _APPEND_ONLY_TABLES else ([], [])
            for sql in (*off, f"DELETE FROM {name}", *on):
                cursor.execute(sql)


def _guard_statements(cursor: Any, table: str) -> tuple[list[str], list[str]]:
    """Returns the SQL that switches a table's triggers off, and on again."""
    if connection.vendor == "postgresql":
        off, on = (f"ALTER TABLE {table} {verb} TRIGGER USER" for verb in ("DISABLE", "ENABLE"))
        return [off], [on]
    cursor.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = %s", [table]
    )
    guards = cursor.fetchall()
    return [f"DROP TRIGGER {name}" for name, _ in guards], [sql for _, sql in guards]


@pytest.fixture(autouse=True)
def nobody_acts() -> Iterator[None]:
    """Resets the actor and the counts of failed logins, which belong to one test only."""
    token = audit.current_actor.set(audit.SERVICE_ACTOR)
    failures.pending_counts.clear()
    yield
    session.lift_restriction()
    audit.current_actor.reset(token)


@pytest.fixture(autouse=True)
def unprobed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets probes look at nothing: their threads do not see the transaction of a test."""
    state = dict.fromkeys(("database", "migrations", "broker", "storage", "sweep"), "ok")
    monkeypatch.setattr(health, "read_state", lambda *_: {**state, "queue_wait_seconds": 0})


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch, unprobed: None) -> Iterator[None]:
    """Lets probes look. A test whose database they look at commits (`transaction=True`)."""
    monkeypatch.setattr(health, "read_state", READ_STATE)
    monkeypatch.setattr(health, "is_migrated", False)
    yield
    for check in health.CHECKS:
        check.close()


@pytest.fixture(autouse=True)
def unlimited(settings: Any) -> None:
    """Switches rate limits off: buckets outlive a test, and later keys get the same ids."""
    settings.EXHAUST_RATE_LIMIT_MULTIPLIER = 0.0


@pytest.fixture(autouse=True)
def described(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks every answer to a test's client against the API's description."""
    from tests import openapi_checks

    plain = Client.request

    def checked(self: Client, **request: Any) -> Any:
        answer = plain(self, **request)
        operation = openapi_checks.find_operation(request["REQUEST_METHOD"], request["PATH_INFO"])
        if operation is not None and not answer.streaming:
            kind = answer.headers.get("Content-Type", "")
            assert (
                openapi_checks.find_faults(operation, answer.status_code, kind, answer.content)
                == []
            )
        return answer

    monkeypatch.setattr(Client, "request", checked)


@pytest.fixture
def on_postgresql() -> bool:
    return connection.vendor == "postgresql"


def make_channel(identifier: str = "ORG_001") -> Channel:
    return Channel.objects.get_or_create(identifier=identifier)[0]


def make_key(*scopes: str, channels: tuple[str, ...] = ("ORG_001",), **overrides: Any) -> str:
    """The text of a new key."""
    key_channels = [make_channel(identifier) for identifier in channels]
    return keys.create_key("test", scopes or ("ingest",), key_channels, **overrides)[1]


def bearer(key: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **headers}


@pytest.fixture
def sender(db: None) -> Client:
    """A client with a key that may send to ORG_001."""
    return Client(headers=bearer(make_key("ingest")))


@pytest.fixture
def asker(db: None) -> Client:
    """A client with a key that may request both exhausts of ORG_001."""
    return Client(headers=bearer(make_key("export:response", "export:private")))
