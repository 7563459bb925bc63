"""Every address answers with the headers; sessions end."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from time import time
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.urls import URLPattern, URLResolver, get_resolver

from ingest.auth import sessions
from ingest.http import security_headers
from ingest.http.middleware import HttpsMiddleware
from ingest.models import BrowserSession

pytestmark = pytest.mark.django_db


def list_addresses(found: Any = None, before: str = "") -> Iterator[str]:
    """One address of each of the URLconf's patterns."""
    for each in found or get_resolver().url_patterns:
        said = before + str(each.pattern).removeprefix("^").removesuffix("$").removesuffix("\\Z")
        if isinstance(each, URLResolver):
            yield from list_addresses(each.url_patterns, said)
        elif isinstance(each, URLPattern):
            made = re.sub(r"<(?:\w+:)?\w+>", "1", said)
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
    content_type = answer.get("Content-Type", "")
    assert "charset=" in content_type or not content_type.startswith("text/"), address
    is_page = content_type.startswith("text/html")
    assert ("script-src 'self'" in policy) is is_page, address
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["X-Frame-Options"] == "DENY"
    assert answer["Referrer-Policy"] in {"same-origin", "no-referrer"}
    assert answer["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "camera=()" in answer["Permissions-Policy"]
    assert len(answer["X-Request-ID"]) == 36
    is_public = answer.status_code == 200 and address.startswith(("/docs/", "/static/"))
    assert ("no-store" in answer["Cache-Control"]) is not is_public, address
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
        ("/static/", 404, {}),
        ("/static/admin/css/", 404, {}),
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


def test_trace_repeats_no_header():
    for address in ALL:
        answer = Client(raise_request_exception=False).generic(
            "TRACE", address, HTTP_X_API_KEY="canary"
        )
        assert b"canary" not in b"".join(answer), address


def test_pages_take_no_post_without_token():
    operator = Client(enforce_csrf_checks=True)
    operator.force_login(get_user_model().objects.create_superuser("op"))
    pages = [address for address in ALL if address.startswith(("/admin/", "/console/"))]

    statuses = {page: operator.post(page).status_code for page in pages}

    assert len(pages) > 50
    assert {page: status for page, status in statuses.items() if status != 403} == {}


def test_only_two_cookies_are_set():
    operator = Client()
    operator.force_login(get_user_model().objects.create_superuser("op"))
    operator.post("/admin/ingest/channel/add/", {"identifier": "ORG_9", "name": "A name"})

    assert set(operator.cookies) <= {"sessionid", "csrftoken"}


def test_cookies_are_guarded():
    get_user_model().objects.create_superuser("op", password="a long enough one")
    client = Client()
    client.get("/console/sign-in")
    client.post("/console/sign-in", {"login": "op", "password": "a long enough one"})

    assert set(client.cookies) == {"sessionid", "csrftoken"}
    assert {each["samesite"] for each in client.cookies.values()} == {"Lax"}
    assert client.cookies["sessionid"]["httponly"] is True


# Too much of everything ---------------------------------------------------------------------------

MAX_PARTS = 100  # in the tests: to read a thousand takes a tenth of a second
FORM = "application/x-www-form-urlencoded"
PARTS = "multipart/form-data; boundary=b"
PART = '--b\r\nContent-Disposition: form-data; name="a%d"%s\r\n\r\n1\r\n'
TOO_MUCH: dict[str, dict[str, Any]] = {
    "fields": {"data": "&".join(f"a{n}=1" for n in range(10_000)), "content_type": FORM},
    "parts": {
        "data": "".join(PART % (n, "") for n in range(MAX_PARTS + 1)) + "--b--\r\n",
        "content_type": PARTS,
    },
    "files": {
        "data": "".join(PART % (n, '; filename="f"') for n in range(101)) + "--b--\r\n",
        "content_type": PARTS,
    },
    "query": {"QUERY_STRING": "&".join(f"a{n}=1" for n in range(1001))},
    "cookies": {"HTTP_COOKIE": "; ".join(f"c{n}={'x' * 50}" for n in range(1000))},
    "one cookie": {"HTTP_COOKIE": "sessionid=" + "x" * 60_000},
    "keys": {"HTTP_X_API_KEY": "a,b", "HTTP_AUTHORIZATION": "Bearer a,Bearer b"},
    "types": {"data": "{}", "content_type": "application/json,text/html"},
    "languages": {"HTTP_ACCEPT_LANGUAGE": "en," * 20_000},
}


@pytest.mark.sqlite  # it is refused before a database
@pytest.mark.parametrize("kind", TOO_MUCH)
def test_too_much_is_no_error_of_ours(kind: str, settings: Any):
    if kind == "parts":
        settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = MAX_PARTS
    operator = Client(raise_request_exception=False)
    operator.force_login(get_user_model().objects.create_superuser("op"))
    for client in (Client(raise_request_exception=False), operator):
        answers = {
            address: client.generic("POST", address, **TOO_MUCH[kind]).status_code
            for address in ALL
        }
        assert {address: code for address, code in answers.items() if code >= 500} == {}
        if kind in {"fields", "parts", "files"}:
            assert answers["/console/sign-in"] == 400
        if kind == "query":
            assert answers["/console/sign-in"] == answers["/collect"] == 400


def test_repeated_host_is_refused():
    assert Client().get("/console/", HTTP_HOST="testserver,testserver").status_code == 400


def test_https_redirect_has_headers(settings: Any):
    settings.SECURE_SSL_REDIRECT = True
    answer = Client().get("/admin/", headers={"Accept": "text/html"})
    assert (answer.status_code, answer["Location"]) == (301, "https://testserver/admin/")
    assert_headers(answer, "/admin/")


def test_program_is_not_led_to_https(settings: Any, rf: RequestFactory):
    """It would show its key to the network each time."""
    settings.SECURE_SSL_REDIRECT = True
    middleware = HttpsMiddleware(lambda request: HttpResponse("taken"))
    call = partial(rf.post, "/dataset/v1/request/search", headers={"X-API-Key": "exh_a"})
    refused = middleware(call())
    assert (refused.status_code, json.loads(refused.content)["title"]) == (403, "https_only")
    assert "rotate it" in json.loads(refused.content)["detail"]
    assert middleware(call(secure=True)).content == b"taken"


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
    session = BrowserSession.objects.get(pk=sessions.hash_key(client.cookies["sessionid"].value))
    return session.expire_date.timestamp() - time()


def test_idle_session_ends_after_30_minutes(staff: Client):
    assert 1790 < session_seconds(staff) <= 1800
    BrowserSession.objects.update(expire_date="2020-01-01T00:00:00Z")
    assert staff.get("/admin/").status_code == 302


def test_request_renews_session_each_minute(staff: Client, django_assert_num_queries: Any):
    staff.get("/admin/")
    BrowserSession.objects.update(expire_date="2999-01-01T00:00:00Z")
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
    BrowserSession.objects.update(expire_date=datetime.now(UTC) + timedelta(minutes=1))

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
    assert not BrowserSession.objects.exists()


def test_api_and_anonymous_get_no_session(staff: Client):
    answer = Client().get("/dataset/v1/request/list/t")
    assert "sessionid" not in answer.cookies
    assert not staff.get("/healthz").cookies
