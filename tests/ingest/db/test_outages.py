"""Callers of a database that cannot be used now get 503 with Retry-After, in their own words."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, InterfaceError, InternalError, OperationalError, connection
from django.http import HttpResponse
from django.test import Client, RequestFactory

from exhaust.models import DailyRun
from exhaust.monitoring import health
from ingest.db import outages
from ingest.db.pool import Unavailable
from ingest.http.middleware import repeat_lost_reads
from tests.conftest import bearer, make_key
from tests.ingest.telemetry_samples import answer, encode_batch


def caused(error: DatabaseError | InterfaceError, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def sqlite_error(code: int) -> Exception:
    error = sqlite3.OperationalError()
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "reason", "is_lost"),
    [
        (OperationalError("a failpoint"), "unreachable", False),
        (caused(OperationalError(), Unavailable()), "unreachable", False),
        (caused(OperationalError(), psycopg.OperationalError("closed")), "unreachable", True),
        (caused(InterfaceError(), psycopg.InterfaceError("closed")), "unreachable", True),
        (caused(OperationalError(), psycopg.errors.AdminShutdown()), "unreachable", True),
        (caused(OperationalError(), psycopg.errors.CrashShutdown()), "unreachable", True),
        (caused(OperationalError(), psycopg.errors.CannotConnectNow()), "unreachable", True),
        (caused(OperationalError(), psycopg.errors.ProtocolViolation()), "unreachable", True),
        (caused(InternalError(), psycopg.errors.ReadOnlySqlTransaction()), "read-only", True),
        (caused(OperationalError(), psycopg.errors.DiskFull()), "the disk is full", False),
        (caused(OperationalError(), psycopg.errors.QueryCanceled()), "too busy", False),
        (caused(OperationalError(), psycopg.errors.LockNotAvailable()), "unreachable", False),
        (caused(DatabaseError(), psycopg.errors.UndefinedTable()), "", False),
        (
            caused(OperationalError(), sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT)),
            "locked by another process",
            False,
        ),
        (caused(OperationalError(), sqlite_error(sqlite3.SQLITE_FULL)), "the disk is full", False),
        (
            caused(OperationalError(), sqlite_error(sqlite3.SQLITE_ERROR)),
            "",
            False,
        ),  # no such table
        (ValueError(), "", False),
    ],
    ids=lambda value: type(getattr(value, "__cause__", None) or value).__name__,
)
def test_kinds_of_errors(error: Exception, reason: str, is_lost: bool):
    assert (outages.describe_outage(error), outages.is_lost(error)) == (reason, is_lost)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("method", "path", "accept", "content_type"),
    [
        ("POST", "/dataset/v1/request/search", "*/*", "application/json"),
        ("GET", "/export/events", "*/*", "application/problem+json"),
        ("GET", "/dataset/v1/download/a.b", "*/*", "text/plain; charset=utf-8"),
        ("GET", "/dataset/v1/download/a.b", "text/html", "text/html; charset=utf-8"),
        ("GET", "/console/", "text/html,*/*", "text/html; charset=utf-8"),
        ("GET", "/console/", "*/*", "application/problem+json"),
    ],
)
def test_outage_is_503_in_own_words(method: str, path: str, accept: str, content_type: str):
    headers = bearer(make_key("pull", "export:response"))
    headers |= {"Accept": accept, "Cookie": "sessionid=" + "a" * 32}
    client = Client(raise_request_exception=False, headers=headers)

    def fail(*_: Any) -> None:
        raise caused(OperationalError("SECRET"), psycopg.errors.AdminShutdown())

    with connection.execute_wrapper(fail):
        response = client.generic(method, path, b"{}", content_type="application/json")

    assert response.status_code == 503
    assert response["Content-Type"] == content_type
    assert 1 <= int(response["Retry-After"]) <= 5
    assert b"SECRET" not in response.content


@pytest.mark.parametrize(
    ("method", "status", "losses", "calls"),
    [("GET", 503, 1, 2), ("POST", 503, 1, 1), ("GET", 503, 0, 1), ("GET", 200, 1, 1)],
)
@pytest.mark.django_db
def test_lost_read_is_repeated_once(
    rf: RequestFactory, method: str, status: int, losses: int, calls: int
):
    done = []

    def respond(_: Any) -> HttpResponse:
        done.append(1)
        connection.loss_count = getattr(connection, "loss_count", 0) + losses  # type: ignore[attr-defined]
        return HttpResponse(status=status)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "close", lambda: None)
        assert repeat_lost_reads(respond)(rf.generic(method, "/")).status_code == status

    assert len(done) == calls


# SQLite ------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite(db: None) -> Iterator[sqlite3.Connection]:
    """Another process's connection to the same file."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(connection.settings_dict["NAME"])
    yield other
    other.close()
    connection.close()


@pytest.mark.sqlite
@pytest.mark.django_db(transaction=True)
def test_locked_sqlite_is_503(sqlite: sqlite3.Connection):
    client = Client(headers=bearer(make_key("ingest")))
    sqlite.execute("BEGIN IMMEDIATE")

    response = client.post("/v1/telemetry", encode_batch(answer(1)), "application/json")

    assert response.status_code == 503
    assert response["Retry-After"]
    with pytest.raises(OperationalError) as caught:
        health.require_writable()
    assert outages.describe_outage(caught.value) == "locked by another process"


@pytest.mark.sqlite
@pytest.mark.django_db(transaction=True)
def test_readiness_writes_to_sqlites_disk(sqlite: sqlite3.Connection):
    log = Path(f"{connection.settings_dict['NAME']}-wal")
    sqlite.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert log.stat().st_size == 0

    health.require_writable()

    assert log.stat().st_size > 0  # so a full disk is noticed
    assert not DailyRun.objects.filter(pk=0).exists()


@pytest.mark.sqlite
@pytest.mark.django_db(transaction=True)
def test_full_disk_of_sqlite_is_503(sqlite: sqlite3.Connection):
    client = Client(headers=bearer(make_key("ingest")))
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")  # earlier tests left free pages
        cursor.execute("PRAGMA max_page_count = 1")  # no more than it has

    body = encode_batch(*(answer(number, edata={"x": "y" * 900}) for number in range(300)))
    response = client.post("/v1/telemetry", body, "application/json")

    assert response.status_code == 503
    assert response["Retry-After"]
