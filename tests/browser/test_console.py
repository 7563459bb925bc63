"""The console in a real browser, against the running service with its worker."""

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.exhaust.factories import BOT, make_answer
from tests.service import CHANNEL, Child, Service, until

pytestmark = [pytest.mark.browser]
PASSWORD = "a long enough one"
SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
_STAFF = f"""
from django.contrib.auth.models import Group, User
from ingest.models import Channel, Role
User.objects.create_superuser("operator", password="{PASSWORD}")
asha = User.objects.create_user("asha", password="{PASSWORD}")
group = Group.objects.create(name="those who ask")
group.user_set.add(asha)
Role.objects.create(
    group=group, channel=Channel.objects.get(identifier="{CHANNEL}"), submit_response=True
)
from exhaust.models import Destination
from exhaust.delivery import destinations
channel = Channel.objects.get(identifier="{CHANNEL}")
warehouse = destinations.save(Destination(
    channel=channel, name="warehouse", url="https://warehouse.example.org/in",
), None, "whsec_" + "c2VjcmV0" * 4)
destinations.pause(warehouse)
from django.utils import timezone
from exhaust.jobs import schedules
from exhaust.models import DeadLetter, Delivery, Schedule
from ingest.models import Erasure
warehouse.deliveries.create(channel=channel, documents=3, status="dead", answer=400, error="No.")
warehouse.dead_letters.create(row=1, xid=1, document_id="d-1", answer=400, reason="No.")
schedules.pause(schedules.save(Schedule(
    channel=channel, name="nightly", dataset="uci-response-exhaust", conversation="{BOT}",
    cron="0 6 * * *", window="yesterday", tag="nightly", requested_by="asha",
)))
now = timezone.now()
Erasure.objects.create(channel=channel, subject="ab" * 32, requested_at=now, finished_at=now)
"""


@pytest.fixture(scope="module")
def service_with_users(service: Service) -> Service:
    """The service, with people's logins and some answers."""
    service.run("manage.py", "shell", "-v", "0", "-c", _STAFF)
    body = json.dumps({"events": [make_answer(number) for number in range(40)] + ["no event"]})
    response = service.call(
        "POST", "/v1/telemetry", body.encode(), "sender", Content_Type="application/json"
    )
    assert response.status == 200
    person = json.dumps([{"deviceId": "d-1", "userName": "Asha", "phone": "+910000000001"}])
    sent = service.call(
        "POST", "/v1/participants", person.encode(), "sender", Content_Type="application/json"
    )
    assert sent.status == 200
    name = json.dumps({"name": "Lunch bot"}).encode()
    path = f"/v1/conversations/{BOT}"
    assert service.call("PUT", path, name, "sender", Content_Type="application/json").status == 200
    return service


def sign_in(page: Any, service: Service, name: str = "operator", path: str = "/console/") -> str:
    """To the page of that path; the service's address."""
    base = f"http://127.0.0.1:{service.port}"
    page.goto(f"{base}{path}")
    page.fill("#id_login", name)
    page.fill("#id_password", PASSWORD)
    page.click("main button")
    return base


def worker(service: Service) -> Child:
    return next(child for child in service.children if child.name == "worker" and not child.stopped)


@pytest.fixture
def worker_stopped(service_with_users: Service) -> Iterator[Service]:
    """Without a worker; afterwards there is one."""
    worker(service_with_users).stop()
    yield service_with_users
    if not any(
        child.name == "worker" and not child.stopped for child in service_with_users.children
    ):
        service_with_users.start_worker()


def rows_of(path: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(Path(path).read_text(), newline="")))


def test_preview_create_watch_download(page: Any, worker_stopped: Service) -> None:
    # given the form
    base = sign_in(page, worker_stopped, path=f"/console/{CHANNEL}/exports/new")

    # when a conversation is looked for, and days are chosen
    page.fill("#f-conversationId", "lunch")
    page.check(f'input[value="{BOT}"]')
    page.click("text=Last 7 days")
    page.wait_for_selector("#f-startDate[value^='20']")
    assert page.input_value("#f-endDate") == f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    page.fill("#f-startDate", "2022-03-01")
    page.fill("#f-endDate", "2022-04-01")
    page.fill("#f-tag", "watched")

    # then the first rows are shown before anything is sent, masked
    page.wait_for_selector("#preview .estimate:has-text('40 rows')")
    assert "because" not in page.inner_text("#preview")
    assert worker_stopped.query("SELECT count(*) FROM exhaust_job WHERE tag = 'watched'") == [(0,)]

    # when it is submitted, and a worker makes progress
    page.click("text=Create export")
    page.wait_for_url(f"{base}/console/{CHANNEL}/exports/watched/*")
    page.wait_for_selector(".pill:has-text('Queued')")
    progress_values = []
    for finished in (25, 60):
        worker_stopped.change(
            f"UPDATE exhaust_job SET status = 'PROCESSING', attempt = 1, rows_estimated = 100,"
            f" rows_done = {finished} WHERE tag = 'watched'"
        )
        page.wait_for_selector(f"progress[value='{finished}']")
        progress_values.append(page.get_attribute("progress", "value"))
    assert progress_values == ["25", "60"]  # the bar moved without a reload of the page
    worker_stopped.change(
        "UPDATE exhaust_job SET status = 'SUBMITTED', attempt = 0, rows_done = 0"
        " WHERE tag = 'watched'"
    )
    worker_stopped.start_worker()

    # then the file appears by itself, and opens
    page.wait_for_selector("a:has-text('Download csv')", timeout=40_000)
    assert page.inner_text("#live-status") == "The export: Ready."
    with page.expect_download() as downloading:
        page.click("a:has-text('Download csv')")
    rows = rows_of(downloading.value.path())
    assert len(rows) == 41
    assert rows[0][0] == "Message ID"

    # and polling has ended
    assert page.get_attribute("#job", "hx-trigger") is None
    # and the list has it too
    page.goto(f"{base}/console/{CHANNEL}/exports")
    with page.expect_download() as downloading:
        page.click("li:has-text('watched') a:has-text('Download')")
    assert len(rows_of(downloading.value.path())) == 41


def test_expired_link_is_replaced(page: Any, service_with_users: Service) -> None:
    base = sign_in(page, service_with_users)
    create_export(page, base, "to-end")
    page.click("text=Create link")
    address = page.input_value(".copy input")
    assert "h" in page.inner_text("[data-expires]")
    service_with_users.change("UPDATE exhaust_link SET expires_at = '2022-01-01 00:00:00+00:00'")
    page.goto(address)
    assert "It has expired" in page.inner_text("body")
    page.go_back()
    page.reload()
    assert page.inner_text(".links .pill") == "Expired"
    page.click("text=Create link")
    assert page.input_value(".copy input") != address
    with page.expect_download():
        page.evaluate("location.assign(document.querySelector('.copy input').value)")


def create_export(page: Any, base: str, tag: str) -> None:
    """Sends a request and waits on its page until it is ready."""
    page.goto(
        f"{base}/console/{CHANNEL}/exports/new?conversationId={BOT}&startDate=2022-03-01"
        f"&endDate=2022-04-01&timezone=UTC&outputFormat=csv&tag={tag}"
    )
    page.click("text=Create export")
    page.wait_for_selector("a:has-text('Download csv')", timeout=40_000)


def test_missing_permission_hides_data(page: Any, service_with_users: Service) -> None:
    base = sign_in(page, service_with_users, "asha")
    page.wait_for_url(f"{base}/console/{CHANNEL}/")  # her only channel
    names = page.locator("nav a").all_inner_texts()
    assert names == [
        "Home", "Exports", "New export", "Datasets", "Insights", "Events", "Conversations",
        "Rejected events",
    ]  # fmt: skip
    page.goto(f"{base}/console/{CHANNEL}/exports/new")
    assert "personal" not in page.inner_text("form#export-form")
    for name in ("participants", "keys", "destinations", "audit", "schedules"):
        response = page.goto(f"{base}/console/{CHANNEL}/{name}")
        assert response.status == 403
        assert "You do not have access to this page" in page.inner_text("main")
    page.goto(f"{base}/console/{CHANNEL}/rejected")
    assert page.locator("button:has-text('Reprocess')").count() == 0
    page.goto(f"{base}/console/{CHANNEL}/rejected/1")
    assert "Hidden, because" in page.inner_text("main")
    assert page.goto(f"{base}/console/ORG_999/exports").status == 404


def test_works_without_javascript(chromium: Any, service_with_users: Service) -> None:
    context = chromium.new_context(java_script_enabled=False, accept_downloads=True)
    page = context.new_page()
    base = sign_in(page, service_with_users, "asha", f"/console/{CHANNEL}/exports/new")
    page.fill("#f-conversationId", "lunch")
    page.click("button:has-text('Search')")
    page.check(f'input[value="{BOT}"]')
    page.click("text=Last 30 days")
    assert page.input_value("#f-startDate")
    page.fill("#f-startDate", "2022-03-01")
    page.fill("#f-endDate", "2022-04-01")
    page.fill("#f-tag", "by plain forms")
    page.click("text=Create export")
    assert "Letters, digits" in page.inner_text("#errors")
    page.fill("#f-tag", "plain")
    page.click(".actions button:has-text('Preview')")
    assert "40 rows" in page.inner_text("#preview")
    page.click("text=Create export")
    page.wait_for_url(f"{base}/console/{CHANNEL}/exports/plain/*")
    assert "UTC" in page.inner_text(".history time >> nth=0")

    def ready() -> bool:
        page.reload()
        return bool(page.locator("a:has-text('Download csv')").count())

    until(ready, "the file")
    with page.expect_download() as downloading:
        page.click("a:has-text('Download csv')")
    assert len(rows_of(downloading.value.path())) == 41
    context.close()


def test_polling_does_not_extend_session(page: Any, worker_stopped: Service) -> None:
    base = sign_in(
        page, worker_stopped, path=f"/console/{CHANNEL}/exports/new?conversationId={BOT}"
    )
    page.fill("#f-startDate", "2022-03-01")
    page.fill("#f-endDate", "2022-04-01")
    page.fill("#f-tag", "left-open")
    page.click("text=Create export")
    page.wait_for_selector(".pill:has-text('Queued')")
    address = page.url

    # when it refreshes by itself, then it shows this: the refresh does not extend the session
    for name in ("exports", address.removeprefix(f"{base}/console/{CHANNEL}/")):
        page.goto(f"{base}/console/{CHANNEL}/{name}")
        with page.expect_request(lambda response: "x-poll" in response.headers):
            pass

    # and after the end of the session the page shows the sign-in form
    worker_stopped.change(
        "UPDATE ingest_browsersession SET expire_date = '2020-01-01 00:00:00+00:00'"
    )
    page.wait_for_url(re.compile("/console/sign-in.next=.*left-open"))


def test_create_destination_hides_password(page: Any, service_with_users: Service) -> None:
    base = sign_in(page, service_with_users, path=f"/console/{CHANNEL}/destinations")
    page.click("text=New destination")
    page.click("a:has-text('Webhook')")
    page.uncheck("[name=generate-signingSecret]")
    page.fill("#f-name", "by-hand")
    page.fill("#f-url", "https://10.0.0.1/in")
    page.fill("#f-user", "exhaust")
    page.fill("#f-password", "hush hush")
    page.click("button.big:has-text('Save')")
    assert "not public" in page.inner_text("#e-url")
    assert page.input_value("#f-user") == "exhaust"
    assert page.input_value("#f-password") == ""
    page.fill("#f-url", "https://warehouse.example.org/in")
    page.click("button.big:has-text('Save')")  # without the password, which the form does not keep
    assert "Type it again" in page.inner_text("#e-password")
    page.fill("#f-password", "hush hush")
    page.click("button.big:has-text('Save')")
    page.wait_for_url(f"{base}/console/{CHANNEL}/destinations/one/by-hand")
    page.click("button:has-text('Pause')")
    page.wait_for_selector(".pill:has-text('Paused')")
    page.click("text=Edit")
    assert "is stored and never shown" in page.inner_text("form.form")
    assert "hush" not in page.content()
    page.go_back()
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("text=Delete this destination")
    page.wait_for_url(f"{base}/console/{CHANNEL}/destinations")
    assert "by-hand” is deleted" in page.inner_text("main")


def test_unsupported_fields_are_not_sent(page: Any, service_with_users: Service) -> None:
    sign_in(page, service_with_users, path=f"/console/{CHANNEL}/exports/new")
    assert not page.is_visible("#f-types")
    page.check('input[value="events-exhaust"]')
    page.fill("#f-types", "ASSESS\nEND")
    page.fill("#f-startDate", "2022-03-01")
    page.fill("#f-endDate", "2022-04-01")
    page.wait_for_selector("#preview .estimate:has-text('40 rows')")
    page.fill("#f-types", "END")
    page.keyboard.press("Tab")
    page.wait_for_selector("#preview .estimate:has-text('No rows')")
    with page.expect_request("**/exports/new/preview") as waiting_request:
        page.check('input[value="sessions-exhaust"]')
    assert not page.is_visible("#f-types")
    assert page.is_visible("#f-application")
    response = waiting_request.value.post_data
    assert "application=" in response
    assert "types=" not in response
    assert "conversationId=" not in response


PAGES = [
    "", "exports", "exports/new", "charts", "conversations",
    f"conversations/one?id={BOT}&startDate=2022-03-01&endDate=2022-04-01",
    "events", "events/1", "participants", "participants/1", "participants/erase",
    "participants/erasures/1", "rejected", "rejected/1", "destinations", "destinations/new",
    "destinations/new?kind=webhook", "destinations/new?kind=s3", "destinations/new?kind=sftp",
    "destinations/one/warehouse", "destinations/one/warehouse/deliveries/1",
    "destinations/one/warehouse/edit", "keys", "audit", "team", "schedules", "schedules/new",
    "schedules/one/nightly", "schedules/one/nightly/edit", "nowhere",
]  # fmt: skip


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_axe_finds_no_violations(
    chromium: Any, service_with_users: Service, scheme: str, size: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="browser extra").Axe()
    width, height = SIZES[size]
    context = chromium.new_context(
        color_scheme=scheme, viewport={"width": width, "height": height}, reduced_motion="reduce"
    )
    page = context.new_page()
    base = f"http://127.0.0.1:{service_with_users.port}"
    page.goto(f"{base}/console/sign-in")
    results = find_violations(axe, page)
    sign_in(page, service_with_users)
    create_export(page, base, f"axe-{scheme}-{size}")
    results += find_violations(axe, page)
    address = page.url
    for tab in ("columns", "api", "downloads"):
        page.goto(f"{address}?tab={tab}")
        results += find_violations(axe, page)
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0, f"{tab} is {overflow} pixels too wide"
    for name in PAGES:
        page.goto(f"{base}/console/{CHANNEL}/{name}")
        for summary in page.locator("main details > summary:visible").all():
            summary.click()
        results += find_violations(axe, page)
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0, f"{name} is {overflow} pixels too wide"
    own = ("", f"notices/{CHANNEL}", "2fa/", "2fa/totp/activate/", "2fa/webauthn/add/")
    paths = [f"/account/{name}" for name in (*own, "password/change")]
    for address in (*paths, "/nothing", "/dataset/v1/download/unknown"):
        page.goto(f"{base}{address}")
        results += find_violations(axe, page)
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0, f"{address} is {overflow} pixels too wide"
    page.goto(f"{base}/console/{CHANNEL}/exports/new")
    page.fill("#f-tag", "a b")
    page.click("text=Create export")
    results += find_violations(axe, page)
    context.close()
    assert results == []


def find_violations(axe: Any, page: Any) -> list[str]:
    """Returns axe's findings about a page, of any severity."""
    page.wait_for_selector(".htmx-request", state="detached")  # a page at rest
    message = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{page.url} {each['id']} ({each['impact']}): {node['html'][:160]}"
        for each in message
        for node in each["nodes"]
    ]


def test_pages_keep_strict_csp(page: Any, service_with_users: Service) -> None:
    base = sign_in(page, service_with_users)
    refused: list[str] = []
    page.on("console", lambda html: refused.append(f"{page.url} {html.text}"))
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )

    def strict(route: Any) -> None:
        response = route.fetch()
        route.fulfill(
            response=response, headers={**response.headers, "content-security-policy": policy}
        )

    page.route("**/console/**", strict)
    for name in PAGES[1:-1]:
        page.goto(f"{base}/console/{CHANNEL}/{name}")
        page.wait_for_load_state("networkidle")
    page.goto(f"{base}/console/{CHANNEL}/exports/new?startDate=2022-03-01&endDate=2022-04-01")
    page.wait_for_selector("#preview .estimate:has-text('40 rows')")
    assert page.locator(".nojs:visible").count() == 0  # our script ran
    assert refused == []


def test_download_by_keyboard(page: Any, service_with_users: Service) -> None:
    base = sign_in(page, service_with_users)
    create_export(page, base, "by-keyboard")
    page.reload()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("Tab")
        if "Download" in page.evaluate("document.activeElement.textContent"):
            break
    with page.expect_download():
        page.keyboard.press("Enter")
