"""Every address answers with the headers; sessions end."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from ingest.http import security_headers

pytestmark = pytest.mark.django_db


def list_addresses(found: Any = None, before: str = "") -> Iterator[str]:
    """One address of each of the URLconf's patterns."""
    for each in found or get_resolver().url_patterns:
        said = before + str(each.pattern).removeprefix("^").removesuffix("$").removesuffix("\\Z")
        if isinstance(each, URLResolver):
            yield from list_addresses(each.url_patterns, said)
        elif isinstance(each, URLPattern):
            made = re.sub(r"<path:\w+>|<int:\w+>|<str:\w+>|<\w+>", "1", said)
            yield "/" + re.sub(r"\(\?P<\w+>[^)]*\)", "1", made).replace("\\", "")


ALL = sorted(set(list_addresses()))


def test_addresses_are_found():
    assert len(ALL) > 100
    assert {"/healthz", "/admin/login/", "/dataset/v1/download/1"} <= set(ALL)


def assert_headers(answer: Any, address: str) -> None:
    policy = answer["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; "), address
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    is_page = answer.get("Content-Type", "").startswith("text/html")
    assert ("script-src 'self'" in policy) is is_page, address
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["X-Frame-Options"] == "DENY"
    assert answer["Referrer-Policy"] in {"same-origin", "no-referrer"}
    assert answer["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "camera=()" in answer["Permissions-Policy"]
    assert len(answer["X-Request-ID"]) == 36
    assert "Server" not in answer
    assert "X-Powered-By" not in answer


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_address_has_headers(method: str):
    operator = Client(raise_request_exception=False)
    operator.force_login(get_user_model().objects.create_superuser("op"))
    for client in (Client(raise_request_exception=False), operator):
        for address in ALL:
            assert_headers(client.generic(method, address), address)


@pytest.mark.parametrize(
    ("address", "status", "more"),
    [
        ("/nowhere", 404, {}),
        ("/admin/nowhere", 302, {}),
        ("/console/", 400, {"HTTP_HOST": "evil.example"}),
        ("/static/admin/css/base.css", 200, {}),
    ],
)
def test_unknown_address_has_headers(address: str, status: int, more: dict[str, str]):
    answer = Client().get(address, **more)
    answer.close()
    assert answer.status_code == status
    assert_headers(answer, address)


def test_https_redirect_has_headers(settings: Any):
    settings.SECURE_SSL_REDIRECT = True
    answer = Client().get("/admin/")
    assert answer.status_code == 301
    assert_headers(answer, "/admin/")


# Sessions -----------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    told = {"ahead": 0.0}
    monkeypatch.setattr(security_headers, "read_seconds", lambda: int(time() + told["ahead"]))
    return told


@pytest.fixture
def staff() -> Client:
    client = Client()
    client.force_login(get_user_model().objects.create_superuser("op"))
    return client


def session_seconds(client: Client) -> float:
    """Seconds that the session would live without another request."""
    session = Session.objects.get(pk=client.cookies["sessionid"].value)
    return session.expire_date.timestamp() - time()


def test_idle_session_ends_after_30_minutes(staff: Client):
    assert 1790 < session_seconds(staff) <= 1800
    Session.objects.update(expire_date="2020-01-01T00:00:00Z")
    assert staff.get("/admin/").status_code == 302


def test_request_renews_session_each_minute(staff: Client, django_assert_num_queries: Any):
    staff.get("/admin/")
    Session.objects.update(expire_date="2999-01-01T00:00:00Z")
    staff.get("/admin/")
    assert session_seconds(staff) > 10_000  # not touched
    session = staff.session
    session["used"] -= 61
    session.save()
    staff.get("/admin/")
    assert 1790 < session_seconds(staff) <= 1800


def test_polling_does_not_renew_session(staff: Client):
    session = staff.session
    session["used"] = int(time()) - 29 * 60
    session.save()
    Session.objects.update(expire_date=datetime.now(UTC) + timedelta(minutes=1))

    assert staff.get("/admin/", headers={"X-Poll": "1"}).status_code == 200

    assert session_seconds(staff) <= 60
    staff.get("/admin/")
    assert 1790 < session_seconds(staff) <= 1800


def test_session_ends_after_12_hours(staff: Client, clock: dict[str, float]):
    clock["ahead"] = 12 * 3600 - 300
    assert staff.get("/admin/").status_code == 200
    assert 290 < session_seconds(staff) <= 300
    clock["ahead"] = 12 * 3600 + 1
    staff.get("/admin/")
    assert staff.get("/admin/").status_code == 302
    assert not Session.objects.exists()


def test_api_and_anonymous_get_no_session(staff: Client):
    answer = Client().get("/dataset/v1/request/list/t")
    assert "sessionid" not in answer.cookies
    assert not staff.get("/healthz").cookies
