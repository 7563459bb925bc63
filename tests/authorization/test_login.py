"""Sign-in against guessed passwords."""

import re
from contextlib import nullcontext
from datetime import timedelta
from hashlib import sha256
from random import randrange
from typing import Any

import pytest
from axes.models import AccessAttempt, AccessLog
from cryptography.fernet import Fernet
from django.conf import global_settings
from django.contrib.auth import get_user_model
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.test import Client

from config import settings as config_settings
from ingest.models import AuditEvent, BrowserSession

pytestmark = pytest.mark.django_db
LOGIN = "/console/sign-in?next=/admin/"
WRONG = "wrong"


@pytest.fixture
def asha(db: None) -> Any:
    return get_user_model().objects.create_superuser(
        "asha", "asha.rao@example.org", "a long enough one"
    )


def sign_in(password: str = WRONG, name: str = "asha", **headers: str) -> int:
    client = Client(REMOTE_ADDR=headers.pop("address", "203.0.113.1"), headers=headers)
    return client.post(LOGIN, {"login": name, "password": password}).status_code


def audited() -> list[tuple[str, str]]:
    return list(AuditEvent.objects.order_by("id").values_list("action", "subject"))


def test_right_password_signs_in(asha: Any):
    assert sign_in("a long enough one") == 302
    assert audited() == [("login.succeeded", "")]
    assert AccessLog.objects.count() == 0


@pytest.mark.parametrize(
    ("guesser", "same_network", "colleague"),
    [
        ("203.0.113.1", "203.0.113.1", "203.0.113.2"),
        ("2001:db8::{:x}", "2001:db8::ffff", "2001:db8:0:1::1"),
    ],
)
def test_lock_is_of_name_and_network(asha: Any, guesser: str, same_network: str, colleague: str):
    get_user_model().objects.create_superuser("bela", password="a long enough one")

    statuses = [sign_in(address=guesser.format(number)) for number in range(1, 11)]

    assert statuses == [200] * 9 + [429]
    assert sign_in("a long enough one", address=same_network) == 429
    assert audited() == [("login.locked", "asha")]
    # neither asha elsewhere nor a colleague here
    assert sign_in("a long enough one", address=colleague) == 302
    assert sign_in("a long enough one", "bela", address=same_network) == 302


def test_forged_header_changes_no_network(asha: Any, settings: Any):
    settings.EXHAUST_BEHIND_PROXY = True
    for number in range(30):
        forwarded = f"198.51.100.{number}, 203.0.113.9"
        sign_in(address="10.0.0.1", **{"X-Forwarded-For": forwarded})

    assert AccessAttempt.objects.get().failures_since_start == 10
    assert {entry.address for entry in AuditEvent.objects.all()} == {"203.0.113.0/24"}
    elsewhere = {"X-Forwarded-For": "192.0.2.1"}
    assert sign_in("a long enough one", address="10.0.0.1", **elsewhere) == 302


def test_network_that_guesses_names_waits(asha: Any, settings: Any):
    settings.EXHAUST_RATE_LIMIT_MULTIPLIER = 0.05  # three at once, then one in 20 s
    get_user_model().objects.create_superuser("bela", password="a long enough one")
    address, elsewhere = (f"2001:db8:{randrange(1, 65536):x}:{n}::1" for n in (1, 2))
    assert sign_in("a long enough one", address=address) == 302
    for number in range(6):
        sign_in(name=f"name-{number}", address=address)

    assert sign_in("a long enough one", "bela", address=address) == 200
    assert sign_in("a long enough one", "bela", address=elsewhere) == 302
    assert sign_in("a long enough one", address=address) == 302  # asha did before


@pytest.mark.parametrize(
    ("forwarded", "peer"), [("203.0.113.7:51234", "10.0.0.1"), ("unknown", "203.0.113.7")]
)
def test_proxy_may_write_port_or_unknown(asha: Any, settings: Any, forwarded: str, peer: str):
    settings.EXHAUST_BEHIND_PROXY = 1
    headers = {"X-Forwarded-For": forwarded}

    assert sign_in("a long enough one", address=peer, **headers) == 302
    assert sign_in(address=peer, **headers) == 200
    assert AccessAttempt.objects.get().ip_address == "203.0.113.7"


def test_server_without_addresses_signs_in(asha: Any):
    assert sign_in(address="") == 200  # at a socket of Unix
    assert sign_in("a long enough one", address="") == 302


def test_lock_ends_after_15_minutes(asha: Any):
    for _ in range(12):
        sign_in()
    for attempt in AccessAttempt.objects.all():
        attempt.attempt_time -= timedelta(minutes=16)
        attempt.save()

    assert sign_in("a long enough one") == 302
    assert AccessAttempt.objects.count() == 0


def test_database_keeps_no_cookie(asha: Any):
    client = Client(headers={"User-Agent": "Firefox"}, REMOTE_ADDR="203.0.113.7")
    client.post(LOGIN, {"login": "asha", "password": "a long enough one"})
    cookie = client.cookies["sessionid"].value

    row = BrowserSession.objects.get()

    assert re.fullmatch("[a-z0-9]{32}", cookie)  # 165 random bits
    assert (row.session_key, row.user) == (sha256(cookie.encode()).hexdigest(), asha)
    assert (row.device, row.address) == ("Firefox", "203.0.113.0/24")
    assert client.get("/admin/").status_code == 200
    client.cookies["sessionid"] = row.session_key  # a reader of the database has only this
    assert client.get("/admin/").status_code == 302


def test_sign_in_makes_a_new_cookie_and_sign_out_ends_it(asha: Any):
    client = Client()
    client.session.save()  # as of a visit before
    before = client.cookies["sessionid"].value
    client.post(LOGIN, {"login": "asha", "password": "a long enough one"})
    cookie = client.cookies["sessionid"].value
    assert cookie != before
    assert BrowserSession.objects.count() == 1
    assert client.get("/admin/").status_code == 200

    client.post("/console/sign-out")

    client.cookies["sessionid"] = cookie
    assert client.get("/admin/").status_code == 302
    assert not BrowserSession.objects.exists()


def test_sign_in_goes_to_no_other_host(asha: Any):
    values = {"login": "asha", "password": "a long enough one"}
    for target in ("https://evil.example/", "//evil.example/", "javascript:alert(1)"):
        answer = Client().post("/console/sign-in", {**values, "next": target})
        assert answer["Location"] == "/console/"


def test_form_works_with_password_managers():
    page = Client().get(LOGIN).content.decode()
    (field,) = re.findall(r'<input[^>]* name="password"[^>]*>', page)
    assert 'type="password"' in field
    assert 'autocomplete="current-password"' in field
    assert "maxlength" not in field
    assert "onpaste" not in page


def test_data_of_a_session_is_encrypted(asha: Any, settings: Any):
    client = Client()
    client.force_login(asha)
    assert "asha" not in BrowserSession.objects.get().session_data
    assert client.get("/admin/").status_code == 200

    settings.EXHAUST_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]

    assert client.get("/admin/").status_code == 302


@pytest.mark.parametrize(
    ("password", "refused"),
    [
        ("eleven char", True),
        ("1q2w3e4r5t6y", True),
        ("asha.rao@example", True),
        ("a long enough one", False),
    ],
)
def test_weak_password_is_refused(asha: Any, password: str, refused: bool):
    with pytest.raises(ValidationError) if refused else nullcontext():
        validate_password(password, asha)


def test_long_password_is_taken_as_typed(asha: Any):
    password = "Ein langes, wahres पासवर्ड 🔑 " * 4
    validate_password(password, asha)
    asha.set_password(password)
    asha.save()

    assert sign_in(password) == 302
    for other in (password[:-1], password.swapcase(), password[:72]):
        assert sign_in(other) == 200


def test_password_is_hashed_slowly(settings: Any):
    settings.PASSWORD_HASHERS = global_settings.PASSWORD_HASHERS  # tests have a fast one
    user = get_user_model().objects.create_user("bela", password="a long enough one")

    algorithm, rounds, *_ = user.password.split("$")
    assert algorithm == "pbkdf2_sha256"
    assert int(rounds) >= 600_000
    assert not hasattr(config_settings, "PASSWORD_HASHERS")


def test_no_password_is_stored(asha: Any):
    sign_in("hunter2hunter2")

    assert "hunter2hunter2" not in repr(list(AccessAttempt.objects.values()))
