"""A day of a channel's administrator: from the first address to a colleague with a key."""

import re
from typing import Any

import pytest
from django.contrib.auth.models import Group, User

from ingest.models import ApiKey, Role
from tests.conftest import make_channel
from tests.exhaust.files.test_links import make_linked_file

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
PASSWORD = "a long enough one"
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def admin(page: Any, live_server: Any, settings: Any) -> Any:
    """Signed in from the first address, as an administrator of ORG_001."""
    settings.EXHAUST_PUBLIC_URL = live_server.url
    user = User.objects.create_user("asha", "asha@x.example", PASSWORD)
    group = Group.objects.create(name="administrators")
    group.user_set.add(user)
    Role.objects.create(group=group, channel=make_channel(), administer=True, submit_response=True)
    page.goto(live_server.url)
    sign_in(page, "asha")
    return page


def sign_in(page: Any, name: str) -> None:
    page.fill("#id_login", name)
    page.fill("#id_password", PASSWORD)
    page.click("button.main")


def test_colleague_is_invited_changed_removed(admin: Any, chromium: Any) -> None:
    admin.click("nav >> text=Team")
    admin.fill("#f-email", "bela@x.example")
    invitation = admin.locator("section:has(h2:text('Invite a colleague'))")
    invitation.locator("input[value=submit_response]").check()
    admin.click("button:has-text('Invite')")
    link = admin.inner_text(".secret")

    context = chromium.new_context(viewport=PHONE)
    bela = context.new_page()
    bela.goto(link)
    bela.fill("#id_password1", PASSWORD)
    bela.fill("#id_password2", PASSWORD)
    bela.click("button.main")
    bela.goto(link.partition("/account")[0])
    sign_in(bela, "bela@x.example")
    bela.click("text=Menu")
    bela.wait_for_selector("nav >> text=Exports")
    assert bela.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0

    admin.click("text=Done")
    row = admin.locator("li:has-text('bela@x.example')").first
    row.locator("summary").click()
    row.locator("input[value=administer]").check()
    row.locator("button:has-text('Save')").click()
    assert "is changed" in admin.inner_text(".note")
    bela.reload()
    bela.click("text=Menu")
    bela.click("nav >> text=API keys")
    assert "Create API key" in bela.inner_text("main")

    admin.on("dialog", lambda dialog: dialog.accept())
    row.locator("summary").click()
    row.locator("button:has-text('Remove')").click()
    assert "is removed" in admin.inner_text(".note")
    bela.reload()
    assert "Page not found" in bela.inner_text("main")
    context.close()


def test_key_is_created_and_rotated(admin: Any) -> None:
    admin.click("nav >> text=API keys")
    admin.fill("#f-name", "our bot")
    admin.check("input[value=ingest]")
    admin.fill("#f-networks", "10.0.0.0/8")
    admin.click("main button:has-text('Create API key')")
    first = admin.inner_text(".secret")
    admin.click("text=Done")
    admin.click("summary:has-text('Rotate')")
    admin.select_option("select[name=hours]", "1")
    admin.click("button:has-text('Create the new key')")
    assert admin.inner_text(".secret") != first
    assert ApiKey.objects.count() == 2
    assert "ends" in admin.inner_text(".note")


def test_own_zone_and_language(admin: Any, live_server: Any) -> None:
    admin.click("header >> text=asha")
    admin.select_option("#f-zone", "Asia/Kolkata")
    admin.select_option("#f-language", "ar")
    admin.click("section:has(#settings) button")
    assert admin.get_attribute("html", "dir") == "rtl"
    assert admin.get_attribute("html", "data-zone") == "Asia/Kolkata"
    admin.select_option("#f-language", "en")
    admin.click("section:has(#settings) button")
    moment = admin.locator("main time").first
    assert re.search(r"\d:\d\d", moment.inner_text())
    zone = admin.evaluate(
        "([iso]) => new Intl.DateTimeFormat(undefined, {dateStyle: 'medium', timeStyle: 'short',"
        " timeZone: 'Asia/Kolkata'}).format(new Date(iso))",
        [moment.get_attribute("datetime")],
    )
    assert moment.inner_text() == zone
    admin.goto(f"{live_server.url}/account/notices/ORG_001")
    admin.check("input[value=export_ready]")
    admin.click("main button.main")
    assert "Your choice is saved" in admin.inner_text(".note")


def test_dead_link_and_missing_page(page: Any, live_server: Any, settings: Any) -> None:
    settings.EXHAUST_ADMINISTRATOR = ("Asha Rao", "mailto:asha@x.example")
    _, link, path = make_linked_file()
    link.delete()
    for address in (path, "/nothing"):
        page.goto(f"{live_server.url}{address}")
        assert "Asha Rao" in page.inner_text("main")
        page.click("text=Go to the console")
        page.wait_for_url("**/console/sign-in?next=/console/")
