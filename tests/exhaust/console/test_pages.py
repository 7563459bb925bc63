"""The pages of the console by permission, and those besides exports."""

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.test import Client
from django.urls import URLPattern
from django.utils import timezone

from exhaust import tasks
from exhaust.console.templatetags import console as filters
from exhaust.console.urls import urlpatterns
from exhaust.delivery import destinations, states
from exhaust.jobs import schedules
from exhaust.models import Destination, Job, Schedule
from ingest.auth import keys
from ingest.events import Profile
from ingest.models import (
    ApiKey,
    Application,
    AuditEvent,
    Channel,
    Participant,
    RejectedDay,
    RejectedEvent,
    StoredEvent,
)
from ingest.privacy.encryption import decrypt, encrypt
from ingest.store.participants import store_participants
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.console.test_console import C, export_form, read_html, sign_in
from tests.exhaust.factories import (
    BOT,
    PRIVATE,
    RESPONSE,
    make_answer,
    make_finished,
    send_events,
)

pytestmark = pytest.mark.django_db
ASK = {"submit_response", "submit_private"}
VIEW = {*ASK, "administer"}
ADMINISTER = {"administer"}
RIGHTS = ("submit_response", "submit_private", "administer", "audit")

# by the name of the address: the permission, and the other parts of the address
PAGE_ACCESS: dict[str, tuple[set[str], dict[str, Any]]] = {
    "start": ({*RIGHTS}, {}),
    "exports": (ASK, {}),
    "export": (ASK, {"tag": "daily", "request_id": "ID"}),
    "cancel-export": (ASK, {"tag": "daily", "request_id": "ID"}),
    "retry-export": (ASK, {"tag": "daily", "request_id": "ID"}),
    "download": (ASK, {"tag": "daily", "request_id": "ID", "part": 1}),
    "create-link": (ASK, {"tag": "daily", "request_id": "ID", "part": 1}),
    "revoke-link": (ASK, {"tag": "daily", "request_id": "ID", "part": 1}),
    "act-on-exports": (ASK, {}),
    "saved-views": (ASK, {}),
    "new-export": (ASK, {}),
    "preview-export": (ASK, {}),
    "search-conversations": (ASK, {}),
    "datasets": (ASK, {}),
    "schedules": (ADMINISTER, {}),
    "new-schedule": (ADMINISTER, {}),
    "schedule": (ADMINISTER, {"name": "every-day"}),
    "edit-schedule": (ADMINISTER, {"name": "every-day"}),
    "schedule-action": (ADMINISTER, {"name": "every-day", "action": "pause"}),
    "charts": (VIEW, {}),
    "conversations": (VIEW, {}),
    "conversation": (VIEW, {}),
    "events": (VIEW, {}),
    "event": (VIEW, {"pk": 1}),
    "participants": ({"submit_private"}, {}),
    "participant": ({"submit_private"}, {"pk": 1}),
    "erase": (set(), {}),  # needs two permissions, as do the other empty ones
    "erasure": ({"submit_private"}, {"pk": 1}),
    "rejected-events": (VIEW, {}),
    "rejected-event": (VIEW, {"pk": 1}),
    "resend": (set(), {"pk": 1}),
    "replay": (ADMINISTER, {}),
    "dismiss": (ADMINISTER, {}),
    "download-rejected": (VIEW, {}),
    "destinations": (ADMINISTER, {}),
    "new-destination": (set(), {}),
    "destination": (ADMINISTER, {"name": "warehouse"}),
    "delivery": (ADMINISTER, {"name": "warehouse", "pk": 1}),
    "edit-destination": (set(), {"name": "warehouse"}),
    "destination-action": (ADMINISTER, {"name": "warehouse", "action": "pause"}),
    "keys": (ADMINISTER, {}),
    "revoke-key": (ADMINISTER, {"public_id": "abcdefgh"}),
    "rotate-key": (ADMINISTER, {"public_id": "abcdefgh"}),
    "team": (ADMINISTER, {}),
    "save-chat": (ADMINISTER, {}),
    "change-access": (ADMINISTER, {"user_id": 1}),
    "archive": (ADMINISTER, {}),
    "audit": ({"audit"}, {}),
    "download-audit": ({"audit"}, {}),
}
URL_PATTERNS = {
    pattern.name: "/console/" + str(pattern.pattern)
    for pattern in urlpatterns
    if isinstance(pattern, URLPattern) and "<str:channel>" in str(pattern.pattern)
}


def test_datasets_say_what_they_hold() -> None:
    html = read_html(sign_in(submit_response=True).get(f"{C}/datasets"))
    assert "How often each option was chosen, with its share. Columns such as" in html
    assert "samples/uci-summary-exhaust.csv" in html
    assert "Show all 11 columns" in html
    assert "uci-private-exhaust" not in html


def test_every_channel_url_is_covered() -> None:
    assert set(URL_PATTERNS) == set(PAGE_ACCESS)


def page_url(name: str, channel: str = "ORG_001") -> str:
    values = {"channel": channel, **PAGE_ACCESS[name][1]}
    return re.sub(r"<\w+:(\w+)>", lambda match: str(values[match[1]]), URL_PATTERNS[name])


CHANGES = {
    "act-on-exports", "cancel-export", "retry-export", "create-link", "revoke-link", "saved-views",
    "revoke-key", "rotate-key", "replay", "dismiss", "resend", "save-chat", "change-access",
    "schedule-action", "destination-action",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_address_that_changes_takes_no_get(name: str) -> None:
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    make_channel()
    assert root.get(page_url(name)).status_code == 405


def test_each_page_has_a_sign_out() -> None:
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    make_channel()
    answers = {name: root.get(page_url(name)) for name in PAGE_ACCESS.keys() - CHANGES}
    pages = {
        name: answer.content.decode()
        for name, answer in answers.items()
        if answer["Content-Type"].startswith("text/html")
    }
    without = {name for name, html in pages.items() if 'action="/console/sign-out"' not in html}
    assert without == {"search-conversations"}  # a part of a page
    assert len(pages) > 20


def test_scripts_store_and_run_nothing() -> None:
    ours = [
        finders.find(name)
        for name in ("console/console.js", "console/charts.js", "exhaust/docs.js", "exhaust/try.js")
    ]
    text = "".join(Path(path).read_text() for path in ours if path)
    assert len(text) > 10_000
    for word in ("localStorage", "sessionStorage", "indexedDB", "eval(", "document.write",
                 "insertAdjacentHTML", "__proto__"):  # fmt: skip
        assert word not in text
    html = read_html(sign_in(submit_response=True).get(f"{C}/"))
    assert '"allowEval": false' in html
    assert '"historyEnabled": false' in html  # it would store pages


@pytest.mark.parametrize("name", PAGE_ACCESS)
def test_page_permissions(name: str) -> None:
    make_channel()
    for right in RIGHTS:
        browser = sign_in(right, **{right: True})
        for method in (browser.get, browser.post):
            status = method(page_url(name)).status_code
            if right in PAGE_ACCESS[name][0]:
                # the object may be missing, or the method wrong, but the permission suffices
                assert status in (200, 302, 400, 404, 405), (name, right, status)
            else:
                assert status == 403, (name, right, status)
        for method in (browser.get, browser.post):
            assert method(page_url(name, "ORG_002")).status_code == 404
            assert method(page_url(name, "a/../b")).status_code == 404
    for method in (sign_in("nobody").get, sign_in("nobody").post):
        assert method(page_url(name)).status_code == 404
    response = Client().get(page_url(name))
    assert response.status_code == 302
    assert response["Location"].startswith("/console/sign-in?next=")
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    assert root.get(page_url(name)).status_code != 403


@pytest.mark.parametrize("name", [name for name in PAGE_ACCESS if "download" not in name])
def test_empty_page_says_what_to_do(name: str) -> None:
    browser = sign_in(**dict.fromkeys(RIGHTS, True))
    response = browser.get(page_url(name))
    if response.status_code == 200 and name not in ("search-conversations", "preview-export"):
        html = read_html(response)
        assert "<h1>" in html
        assert "{{" not in html
        assert "{%" not in html
        assert "None" not in html


# Keys ---------------------------------------------------------------------------------------------


def test_longest_life_limits_the_form(settings: Any) -> None:
    settings.EXHAUST_KEY_MAX_DAYS = 60
    admin = sign_in(administer=True)
    page = read_html(admin.get(f"{C}/keys"))
    assert re.findall(r'<option value="(\w*)"', page) == ["30", ""]
    assert "60 days" in page
    values = {"name": "our bot", "scope": ["ingest"], "days": "90"}
    assert "Choose when" in read_html(admin.post(f"{C}/keys", values), 400)

    read_html(admin.post(f"{C}/keys", {**values, "days": ""}))

    row = ApiKey.objects.get()
    assert row.expires_at is not None
    assert row.expires_at < timezone.now() + timedelta(days=60, minutes=1)
    assert "Ends soon" not in read_html(admin.get(f"{C}/keys"))
    ApiKey.objects.update(expires_at=timezone.now() + timedelta(days=13))
    assert "Ends soon" in read_html(admin.get(f"{C}/keys"))


def test_create_and_revoke_key() -> None:
    admin = sign_in(administer=True, submit_response=True)
    assert "No API keys for this channel" in read_html(admin.get(f"{C}/keys"))
    values = {"name": "our bot", "scope": ["ingest", "export:response"], "days": "90"}
    created = read_html(admin.post(f"{C}/keys", values))
    key = re.search(r"exh_\w+", created)
    assert key is not None
    row = ApiKey.objects.get()
    assert row.expires_at is not None
    assert timedelta(days=89) < row.expires_at - timezone.now() < timedelta(days=91)
    assert Client(headers=bearer(key[0])).get("/dataset/v1/request/list/x").status_code == 200
    listed = read_html(admin.get(f"{C}/keys"))
    assert "our bot" in listed
    assert key[0] not in listed
    assert "is revoked" in read_html(admin.post(f"{C}/keys/{row.public_id}/revoke", follow=True))
    assert "revoked already" in read_html(
        admin.post(f"{C}/keys/{row.public_id}/revoke", follow=True)
    )
    assert Client(headers=bearer(key[0])).get("/dataset/v1/request/list/x").status_code == 401
    entries = list(
        AuditEvent.objects.filter(action__startswith="key.")
        .order_by("pk")
        .values_list("action", "actor")
    )
    assert entries == [("key.created", "asha"), ("key.revoked", "asha")]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": ""}, "Enter a name for the key."),
        ({"scope": []}, "Choose at least one permission."),
        ({"scope": ["export:private"]}, "You cannot grant a permission that you do not have."),
        ({"scope": ["pull"]}, "You cannot grant a permission that you do not have."),
        ({"scope": ["nothing"]}, "You cannot grant a permission that you do not have."),
        ({"days": "1"}, "Choose when the key expires."),
        ({"name": "x" * 129}, "Up to 128 characters."),
        ({"networks": "10.0.0.1/8"}, "is not a network; write 203.0.113.0/24"),
        ({"networks": "203.0.113.0/24 " * 99}, "Up to 1,000 characters."),
        ({"scope": ["audit"]}, "You cannot grant a permission that you do not have."),
        ({"scope": ["erase"]}, "You cannot grant a permission that you do not have."),
    ],
)
def test_key_scopes_limited_by_creator(changes: dict[str, Any], sentence: str) -> None:
    admin = sign_in(administer=True, submit_response=True)
    values = {"name": "n", "scope": ["ingest"], "days": "30", **changes}
    assert sentence in read_html(admin.post(f"{C}/keys", values), 400)
    assert not ApiKey.objects.exists()


def test_key_has_networks_and_maker() -> None:
    admin = sign_in(administer=True, submit_response=True)
    values = {"name": "our bot", "scope": ["export:response"], "days": ""}
    values["networks"] = "203.0.113.0/24, 2001:db8::/32"
    created = read_html(admin.post(f"{C}/keys", values))
    row = ApiKey.objects.get()
    assert (row.networks, row.created_by) == ("203.0.113.0/24 2001:db8::/32", "asha")
    key = re.search(r"exh_\w+", created)
    assert key
    assert Client(headers=bearer(key[0])).get("/dataset/v1/request/list/x").status_code == 403
    page = read_html(admin.get(f"{C}/keys"))
    assert "from 203.0.113.0/24 2001:db8::/32" in page
    assert "by asha" in page
    assert "never used" in page


def test_superuser_grants_each_scope() -> None:
    make_channel()
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    for scopes in (["audit", "erase"], ["ingest"]):
        read_html(root.post(f"{C}/keys", {"name": "n", "scope": scopes, "days": ""}))
    assert {row.scopes for row in ApiKey.objects.all()} == {"audit erase", "ingest"}
    assert "Erase people" in read_html(root.get(f"{C}/keys"))


@pytest.mark.parametrize(("hours", "status"), [("0", 401), ("24", 200)])
def test_rotate_key(hours: str, status: int) -> None:
    admin = sign_in(administer=True, submit_response=True)
    text = make_key("export:response", networks="127.0.0.0/8")
    old = ApiKey.objects.get()

    page = read_html(admin.post(f"{C}/keys/{old.public_id}/rotate", {"hours": hours}))

    successor = re.search(r"exh_\w+", page)
    assert successor
    codes = [
        Client(headers=bearer(key)).get("/dataset/v1/request/list/x").status_code
        for key in (text, successor[0])
    ]
    assert codes == [status, 200]
    new = ApiKey.objects.exclude(pk=old.pk).get()
    assert (new.networks, new.scopes, new.created_by) == (old.networks, old.scopes, "asha")
    assert successor[0] not in read_html(admin.get(f"{C}/keys"))
    assert AuditEvent.objects.filter(action="key.rotated", actor="asha").count() == 1


def test_rotate_keeps_within_own_rights() -> None:
    admin = sign_in(administer=True, submit_response=True)
    make_key("export:private")
    key = ApiKey.objects.get()
    address = f"{C}/keys/{key.public_id}/rotate"
    assert "needs submit_private" in read_html(admin.post(address, {"hours": "24"}), 400)
    for hours in ("", "-1", "5", "x"):
        assert "Choose when" in read_html(admin.post(address, {"hours": hours}), 400)
    keys.revoke_key(key)
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    assert "revoked or expired" in read_html(root.post(address, {"hours": "24"}), 400)
    assert ApiKey.objects.count() == 1


def test_revoke_needs_all_key_channels() -> None:
    admin = sign_in(administer=True)
    make_key("ingest", channels=("ORG_001", "ORG_002"))
    row = ApiKey.objects.get()
    assert row.public_id not in read_html(admin.get(f"{C}/keys"))
    assert admin.post(f"{C}/keys/{row.public_id}/revoke").status_code == 404
    row.refresh_from_db()
    assert row.revoked_at is None
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    assert row.public_id in read_html(root.get(f"{C}/keys"))
    both = sign_in("bela", administer=True)
    sign_in("bela", "ORG_002", administer=True)
    assert row.public_id in read_html(both.get(f"{C}/keys"))
    assert "is revoked" in read_html(both.post(f"{C}/keys/{row.public_id}/revoke", follow=True))
    make_key("ingest", channels=("ORG_002",))
    other = ApiKey.objects.exclude(pk=row.pk).get()
    # an administrator of both channels finds it in its own channel only
    for browser in (admin, both, root):
        assert other.public_id not in read_html(browser.get(f"{C}/keys"))
        assert browser.post(f"{C}/keys/{other.public_id}/revoke").status_code == 404
    assert other.public_id in read_html(both.get("/console/ORG_002/keys"))


# Rejected events ----------------------------------------------------------------------------------


def reject_event() -> RejectedEvent:
    sender = Client(headers=bearer(make_key("ingest")))
    sender.post("/v1/telemetry", json.dumps({"events": ["Asha"]}), content_type="application/json")
    return RejectedEvent.objects.get()


def test_viewing_rejected_bytes_is_audited() -> None:
    row = reject_event()
    asker = sign_in("usha", submit_response=True)
    assert "not_an_object" in read_html(asker.get(f"{C}/rejected"))
    html = read_html(asker.get(f"{C}/rejected/{row.pk}"))
    assert "Hidden, because" in html
    assert "Asha" not in html
    assert not AuditEvent.objects.filter(action="rejected.viewed").exists()
    admin = sign_in("adam", administer=True)
    assert "Asha" not in read_html(admin.get(f"{C}/rejected/{row.pk}"))
    page = f"/admin/ingest/rejectedevent/{row.pk}/change/"
    both = sign_in("bo", administer=True, submit_private=True)
    User.objects.update(is_staff=True)
    assert "Asha" not in read_html(admin.get(page))
    assert "&quot;Asha&quot;" in read_html(both.get(page))
    html = read_html(sign_in(submit_private=True).get(f"{C}/rejected/{row.pk}"))
    assert "&quot;Asha&quot;" in html
    entry = AuditEvent.objects.get(action="rejected.viewed")
    assert (entry.actor, entry.channel, entry.subject) == ("asha", "ORG_001", str(row.pk))
    elsewhere = sign_in("uma", "ORG_002", administer=True)
    assert elsewhere.get(f"/console/ORG_002/rejected/{row.pk}").status_code == 404


def test_rejected_events_only_counted() -> None:
    sender = Client(headers=bearer(make_key("ingest")))
    body = json.dumps({"events": list(range(1234))})
    sender.post("/v1/telemetry", body, content_type="application/json")
    admin = sign_in(administer=True)
    html = read_html(admin.get(f"{C}/rejected"))
    assert 'data-label="Events">1,134</td>' in html
    assert (
        html.count(f'action="{C}/rejected/replay"') == 1
    )  # an event that is only counted cannot be reprocessed
    assert "We deleted" not in html

    row = RejectedEvent.objects.get(reason="not_kept")
    html = read_html(admin.get(f"{C}/rejected/{row.pk}"))
    assert "1,134, counted and not kept" in html
    assert "Reprocess" not in html
    assert not AuditEvent.objects.filter(action="rejected.viewed").exists()
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    assert "not kept" in read_html(root.get(f"/admin/ingest/rejectedevent/{row.pk}/change/"))

    RejectedDay.objects.update(sampled_out=4321)
    assert "We deleted 4,321 more of the last 30 days" in read_html(admin.get(f"{C}/rejected"))


def test_replay_rejected_events() -> None:
    row = reject_event()
    admin = sign_in(administer=True)
    html = read_html(admin.post(f"{C}/rejected/replay", {"reason": "not_an_object"}, follow=True))
    assert "0 accepted, 1 still rejected" in html
    event = json.dumps(make_answer(1)).encode()
    RejectedEvent.objects.update(encrypted_body=encrypt(event), size=len(event))
    assert "1 accepted" in read_html(
        admin.post(f"{C}/rejected/replay", {"pk": row.pk}, follow=True)
    )
    assert StoredEvent.objects.count() == 1
    assert "No rejected events." in read_html(admin.get(f"{C}/rejected"))
    assert admin.post(f"{C}/rejected/replay").status_code == 404


# People -------------------------------------------------------------------------------------------


def test_participants_masked_and_audited() -> None:
    asha = Profile("device-1", "Asha Rao", "+919000000001", True, timezone.now())
    store_participants(make_channel().pk, timezone.now(), [asha])
    other = Profile("device-2", "Uma", None, None, None)
    store_participants(make_channel("ORG_002").pk, timezone.now(), [other])
    browser = sign_in("usha", submit_private=True)
    html = read_html(browser.get(f"{C}/participants"))
    assert "A***" in html
    assert "…001" in html
    for secret in ("Asha", "9000000", "device-1", "U***"):
        assert secret not in html
    assert "A***" in read_html(browser.get(f"{C}/participants?device=device-1"))
    assert "No participant has this device ID" in read_html(
        browser.get(f"{C}/participants?device=device-2")
    )
    assert read_html(browser.get(f"{C}/participants?device=%00&cursor=x"))
    entries = AuditEvent.objects.filter(action="participants.viewed").order_by("pk")
    results = Participant.objects.get(device_id="device-1")
    assert [(each.actor, each.subject) for each in entries] == [
        ("usha", ""),
        ("usha", f"participant {results.pk}"),
        ("usha", ""),  # the typed text may be a person's device id or phone
        ("usha", ""),
    ]
    assert "device-" not in str(list(entries.values()))


def test_filter_and_page_audit_log() -> None:
    make_channel("ORG_002")
    for number in range(60):
        AuditEvent.objects.create(
            action="key.created", actor=f"a{number}", channel="ORG_001", subject="s"
        )
    AuditEvent.objects.create(action="link.used", actor="b", channel="ORG_001")
    AuditEvent.objects.create(action="secret", actor="c", channel="ORG_002")
    browser = sign_in(audit=True)
    html = read_html(browser.get(f"{C}/audit?action=key.")).split("<tbody>")[1]
    assert "a59" in html
    assert "link.used" not in html
    assert "secret" not in html
    more = html.split('href="')[-1].split('"')[0].replace("&amp;", "&")
    assert ">a1</td>" in read_html(browser.get(f"{C}/audit{more}"))
    assert "No matching entries" in read_html(browser.get(f"{C}/audit?actor=nobody&cursor=x"))


# Schedules and destinations ----------------------------------------------------------------------


def schedule_form(**changes: str) -> dict[str, str]:
    return {
        "name": "every-day",
        "dataset": RESPONSE,
        "conversationId": BOT,
        "cron": "0 6 * * *",
        "timezone": "Asia/Kolkata",
        "window": "yesterday",
        "outputFormat": "csv",
        "tag": "{name}-{start}",
        "act": "send",
        **changes,
    }


def test_schedule_lifecycle() -> None:
    admin = sign_in(administer=True, submit_response=True)
    send_events(make_answer(1))
    assert "No schedules yet" in read_html(admin.get(f"{C}/schedules"))
    assert admin.post(f"{C}/schedules/new", schedule_form()).status_code == 302
    schedule = Schedule.objects.get()
    assert (schedule.requested_by, schedule.zone) == ("asha", "Asia/Kolkata")
    assert "every-day" in read_html(admin.get(f"{C}/schedules"))
    assert "This name is in use" in read_html(
        admin.post(f"{C}/schedules/new", schedule_form()), 400
    )
    filled = read_html(admin.get(f"{C}/schedules/one/every-day/edit"))
    assert 'value="0 6 * * *"' in filled
    changed = schedule_form(cron="0 7 * * *", changes="every-day")
    assert admin.post(f"{C}/schedules/new", changed).status_code == 302
    assert Schedule.objects.get().cron == "0 7 * * *"
    Channel.objects.update(recipient="age1x")
    Schedule.objects.update(encryption="publickey", callback_url="https://example.org/x")
    stored = read_html(admin.get(f"{C}/schedules/one/every-day/edit"))
    assert '<option value="publickey" selected>' in stored
    assert 'value="https://example.org/x"' in stored
    assert "is paused" in read_html(admin.post(f"{C}/schedules/one/every-day/pause", follow=True))
    assert "is active again" in read_html(
        admin.post(f"{C}/schedules/one/every-day/resume", follow=True)
    )
    assert admin.post(f"{C}/schedules/one/every-day/explode").status_code == 404
    assert "is deleted" in read_html(admin.post(f"{C}/schedules/one/every-day/delete", follow=True))
    assert not Schedule.objects.exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cron": "soon"}, "cron"),
        ({"name": "a b"}, "name"),
        ({"name": ""}, "name"),
        ({"window": "ever"}, "window"),
        ({"tag": "{what}"}, "tag"),
        ({"timezone": "Mars"}, "timezone"),
        ({"conversationId": ""}, "conversationId"),
        ({"dataset": PRIVATE}, "dataset"),
        ({"outputFormat": "pdf"}, "outputFormat"),
        ({"columns.uci-response-exhaust": "Lost"}, "columns"),
        ({"layout": "lost"}, "layout"),
        ({"timestamps": "lost"}, "timestamps"),
    ],
)
def test_schedule_form_errors(changes: dict[str, str], field: str) -> None:
    admin = sign_in(administer=True, submit_response=True)
    html = read_html(admin.post(f"{C}/schedules/new", schedule_form(**changes)), 400)
    assert f'id="e-{field}"' in html
    assert not Schedule.objects.exists()


def test_schedule_form_keeps_columns() -> None:
    admin = sign_in(administer=True, submit_response=True)
    send_events(make_answer(1))
    form = schedule_form(timestamps="local") | {f"columns.{RESPONSE}": ["Eof", "Timestamp"]}
    assert admin.post(f"{C}/schedules/new", form).status_code == 302
    schedule = Schedule.objects.get()
    assert (schedule.columns, schedule.timestamps) == (["Eof", "Timestamp"], "local")

    page = read_html(admin.get(f"{C}/schedules/one/every-day/edit"))
    assert re.findall('value="([^"]*)" checked> <span>', page)[-2:] == ["Eof", "Timestamp"]
    assert '<option value="local" selected>' in page


def test_private_schedule_needs_permission() -> None:
    private_job = Schedule(
        channel=make_channel(), name="people", dataset=PRIVATE, conversation=BOT, tag="t",
        cron="0 6 * * *", window="yesterday", requested_by="x",
    )  # fmt: skip
    schedules.save(private_job)
    admin = sign_in(administer=True, submit_response=True)
    assert "people" not in read_html(admin.get(f"{C}/schedules")).split("<main")[1]
    assert admin.post(f"{C}/schedules/one/people/delete").status_code == 404
    # nor replaced by one of responses; the error reveals only that the name is taken
    for changes in ("people", ""):
        response = admin.post(f"{C}/schedules/new", schedule_form(name="people", changes=changes))
        assert "This name is in use. Choose another" in read_html(response, 400)
    assert Schedule.objects.get().dataset == PRIVATE
    permitted_client = sign_in("bela", administer=True, submit_response=True, submit_private=True)
    values = schedule_form(name="people", changes="people")
    assert permitted_client.post(f"{C}/schedules/new", values).status_code == 302
    assert Schedule.objects.get().dataset == RESPONSE


def test_pause_resume_and_test_destination(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = sign_in(administer=True)
    assert "No destinations yet" in read_html(admin.get(f"{C}/destinations"))
    destination = destinations.save(
        Destination(
            channel=make_channel(), name="warehouse", url="https://user.example.org/in?key=secret"
        )
    )
    html = read_html(admin.get(f"{C}/destinations"))
    assert "user.example.org" in html
    assert "secret" not in html
    for action, state, message in (
        ("pause", "paused", "is paused"),
        ("resume", "working", "is active again"),
    ):
        assert message in read_html(
            admin.post(f"{C}/destinations/one/warehouse/{action}", follow=True)
        )
        destination.refresh_from_db()
        assert states.determine_state(destination) == state
    monkeypatch.setattr("exhaust.delivery.sender.send", lambda *_: OSError("nobody there"))
    html = read_html(admin.post(f"{C}/destinations/one/warehouse/test", follow=True))
    assert "A test event is on its way" in html
    assert "Show its result" in html
    tasks.send_tests()
    html = read_html(admin.get(f"{C}/destinations/one/warehouse"))
    assert "nobody there" in html
    assert "Show its result" not in html
    assert "0 documents" in read_html(
        admin.post(f"{C}/destinations/one/warehouse/requeue", follow=True)
    )
    assert admin.post(f"{C}/destinations/one/warehouse/explode").status_code == 404
    assert admin.post(f"{C}/destinations/one/nobody/pause").status_code == 404


def destination_form(**changes: str) -> dict[str, str]:
    return {
        "name": "warehouse",
        "kind": "webhook",
        "url": "https://warehouse.example.org/in",
        "resource": "sessions",
        "types": "",
        "method": "",
        "contentType": "application/x-ndjson",
        "user": "",
        "password": "",
        "signingSecret": "",
        **changes,
    }


SECRET = "whsec_" + "c2VjcmV0" * 4


def sign_in_administrator() -> Client:
    """Administers the channel and may read personal data."""
    return sign_in("bela", administer=True, submit_private=True)


def test_destination_secrets_stay_hidden() -> None:
    bela = sign_in_administrator()
    assert "Create the first destination" in read_html(bela.get(f"{C}/destinations"))
    values = destination_form(user="exhaust", password=" hush hush ", signingSecret=SECRET)
    created = read_html(bela.post(f"{C}/destinations/new", values, follow=True))
    row = Destination.objects.get()
    assert (row.method, row.content_type, row.user) == ("PUT", "application/x-ndjson", "exhaust")
    assert decrypt(row.encrypted_password) == b" hush hush "
    assert decrypt(row.encrypted_secret) == SECRET.encode()
    form = read_html(bela.get(f"{C}/destinations/one/warehouse/edit"))
    assert 'value="https://warehouse.example.org/in"' in form
    assert form.count("is stored and never shown") == 2
    for page in (
        created,
        form,
        read_html(bela.get(f"{C}/destinations")),
        read_html(bela.get(f"{C}/audit"), 403),
    ):
        assert "hush" not in page
        assert SECRET not in page

    # when it is changed, then empty secrets stay
    Application.objects.create(channel=make_channel(), identifier="shop")
    change = destination_form(
        changes="warehouse", user="exhaust", resource="events", types="END\r\nASSESS",
        application="shop",
    )  # fmt: skip
    assert bela.post(f"{C}/destinations/new", change).status_code == 302
    row.refresh_from_db()
    assert (row.resource, row.types, row.application) == ("events", ["ASSESS", "END"], "shop")
    form = read_html(bela.get(f"{C}/destinations/one/warehouse/edit"))
    assert '<option value="shop" selected>' in form
    assert decrypt(row.encrypted_password) == b" hush hush "
    assert ">ASSESS\nEND</textarea>" in (
        bela.get(f"{C}/destinations/one/warehouse/edit").content.decode()
    )
    # and one can be forgotten
    bela.post(f"{C}/destinations/new", change | {"forget-signingSecret": "1"})
    row.refresh_from_db()
    assert row.encrypted_secret is None
    assert row.encrypted_password is not None
    # and another host gets neither
    moved = change | {"url": "https://other.example.org/in"}
    assert "We deleted its password" in read_html(
        bela.post(f"{C}/destinations/new", moved, follow=True)
    )
    row.refresh_from_db()
    assert row.encrypted_password is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "a b"}, "name"),
        ({"name": ""}, "name"),
        ({"url": ""}, "url"),
        ({"url": "http://127.0.0.1/"}, "url"),
        ({"kind": "pigeon"}, "kind"),
        ({"resource": "users"}, "resource"),
        ({"method": "GET"}, "method"),
        ({"contentType": "text/csv"}, "contentType"),
        ({"types": "END"}, "types"),
        ({"resource": "events", "types": "x" * 256}, "types"),
        ({"resource": "events", "types": "\n".join("x" * 101)}, "types"),
        ({"kind": "elasticsearch", "url": "https://e.example.org/_bulk"}, "index"),
        ({"kind": "elasticsearch", "index": "i"}, "url"),
        ({"docType": "x" * 65}, "docType"),
        ({"user": "a:b"}, "user"),
        ({"password": "x"}, "user"),
        ({"user": "u", "password": "x" * 1025}, "password"),
        ({"signingSecret": "hush"}, "signingSecret"),
        ({"with-password": "1"}, "password"),
    ],
)
def test_destination_form_errors(changes: dict[str, str], field: str) -> None:
    html = read_html(
        sign_in_administrator().post(f"{C}/destinations/new", destination_form(**changes)), 400
    )
    assert f'id="e-{field}"' in html
    assert f'id="f-{field}"' in html
    assert not Destination.objects.exists()


def test_password_is_requested_again() -> None:
    bela = sign_in_administrator()
    html = read_html(
        bela.post(f"{C}/destinations/new", destination_form(name="a b", user="u", password="hush")),
        400,
    )
    assert 'id="e-password">Type it again' in html
    assert 'name="with-password" value="1" checked' in html
    assert "hush" not in html


def test_destination_name_is_unique() -> None:
    bela = sign_in_administrator()
    bela.post(f"{C}/destinations/new", destination_form())
    html = read_html(
        bela.post(f"{C}/destinations/new", destination_form(url="https://other.example.org/")), 400
    )
    assert "This name is in use" in html
    assert Destination.objects.get().url == "https://warehouse.example.org/in"


def test_create_destination_permission() -> None:
    sign_in_administrator().post(f"{C}/destinations/new", destination_form())
    for browser in (
        sign_in(administer=True, submit_response=True),
        sign_in("chi", submit_private=True),
    ):
        for response in (
            browser.get(f"{C}/destinations/new"),
            browser.post(
                f"{C}/destinations/new",
                destination_form(changes="warehouse", url="https://a.example.org/"),
            ),
            browser.get(f"{C}/destinations/one/warehouse/edit"),
        ):
            assert response.status_code == 403
    assert Destination.objects.get().url == "https://warehouse.example.org/in"
    assert "/destinations/new" not in read_html(sign_in().get(f"{C}/destinations"))


def test_other_channel_destination_hidden() -> None:
    make = Destination(channel=make_channel("ORG_002"), name="theirs", url="https://a.example.org/")
    destinations.save(make)
    bela = sign_in_administrator()
    assert "theirs" not in read_html(bela.get(f"{C}/destinations"))
    for page in ("destinations/one/theirs", "destinations/one/theirs/edit"):
        assert bela.get(f"{C}/{page}").status_code == 404
    for action in ("delete", "rewind", "pause"):
        assert bela.post(f"{C}/destinations/one/theirs/{action}").status_code == 404
    # the same name in this channel is another destination
    assert (
        bela.post(
            f"{C}/destinations/new", destination_form(name="theirs", changes="theirs")
        ).status_code
        == 302
    )
    assert Destination.objects.count() == 2


def test_rewind_and_delete_destination() -> None:
    admin = sign_in(administer=True)
    send_events(make_answer(1))
    row = destinations.save(
        Destination(channel=make_channel(), name="warehouse", url="https://a.example.org/")
    )
    at = f"{C}/destinations/one/warehouse"
    start = row.cursor_xid
    assert "Enter the date" in read_html(admin.post(f"{at}/rewind", {"since": "soon"}, follow=True))
    row.refresh_from_db()
    assert row.cursor_xid == start
    message = read_html(admin.post(f"{at}/rewind", {"from": "start"}, follow=True))
    assert "replays everything from the beginning" in message
    row.refresh_from_db()
    assert (row.cursor_xid, row.cursor_id) == (0, 0)
    message = read_html(admin.post(f"{at}/rewind", {"since": "2022-03-01"}, follow=True))
    assert "replays everything since 1 Mar 2022" in message
    assert "is deleted" in read_html(admin.post(f"{at}/delete", follow=True))
    assert not Destination.objects.exists()


@pytest.mark.parametrize(
    ("number", "message"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (10_737_624, "10.7 MB"),
     (999_999, "1.0 MB"), (123_456_789, "123 MB"), (5_000_000_000, "5.0 GB"),
     (None, "unknown size")],
)  # fmt: skip
def test_format_sizes(number: int | None, message: str) -> None:
    assert filters.size(number) == message


@pytest.mark.parametrize(
    ("seconds", "message"),
    [(0.4, "less than a second"), (59, "59 s"), (60, "1 min"), (61, "1 min 1 s"),
     (3600, "1 h"), (86_400 + 60, "1 d"),
     (90_000, "1 d 1 h"), (None, "–")],
)  # fmt: skip
def test_format_durations(seconds: float | None, message: str) -> None:
    assert filters.duration(seconds) == message


# Values that must not get lost --------------------------------------------------------------------


def test_password_encrypts_file() -> None:
    send_events(make_answer(1))
    browser = sign_in(submit_response=True)
    response = browser.post(f"{C}/exports/new", export_form(encryptionKey="correct horse battery"))
    assert response.status_code == 302
    job = Job.objects.get()
    assert job.encryption == "password"
    html = read_html(browser.get(response["Location"]))
    assert "with the password of the request" in html
    assert "encryption=password" in html  # a new request is encrypted again
    assert "correct horse" not in html
    weak = browser.post(f"{C}/exports/new", export_form(encryptionKey="abc", tag="weak"))
    assert 'id="e-encryptionKey">Too weak' in read_html(weak, 400)


def test_password_kept_required_after_error() -> None:
    """The form does not show it again, and never submits without encryption instead."""
    send_events(make_answer(1))
    browser = sign_in(submit_response=True)
    html = read_html(
        browser.post(f"{C}/exports/new", export_form(encryptionKey="correct horse", tag="a b")), 400
    )
    assert "correct horse" not in html
    assert 'name="encryption" value="password" checked' in html
    html = read_html(browser.post(f"{C}/exports/new", export_form(encryption="password")), 400)
    assert 'id="e-encryptionKey">Type the password again' in html
    assert not Job.objects.exists()
    assert browser.post(f"{C}/exports/new", export_form()).status_code == 302


def test_permission_is_per_channel() -> None:
    """A right in one channel is none in another."""
    browser = sign_in(administer=True)
    sign_in(channel="ORG_002", submit_response=True)
    make_finished(channel="ORG_002", tag="theirs")
    assert browser.get("/console/ORG_002/keys").status_code == 403
    assert "theirs" in read_html(browser.get("/console/ORG_002/exports"))
    assert browser.get(f"{C}/exports").status_code == 403
    keys.create_key("k", ["ingest"], [make_channel("ORG_002")])
    assert "No API keys for this channel" in read_html(browser.get(f"{C}/keys"))


def test_destination_form_shows_fields_of_type() -> None:
    bela = sign_in_administrator()
    shown = {
        "webhook": {"resource", "types", "method", "signingSecret"},
        "elasticsearch": {"resource", "index", "docType"},
        "s3": {"bucket", "region", "path"},
        "sftp": {"hostKey", "privateKey", "path"},
    }
    types = read_html(bela.get(f"{C}/destinations/new"))
    for kind, fields in shown.items():
        assert f'href="?kind={kind}"' in types
        html = read_html(bela.get(f"{C}/destinations/new?kind={kind}"))
        assert f'name="kind" value="{kind}"' in html
        others = set().union(*shown.values()) - fields - {"method", "signingSecret", "types"}
        assert {name for name in others | fields if f'id="f-{name}"' in html} >= fields
        if kind in ("s3", "sftp"):
            assert not {name for name in others if f'id="f-{name}"' in html}
    assert not Destination.objects.exists()


def test_destination_for_files_in_console(enqueued_tasks: list[str]) -> None:
    bela = sign_in("bela", administer=True, submit_private=True, submit_response=True)
    assert "Deliver to" not in read_html(bela.get(f"{C}/exports/new"))
    form = {
        "name": "lake", "kind": "s3", "url": "https://s3.example.org", "bucket": "theirs",
        "region": "", "path": "", "user": "AKIA", "password": "hush", "allowsPrivate": "1",
    }  # fmt: skip
    html = read_html(bela.post(f"{C}/destinations/new", form, follow=True))
    assert "A test file is on its way" in html
    assert "Replay everything" not in html
    assert "hush" not in html
    assert enqueued_tasks == ["exhaust.deliver_files"]
    row = Destination.objects.get()
    assert (row.resource, row.region, row.allows_private) == ("files", "us-east-1", True)
    edited = read_html(bela.get(f"{C}/destinations/one/lake/edit"))
    assert 'name="allowsPrivate" value="1" checked' in edited
    assert "is stored and never shown" in edited
    cleared = {**form, "changes": "lake", "password": "", "allowsPrivate": ""}
    assert bela.post(f"{C}/destinations/new", cleared).status_code == 302
    row.refresh_from_db()
    assert not row.allows_private
    assert decrypt(row.encrypted_password) == b"hush"
    assert "0 exports are delivered again" in read_html(
        bela.post(f"{C}/destinations/one/lake/requeue", follow=True)
    )

    send_events(make_answer(1))
    for page in ("exports/new", "schedules/new"):
        assert '<option value="lake">' in read_html(bela.get(f"{C}/{page}"))
    bela.post(f"{C}/exports/new", {**export_form(), "deliverTo": "lake", "act": "send"})
    job = Job.objects.get()
    assert job.deliver_to == "lake"
    page = read_html(bela.get(f"{C}/exports/{job.tag}/{job.request_id}"))
    assert "to lake: waiting" in page
    assert "deliverTo" in page  # in the API call
    finished = make_finished(deliver_to="lake")
    finished.deliveries.update(status="dead", error="The server is full.", ended_at=timezone.now())
    page = read_html(bela.get(f"{C}/exports/{finished.tag}/{finished.request_id}"))
    assert "given up. The server is full." in page
    listed = read_html(bela.get(f"{C}/destinations/one/lake"))
    assert f"/exports/{finished.tag}/{finished.request_id}" in listed
    assert "1 export not delivered" in listed
