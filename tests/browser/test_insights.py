"""The charts in a real browser: values on hover and by keys, a period by dragging, PNG and CSV."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model

from exhaust.models import Job
from ingest.models import Conversation, StoredEvent
from tests.exhaust.factories import BOT, make_answer, make_job, send_events

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
PASSWORD = "a long enough one"
FIRST = datetime(2022, 3, 1, 12, tzinfo=UTC)
MARCH = "startDate=2022-03-01&endDate=2022-03-31"
EVENTS = ".chart-card:has(#events_by_source-h)"
SIZES = {"desktop": (1280, 860), "phone": (390, 844)}


@pytest.fixture
def insights(page: Any, live_server: Any, settings: Any) -> str:
    """The address of a signed-in user's insights: n + 1 events on each nth day of March."""
    settings.EXHAUST_PUBLIC_URL = live_server.url
    fill_march()
    get_user_model().objects.create_superuser("operator", password=PASSWORD)
    sign_in(page, live_server.url)
    return f"{live_server.url}/console/ORG_001/charts"


def fill_march() -> None:
    send_events(*(make_answer(number) for number in range(12)))
    Conversation.objects.update(name="Lunch bot")
    times = [FIRST + timedelta(days=day) for day in range(4) for _ in range(day + 1)]
    rows = list(StoredEvent.objects.order_by("pk"))
    for row, moment in zip(rows, [*times, *[FIRST + timedelta(days=20)] * 2], strict=True):
        StoredEvent.objects.filter(pk=row.pk).update(received_at=moment, occurred_at=moment)
    for day in range(3):
        job = make_job(tag=f"day-{day}", status=Job.Status.SUCCESS)
        start = FIRST + timedelta(days=day)
        Job.objects.filter(pk=job.pk).update(
            submitted_at=start, completed_at=start + timedelta(seconds=30 + 60 * day)
        )


def sign_in(page: Any, base: str) -> None:
    page.goto(f"{base}/console/sign-in")
    page.fill("#id_login", "operator")
    page.fill("#id_password", PASSWORD)
    page.click("main button.main")
    page.wait_for_selector("text=Sign out", state="attached")  # on a phone the account has it


def locate_day(page: Any, index: int, count: int = 31) -> tuple[float, float]:
    """Returns where the middle of a day's column is on the page."""
    box = page.locator(f"{EVENTS} .u-over").bounding_box()
    return box["x"] + box["width"] * (index + 0.5) / count, box["y"] + box["height"] / 2


@pytest.fixture
def refusals(page: Any) -> Iterator[list[str]]:
    """What the browser's console says; at the end it has said nothing."""
    lines: list[str] = []
    page.on("console", lambda line: lines.append(line.text))
    yield lines
    assert lines == []


def test_hover_and_keys_show_values(page: Any, insights: str, refusals: list[str]) -> None:
    page.goto(f"{insights}?{MARCH}")
    page.wait_for_selector(f"{EVENTS} canvas")
    assert page.locator(f"{EVENTS} .drawing").is_hidden()
    page.locator(EVENTS).scroll_into_view_if_needed()
    page.mouse.move(*locate_day(page, 3))
    tip = page.locator(f"{EVENTS} .tip:visible")
    assert tip.inner_text().splitlines() == ["Mar 4, 2022", "telemetry 4"]

    page.focus(f"{EVENTS} .plot")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(f"{EVENTS} .tip:has-text('Mar 3')")
    assert tip.inner_text().splitlines() == ["Mar 3, 2022", "telemetry 3"]
    slider = page.locator(f"{EVENTS} .plot")
    assert slider.get_attribute("role") == "slider"
    assert slider.get_attribute("aria-valuetext") == "Mar 3, 2022, telemetry 3"
    page.focus(".chart-card:has(#time_to_export-h) .plot")
    page.keyboard.press("Home")
    page.wait_for_selector(".chart-card:has(#time_to_export-h) .tip:has-text('Median 30 s')")


def test_drag_chooses_days(page: Any, insights: str) -> None:
    page.goto(f"{insights}?{MARCH}&compare=1")
    page.wait_for_selector(f"{EVENTS} canvas")
    page.locator(EVENTS).scroll_into_view_if_needed()
    page.mouse.move(*locate_day(page, 1))
    page.mouse.down()
    page.mouse.move(*locate_day(page, 2), steps=4)
    page.mouse.move(*locate_day(page, 3), steps=4)
    page.mouse.up()
    page.wait_for_url("**startDate=2022-03-02**")
    assert "endDate=2022-03-04" in page.url
    assert "compare=1" in page.url
    assert page.input_value("#f-startDate") == "2022-03-02"
    caption = page.inner_text("#events_by_source-c")
    assert caption.startswith("9 in 3 days.")
    assert "The period before had 1 (+800% since)." in caption
    page.go_back()
    assert page.input_value("#f-startDate") == "2022-03-01"


def test_charts_are_saved(page: Any, insights: str, tmp_path: Path, refusals: list[str]) -> None:
    page.goto(f"{insights}?{MARCH}")
    page.wait_for_selector(f"{EVENTS} canvas")
    for name in ("events_by_source", "answers_by_conversation"):  # a canvas, and an SVG drawing
        card = f".chart-card:has(#{name}-h)"
        with page.expect_download() as saving:
            page.click(f"{card} [data-png]")
        assert saving.value.suggested_filename == f"ORG_001-{name}-2022-03-01-2022-03-31.png"
        image = Path(saving.value.path()).read_bytes()
        assert image.startswith(b"\x89PNG")
        assert len(image) > 4_000
    with page.expect_download() as saving:
        page.click(f"{EVENTS} a:has-text('CSV')")
    lines = Path(saving.value.path()).read_text().splitlines()
    assert lines[:3] == ["Day,telemetry", "2022-03-01,1", "2022-03-02,2"]
    assert len(lines) == 32


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_charts_fit_and_pass_axe(
    chromium: Any, live_server: Any, settings: Any, scheme: str, size: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="browser extra").Axe()
    settings.EXHAUST_PUBLIC_URL = live_server.url
    fill_march()
    get_user_model().objects.create_superuser("operator", password=PASSWORD)
    width, height = SIZES[size]
    context = chromium.new_context(
        color_scheme=scheme, viewport={"width": width, "height": height}, reduced_motion="reduce"
    )
    page = context.new_page()
    sign_in(page, live_server.url)
    found = []
    for path in (f"charts?{MARCH}&compare=1", f"conversations/one?id={BOT}&{MARCH}"):
        page.goto(f"{live_server.url}/console/ORG_001/{path}")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        page.click(".chart-card summary >> nth=0")
        result = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
        found += [(each["id"], node["html"][:120]) for each in result for node in each["nodes"]]
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    context.close()
    assert found == []


def test_charts_work_without_javascript(chromium: Any, live_server: Any, settings: Any) -> None:
    settings.EXHAUST_PUBLIC_URL = live_server.url
    fill_march()
    get_user_model().objects.create_superuser("operator", password=PASSWORD)
    context = chromium.new_context(java_script_enabled=False, accept_downloads=True)
    page = context.new_page()
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/console/ORG_001/charts?{MARCH}")
    bars = [each.get_attribute("d") for each in page.locator(f"{EVENTS} svg path").all()]
    assert "".join(bars).count("M") == 5  # days with events
    assert page.locator("[data-png]:visible").count() == 0
    page.check("input[name=compare]")
    page.click("button:has-text('Show')")
    page.wait_for_url("**compare=1**")
    assert page.locator(f"{EVENTS} polyline.before").count() == 1
    page.click(f"{EVENTS} summary")
    assert page.locator(f"{EVENTS} tbody tr").count() == 31
    with page.expect_download() as saving:
        page.click(f"{EVENTS} a:has-text('CSV')")
    assert "Period before" in Path(saving.value.path()).read_text()
    context.close()
