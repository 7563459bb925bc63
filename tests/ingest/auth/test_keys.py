"""A key's life: where it may be used from, its successor, its end, and the pepper's."""

import io
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from ingest.auth import keys, sessions
from ingest.auth.keys import AccessDenied, KeyCheck, VerifiedKey
from ingest.models import ApiKey, AuditEvent, BrowserSession
from tests.conftest import bearer, make_channel, make_key

pytestmark = pytest.mark.django_db


def status(key: str, address: str = "127.0.0.1", **headers: str) -> int:
    """What the API answers to the key."""
    client = Client(headers=bearer(key, **headers), REMOTE_ADDR=address)
    return client.get("/dataset/v1/request/list/t").status_code


def command(name: str, *args: str) -> str:
    out = io.StringIO()
    call_command(name, *args, stdout=out, stderr=io.StringIO())
    return out.getvalue().strip()


def audited(action: str) -> list[tuple[str, str]]:
    entries = AuditEvent.objects.filter(action=action).order_by("id")
    return list(entries.values_list("channel", "subject"))


def test_key_audited_in_each_channel():
    row, _ = keys.create_key("k", ["pull"], [make_channel("A"), make_channel("B")])

    assert audited("key.created") == [("A", row.public_id), ("B", row.public_id)]


def test_channel_has_a_number_of_keys(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keys, "MAX_KEYS", 1)
    both = [make_channel("A"), make_channel("B")]
    row, _ = keys.create_key("k", ["pull"], both[:1])
    with pytest.raises(ValueError, match="A has 1 keys; revoke one"):
        keys.create_key("k", ["pull"], both)
    assert not both[1].keys.exists()
    keys.revoke_key(row)
    keys.create_key("k", ["pull"], both)


@pytest.mark.parametrize(
    "scopes", ["ingest export:private", "pull ingest", "export:private ingest"]
)
def test_no_key_both_writes_and_reads(scopes: str):
    with pytest.raises(IntegrityError), transaction.atomic():
        ApiKey.objects.create(name="k", public_id="x", digest="x", scopes=scopes)


# networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("203.0.113.7", 200),
        ("203.0.114.7", 403),
        ("::ffff:203.0.113.7", 200),
        ("2001:db8::1", 200),
        ("2001:db9::1", 403),
        ("", 403),
        ("unix:", 403),
    ],
)
def test_key_works_only_from_its_networks(address: str, answer: int):
    key = make_key("pull", "export:response", networks="203.0.113.0/24,2001:db8::/32")

    assert status(key, address) == answer


def test_denied_address_records_no_use():
    key = make_key("export:response", networks="203.0.113.0/24")

    status(key, "198.51.100.1")

    assert ApiKey.objects.get().last_used_at is None


@pytest.mark.parametrize(
    ("behind_proxy", "forwarded", "answer"),
    [
        (False, "203.0.113.7", 403),  # anybody can write it
        (True, "203.0.113.7", 200),
        (True, "203.0.113.7, 198.51.100.1", 403),  # our proxy wrote the last one
        (True, "198.51.100.1, 203.0.113.7", 200),
        (True, "203.0.113.7,", 403),
        (True, "203.0.113.7:4711", 200),
        (True, "unknown", 403),
    ],
)
def test_only_proxy_forwarded_address_counts(
    settings: Any, behind_proxy: bool, forwarded: str, answer: int
):
    settings.EXHAUST_BEHIND_PROXY = behind_proxy
    key = make_key("export:response", networks="203.0.113.0/24")

    assert status(key, "10.0.0.1", **{"X-Forwarded-For": forwarded}) == answer


@pytest.mark.parametrize("network", ["203.0.113.7/24", "anywhere", "1.2.3.4/33", "::/129"])
def test_bad_network_makes_no_key(network: str):
    with pytest.raises(CommandError, match=r"write 203\.0\.113\.0/24 or 2001:db8::/32"):
        command("create_key", "k", "--channel", "A", "--scope", "pull", "--network", network)

    assert ApiKey.objects.count() == 0


def test_create_key_command_sets_networks():
    key = command(
        "create_key", "k", "--channel", "A", "--scope", "export:response",
        "--network", "10.0.0.0/8", "--network", "192.0.2.1",
    )  # fmt: skip

    assert (status(key, "10.1.1.1"), status(key, "192.0.2.1"), status(key)) == (200, 200, 403)


# rotation and end -------------------------------------------------------------------------------


def test_rotated_key_overlaps_successor():
    old, text = keys.create_key(
        "k", ["pull", "export:response"], [make_channel("A"), make_channel("B")],
        networks="127.0.0.0/8",
    )  # fmt: skip

    new = command("rotate_key", old.public_id, "--hours", "2")

    assert status(text, **{"X-Channel-ID": "A"}) == status(new, **{"X-Channel-ID": "A"}) == 200
    row = ApiKey.objects.get(public_id=new[4:12])
    assert (row.name, row.scopes, row.networks) == (old.name, old.scopes, old.networks)
    assert set(row.channels.all()) == set(old.channels.all())
    assert row.expires_at is None
    old.refresh_from_db()
    left = old.expires_at - timezone.now()
    assert timedelta(minutes=119) < left <= timedelta(hours=2)
    assert audited("key.rotated") == [("A", old.public_id), ("B", old.public_id)]
    ApiKey.objects.filter(pk=old.pk).update(expires_at=timezone.now())
    assert (status(text, **{"X-Channel-ID": "A"}), status(new, **{"X-Channel-ID": "A"})) == (
        401,
        200,
    )


def test_rotation_never_extends_old_key():
    row, _ = keys.create_key(
        "k", ["pull"], [make_channel()], expires_at=timezone.now() + timedelta(hours=1)
    )

    new, _ = keys.rotate_key(row, timedelta(hours=24))

    end = row.expires_at
    row.refresh_from_db()
    assert row.expires_at == end
    assert abs(new.expires_at - end) < timedelta(minutes=1)


def test_longest_life_holds_for_every_key(settings: Any):
    endless = keys.create_key("before", ["pull"], [make_channel()])[0]
    settings.EXHAUST_KEY_MAX_DAYS = 30
    longest = timezone.now() + timedelta(days=30)
    minute = timedelta(minutes=1)

    without_end = keys.create_key("k", ["pull"], [make_channel()])[0]
    short = keys.create_key("k", ["pull"], [make_channel()], timezone.now() + minute)[0]
    successor, _ = keys.rotate_key(endless)
    with pytest.raises(ValueError, match="30 days at most here"):
        keys.create_key("k", ["pull"], [make_channel()], longest + minute)
    with pytest.raises(CommandError, match="EXHAUST_KEY_MAX_DAYS"):
        command("create_key", "k", "--channel", "A", "--scope", "pull", "--days", "31")

    assert all(abs(key.expires_at - longest) < minute for key in (without_end, successor))
    assert short.expires_at < timezone.now() + 2 * minute


def test_used_key_that_ends_is_found():
    now = timezone.now()
    for name, days_left, used_days_ago in (
        ("ending", 13, 1), ("later", 15, 1), ("ended", -1, 1), ("unused", 13, 8),
        ("never used", 13, None),
    ):  # fmt: skip
        row, _ = keys.create_key(name, ["pull"], [make_channel()])
        row.expires_at = now + timedelta(days=days_left)
        row.last_used_at = used_days_ago and now - timedelta(days=used_days_ago)
        row.save()
    keys.create_key("endless", ["pull"], [make_channel()])

    assert [row.name for row in keys.filter_ending_keys(ApiKey.objects.all())] == ["ending"]


def test_rotate_rejects_ended_key():
    ended = keys.create_key("k", ["pull"], [make_channel()], expires_at=timezone.now())[0]
    revoked = keys.create_key("k", ["pull"], [make_channel()])[0]
    keys.revoke_key(revoked)

    for key in (ended, revoked):
        with pytest.raises(CommandError, match="revoked or expired; make a new key"):
            command("rotate_key", key.public_id)
    with pytest.raises(CommandError, match="There is no such key"):
        command("rotate_key", "nokey")
    with pytest.raises(CommandError, match="--hours must be from 0 to 8760"):
        command("rotate_key", ended.public_id, "--hours", "-1")


def test_revoked_key_denied_and_audited_once():
    key = make_key("export:response")
    assert status(key) == 200

    assert command("revoke_key", key[4:12]) == "Revoked."

    assert status(key) == 401
    assert command("revoke_key", key[4:12]) == "The key was revoked already."
    assert audited("key.revoked") == [("ORG_001", key[4:12])]


# peppers ----------------------------------------------------------------------------------------


def test_pepper_rotation_rehashes_on_use(settings: Any):
    used, unused = make_key("export:response"), make_key("export:response")
    before = set(ApiKey.objects.values_list("id", "public_id"))

    settings.EXHAUST_KEY_PEPPER = f"new,{settings.EXHAUST_KEY_PEPPER}"
    assert status(used) == 200
    settings.EXHAUST_KEY_PEPPER = "new"

    assert (status(used), status(unused)) == (200, 401)
    assert set(ApiKey.objects.values_list("id", "public_id")) == before
    assert status(make_key("export:response")) == 200


def test_password_verified_by_each_pepper(settings: Any):
    made, secret = keys.create_application("shop", make_channel())

    settings.EXHAUST_KEY_PEPPER = f"new,{settings.EXHAUST_KEY_PEPPER}"

    assert keys.verify_secret(made.secret_digest, secret)
    assert not keys.verify_secret(made.secret_digest, secret + "x")
    assert not keys.verify_secret("", "")


# headers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer {key},Bearer {key}"},  # as two of them are joined
        {"Authorization": "Bearer {key}, Bearer {key}"},
        {"X-API-Key": "{key},{key}"},
        {"X-API-Key": "{key},"},
        {"Authorization": "Bearer {key} {key}"},
    ],
)
def test_duplicate_credential_is_rejected(headers: dict[str, str]):
    key = make_key("export:response")
    sent = {name: value.format(key=key) for name, value in headers.items()}

    with pytest.raises(AccessDenied) as caught:
        keys.authenticate(RequestFactory().get("/", headers=sent))
    assert caught.value.status == 401


def test_keys_are_verified_together(rf: RequestFactory):
    texts = [make_key("pull", channels=("ORG_001", f"ORG_{n:03}")) for n in range(2, 5)]
    bound = make_key("pull", networks="203.0.113.0/24")
    ApiKey.objects.filter(public_id=texts[1][4:12]).update(revoked_at=timezone.now())
    wrong = texts[0][:-1] + ("b" if texts[0][-1] == "a" else "a")
    checks = [KeyCheck(rf.get("/"), text) for text in (*texts, wrong, bound, "", "ключ", texts[0])]

    with CaptureQueriesContext(connection) as written:
        outcomes = keys.verify_keys(checks)

    names = [sorted(each.caller.channels) for each in outcomes if isinstance(each, VerifiedKey)]
    assert names == [["ORG_001", "ORG_002"], ["ORG_001", "ORG_004"], ["ORG_001", "ORG_002"]]
    statuses = [each.status for each in outcomes if isinstance(each, AccessDenied)]
    assert statuses == [401, 401, 403, 401, 401]
    used = ApiKey.objects.exclude(last_used_at=None).values_list("public_id", flat=True)
    assert set(used) == {texts[0][4:12], texts[2][4:12]}
    statements = [each for each in written if "ingest_apikey" in each["sql"]]
    assert len(statements) <= 2  # the lookup is counted on SQLite only
    assert [keys.is_well_formed(each) for each in (texts[0], wrong, "", "exh_", "ключ")] == [
        True, False, False, False, False,
    ]  # fmt: skip


def test_sessions_of_active_users_are_found():
    cookies = []
    for name in ("asha", "ben", "chitra"):
        browser = Client()
        browser.force_login(get_user_model().objects.create_user(name))
        cookies.append(browser.cookies[settings.SESSION_COOKIE_NAME].value)
    get_user_model().objects.filter(username="ben").update(is_active=False)
    BrowserSession.objects.filter(user__username="chitra").update(expire_date=timezone.now())

    assert sessions.find_signed_in([*cookies, "made-up", cookies[0]]) == [
        True, False, False, False, True,
    ]  # fmt: skip
