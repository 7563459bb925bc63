"""The first address, addresses without their slash, and the pages about errors."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, RequestFactory
from django.utils import timezone

from exhaust.models import File, Link
from ingest.http import pages
from tests.conftest import make_channel
from tests.exhaust.files.test_links import make_linked_file

pytestmark = pytest.mark.django_db
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
DOCUMENT = "application/problem+json"


def read_page(answer: Any, status: int) -> str:
    assert (answer.status_code, answer["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert "script-src 'self'" in answer["Content-Security-Policy"]
    assert answer["Cache-Control"] == "no-store"
    text: str = answer.content.decode()
    assert text.startswith("<!doctype html>")
    return text


@pytest.mark.parametrize("method", ["get", "head"])
def test_browser_is_led_to_console(method: str) -> None:
    answer = getattr(Client(headers=BROWSER), method)("/?a=b")
    assert (answer.status_code, answer["Location"]) == (302, "/console/")


@pytest.mark.parametrize("accept", ["*/*", "", "text/plain"])
def test_program_gets_addresses(accept: str, settings: Any) -> None:
    settings.EXHAUST_PUBLIC_URL = "https://exhaust.example"
    answer = Client(headers={"Accept": accept}).get("/")
    (links,) = answer.json()["linkset"]
    assert answer["Content-Type"] == "application/linkset+json"
    assert links["anchor"] == "https://exhaust.example/"
    for (link,) in (links[name] for name in ("service-desc", "service-doc", "status")):
        path = link["href"].removeprefix("https://exhaust.example")
        found = Client().get(path)
        assert found.status_code == 200
        assert found["Content-Type"].startswith(link["type"])


@pytest.mark.parametrize("name", ["account", "admin", "console", "docs"])
def test_missing_slash_is_added(name: str) -> None:
    for method in ("get", "head"):
        answer = getattr(Client(), method)(f"/{name}?a=%2Fb")
        assert (answer.status_code, answer["Location"]) == (301, f"/{name}/?a=%2Fb")
    assert Client().get(f"/{name}")["Location"] == f"/{name}/"
    for method in ("post", "put", "delete"):
        answer = getattr(Client(enforce_csrf_checks=True), method)(f"/{name}")
        assert (answer.status_code, answer["Content-Type"]) == (405, DOCUMENT)
        assert answer["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/nothing", "/admin/nothing", "/consoles", "/v9/telemetry"])
def test_missing_page_by_accept(path: str) -> None:
    browser = Client(headers=BROWSER)
    if path.startswith("/admin"):  # which asks a stranger to sign in first
        browser.force_login(User.objects.create_superuser("asha"))
    assert "Page not found" in read_page(browser.get(path), 404)
    program = Client().get("/nothing")
    assert (program.status_code, program.json()["title"]) == (404, "not_found")


def test_old_form_says_what_to_do() -> None:
    for headers, kind in ((BROWSER, "text/html; charset=utf-8"), ({}, DOCUMENT)):
        client = Client(enforce_csrf_checks=True, headers=headers)
        answer = client.post("/console/sign-in", {"login": "asha"})
        assert (answer.status_code, answer["Content-Type"]) == (403, kind)
        assert "load the page again" in answer.content.decode()


def test_forbidden_page_by_accept() -> None:
    user = User.objects.create_user("asha", is_staff=True)
    for headers in (BROWSER, {}):
        client = Client(headers=headers)
        client.force_login(user)
        answer = client.get("/admin/auth/user/")
        if headers:
            assert "You do not have access" in read_page(answer, 403)
        else:
            assert (answer.status_code, answer.json()["title"]) == (403, "forbidden")


def test_failure_is_a_page_without_database(
    rf: RequestFactory, django_assert_num_queries: Any
) -> None:
    for headers in (BROWSER, {}):
        with django_assert_num_queries(0):
            try:
                raise ValueError("SECRET")
            except ValueError:
                answer = pages.server_error(rf.get("/console/", headers=headers))
        assert answer.status_code == 500
        assert b"SECRET" not in answer.content
        kind = "text/html; charset=utf-8" if headers else DOCUMENT
        assert answer["Content-Type"] == kind


ENDINGS = {
    "expired": (410, "has expired", lambda link: Link.objects.update(expires_at=timezone.now())),
    "revoked": (410, "was revoked", lambda link: Link.objects.update(revoked_at=timezone.now())),
    "used up": (410, "has expired", lambda link: Link.objects.update(use_count=link.max_uses)),
    "deleted": (410, "was deleted", lambda link: File.objects.update(deleted_at=timezone.now())),
    "withdrawn": (410, "consent", lambda link: File.objects.update(withdrawn_at=timezone.now())),
    "altered": (403, "not known here", lambda link: link.delete()),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_dead_link_is_a_page(name: str, settings: Any) -> None:
    settings.EXHAUST_ADMINISTRATOR = ("Asha <b>", "mailto:asha@x.example")
    status, words, end = ENDINGS[name]
    _, link, path = make_linked_file()
    end(link)

    answer = Client(headers=BROWSER).get(path)

    text = read_page(answer, status)
    assert words in text
    assert '<a href="mailto:asha@x.example">Asha &lt;b&gt;</a>' in text
    assert answer["Referrer-Policy"] == "no-referrer"
    assert Client().get(path)["Content-Type"] == "text/plain; charset=utf-8"


def test_living_link_is_the_file_for_browsers() -> None:
    file, _, path = make_linked_file()
    answer = Client(headers=BROWSER).get(path)
    assert (answer.status_code, answer["Content-Type"]) == (200, file.content_type)
    answer.close()


def test_page_has_the_languages_of_the_browser() -> None:
    for header, language in (("hi-IN,en;q=0.5", "hi"), ("fr,ar;q=0.2", "ar"), ("fr", "en")):
        answer = Client(headers={**BROWSER, "Accept-Language": header}).get("/nothing")
        assert f'<html lang="{language}"' in read_page(answer, 404)


def test_forbidden_names_the_administrator(settings: Any) -> None:
    settings.EXHAUST_ADMINISTRATOR = ("Help desk", "https://help.example")
    make_channel()
    answer = Client(headers=BROWSER).get("/account/password/reset")
    assert '<a href="https://help.example">Help desk</a>' in read_page(answer, 200)
