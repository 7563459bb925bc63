"""Each role's day on the pages that operate a channel, in a real browser."""

import json
from typing import Any

import pytest

from tests.browser.test_console import PASSWORD, sign_in
from tests.exhaust.factories import BOT, make_answer
from tests.service import CHANNEL, Service

pytestmark = [pytest.mark.browser]
_PEOPLE = f"""
from django.contrib.auth.models import Group, User
from ingest.models import Channel, Role
channel = Channel.objects.get(identifier="{CHANNEL}")
for name, *rights in (
    ("asha", "submit_response"),
    ("bela", "administer", "submit_private", "submit_response"),
    ("uma", "audit"),
):
    group = Group.objects.create(name=name)
    group.user_set.add(User.objects.create_user(name, password="{PASSWORD}"))
    Role.objects.create(group=group, channel=channel, **dict.fromkeys(rights, True))
"""


def send(service: Service, path: str, document: Any) -> None:
    body = json.dumps(document).encode()
    answer = service.call("POST", path, body, "sender", Content_Type="application/json")
    assert answer.status == 200


@pytest.fixture(scope="module")
def operated(service: Service) -> Service:
    """The service, with a person of each role, some answers, a participant and a wrong event."""
    service.run("manage.py", "shell", "-v", "0", "-c", _PEOPLE)
    send(service, "/v1/telemetry", {"events": [*map(make_answer, range(4)), "no event"]})
    send(service, "/v1/participants", [{"deviceId": "to-erase", "phone": "+919000000001"}])
    return service


def test_staff_sees_what_arrived(page: Any, operated: Service) -> None:
    base = sign_in(page, operated, "asha")
    page.wait_for_url(f"{base}/console/{CHANNEL}/")
    page.click("section:has(#sources) a:has-text('Telemetry')")
    page.wait_for_url("**/events?source=telemetry")
    assert page.locator("tbody tr").count() == 4
    assert page.locator("#f-device").count() == 0
    page.click("tbody tr >> nth=0 >> a")
    assert "Hidden, because" in page.inner_text("main")


def test_times_are_relative(page: Any, operated: Service) -> None:
    sign_in(page, operated, "asha", f"/console/{CHANNEL}/events")
    time = page.locator("tbody time[data-relative] >> nth=0")
    assert " ago" in time.inner_text()
    assert "UTC" in time.get_attribute("title")  # the machine's zone, with seconds
    assert time.get_attribute("title").count(":") == 2


def test_watching_shows_new_events(page: Any, operated: Service) -> None:
    sign_in(page, operated, "bela", f"/console/{CHANNEL}/events")
    page.click("text=Watch live")
    send(operated, "/v1/telemetry", {"events": [make_answer(50) | {"eid": "JUSTNOW"}]})
    page.wait_for_selector("td:has-text('JUSTNOW')", timeout=15_000)
    page.click("text=Stop watching")
    assert page.get_attribute("#events", "hx-trigger") is None


def test_watching_without_javascript(chromium: Any, operated: Service) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    sign_in(page, operated, "bela", f"/console/{CHANNEL}/events?type=LATER")
    assert "No matching events" in page.inner_text("main")
    send(operated, "/v1/telemetry", {"events": [make_answer(60) | {"eid": "LATER"}]})
    page.click("main a:has-text('Refresh')")
    assert page.locator("td:has-text('LATER')").count() == 1
    context.close()


def test_type_decides_the_fields(page: Any, operated: Service) -> None:
    sign_in(page, operated, "bela", f"/console/{CHANNEL}/destinations/new")
    page.click("a:has-text('Bucket')")
    assert page.is_visible("#f-bucket")
    assert page.locator("#f-types").count() == 0
    page.click(".back a")
    page.click("a:has-text('SFTP')")
    assert page.is_visible("#f-hostKey")
    assert page.locator("#f-bucket").count() == 0


def test_made_secret_is_copied_once(page: Any, operated: Service) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sign_in(page, operated, "bela", f"/console/{CHANNEL}/destinations/new?kind=webhook")
    page.fill("#f-name", "hook")
    page.fill("#f-url", "https://warehouse.example.org/in")
    page.click("button.big:has-text('Save')")
    page.wait_for_selector("text=We show it only now")
    secret = page.inner_text(".secret")
    page.click("main .copy-button")
    page.wait_for_selector("main .copy-button:has-text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == secret
    assert secret.startswith("whsec_")
    page.click("text=Done")
    assert secret not in page.content()
    assert "webhook-signature" in page.inner_text("main")


def test_pick_and_run_a_schedule(page: Any, operated: Service) -> None:
    base = sign_in(page, operated, "bela", f"/console/{CHANNEL}/schedules/new")
    page.fill("#f-name", "weekly")
    page.check(f'input[value="{BOT}"]')
    assert not page.is_visible("#f-weekday")
    assert not page.is_visible("#f-cron")
    page.select_option("#f-repeat", "weekly")
    assert page.is_visible("#f-weekday")
    page.select_option("#f-weekday", "3")
    page.fill("#f-time", "07:45")
    page.wait_for_selector("#next-runs li:has-text('Wed')")
    page.wait_for_selector("#next-runs li:has-text('07:45')")
    assert page.locator("#next-runs li").count() == 3
    page.click(".actions button:has-text('Save')")
    page.wait_for_url(f"{base}/console/{CHANNEL}/schedules/one/weekly")
    assert "every week on Wednesday at 07:45" in page.inner_text("main")
    page.click("button:has-text('Run now')")
    page.wait_for_url(f"{base}/console/{CHANNEL}/exports/weekly-*/*")
    page.goto(f"{base}/console/{CHANNEL}/schedules/one/weekly")
    assert page.locator("table tbody tr").count() == 1


def test_mend_a_rejected_event(page: Any, operated: Service) -> None:
    base = sign_in(page, operated, "bela", f"/console/{CHANNEL}/rejected")
    page.click("section >> nth=1 >> tbody a")
    page.click("summary:has-text('Mend')")
    page.click("button:has-text('Resend')")
    assert "still rejected" in page.inner_text("#errors")
    page.fill("#f-text", json.dumps(make_answer(70) | {"eid": "MENDED"}))
    page.click("button:has-text('Resend')")
    assert "The event was accepted" in page.inner_text("main")
    page.goto(f"{base}/console/{CHANNEL}/events?type=MENDED")
    assert page.locator("tbody tr").count() == 1


def test_erase_a_person(page: Any, operated: Service) -> None:
    base = sign_in(page, operated, "bela", f"/console/{CHANNEL}/participants")
    page.fill("#f-phone", "+919000000001")
    page.click("main button:has-text('Search')")
    page.click("tbody a")
    assert "to-erase" in page.inner_text("h1")
    page.click("text=Erase this person")
    page.fill("#f-confirmation", "to-eras")
    page.click("text=Erase for good")
    assert "Type the same device ID again" in page.inner_text("#errors")
    page.fill("#f-confirmation", "to-erase")
    page.click("text=Erase for good")
    page.wait_for_url(f"{base}/console/{CHANNEL}/participants/erasures/*")
    page.wait_for_selector("#certificate .pill:has-text('Finished')", timeout=40_000)
    assert "to-erase" not in page.content()


def test_auditor_reads_and_downloads(page: Any, operated: Service) -> None:
    base = sign_in(page, operated, "uma")
    page.wait_for_url(f"{base}/console/{CHANNEL}/")
    assert page.locator("nav a").all_inner_texts() == ["Home", "Audit log"]
    page.click("main a:has-text('Audit log')")
    page.fill("#f-action", "role.")
    page.click("main button:has-text('Filter')")
    page.goto(f"{base}/console/{CHANNEL}/audit")
    with page.expect_download() as downloading:
        page.click("text=Download CSV")
    assert downloading.value.suggested_filename == "audit.csv"
    assert page.goto(f"{base}/console/{CHANNEL}/events").status == 403


def test_tables_are_cards_on_a_phone(chromium: Any, operated: Service) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    base = sign_in(page, operated, "bela", f"/console/{CHANNEL}/events")
    label = "getComputedStyle(document.querySelector('tbody td'), '::before').content"
    assert page.evaluate(label) == '"Received"'
    row = page.locator("tbody tr >> nth=0").bounding_box()
    assert row["width"] < 390
    assert row["height"] > 100  # one value below the other
    for name in ("", "events", "rejected", "audit", "participants", "destinations", "schedules"):
        page.goto(f"{base}/console/{CHANNEL}/{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert len(page.content()) < 200_000
    context.close()
