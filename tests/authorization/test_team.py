"""The team of a channel: an administrator invites, changes and removes, within their own rights."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import connection
from django.test import Client

from exhaust.console import team
from exhaust.models import ChatWebhook, SavedView
from ingest.db.clock import read_clock
from ingest.models import AuditEvent, Role
from ingest.tenancy import session
from ingest.tenancy.policies import SERVICE_ROLE
from tests.authorization.test_account import choose_password
from tests.conftest import make_channel
from tests.exhaust.console.test_console import C, read_html, sign_in

pytestmark = pytest.mark.django_db
TEAM = f"{C}/team"


@pytest.fixture
def admin() -> Client:
    return sign_in(administer=True, submit_response=True)


def invite(client: Client, email: str = "bela@x.example", *permissions: str) -> Any:
    form = {"email": email, "permission": permissions or ["submit_response"]}
    return client.post(TEAM, form)


def change(client: Client, name: str, *permissions: str, channel: str = "ORG_001") -> Any:
    user = User.objects.get(username=name)
    return client.post(f"/console/{channel}/team/{user.pk}", {"permission": permissions})


def remove(client: Client, name: str) -> Any:
    return client.post(f"{TEAM}/{User.objects.get(username=name).pk}", {"act": "remove"})


def list_rights(name: str, channel: str = "ORG_001") -> set[str]:
    rows = Role.objects.filter(group__user__username=name, channel__identifier=channel)
    rights = ("submit_response", "submit_private", "administer", "audit")
    return {right for row in rows for right in rights if getattr(row, right)}


def list_acts() -> list[tuple[str, str, str]]:
    rows = AuditEvent.objects.filter(channel="ORG_001").order_by("id")
    return list(rows.values_list("action", "actor", "subject"))


def test_invitation_goes_by_mail(admin: Client, settings: Any, mailoutbox: list[Any]):
    settings.EXHAUST_SENDS_MAIL = True

    answer = invite(admin, "bela@x.example", "submit_response", "administer")

    assert answer["Location"] == TEAM
    (message,) = mailoutbox
    link = re.search(r"http://127\.0\.0\.1:8000(/account/password/\S+)", message.body)
    assert link
    assert message.to == ["bela@x.example"]
    assert link[1] not in read_html(admin.get(TEAM))
    assert list_rights("bela@x.example") == {"submit_response", "administer"}
    assert [act for act in list_acts() if not act[0].startswith("role.")] == [
        ("member.added", "asha", "bela@x.example"),
        ("user.invited", "asha", "bela@x.example"),
    ]
    assert choose_password(link[0], "a long one 12").status_code == 302
    browser = Client()
    login = {"login": "bela@x.example", "password": "a long one 12"}
    assert browser.post("/console/sign-in", login).status_code == 302
    assert "API keys" in read_html(browser.get(f"{C}/keys"))


def test_link_is_shown_once_without_mail(admin: Client):
    page = read_html(invite(admin))
    assert "/account/password/" in page
    assert "/account/password/" not in read_html(admin.get(TEAM))


def test_known_person_keeps_account(admin: Client, settings: Any, mailoutbox: list[Any]):
    settings.EXHAUST_SENDS_MAIL = True
    bela = User.objects.create_user("bela", "Bela@x.example", "a long one 12")
    assert invite(admin)["Location"] == TEAM
    bela.refresh_from_db()
    assert bela.check_password("a long one 12")
    assert list_rights("bela") == {"submit_response"}
    assert "has access already" in read_html(invite(admin), 400)
    assert mailoutbox == []


def test_account_of_others_needs_mail(admin: Client):
    # given an account whose password the first who invited may have chosen
    User.objects.create_user("bela", "bela@x.example", "a long one 12")

    # when / then only who runs the service adds it
    assert "has an account already" in read_html(invite(admin), 400)
    assert list_rights("bela") == set()
    User.objects.filter(username="asha").update(is_superuser=True)
    assert invite(admin)["Location"] == TEAM


@pytest.mark.parametrize(
    ("email", "permissions", "sentence"),
    [
        ("bela", ["submit_response"], "Enter an e-mail address"),
        ("", ["submit_response"], "Enter an e-mail address"),
        (f"{'b' * 150}@x.example", ["submit_response"], "cannot be a user name"),
        ("be la@x.example", ["submit_response"], "Enter an e-mail address"),
        ("be'la@x.example", ["submit_response"], "cannot be a user name"),
        ("one@x.example", ["submit_response"], "cannot be a user name"),
        ("bela@x.example", ["nothing"], "Choose at least one permission"),
        ("bela@x.example", ["audit"], "You cannot grant a permission that you do not have"),
        ("bela@x.example", ["submit_private"], "You cannot grant a permission"),
        ("twice@x.example", ["submit_response"], "Several accounts"),
        ("off@x.example", ["submit_response"], "switched off"),
        ("root@x.example", ["submit_response"], "has access already"),
    ],
)
def test_wrong_invitation(admin: Client, email: str, permissions: list[str], sentence: str):
    User.objects.create_user("one@x.example", "twice@x.example")
    User.objects.create_user("two", "TWICE@x.example")
    User.objects.create_user("off", "off@x.example", is_active=False)
    User.objects.create_superuser("root", "root@x.example")
    before = User.objects.count()
    assert sentence in read_html(invite(admin, email, *permissions), 400)
    assert User.objects.count() == before
    assert list_acts() == []


def test_change_and_remove(admin: Client):
    invite(admin)
    name = "bela@x.example"

    assert change(admin, name, "submit_response", "administer")["Location"] == TEAM
    assert list_rights(name) == {"submit_response", "administer"}
    assert "Choose at least one" in read_html(change(admin, name), 400)
    assert "do not have" in read_html(change(admin, name, "audit"), 400)
    assert list_rights(name) == {"submit_response", "administer"}

    User.objects.filter(username=name).update(last_login="2026-01-01T00:00:00Z")
    assert remove(admin, name)["Location"] == TEAM
    assert list_rights(name) == set()
    assert User.objects.filter(username=name).exists()
    assert [act[0] for act in list_acts() if act[0].startswith("member.")] == [
        "member.added", "member.changed", "member.removed",
    ]  # fmt: skip
    assert remove(admin, name).status_code == 404


def test_removed_invitation_leaves_no_account(admin: Client):
    invite(admin)
    remove(admin, "bela@x.example")
    assert not User.objects.filter(email="bela@x.example").exists()
    invite(admin)
    User.objects.get(email="bela@x.example").groups.add(Group.objects.create(name="other"))
    remove(admin, "bela@x.example")
    assert User.objects.filter(email="bela@x.example").exists()


@pytest.mark.postgresql
def test_removal_as_service_role(admin: Client):
    # given a row of another channel that names the person, which the administrator does not see
    invite(admin)
    bela = User.objects.get(email="bela@x.example")
    SavedView.objects.create(channel=make_channel("ORG_002"), user=bela, name="theirs", query="")
    with connection.cursor() as cursor:
        cursor.execute(f"SET SESSION AUTHORIZATION {SERVICE_ROLE}")

    # when
    try:
        assert remove(admin, "bela@x.example")["Location"] == TEAM
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET SESSION AUTHORIZATION")

    # then no row is left that names nobody
    connection.check_constraints()
    assert not User.objects.filter(pk=bela.pk).exists()
    assert not SavedView.objects.exists()


def test_own_access_stays(admin: Client):
    assert "cannot change your own" in read_html(change(admin, "asha", "submit_response"), 400)
    assert "cannot change your own" in read_html(remove(admin, "asha"), 400)
    assert list_rights("asha") == {"administer", "submit_response"}


def test_stronger_person_stays(admin: Client):
    sign_in("bela", audit=True)
    assert "may do more here than you" in read_html(remove(admin, "bela"), 400)
    assert "may do more" in read_html(change(admin, "bela", "submit_response"), 400)
    assert list_rights("bela") == {"audit"}
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    assert remove(root, "bela")["Location"] == TEAM
    assert list_rights("bela") == set()


def test_group_of_other_channels_stays(admin: Client):
    sign_in("bela", submit_response=True)
    group = Group.objects.get(name="bela of ORG_001")
    Role.objects.create(group=group, channel=make_channel("ORG_002"), administer=True)

    text = read_html(remove(admin, "bela"), 400)

    assert "opens other channels too" in text
    assert "ORG_002" not in text
    assert list_rights("bela") == {"submit_response"}
    assert invite(admin).status_code == 200
    assert list_rights("bela@x.example", "ORG_002") == set()


def test_group_with_more_is_not_used(admin: Client):
    invite(admin)
    group = Group.objects.get(user__email="bela@x.example")
    group.permissions.add(Permission.objects.first())
    invite(admin, "chris@x.example")
    assert not group.user_set.filter(email="chris@x.example").exists()
    invite(admin, "dana@x.example")
    assert Group.objects.filter(roles__channel=make_channel()).count() == 3  # asha's, and two
    assert not User.objects.get(email="dana@x.example").user_permissions.exists()


def test_other_channels_are_out_of_reach(admin: Client):
    sign_in("bela", "ORG_002", submit_response=True)
    assert "bela" not in read_html(admin.get(TEAM))
    assert change(admin, "bela", "submit_response").status_code == 404
    assert remove(admin, "bela").status_code == 404
    assert change(admin, "bela", channel="ORG_002").status_code == 404
    assert list_rights("bela", "ORG_002") == {"submit_response"}


def test_invitations_are_limited(admin: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(team, "MAX_DAILY_INVITATIONS", 2)
    for name in ("bela", "chris"):
        assert invite(admin, f"{name}@x.example").status_code == 200
    assert "Try again tomorrow" in read_html(invite(admin, "dana@x.example"), 400)
    monkeypatch.setattr(team, "MAX_DAILY_INVITATIONS", 3)
    monkeypatch.setattr(team, "MAX_MEMBERS", 3)
    assert "at most 3 people" in read_html(invite(admin, "dana@x.example"), 400)
    assert not User.objects.filter(email="dana@x.example").exists()


def test_organisation_decides_on_groups(admin: Client, settings: Any):
    settings.EXHAUST_OIDC_GROUPS_CLAIM = "groups"
    sign_in("bela", submit_response=True)
    text = read_html(admin.get(TEAM))
    assert "sign-in decides" in text
    assert "Invite" not in text
    assert invite(admin).status_code == 404
    assert remove(admin, "bela").status_code == 404


def test_page_names_people_and_rights(admin: Client):
    sign_in("bela", submit_private=True)
    User.objects.create_superuser("root")
    text = read_html(admin.get(TEAM))
    for words in ("asha", "bela", "root", "Export personal data", "No second factor."):
        assert words in text


def test_chat_is_saved_and_removed(admin: Client):
    form = {"url": "https://hooks.x.example/SECRET", "kind": ["export_failed"]}
    assert admin.post(f"{TEAM}/chat", form)["Location"] == TEAM
    assert ChatWebhook.objects.get().export_failed
    text = read_html(admin.get(TEAM))
    assert "SECRET" not in text
    refused = read_html(admin.post(f"{TEAM}/chat", {"url": "https://10.0.0.1/SECRET"}), 400)
    assert "not public" in refused
    assert "SECRET" not in refused
    assert admin.post(f"{TEAM}/chat", {"act": "remove"})["Location"] == TEAM
    assert not ChatWebhook.objects.exists()
    assert [act[0] for act in list_acts()] == ["chat.changed", "chat.removed"]
    assert "SECRET" not in repr(list(AuditEvent.objects.values()))


@pytest.mark.postgresql
def test_team_page_is_restricted(admin: Client):
    sign_in("bela", "ORG_002", administer=True)
    session.restrict_to_channels([make_channel().pk])
    members = team.list_members(make_channel("ORG_001").pk)
    assert [member.user.username for member in members] == ["asha"]
    assert session.is_restricted()


def test_old_invitations_do_not_count(admin: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(team, "MAX_DAILY_INVITATIONS", 1)
    invite(admin)
    later = read_clock() + timedelta(days=1, minutes=1)
    monkeypatch.setattr(team, "read_clock", lambda: later)
    assert invite(admin, "chris@x.example").status_code == 200
