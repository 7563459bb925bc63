"""The API's page, in a browser that reaches this server only."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_docs_page_shows_every_operation(page: Any, live_server: Any, tmp_path: Path) -> None:
    # given a browser that records its requests and the refused ones
    host = urlsplit(live_server.url).netloc
    foreign: list[str] = []
    html: list[str] = []
    page.on("request", lambda call: foreign.append(call.url) if host not in call.url else None)
    page.on("console", lambda line: html.append(line.text))
    page.on("pageerror", lambda error: html.append(str(error)))

    # when the page is opened and an operation unfolded
    answer = page.goto(f"{live_server.url}/docs/")
    policy = answer.headers["content-security-policy"]
    page.wait_for_selector("text=Request an export")
    page.click("text=Request an export")
    page.wait_for_selector("text=uci-response-exhaust")

    # then all is there, from here, under a policy without inline scripts
    from exhaust.openapi.document import document

    count = sum(len(set(item) - {"servers"}) for item in document()["paths"].values())
    assert page.locator(".opblock").count() == count
    assert "unsafe" not in policy
    assert [url for url in foreign if not url.startswith("data:")] == []
    assert html == []
    page.screenshot(path=tmp_path / "docs.png", full_page=False)
    assert (tmp_path / "docs.png").stat().st_size > 20_000
