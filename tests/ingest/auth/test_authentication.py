import io
import re
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from ingest.auth import keys as access
from ingest.auth.keys import AccessDenied, Caller
from ingest.models import ApiKey, Channel
from tests.conftest import bearer, make_channel, make_key


def authenticate_with(key: str, **headers: str) -> Caller:
    return access.authenticate(RequestFactory().get("/", headers=bearer(key, **headers)))


def denial_of(key: str, **headers: str) -> tuple[int, str]:
    with pytest.raises(AccessDenied) as caught:
        authenticate_with(key, **headers)
    return caught.value.status, caught.value.reason


def two(**overrides: Any) -> Caller:
    return Caller(
        **{
            "key_id": 1,
            "name": "test",
            "scopes": frozenset({"ingest"}),
            "channels": {"ORG_001": 1, "ORG_002": 2},
            **overrides,
        }
    )


# keys -------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_key_authenticates_and_is_not_stored():
    row, text = access.create_key(
        "importer", ["ingest", "export:response", "ingest"], [make_channel()]
    )

    assert re.fullmatch(r"exh_[A-Za-z0-9]{8}_[A-Za-z0-9]{49}", text)
    row.refresh_from_db()
    assert row.public_id == text[4:12]
    assert row.scopes == "export:response ingest"
    for value in vars(row).values():
        assert text[13:] not in str(value)


@pytest.mark.django_db
def test_keys_are_unique():
    keys = {make_key() for _ in range(20)}

    assert len(keys) == ApiKey.objects.values("digest").distinct().count() == 20


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("scopes", "channels", "sentence"),
    [
        (["ingest", "everything"], 1, "Unknown scope everything: ingest, export:response, export"),
        ([], 1, "A key needs a scope and a channel."),
        (["ingest"], 0, "A key needs a scope and a channel."),
        (["export:private", "ingest"], 1, "ingest and export:private never go on one key"),
        (["pull", "ingest"], 1, "ingest and pull never go on one key"),
    ],
)
def test_create_key_rejects_bad_input(scopes: list[str], channels: int, sentence: str):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        access.create_key("k", scopes, [make_channel()][:channels])

    assert ApiKey.objects.count() == 0


@pytest.mark.django_db
def test_database_keeps_ingest_keys_apart():
    make_key("ingest")

    with pytest.raises(IntegrityError), transaction.atomic():
        ApiKey.objects.update(scopes="ingest export:private")

    assert ApiKey.objects.get().scopes == "ingest"


# callers ----------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_caller_has_scopes_and_channels():
    caller = authenticate_with(
        make_key("ingest", "export:response", channels=("ORG_001", "ORG_002"))
    )

    assert caller.name == "test"
    assert caller.key_id == ApiKey.objects.get().id
    assert caller.scopes == {"ingest", "export:response"}
    assert caller.channels == {c.identifier: c.id for c in Channel.objects.all()}
    assert len(caller.channels) == 2


@pytest.mark.django_db
def test_other_pepper_matches_no_key(settings: Any):
    key = make_key()

    settings.EXHAUST_KEY_PEPPER = "another"

    assert denial_of(key) == (401, "unauthorized")


@pytest.mark.django_db
def test_authorization_precedes_x_api_key():
    good = make_key()

    assert denial_of("exh_wrong", **{"X-API-Key": good}) == (401, "unauthorized")
    assert authenticate_with(good, **{"X-API-Key": "exh_wrong"}).name == "test"


@pytest.mark.django_db
def test_ended_key_records_no_use():
    now = timezone.now()
    lapsed = make_key(expires_at=now - timedelta(seconds=1))
    revoked = make_key()
    ApiKey.objects.filter(public_id=revoked[4:12]).update(revoked_at=now)

    assert denial_of(lapsed) == denial_of(revoked) == (401, "unauthorized")
    assert ApiKey.objects.filter(last_used_at=None).count() == 2


@pytest.mark.django_db
def test_key_use_recorded_once_a_minute():
    key = make_key()

    with CaptureQueriesContext(connection) as written:
        authenticate_with(key)
        first = ApiKey.objects.get().last_used_at
        authenticate_with(key)

    assert sum("UPDATE" in query["sql"] for query in written) == 1
    assert ApiKey.objects.get().last_used_at == first
    ApiKey.objects.update(last_used_at=first - timedelta(seconds=61))
    authenticate_with(key)
    assert ApiKey.objects.get().last_used_at >= first


def test_require_accepts_only_own_scopes():
    two().require("ingest")

    with pytest.raises(
        AccessDenied, match=r"^This key lacks the scope 'export:private'\.$"
    ) as caught:
        two().require("export:private")
    assert caught.value.status == 403


def test_only_channel_is_the_default():
    assert two(channels={"ORG_001": 1}).resolve_channel(None) == (1, "ORG_001")
    assert two(channels={"ORG_001": 1}).resolve_channel("ORG_001") == (1, "ORG_001")
    assert two().resolve_channel("ORG_002") == (2, "ORG_002")


@pytest.mark.parametrize(
    ("channels", "asked"),
    [
        ({"ORG_001": 1, "ORG_002": 2}, None),
        ({}, None),
        ({}, "ORG_001"),
        ({"ORG_001": 1}, "ORG_002"),
        ({"ORG_001": 1}, ""),
        ({"ORG_001": 1}, "org_001"),
        ({"ORG_001": 1, "ORG_002": 2}, "ORG_001,ORG_002"),
    ],
)
def test_unknown_channel_is_denied(channels: dict[str, int], asked: str | None):
    with pytest.raises(AccessDenied) as caught:
        two(channels=channels).resolve_channel(asked)

    assert (caught.value.status, caught.value.reason) == (403, "forbidden")


# create_key -------------------------------------------------------------------------------------


def create_key(*args: str) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    call_command("create_key", *args, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


@pytest.mark.django_db
def test_create_key_command_prints_key():
    out, err = create_key(
        "importer", "--channel", "ORG_001", "--channel", "ORG_002", "--scope", "ingest",
        "--scope", "export:response",
    )  # fmt: skip

    caller = authenticate_with(out.strip())
    assert out == out.strip() + "\n"
    assert caller.name == "importer"
    assert caller.scopes == {"ingest", "export:response"}
    assert set(caller.channels) == {"ORG_001", "ORG_002"}
    assert err == "Copy this key now. It is shown once and stored only as a digest.\n"
    assert ApiKey.objects.get().expires_at is None


@pytest.mark.django_db
def test_create_key_command_reuses_channel():
    channel = make_channel()

    create_key("k", "--channel", "ORG_001", "--scope", "ingest")

    assert Channel.objects.get().id == channel.id


@pytest.mark.django_db
def test_create_key_command_sets_expiry():
    create_key("k", "--channel", "ORG_001", "--scope", "ingest", "--days", "30")

    left = ApiKey.objects.get().expires_at - timezone.now()
    assert timedelta(days=29, hours=23) < left <= timedelta(days=30)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--channel", "ORG 001", "--scope", "ingest"], "--channel: Letters, digits"),
        (["--channel", "", "--scope", "ingest"], "--channel: This field cannot be blank"),
        (["--channel", "c" * 129, "--scope", "ingest"], "--channel: "),
        (
            ["--channel", "NEW", "--scope", "ingest", "--scope", "export:private"],
            "ingest and export:private never go on one key",
        ),
        (["--channel", "NEW", "--scope", "everything"], "Error: argument --scope: invalid choice"),
        (["--channel", "NEW"], "Error: the following arguments are required: --scope"),
        (["--scope", "ingest"], "Error: the following arguments are required: --channel"),
        (["--channel", "NEW", "--scope", "ingest", "--days", "soon"], "Error: argument --days"),
        (["--channel", "NEW", "--scope", "ingest", "--days", "9999999999"], "--days"),
    ],
)
def test_create_key_command_explains_errors(args: list[str], sentence: str):
    with pytest.raises(CommandError, match=re.escape(sentence)):
        create_key("k", *args)

    assert (ApiKey.objects.count(), Channel.objects.count()) == (0, 0)
