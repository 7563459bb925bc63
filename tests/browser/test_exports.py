"""Exports in a real browser: the form, the list's actions, and a session that ends."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.browser.test_console import (
    PASSWORD,
    SIZES,
    create_export,
    rows_of,
    service_with_users,
    sign_in,
)
from tests.exhaust.factories import BOT
from tests.service import CHANNEL, Service

pytestmark = [pytest.mark.browser]
__all__ = ["service_with_users"]
NEW = f"/console/{CHANNEL}/exports/new"
LIST = f"/console/{CHANNEL}/exports"


def fill_days(page: Any) -> None:
    page.check(f'input[value="{BOT}"]')
    page.fill("#f-startDate", "2022-03-01")
    page.fill("#f-endDate", "2022-04-01")


def end_sessions(service: Service) -> None:
    service.change("UPDATE ingest_browsersession SET expire_date = '2020-01-01 00:00:00+00:00'")


def test_find_preview_create_download(page: Any, service_with_users: Service) -> None:
    base = sign_in(page, service_with_users, path=NEW)
    with page.expect_download() as downloading:
        page.click("a.sample >> nth=0")
    assert len(rows_of(downloading.value.path())) > 1
    page.fill("#f-conversationId", "lunch")
    page.wait_for_selector(f'input[value="{BOT}"]')
    page.click("button:has-text('Today')")
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    page.wait_for_selector(f"#f-startDate[value='{today}']")
    assert page.input_value("#f-endDate") == today
    fill_days(page)
    page.fill("#f-tag", "first")
    page.wait_for_selector("#preview .estimate:has-text('40 rows')")
    assert page.url == f"{base}{NEW}"  # the preview leads nowhere
    page.click("text=Create export")
    page.wait_for_selector("a:has-text('Download csv')", timeout=40_000)
    with page.expect_download() as downloading:
        page.click("a:has-text('Download csv')")
    assert len(rows_of(downloading.value.path())) == 41

    # the same question again
    page.click("text=Duplicate and edit")
    page.wait_for_selector("#existing:has-text('You have this export already')")
    page.click("#existing >> text=Export again")
    page.wait_for_selector("text=Export queued.")
    assert service_with_users.query("SELECT count(*) FROM exhaust_job WHERE tag = 'first'") == [
        (2,)
    ]


def test_zone_changes_the_presets(page: Any, service_with_users: Service) -> None:
    sign_in(page, service_with_users, path=NEW)
    page.fill("#f-tag", "typed")
    day = datetime.now(UTC) + timedelta(hours=14)
    page.select_option("#f-timezone", "Pacific/Kiritimati")
    page.wait_for_selector(f"button:has-text('Today {day.day} {day:%b %Y}')")
    assert page.input_value("#f-timezone") == "Pacific/Kiritimati"
    assert page.input_value("#f-tag") == "typed"


def test_made_password_encrypts(page: Any, service_with_users: Service) -> None:
    sign_in(page, service_with_users, path=NEW)
    fill_days(page)
    page.fill("#f-tag", "with-password")
    page.click("text=Make a password")
    password = page.input_value("#f-encryptionKey")
    assert len(password) == 23
    assert page.is_checked("input[name=encryption][value=password]")
    page.click("text=Create export")
    page.wait_for_selector("a:has-text('Download csv.zip')", timeout=40_000)
    assert password not in page.content()


def test_session_ends_in_the_form(page: Any, service_with_users: Service) -> None:
    # given a form with values, whose session ends
    base = sign_in(page, service_with_users, path=NEW)
    page.wait_for_selector("#preview.htmx-request", state="detached")
    fill_days(page)
    page.fill("#f-tag", "kept")
    end_sessions(service_with_users)

    # when the preview is made again, then it says so and the form stays
    page.select_option("#f-outputFormat", "jsonl")
    page.wait_for_selector("#preview:has-text('You are signed out')")
    assert page.input_value("#f-tag") == "kept"

    # when the user signs in by its link, then all is there again
    page.click("text=Sign in and come back to this form")
    page.fill("#id_login", "operator")
    page.fill("#id_password", PASSWORD)
    page.click("main button")
    page.wait_for_selector("#preview .estimate:has-text('40 rows')")
    assert page.input_value("#f-tag") == "kept"
    assert page.input_value("#f-startDate") == "2022-03-01"
    assert page.input_value("#f-outputFormat") == "jsonl"

    # and in another tab, then the form works again where it stands
    end_sessions(service_with_users)
    page.fill("#f-tag", "kept-on")
    other = page.context.new_page()
    sign_in(other, service_with_users)
    other.close()
    page.select_option("#f-outputFormat", "csv")
    page.wait_for_selector("#preview .estimate:has-text('40 rows')")
    page.click("text=Create export")
    page.wait_for_url(f"{base}{LIST}/kept-on/*")


def test_bulk_cancel_and_delete(page: Any, service_with_users: Service) -> None:
    base = sign_in(page, service_with_users)
    create_export(page, base, "bulk-one")
    page.goto(f"{base}{LIST}?tagPrefix=bulk-")
    page.check("text=Choose all")
    assert page.is_checked("input[name=job]")
    page.click(".bulk >> text=Cancel")
    page.wait_for_selector("text=The export had finished already.")
    assert page.url.endswith("?tagPrefix=bulk-")
    page.check("input[name=job]")
    page.click(".bulk >> text=Delete files")
    page.wait_for_selector("h1:has-text('Delete the files of this export?')")
    page.click("main button:has-text('Delete files')")
    page.wait_for_selector("text=The files of 1 export are deleted.")
    assert page.inner_text(".rows .pill") == "Deleted"


def test_polling_keeps_choices(page: Any, service_with_users: Service) -> None:
    base = sign_in(page, service_with_users)
    worker = next(each for each in service_with_users.children if each.name == "worker")
    worker.stop()
    page.goto(
        f"{base}{NEW}?conversationId={BOT}&startDate=2022-03-01&endDate=2022-04-01"
        "&timezone=UTC&outputFormat=csv&tag=chosen&forceNew=true"
    )
    page.click("text=Create export")
    page.wait_for_selector(".pill:has-text('Queued')")
    page.goto(f"{base}{LIST}?tagPrefix=chosen")
    page.check("input[name=job]")
    service_with_users.change(
        "UPDATE exhaust_job SET status = 'PROCESSING', attempt = 1, rows_estimated = 100,"
        " rows_done = 25 WHERE tag = 'chosen'"
    )
    page.wait_for_selector("progress[value='25']")
    assert page.is_checked("input[name=job]")
    page.click(".rows >> text=Cancel")
    page.wait_for_selector("text=1 export cancelled.")
    service_with_users.start_worker()


def test_save_a_view(page: Any, service_with_users: Service) -> None:
    base = sign_in(page, service_with_users)
    page.goto(f"{base}{LIST}?status=FAILED")
    page.click("text=Save this view")
    page.fill("#f-name", "Failures")
    page.click("button:has-text('Save')")
    page.goto(f"{base}{LIST}")
    page.click("a:has-text('Failures')")
    assert page.url.endswith("?status=FAILED")
    assert page.locator(".chips a[aria-current]").all_inner_texts()[0].startswith("Failed")


def test_share_and_delete(page: Any, service_with_users: Service) -> None:
    base = sign_in(page, service_with_users)
    create_export(page, base, "shared")
    page.select_option("select[name=uses]", "10")
    page.click("text=Create link")
    page.wait_for_selector(".links:has-text('downloads: 0 of 10')")
    page.click("text=Revoke link")
    page.wait_for_selector(".links .pill:has-text('Revoked')")
    page.click("role=navigation >> text=Columns")
    page.wait_for_selector("th:has-text('Device ID')")
    page.click("main button:has-text('Delete')")
    page.click("main button:has-text('Delete files')")
    page.wait_for_selector(".pill:has-text('Deleted')")
    assert page.locator("a:has-text('Download csv')").count() == 0


def test_phone_shows_preview_before_button(chromium: Any, service_with_users: Service) -> None:
    width, height = SIZES["phone"]
    context = chromium.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    base = sign_in(page, service_with_users, path=NEW)
    preview, button = (
        page.locator(name).bounding_box()
        for name in ("section:has(#preview)", "button:has-text('Create export')")
    )
    assert preview["y"] + preview["height"] <= button["y"]
    create_export(page, base, "on-a-phone")
    page.goto(f"{base}{LIST}")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    context.close()
