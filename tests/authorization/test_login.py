"""Sign-in against guessed passwords."""

from datetime import timedelta
from typing import Any

import pytest
from axes.models import AccessAttempt, AccessLog
from django.contrib.auth import get_user_model
from django.test import Client

from ingest.models import AuditEvent

pytestmark = pytest.mark.django_db
LOGIN = "/admin/login/?next=/admin/"
WRONG = "wrong"


@pytest.fixture
def asha(db: None) -> Any:
    return get_user_model().objects.create_superuser("asha", password="a long enough one")


def sign_in(password: str = WRONG, name: str = "asha", **headers: str) -> int:
    client = Client(REMOTE_ADDR=headers.pop("address", "203.0.113.1"), headers=headers)
    return client.post(LOGIN, {"username": name, "password": password}).status_code


def audited() -> list[tuple[str, str]]:
    return list(AuditEvent.objects.order_by("id").values_list("action", "subject"))


def test_right_password_signs_in(asha: Any):
    assert sign_in("a long enough one") == 302
    assert audited() == [("login.succeeded", "")]
    assert AccessLog.objects.count() == 0


def test_ten_failures_lock_a_name(asha: Any):
    statuses = [sign_in(address=f"203.0.113.{number}") for number in range(10)]

    assert statuses == [200] * 9 + [429]
    assert sign_in("a long enough one", address="198.51.100.1") == 429
    assert audited() == [("login.locked", "asha")]


def test_ten_failures_lock_an_address(asha: Any, settings: Any):
    settings.EXHAUST_BEHIND_PROXY = True
    forged = {"X-Forwarded-For": "198.51.100.{}, 203.0.113.9"}
    for number in range(30):
        spoofed = {"X-Forwarded-For": forged["X-Forwarded-For"].format(number)}
        sign_in(name=f"nobody-{number}", address="10.0.0.1", **spoofed)

    assert AccessAttempt.objects.count() == 10
    assert audited() == [("login.locked", "")]
    assert {entry.address for entry in AuditEvent.objects.all()} == {"203.0.113.0/24"}
    assert (
        sign_in("a long enough one", address="10.0.0.1", **{"X-Forwarded-For": "192.0.2.1"}) == 302
    )


def test_ipv6_network_is_locked_whole(asha: Any):
    for number in range(10):
        sign_in(name=f"nobody-{number}", address=f"2001:db8::{number + 1}")

    assert sign_in("a long enough one", address="2001:db8::ffff:1") == 429
    assert sign_in("a long enough one", address="2001:db8:0:1::1") == 302


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


def test_no_password_is_stored(asha: Any):
    sign_in("hunter2hunter2")

    assert "hunter2hunter2" not in repr(list(AccessAttempt.objects.values()))
