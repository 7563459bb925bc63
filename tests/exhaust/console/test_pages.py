"""Each page of the console, for each kind of person; and what the pages beside the jobs do."""

import json
import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern
from django.utils import timezone

from exhaust.console import charts, conversations, svg
from exhaust.console.templatetags import console as words
from exhaust.console.urls import urlpatterns
from exhaust.delivery import destinations
from exhaust.jobs import schedules, transitions
from exhaust.models import Destination, Job, Schedule
from ingest.adapters.participants import Profile
from ingest.auth import keys
from ingest.models import (
    ApiKey,
    AuditEvent,
    Channel,
    Conversation,
    Participant,
    RejectedEvent,
    StoredEvent,
)
from ingest.privacy.encryption import decrypt
from ingest.store.participants import store_participants
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.console.test_console import C, form, person, text
from tests.exhaust.factories import (
    BOT,
    PRIVATE,
    RESPONSE,
    make_answer,
    make_finished,
    make_job,
    send_events,
)

pytestmark = pytest.mark.django_db
ASK = {"submit_response", "submit_private"}
VIEW = {*ASK, "administer"}
ADMINISTER = {"administer"}
RIGHTS = ("submit_response", "submit_private", "administer", "audit")

# by the address's name: who may, and what else stands in the address
WHO: dict[str, tuple[set[str], dict[str, Any]]] = {
    "start": ({*RIGHTS}, {}),
    "exports": (ASK, {}),
    "export": (ASK, {"tag": "daily", "request_id": "ID"}),
    "cancel-export": (ASK, {"tag": "daily", "request_id": "ID"}),
    "retry-export": (ASK, {"tag": "daily", "request_id": "ID"}),
    "download": (ASK, {"tag": "daily", "request_id": "ID", "part": 1}),
    "create-link": (ASK, {"tag": "daily", "request_id": "ID", "part": 1}),
    "revoke-link": (ASK, {"tag": "daily", "request_id": "ID", "part": 1}),
    "new-export": (ASK, {}),
    "preview-export": (ASK, {}),
    "search-conversations": (ASK, {}),
    "schedules": (ADMINISTER, {}),
    "new-schedule": (ADMINISTER, {}),
    "edit-schedule": (ADMINISTER, {"name": "every-day"}),
    "schedule-action": (ADMINISTER, {"name": "every-day", "action": "pause"}),
    "charts": (VIEW, {}),
    "conversations": (VIEW, {}),
    "conversation": (VIEW, {}),
    "participants": ({"submit_private"}, {}),
    "rejected-events": (VIEW, {}),
    "rejected-event": (VIEW, {"pk": 1}),
    "replay": (ADMINISTER, {}),
    "destinations": (ADMINISTER, {}),
    "new-destination": (set(), {}),  # needs two permissions: see below
    "destination": (ADMINISTER, {"name": "warehouse"}),
    "edit-destination": (set(), {"name": "warehouse"}),
    "destination-action": (ADMINISTER, {"name": "warehouse", "action": "pause"}),
    "keys": (ADMINISTER, {}),
    "revoke-key": (ADMINISTER, {"public_id": "abcdefgh"}),
    "audit": ({"audit"}, {}),
}
NAMED = {
    pattern.name: "/console/" + str(pattern.pattern)
    for pattern in urlpatterns
    if isinstance(pattern, URLPattern) and "<str:channel>" in str(pattern.pattern)
}


def test_every_channel_url_is_covered() -> None:
    assert set(NAMED) == set(WHO)


def address(name: str, channel: str = "ORG_001") -> str:
    values = {"channel": channel, **WHO[name][1]}
    return re.sub(r"<\w+:(\w+)>", lambda found: str(values[found[1]]), NAMED[name])


@pytest.mark.parametrize("name", WHO)
def test_page_permissions(name: str) -> None:
    make_channel()
    for right in RIGHTS:
        browser = person(right, **{right: True})
        for method in (browser.get, browser.post):
            status = method(address(name)).status_code
            if right in WHO[name][0]:
                # an address may lack what it is of, or take the other method, but is theirs
                assert status in (200, 302, 400, 404, 405), (name, right, status)
            else:
                assert status == 403, (name, right, status)
        for method in (browser.get, browser.post):
            assert method(address(name, "ORG_002")).status_code == 404
            assert method(address(name, "a/../b")).status_code == 404
    for method in (person("nobody").get, person("nobody").post):
        assert method(address(name)).status_code == 404
    asked = Client().get(address(name))
    assert asked.status_code == 302
    assert asked["Location"].startswith("/console/sign-in?next=")
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    assert root.get(address(name)).status_code != 403


@pytest.mark.parametrize("name", [name for name in WHO if name != "start"])
def test_empty_page_says_what_to_do(name: str) -> None:
    browser = person(**dict.fromkeys(RIGHTS, True))
    answered = browser.get(address(name))
    if answered.status_code == 200 and name not in ("search-conversations", "preview-export"):
        said = text(answered)
        assert "<h1>" in said
        assert "{{" not in said
        assert "{%" not in said
        assert "None" not in said


# Keys ---------------------------------------------------------------------------------------------


def test_create_and_revoke_key() -> None:
    admin = person(administer=True, submit_response=True)
    assert "No API keys for this channel" in text(admin.get(f"{C}/keys"))
    said = {"name": "our bot", "scope": ["ingest", "export:response"], "days": "90"}
    made = text(admin.post(f"{C}/keys", said))
    key = re.search(r"exh_\w+", made)
    assert key is not None
    row = ApiKey.objects.get()
    assert row.expires_at is not None
    assert timedelta(days=89) < row.expires_at - timezone.now() < timedelta(days=91)
    assert Client(headers=bearer(key[0])).get("/dataset/v1/request/list/x").status_code == 200
    listed = text(admin.get(f"{C}/keys"))
    assert "our bot" in listed
    assert key[0] not in listed
    assert "is revoked" in text(admin.post(f"{C}/keys/{row.public_id}/revoke", follow=True))
    assert "revoked already" in text(admin.post(f"{C}/keys/{row.public_id}/revoke", follow=True))
    assert Client(headers=bearer(key[0])).get("/dataset/v1/request/list/x").status_code == 401
    told = list(AuditEvent.objects.order_by("pk").values_list("action", "actor"))
    assert told == [("key.created", "asha"), ("key.revoked", "asha")]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"name": ""}, "Enter a name for the key."),
        ({"scope": []}, "Choose at least one permission."),
        ({"scope": ["export:private"]}, "You cannot grant a permission that you do not have."),
        ({"scope": ["pull"]}, "You cannot grant a permission that you do not have."),
        ({"scope": ["nothing"]}, "You cannot grant a permission that you do not have."),
        ({"days": "1"}, "Choose when the key expires."),
        ({"name": "x" * 129}, "Up to 128 characters."),
    ],
)
def test_key_scopes_limited_by_creator(said: dict[str, Any], sentence: str) -> None:
    admin = person(administer=True, submit_response=True)
    sent = {"name": "n", "scope": ["ingest"], "days": "30", **said}
    assert sentence in text(admin.post(f"{C}/keys", sent), 400)
    assert not ApiKey.objects.exists()


def test_revoke_needs_all_key_channels() -> None:
    admin = person(administer=True)
    make_key("ingest", channels=("ORG_001", "ORG_002"))
    row = ApiKey.objects.get()
    assert row.public_id not in text(admin.get(f"{C}/keys"))
    assert admin.post(f"{C}/keys/{row.public_id}/revoke").status_code == 404
    row.refresh_from_db()
    assert row.revoked_at is None
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    assert row.public_id in text(root.get(f"{C}/keys"))
    both = person("bela", administer=True)
    person("bela", "ORG_002", administer=True)
    assert row.public_id in text(both.get(f"{C}/keys"))
    assert "is revoked" in text(both.post(f"{C}/keys/{row.public_id}/revoke", follow=True))
    make_key("ingest", channels=("ORG_002",))
    other = ApiKey.objects.exclude(pk=row.pk).get()
    # who administers both finds it in its own channel alone
    for browser in (admin, both, root):
        assert other.public_id not in text(browser.get(f"{C}/keys"))
        assert browser.post(f"{C}/keys/{other.public_id}/revoke").status_code == 404
    assert other.public_id in text(both.get("/console/ORG_002/keys"))


# Rejected events ----------------------------------------------------------------------------------


def reject() -> RejectedEvent:
    sender = Client(headers=bearer(make_key("ingest")))
    sender.post("/v1/telemetry", json.dumps({"events": ["Asha"]}), content_type="application/json")
    return RejectedEvent.objects.get()


def test_viewing_rejected_bytes_is_audited() -> None:
    row = reject()
    asker = person("usha", submit_response=True)
    assert "not_an_object" in text(asker.get(f"{C}/rejected"))
    said = text(asker.get(f"{C}/rejected/{row.pk}"))
    assert "Hidden, because" in said
    assert "Asha" not in said
    assert not AuditEvent.objects.filter(action="rejected.viewed").exists()
    said = text(person(administer=True).get(f"{C}/rejected/{row.pk}"))
    assert "&quot;Asha&quot;" in said
    entry = AuditEvent.objects.get(action="rejected.viewed")
    assert (entry.actor, entry.channel, entry.subject) == ("asha", "ORG_001", str(row.pk))
    elsewhere = person("uma", "ORG_002", administer=True)
    assert elsewhere.get(f"/console/ORG_002/rejected/{row.pk}").status_code == 404


def test_replay_rejected_events(monkeypatch: pytest.MonkeyPatch) -> None:
    row = reject()
    admin = person(administer=True)
    said = text(admin.post(f"{C}/rejected/replay", {"reason": "not_an_object"}, follow=True))
    assert "0 accepted, 1 still rejected" in said
    monkeypatch.setattr("ingest.store.replay._replay_one", lambda *_: [])
    assert "1 accepted" in text(admin.post(f"{C}/rejected/replay", {"pk": row.pk}, follow=True))
    assert "No rejected events." in text(admin.get(f"{C}/rejected"))
    assert admin.post(f"{C}/rejected/replay").status_code == 404


# People -------------------------------------------------------------------------------------------


def test_participants_masked_and_audited() -> None:
    asha = Profile("device-1", "Asha Rao", "+919000000001", True, timezone.now())
    store_participants(make_channel().pk, timezone.now(), [asha], [])
    other = Profile("device-2", "Uma", None, None, None)
    store_participants(make_channel("ORG_002").pk, timezone.now(), [other], [])
    browser = person("usha", submit_private=True)
    said = text(browser.get(f"{C}/participants"))
    assert "A***" in said
    assert "…001" in said
    for secret in ("Asha", "9000000", "device-1", "U***"):
        assert secret not in said
    assert "A***" in text(browser.get(f"{C}/participants?device=device-1"))
    assert "Nobody has that device id" in text(browser.get(f"{C}/participants?device=device-2"))
    assert text(browser.get(f"{C}/participants?device=%00&cursor=x"))
    entries = AuditEvent.objects.filter(action="participants.viewed").order_by("pk")
    found = Participant.objects.get(device_id="device-1")
    assert [(each.actor, each.subject) for each in entries] == [
        ("usha", ""),
        ("usha", f"participant {found.pk}"),
        ("usha", ""),  # what was typed may be anybody's device, or phone
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
    browser = person(audit=True)
    said = text(browser.get(f"{C}/audit?action=key."))
    assert "a59" in said
    assert "link.used" not in said
    assert "secret" not in said
    more = said.split('href="')[-1].split('"')[0].replace("&amp;", "&")
    assert "a1<" in text(browser.get(f"{C}/audit{more}"))
    assert "No entry is like that" in text(browser.get(f"{C}/audit?actor=nobody&cursor=x"))


# Recurring requests and destinations ---------------------------------------------------------------------


def recurring(**said: str) -> dict[str, str]:
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
        **said,
    }


def test_schedule_lifecycle() -> None:
    admin = person(administer=True, submit_response=True)
    send_events(make_answer(1))
    assert "Nothing is asked for by itself" in text(admin.get(f"{C}/schedules"))
    assert admin.post(f"{C}/schedules/new", recurring()).status_code == 302
    schedule = Schedule.objects.get()
    assert (schedule.requested_by, schedule.zone) == ("asha", "Asia/Kolkata")
    assert "every-day" in text(admin.get(f"{C}/schedules"))
    assert "This name is in use" in text(admin.post(f"{C}/schedules/new", recurring()), 400)
    filled = text(admin.get(f"{C}/schedules/one/every-day"))
    assert 'value="0 6 * * *"' in filled
    changed = recurring(cron="0 7 * * *", changes="every-day")
    assert admin.post(f"{C}/schedules/new", changed).status_code == 302
    assert Schedule.objects.get().cron == "0 7 * * *"
    Channel.objects.update(recipient="age1x")
    Schedule.objects.update(encryption="publickey", callback_url="https://example.org/x")
    kept = text(admin.get(f"{C}/schedules/one/every-day"))
    assert '<option value="publickey" selected>' in kept
    assert 'value="https://example.org/x"' in kept
    assert "is paused" in text(admin.post(f"{C}/schedules/one/every-day/pause", follow=True))
    assert "asks again" in text(admin.post(f"{C}/schedules/one/every-day/resume", follow=True))
    assert admin.post(f"{C}/schedules/one/every-day/explode").status_code == 404
    assert "is deleted" in text(admin.post(f"{C}/schedules/one/every-day/delete", follow=True))
    assert not Schedule.objects.exists()


@pytest.mark.parametrize(
    ("wrong", "field"),
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
    ],
)
def test_schedule_form_errors(wrong: dict[str, str], field: str) -> None:
    admin = person(administer=True, submit_response=True)
    said = text(admin.post(f"{C}/schedules/new", recurring(**wrong)), 400)
    assert f'id="e-{field}"' in said
    assert not Schedule.objects.exists()


def test_private_schedule_needs_permission() -> None:
    people = Schedule(
        channel=make_channel(), name="people", dataset=PRIVATE, conversation=BOT, tag="t",
        cron="0 6 * * *", window="yesterday", requested_by="x",
    )  # fmt: skip
    schedules.save(people)
    admin = person(administer=True, submit_response=True)
    assert "people" not in text(admin.get(f"{C}/schedules")).split("<main")[1]
    assert admin.post(f"{C}/schedules/one/people/delete").status_code == 404
    # nor is it replaced by one of answers, and no more is told of it than of any that stands
    for changes in ("people", ""):
        said = admin.post(f"{C}/schedules/new", recurring(name="people", changes=changes))
        assert "This name is in use; choose another" in text(said, 400)
    assert Schedule.objects.get().dataset == PRIVATE
    may = person("bela", administer=True, submit_response=True, submit_private=True)
    said = recurring(name="people", changes="people")
    assert may.post(f"{C}/schedules/new", said).status_code == 302
    assert Schedule.objects.get().dataset == RESPONSE


def test_pause_resume_and_test_destination(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = person(administer=True)
    assert "No destinations yet" in text(admin.get(f"{C}/destinations"))
    destination = destinations.save(
        Destination(
            channel=make_channel(), name="warehouse", url="https://user.example.org/in?key=secret"
        )
    )
    said = text(admin.get(f"{C}/destinations"))
    assert "user.example.org" in said
    assert "secret" not in said
    for what, state, told in (("pause", "paused", "is paused"), ("resume", "working", "is active again")):
        assert told in text(admin.post(f"{C}/destinations/one/warehouse/{what}", follow=True))
        destination.refresh_from_db()
        assert destinations.determine_state(destination) == state
    monkeypatch.setattr("exhaust.delivery.sender.send", lambda *_: OSError("nobody there"))
    assert "Test event not delivered: nobody there" in text(
        admin.post(f"{C}/destinations/one/warehouse/test", follow=True)
    )
    assert "0 documents" in text(admin.post(f"{C}/destinations/one/warehouse/requeue", follow=True))
    assert admin.post(f"{C}/destinations/one/warehouse/explode").status_code == 404
    assert admin.post(f"{C}/destinations/one/nobody/pause").status_code == 404


def destination(**said: str) -> dict[str, str]:
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
        **said,
    }


SECRET = "whsec_" + "c2VjcmV0" * 4


def keeper() -> Client:
    """May have what a destination sends, and administers."""
    return person("bela", administer=True, submit_private=True)


def test_destination_secrets_stay_hidden() -> None:
    bela = keeper()
    assert "Create the first destination" in text(bela.get(f"{C}/destinations"))
    said = destination(user="exhaust", password=" hush hush ", signingSecret=SECRET)
    made = text(bela.post(f"{C}/destinations/new", said, follow=True))
    row = Destination.objects.get()
    assert (row.method, row.content_type, row.user) == ("PUT", "application/x-ndjson", "exhaust")
    assert decrypt(row.encrypted_password) == b" hush hush "
    assert decrypt(row.encrypted_secret) == SECRET.encode()
    form = text(bela.get(f"{C}/destinations/one/warehouse/edit"))
    assert 'value="https://warehouse.example.org/in"' in form
    assert form.count("is stored and never shown") == 2
    for page in (
        made,
        form,
        text(bela.get(f"{C}/destinations")),
        text(bela.get(f"{C}/audit"), 403),
    ):
        assert "hush" not in page
        assert SECRET not in page

    # when it is changed, then what is left empty stays
    change = destination(
        changes="warehouse", user="exhaust", resource="events", types="END\r\nASSESS"
    )
    assert bela.post(f"{C}/destinations/new", change).status_code == 302
    row.refresh_from_db()
    assert (row.resource, row.types) == ("events", ["ASSESS", "END"])
    assert decrypt(row.encrypted_password) == b" hush hush "
    assert ">ASSESS\nEND</textarea>" in (
        bela.get(f"{C}/destinations/one/warehouse/edit").content.decode()
    )
    # and one can be forgotten
    bela.post(f"{C}/destinations/new", change | {"forget-signingSecret": "1"})
    row.refresh_from_db()
    assert row.encrypted_secret is None
    assert row.encrypted_password is not None
    # and another host is told neither
    moved = change | {"url": "https://other.example.org/in"}
    assert "We deleted its password" in text(bela.post(f"{C}/destinations/new", moved, follow=True))
    row.refresh_from_db()
    assert row.encrypted_password is None


@pytest.mark.parametrize(
    ("wrong", "field"),
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
def test_destination_form_errors(wrong: dict[str, str], field: str) -> None:
    said = text(keeper().post(f"{C}/destinations/new", destination(**wrong)), 400)
    assert f'id="e-{field}"' in said
    assert f'id="f-{field}"' in said
    assert not Destination.objects.exists()


def test_password_is_requested_again() -> None:
    bela = keeper()
    said = text(
        bela.post(f"{C}/destinations/new", destination(name="a b", user="u", password="hush")), 400
    )
    assert 'id="e-password">Type it again' in said
    assert 'name="with-password" value="1" checked' in said
    assert "hush" not in said


def test_destination_name_is_unique() -> None:
    bela = keeper()
    bela.post(f"{C}/destinations/new", destination())
    said = text(
        bela.post(f"{C}/destinations/new", destination(url="https://other.example.org/")), 400
    )
    assert "This name is in use" in said
    assert Destination.objects.get().url == "https://warehouse.example.org/in"


def test_create_destination_permission() -> None:
    keeper().post(f"{C}/destinations/new", destination())
    for browser in (
        person(administer=True, submit_response=True),
        person("chi", submit_private=True),
    ):
        for answered in (
            browser.get(f"{C}/destinations/new"),
            browser.post(
                f"{C}/destinations/new",
                destination(changes="warehouse", url="https://a.example.org/"),
            ),
            browser.get(f"{C}/destinations/one/warehouse/edit"),
        ):
            assert answered.status_code == 403
    assert Destination.objects.get().url == "https://warehouse.example.org/in"
    assert "/destinations/new" not in text(person().get(f"{C}/destinations"))


def test_other_channel_destination_hidden() -> None:
    make = Destination(channel=make_channel("ORG_002"), name="theirs", url="https://a.example.org/")
    destinations.save(make)
    bela = keeper()
    assert "theirs" not in text(bela.get(f"{C}/destinations"))
    for page in ("destinations/one/theirs", "destinations/one/theirs/edit"):
        assert bela.get(f"{C}/{page}").status_code == 404
    for what in ("delete", "rewind", "pause"):
        assert bela.post(f"{C}/destinations/one/theirs/{what}").status_code == 404
    # the same name in this channel is another destination
    assert (
        bela.post(f"{C}/destinations/new", destination(name="theirs", changes="theirs")).status_code
        == 302
    )
    assert Destination.objects.count() == 2


def test_rewind_and_delete_destination() -> None:
    admin = person(administer=True)
    send_events(make_answer(1))
    row = destinations.save(
        Destination(channel=make_channel(), name="warehouse", url="https://a.example.org/")
    )
    at = f"{C}/destinations/one/warehouse"
    began = row.xid
    assert "Enter the date" in text(admin.post(f"{at}/rewind", {"since": "soon"}, follow=True))
    row.refresh_from_db()
    assert row.xid == began
    told = text(admin.post(f"{at}/rewind", {"from": "start"}, follow=True))
    assert "replays everything from the beginning" in told
    row.refresh_from_db()
    assert (row.xid, row.cursor_id) == (0, 0)
    told = text(admin.post(f"{at}/rewind", {"since": "2022-03-01"}, follow=True))
    assert "replays everything since 1 Mar 2022" in told
    assert "is deleted" in text(admin.post(f"{at}/delete", follow=True))
    assert not Destination.objects.exists()


# Pictures -----------------------------------------------------------------------------------------


def test_charts_have_tables() -> None:
    send_events(*(make_answer(number) for number in range(4)))
    now = datetime(2022, 3, 5, 12, tzinfo=UTC)
    StoredEvent.objects.update(received_at=now)
    Conversation.objects.update(name="Lunch bot")
    done = make_finished()
    Job.objects.filter(pk=done.pk).update(
        submitted_at=now, completed_at=now + timedelta(seconds=90)
    )
    RejectedEvent.objects.filter(pk=reject().pk).update(received_at=now)
    secret = make_job(dataset=PRIVATE, submitted_at=now)
    transitions.cancel(secret, "x")
    said = text(
        person(submit_response=True).get(f"{C}/charts?startDate=2022-03-01&endDate=2022-03-31")
    )
    assert said.count("<svg") == said.count("<title id=") == said.count("<desc id=") == 6
    assert said.count("<table") == 6
    assert '<th scope="row">5 Mar 2022</th><td class="number">4</td>' in said
    assert '<th scope="row">Lunch bot</th><td class="number">4</td>' in said
    assert '<th scope="row">Median</th><td class="number">1 min 30 s</td>' in said
    assert '<th scope="row">not_an_object</th><td class="number">1</td>' in said
    assert "Cancelled" not in said  # a job of people is not counted for who may not see it
    assert "Destination" not in said


def test_invalid_chart_period_is_reported() -> None:
    browser = person(submit_response=True)
    for query in ("startDate=soon", "startDate=2022-02-01&endDate=2022-01-01", "preset=ever",
                  "startDate=2020-01-01&endDate=2022-01-01"):  # fmt: skip
        assert 'role="alert"' in text(browser.get(f"{C}/charts?{query}"))
    assert 'role="alert"' not in text(browser.get(f"{C}/charts?preset=last+month"))


def test_charts_switch_to_own_channels() -> None:
    browser = person(submit_response=True)
    make_channel("ORG_003")
    person("asha", "ORG_002", submit_response=True)
    to = browser.get(f"{C}/charts?channel=ORG_002&preset=yesterday")
    assert to["Location"] == "/console/ORG_002/charts?preset=yesterday"
    assert browser.get(to["Location"]).status_code == 200
    for channel in ("", "a/b", "ORG_003", "nobodys", "%00"):
        assert browser.get(f"{C}/charts?channel={channel}").status_code == 404


def test_slow_chart_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any) -> charts.Chart:
        raise TimeoutError

    slow.__name__ = "doors"
    monkeypatch.setattr(charts, "events_by_source", slow)
    said = text(person(submit_response=True).get(f"{C}/charts"))
    assert "Counting took too long. Choose fewer days." in said


def test_funnel_counts_drop_off() -> None:
    events = []
    for device in range(4):
        for place in range(3 if device < 2 else 2 if device < 3 else 1):
            event = make_answer(device * 10 + place)
            event["context"]["did"] = f"d-{device}"
            event["context"]["sid"] = f"s-{device}"
            event["context"]["rollup"] = {"l3": f"/q{place}", "l4": str(place == 2).lower()}
            event["edata"]["item"]["title"] = f"Question {place}"
            events.append(event)
    send_events(*events)
    pk = Conversation.objects.get().pk
    drawn = conversations.draw_funnel(pk, charts.DayRange(date(2022, 3, 1), date(2022, 3, 31)))
    assert drawn.caption == "4 sessions of 4 participants. 2 ended before the last question."
    assert drawn.rows == [
        ["Question 0", "/q0", "4", "100%", "1"],
        ["Question 1", "/q1", "3", "75%", "1"],
        ["Question 2", "/q2", "2", "50%", "0"],
    ]
    browser = person(submit_response=True)
    page = text(
        browser.get(f"{C}/conversations/one?id={BOT}&startDate=2022-03-01&endDate=2022-03-31")
    )
    assert "Question 1" in page
    assert browser.get(f"{C}/conversations/one?id=none").status_code == 404
    assert browser.get(f"{C}/conversations/one?id=%00").status_code == 404


def test_svg_is_escaped_and_labelled() -> None:
    drawn = svg.draw_bars("x", "A <title>", "told", [("<script>alert(1)</script>", 3, "three")])
    assert "<script" not in drawn
    assert 'role="img" aria-labelledby="x-t x-d"' in drawn
    empty = svg.draw_columns("y", "t", "d", [], [])
    assert "<rect" not in empty


@pytest.mark.parametrize(
    ("number", "told"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (10_737_624, "10.7 MB"),
     (999_999, "1.0 MB"), (123_456_789, "123 MB"), (5_000_000_000, "5.0 GB"),
     (None, "unknown size")],
)  # fmt: skip
def test_format_sizes(number: int | None, told: str) -> None:
    assert words.size(number) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "less than a second"), (59, "59 s"), (60, "1 min"), (61, "1 min 1 s"),
     (3600, "1 h 0 min"),
     (90_000, "1 d 1 h"), (None, "–")],
)  # fmt: skip
def test_format_durations(seconds: float | None, told: str) -> None:
    assert words.duration(seconds) == told


# What must not be lost ----------------------------------------------------------------------------


def test_password_encrypts_file() -> None:
    send_events(make_answer(1))
    browser = person(submit_response=True)
    answered = browser.post(f"{C}/exports/new", form(encryptionKey="correct horse battery"))
    assert answered.status_code == 302
    job = Job.objects.get()
    assert job.encryption == "password"
    said = text(browser.get(answered["Location"]))
    assert "with the password of the request" in said
    assert "encryption=password" in said  # asked again, it is sealed again
    assert "correct horse" not in said
    weak = browser.post(f"{C}/exports/new", form(encryptionKey="abc", tag="weak"))
    assert 'id="e-encryptionKey">Too weak' in text(weak, 400)


def test_password_kept_required_after_error() -> None:
    """It is not shown again; but what was to be sealed is not sent plain for that."""
    send_events(make_answer(1))
    browser = person(submit_response=True)
    said = text(browser.post(f"{C}/exports/new", form(encryptionKey="correct horse", tag="a b")), 400)
    assert "correct horse" not in said
    assert 'name="encryption" value="password" checked' in said
    said = text(browser.post(f"{C}/exports/new", form(encryption="password")), 400)
    assert 'id="e-encryptionKey">Type the password again' in said
    assert not Job.objects.exists()
    assert browser.post(f"{C}/exports/new", form()).status_code == 302


def test_permission_is_per_channel() -> None:
    """A right in one channel is none in another."""
    browser = person(administer=True)
    person(channel="ORG_002", submit_response=True)
    make_finished(channel="ORG_002", tag="theirs")
    assert browser.get("/console/ORG_002/keys").status_code == 403
    assert "theirs" in text(browser.get("/console/ORG_002/exports"))
    assert browser.get(f"{C}/exports").status_code == 403
    keys.create_key("k", ["ingest"], [make_channel("ORG_002")])
    assert "No API keys for this channel" in text(browser.get(f"{C}/keys"))
