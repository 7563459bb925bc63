"""The API's pages, in a browser that reaches this server only."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_trial_shows_every_operation(page: Any, live_server: Any, tmp_path: Path) -> None:
    # given a browser that records its requests and the refused ones
    host = urlsplit(live_server.url).netloc
    foreign: list[str] = []
    html: list[str] = []
    page.on("request", lambda call: foreign.append(call.url) if host not in call.url else None)
    page.on("console", lambda line: html.append(line.text))
    page.on("pageerror", lambda error: html.append(str(error)))

    # when the page is opened and an operation unfolded
    answer = page.goto(f"{live_server.url}/docs/try")
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_and_passes_axe(chromium: Any, live_server: Any, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="browser extra").Axe()
    context = chromium.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 844}, reduced_motion="reduce"
    )
    page = context.new_page()
    lines: list[str] = []
    page.on("console", lambda line: lines.append(line.text))
    page.goto(f"{live_server.url}/docs/")
    result = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [(each["id"], node["html"][:120]) for each in result for node in each["nodes"]] == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert lines == []
    context.close()


def test_example_is_copied(page: Any, live_server: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{live_server.url}/docs/")
    page.click("#submitJob summary:has-text('Python')")
    assert page.locator("#submitJob pre:visible").count() == 1
    assert page.is_visible("#readJob pre:has-text('import requests')")  # everywhere at once
    page.click("#submitJob button:visible")
    page.wait_for_selector("#submitJob button:has-text('Copied')")
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("import os")
    assert "uci-response-exhaust" in text


def test_page_works_without_javascript(chromium: Any, live_server: Any) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{live_server.url}/docs/")
    page.click("#readJob summary:has-text('Answer')")
    assert page.is_visible("#readJob pre:has-text('requestId')")
    assert page.locator("[data-copy-example]:visible").count() == 0
    context.close()
