"""Second factors, sessions, invitations and confirmations."""

import hmac
import re
import struct
from base64 import b32decode
from collections.abc import Iterator
from datetime import timedelta
from time import time
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from django.contrib.auth.models import Group, User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from exhaust.models import Destination
from ingest.auth import accounts, failures, roles
from ingest.db import clock
from ingest.models import ApiKey, AuditEvent, AuthFailureCount, BrowserSession, Role
from tests.conftest import make_channel

pytestmark = pytest.mark.django_db
SIGN_IN = "/console/sign-in"
PASSWORD = "a long enough one"
CHANNEL = "/console/ORG_001"


@pytest.fixture
def asha() -> User:
    return User.objects.create_user("asha", "asha@example.org", PASSWORD)


def grant(user: User, **rights: bool) -> None:
    group = Group.objects.create(name="bot team")
    user.groups.add(group)
    Role.objects.create(group=group, channel=make_channel(), **rights)


def sign_in(name: str = "asha", **headers: str) -> Client:
    client = Client(headers=headers)
    answer = client.post(SIGN_IN, {"login": name, "password": PASSWORD})
    assert answer.status_code == 302
    return client


def compute_code(secret: str, steps: int = 0) -> str:
    """The code that an app shows, as RFC 6238 has it."""
    counter = struct.pack(">Q", int(time()) // 30 + steps)
    digest = hmac.digest(b32decode(secret), counter, "sha1")
    (number,) = struct.unpack_from(">I", digest, digest[-1] & 15)
    return f"{(number & 0x7FFFFFFF) % 1_000_000:06}"


def add_app(client: Client) -> str:
    """Adds an app as the user does; its secret."""
    page = client.get(reverse("mfa_activate_totp")).content.decode()
    secret = re.search(r'value="([A-Z2-7]{32})"', page)
    assert secret
    answer = client.post(reverse("mfa_activate_totp"), {"code": compute_code(secret[1])})
    assert answer["Location"] == reverse("mfa_view_recovery_codes")
    return secret[1]


def list_actions() -> list[str]:
    return list(AuditEvent.objects.order_by("id").values_list("action", flat=True))


# Second factors -----------------------------------------------------------------------------------


def test_app_is_asked_for_at_sign_in(asha: User):
    secret = add_app(sign_in())
    client = sign_in()
    assert client.get("/console/").status_code == 302  # not signed in yet

    wrong = client.post(reverse("mfa_authenticate"), {"code": "000000"})
    right = client.post(reverse("mfa_authenticate"), {"code": compute_code(secret, 1)})

    assert "Incorrect code" in wrong.content.decode()
    assert right["Location"] == "/console/"
    assert client.get("/console/").status_code == 200
    assert list_actions()[-1] == "login.succeeded"
    failures.flush_counts()
    assert AuthFailureCount.objects.filter(action="second_factor.failed").get().count == 1


def test_old_code_is_refused(asha: User):
    secret = add_app(sign_in())

    answer = sign_in().post(reverse("mfa_authenticate"), {"code": compute_code(secret, -2)})

    assert "Incorrect code" in answer.content.decode()


def test_code_works_once(asha: User):
    secret = add_app(sign_in())
    code = {"code": compute_code(secret, 1)}

    answers = [sign_in().post(reverse("mfa_authenticate"), code) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [302, 200]


def test_recovery_code_works_once(asha: User):
    first = sign_in()
    add_app(first)
    page = first.get(reverse("mfa_view_recovery_codes")).content.decode()
    codes = re.findall(r"\b\d{8}\b", page)
    assert len(codes) == 10

    answers = [sign_in().post(reverse("mfa_authenticate"), {"code": codes[0]}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [302, 200]


def test_codes_are_not_guessed(asha: User):
    secret = add_app(sign_in())
    client = sign_in()
    for _ in range(10):
        client.post(reverse("mfa_authenticate"), {"code": "000000"})

    answer = sign_in().post(reverse("mfa_authenticate"), {"code": compute_code(secret, 1)})

    assert "Too many failed" in answer.content.decode()


def test_database_keeps_no_secret(asha: User):
    client = sign_in()
    secret = add_app(client)
    kept = repr(list(Authenticator.objects.values_list("type", "data")))

    assert "totp" in kept
    assert "recovery_codes" in kept
    assert secret not in kept


def test_new_factor_ends_other_sessions(asha: User):
    other, own = sign_in(), sign_in()

    add_app(own)

    assert own.get("/console/").status_code == 200
    assert other.get("/console/").status_code == 302
    assert list_actions()[2:] == ["second_factor.added"] * 2


@pytest.mark.parametrize("page", ["/admin/", "/admin/auth/user/", "/console/", CHANNEL + "/keys"])
def test_superuser_needs_second_factor(settings: Any, page: str):
    make_channel()
    User.objects.create_superuser("asha", password=PASSWORD)
    client = sign_in()
    assert client.get(page).status_code in {200, 302}
    settings.EXHAUST_SECOND_FACTOR_REQUIRED = True

    assert client.get(page)["Location"] == reverse("mfa_index")
    assert client.post(page)["Location"] == reverse("mfa_index")
    assert client.get(reverse("account")).status_code == 200
    add_app(client)
    assert client.get(page).get("Location") != reverse("mfa_index")


def test_channel_asks_for_second_factor(asha: User):
    grant(asha, administer=True)
    asha.is_staff = True
    asha.save()
    client = sign_in()
    assert client.get(f"{CHANNEL}/keys").status_code == 200
    channel = make_channel()
    channel.requires_second_factor = True
    channel.save()

    assert client.get(f"{CHANNEL}/keys")["Location"] == reverse("mfa_index")
    assert "once you have a second factor: ORG_001" in client.get("/console/").content.decode()
    assert client.get("/admin/ingest/apikey/").status_code == 403
    assert roles.permitted_channels(asha) == {}
    assert client.get("/console/ORG_002/keys").status_code == 404  # where asha has no role
    Authenticator.objects.create(user=asha, type="recovery_codes", data={})
    assert roles.permitted_channels(asha) == {}  # these alone are none
    Authenticator.objects.all().delete()
    client = sign_in()

    add_app(client)

    assert client.get(f"{CHANNEL}/keys").status_code == 200
    assert client.get("/admin/ingest/apikey/").status_code == 200
    assert roles.permitted_channels(asha) == {"ORG_001": channel.pk}


def test_one_channel_asks_superusers_too(settings: Any):
    User.objects.create_superuser("asha", password=PASSWORD)
    client = sign_in()
    assert client.get("/admin/").status_code == 200
    channel = make_channel()
    channel.requires_second_factor = True
    channel.save()

    assert client.get("/admin/")["Location"] == reverse("mfa_index")


# Sessions -----------------------------------------------------------------------------------------


def test_user_ends_own_sessions(asha: User):
    User.objects.create_user("bela", password=PASSWORD)
    own, phone, tablet = (sign_in(User_Agent=name) for name in ("Firefox", "Phone", "Tablet"))
    stranger = sign_in("bela")
    page = own.get(reverse("account")).content.decode()
    assert all(name in page for name in ("Firefox", "Phone", "Tablet"))
    rows = {row.device: row.session_key for row in BrowserSession.objects.filter(user=asha)}

    for which in (rows["Phone"], rows["Firefox"], "\0"):  # its own stays
        own.post(reverse("end-sessions"), {"which": which})
    assert phone.get("/console/").status_code == 302
    assert tablet.get("/console/").status_code == 200
    others = BrowserSession.objects.get(user__username="bela").session_key
    own.post(reverse("end-sessions"), {"which": others})
    own.post(reverse("end-sessions"), {"which": "others"})

    assert tablet.get("/console/").status_code == 302
    assert own.get("/console/").status_code == 200
    assert stranger.get("/console/").status_code == 200
    assert list_actions()[4:] == ["session.ended"] * 2


def test_new_password_ends_other_sessions(asha: User):
    own, other = sign_in(), sign_in()
    form = {"oldpassword": PASSWORD, "password1": "one that is new", "password2": "one that is new"}

    unknown = own.post(reverse("account_change_password"), {**form, "oldpassword": "a guess"})
    assert unknown.status_code == 200
    assert other.get("/console/").status_code == 200
    weak = {**form, "password1": "password1234", "password2": "password1234"}
    assert "too common" in own.post(reverse("account_change_password"), weak).content.decode()
    assert own.post(reverse("account_change_password"), form)["Location"] == reverse("account")

    assert own.get("/console/").status_code == 200
    assert other.get("/console/").status_code == 302
    assert BrowserSession.objects.filter(user=asha).count() == 1
    assert list_actions()[-1] == "password.changed"


# Confirmations ------------------------------------------------------------------------------------


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Moves the clock on by minutes."""
    ahead = {"minutes": 0.0}

    def read_clock(**_: Any) -> Any:
        return clock.read_clock() + timedelta(minutes=ahead["minutes"])

    monkeypatch.setattr(accounts, "read_clock", read_clock)
    return lambda minutes: ahead.update(minutes=minutes)


def make_key(client: Client) -> Any:
    form = {"name": "a bot", "scope": "ingest", "days": "30"}
    return client.post(f"{CHANNEL}/keys", form)


def make_destination(client: Client) -> Any:
    form = {"name": "lake", "url": "https://lake.example/in", "kind": "webhook",
            "resource": "sessions", "user": "us", "password": "hush hush"}  # fmt: skip
    return client.post(f"{CHANNEL}/destinations/new", form)


def make_role(client: Client) -> Any:
    form = {"group": Group.objects.get().pk, "channel": make_channel().pk, "audit": "on"}
    Role.objects.all().delete()
    return client.post("/admin/ingest/role/add/", form)


@pytest.mark.parametrize(
    ("change", "model"), [(make_key, ApiKey), (make_destination, Destination), (make_role, Role)]
)
def test_change_needs_confirmation(asha: User, later: Any, change: Any, model: Any):
    grant(asha, administer=True, submit_private=True)
    asha.is_staff = asha.is_superuser = True
    asha.save()
    client = sign_in()
    later(11)

    answer = change(client)

    assert answer["Location"].startswith(reverse("account_reauthenticate"))
    assert not model.objects.exists()
    assert "hush" not in repr(list(BrowserSession.objects.values()))
    wrong = client.post(answer["Location"], {"password": "wrong"})
    assert "Incorrect password" in wrong.content.decode()
    assert not model.objects.exists()
    done = client.post(answer["Location"], {"password": PASSWORD})
    assert done.status_code in {200, 302}
    assert model.objects.count() == 1
    model.objects.all().delete()
    assert change(client).status_code in {200, 302}  # the next one without a question
    assert model.objects.count() == 1


@pytest.mark.parametrize(
    "path",
    [
        "keys",
        "keys/12345678/revoke",
        "keys/12345678/rotate",
        "team",
        "team/1",
        "team/chat",
        "destinations/new",
        "destinations/one/lake/pause",
        "destinations/one/lake/delete",
    ],
)
def test_each_change_is_confirmed(asha: User, later: Any, path: str):
    grant(asha, administer=True, submit_private=True)
    client = sign_in()
    later(11)

    answer = client.post(f"{CHANNEL}/{path}")

    assert answer["Location"].startswith(reverse("account_reauthenticate"))


def test_new_factor_is_confirmed(asha: User, later: Any):
    client = sign_in()
    later(11)

    for name in ("mfa_activate_totp", "mfa_add_webauthn"):
        answer = client.get(reverse(name))
        assert answer["Location"].startswith(reverse("account_reauthenticate"))


def test_confirmation_renews_the_cookie(asha: User, later: Any):
    grant(asha, administer=True)
    client = sign_in()
    former = client.cookies["sessionid"].value
    later(11)
    client.post(make_key(client)["Location"], {"password": PASSWORD})

    assert ApiKey.objects.count() == 1
    assert client.cookies["sessionid"].value != former
    assert client.get(f"{CHANNEL}/keys").status_code == 200
    client.cookies["sessionid"] = former
    assert client.get(f"{CHANNEL}/keys").status_code == 302


def test_recent_sign_in_confirms(asha: User, later: Any):
    grant(asha, administer=True)
    client = sign_in()
    later(9)

    assert make_key(client).status_code == 200
    assert ApiKey.objects.count() == 1


def test_page_asks_no_confirmation(asha: User, later: Any):
    grant(asha, administer=True)
    client = sign_in()
    later(11)

    assert client.get(f"{CHANNEL}/keys").status_code == 200
    assert client.post("/console/sign-out").status_code == 302


def test_second_factor_confirms(asha: User, later: Any):
    grant(asha, administer=True)
    client = sign_in()
    secret = add_app(client)
    later(11)
    make_key(client)

    client.post(
        f"{reverse('mfa_reauthenticate')}?next={CHANNEL}/keys", {"code": compute_code(secret, 1)}
    )

    assert ApiKey.objects.count() == 1


def test_user_without_password_signs_in_again(asha: User, later: Any):
    grant(asha, administer=True)
    asha.set_unusable_password()
    asha.save()
    client = Client()
    client.force_login(asha)
    later(11)

    answer = make_key(client)

    assert answer["Location"].startswith(reverse("account_confirm"))
    assert "Sign out, and in again" in client.get(answer["Location"]).content.decode()
    assert not ApiKey.objects.exists()


# Invitations --------------------------------------------------------------------------------------


def choose_password(link: str, password: str) -> Any:
    client = Client()
    answer = client.get(link.removeprefix("http://127.0.0.1:8000"))
    assert answer.status_code == 302, answer.content
    return client.post(answer["Location"], {"password1": password, "password2": password})


def test_invitation_makes_a_user(mailoutbox: list[Any], capsys: pytest.CaptureFixture[str]):
    Group.objects.create(name="bot team")
    call_command("invite", "asha", "--email", "asha@example.org", "--group", "bot team")
    link = capsys.readouterr().out.strip()
    user = User.objects.get()
    assert not user.has_usable_password()
    assert list(user.groups.values_list("name", flat=True)) == ["bot team"]

    assert choose_password(link, "too short").status_code == 200
    assert choose_password(link, PASSWORD).status_code == 302

    assert sign_in().get("/console/").status_code == 200
    assert Client().get(link.removeprefix("http://127.0.0.1:8000")).status_code == 200  # used up
    assert not any("invited" in message.subject for message in mailoutbox)  # without EMAIL_URL
    assert list_actions() == ["user.invited", "password.changed", "login.succeeded"]


def test_invitation_ends_after_three_days(asha: User, settings: Any):
    link = accounts.invite(asha).removeprefix("http://127.0.0.1:8000")
    assert settings.PASSWORD_RESET_TIMEOUT == 3 * 86_400
    assert Client().get(link).status_code == 302
    settings.PASSWORD_RESET_TIMEOUT = -1  # as if it were past

    assert Client().get(link).status_code == 200


def test_no_user_is_there_at_first():
    assert not User.objects.exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["asha", "--group", "nowhere"], "no group nowhere"),
        (["a b\n"], "valid username"),
        (["asha", "--email", "a@b.example\nBcc: c@d.example"], "valid email"),
        (["bela", "--superuser"], "bela exists"),
    ],
)
def test_invite_names_the_error(arguments: list[str], error: str):
    User.objects.create_user("bela")
    with pytest.raises(CommandError, match=error):
        call_command("invite", *arguments)


def test_lost_password_goes_by_mail(asha: User, settings: Any, mailoutbox: list[Any]):
    reset = reverse("account_reset_password")
    assert "Ask your administrator" in Client().get(reset).content.decode()
    settings.EXHAUST_SENDS_MAIL = True

    answers = [Client().post(reset, {"email": f"{name}@example.org"}) for name in ("asha", "bela")]

    assert len({(answer.status_code, answer["Location"]) for answer in answers}) == 1
    assert [message.to for message in mailoutbox] == [["asha@example.org"]]
    link = re.search(r"http://127\.0\.0\.1:8000\S+", mailoutbox[0].body)
    assert link
    assert choose_password(link[0], "one that is new").status_code == 302
    asha.refresh_from_db()
    assert asha.check_password("one that is new")


def test_new_password_keeps_the_second_factor(asha: User, settings: Any, mailoutbox: list[Any]):
    settings.EXHAUST_SENDS_MAIL = True
    add_app(sign_in())
    Client().post(reverse("account_reset_password"), {"email": "asha@example.org"})
    link = re.search(r"http://127\.0\.0\.1:8000\S+", mailoutbox[0].body)
    assert link
    assert choose_password(link[0], "one that is new").status_code == 302

    client = Client()
    answer = client.post(SIGN_IN, {"login": "asha", "password": "one that is new"})

    assert answer["Location"].startswith(reverse("mfa_authenticate"))
    assert client.get("/console/").status_code == 302


def test_old_address_resets_nothing(asha: User, settings: Any, mailoutbox: list[Any]):
    settings.EXHAUST_SENDS_MAIL = True
    form = {"email": "asha@example.org"}
    Client().post(reverse("account_reset_password"), form)
    asha.email = "asha@example.com"
    asha.save()

    Client().post(reverse("account_reset_password"), form)

    assert len(mailoutbox) == 1


def test_mail_server_stops_nothing(asha: User, settings: Any, monkeypatch: pytest.MonkeyPatch):
    settings.EXHAUST_SENDS_MAIL = True

    def refuse(*_: Any) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr("django.core.mail.message.EmailMessage.send", refuse)

    answer = Client().post(reverse("account_reset_password"), {"email": "asha@example.org"})

    assert answer.status_code == 302


def test_superuser_helps_a_user(asha: User):
    client = sign_in()
    add_app(client)
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    form = {"_selected_action": asha.pk}

    links = root.post("/admin/auth/user/", {**form, "action": "make_links"})
    root.post("/admin/auth/user/", {**form, "action": "remove_second_factors"})

    assert "no-store" in links["Cache-Control"]
    link = links.content.decode().removeprefix("asha: ").strip()
    assert choose_password(link, "one that is new").status_code == 302
    assert not Authenticator.objects.exists()
    assert client.get("/console/").status_code == 302


# Addresses ----------------------------------------------------------------------------------------

OPEN = {"logout", "inactive", "password/reset", "password/sent", "password/done", "password/1-1",
        "2fa/authenticate/", "2fa/webauthn/login/", "cancelled", "oidc/1/login/",
        "oidc/1/login/callback/"}  # fmt: skip


def list_addresses(found: Any, before: str = "") -> Iterator[str]:
    for each in found:
        route = before + str(each.pattern).removeprefix("^")
        if isinstance(each, URLResolver):
            yield from list_addresses(each.url_patterns, route)
        elif isinstance(each, URLPattern):
            yield re.sub(r"<\w+:\w+>|\(\?P<\w+>[^)]*\)", "1", route).removesuffix("$")


def test_every_address_needs_sign_in():
    (account,) = (each for each in get_resolver().url_patterns if str(each.pattern) == "account/")
    addresses = set(list_addresses(account.url_patterns))
    assert len(addresses) > 20
    assert addresses >= OPEN
    for address in sorted(addresses - OPEN):
        for method in ("GET", "POST"):
            answer = Client().generic(method, f"/account/{address}")
            is_sent_away = answer.status_code == 302 and answer["Location"].startswith(SIGN_IN)
            assert is_sent_away or answer.status_code in {403, 405}, (method, address)


def test_admin_has_no_sign_in_of_its_own(asha: User):
    assert Client().get("/admin/login/?next=/admin/")["Location"] == f"{SIGN_IN}?next=/admin/"
    assert sign_in().get("/admin/login/")["Location"] == "/console/"  # not staff, and no loop


def test_there_is_no_sign_up():
    assert Client().get("/account/signup/").status_code == 404
