"""Sign-in by an organisation's OpenID Connect provider, which is made up here."""

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import responses
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialToken
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse

from ingest.auth import failures
from ingest.models import AuditEvent, AuthFailureCount
from tests.openid_provider import Provider

pytestmark = pytest.mark.django_db
ISSUER = "https://login.example.org"
START = "/account/oidc/organisation/login/?process=login"


@pytest.fixture
def provider(settings: Any) -> Any:
    made_up = Provider(ISSUER)
    settings.SOCIALACCOUNT_PROVIDERS = made_up.settings

    def answer(request: Any) -> tuple[int, dict[str, str], str]:
        is_token = request.url == f"{ISSUER}/token"
        document = made_up.give_token(request.body) if is_token else made_up.claims
        return 200, {"Content-Type": "application/json"}, json.dumps(document)

    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock.get(f"{ISSUER}/.well-known/openid-configuration", json=made_up.describe())
        mock.add_callback("POST", f"{ISSUER}/token", answer)
        mock.add_callback("GET", f"{ISSUER}/userinfo", answer)
        yield made_up


@pytest.fixture
def asha() -> User:
    return User.objects.create_user("asha", "Asha@example.org", "a long enough one")


def sign_in(client: Client, **altered: str) -> Any:
    """Goes to the provider, and comes back with its code."""
    address = client.get(START)["Location"]
    query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    assert address.startswith(f"{ISSUER}/authorize?")
    assert query["code_challenge_method"] == "S256"
    assert query["redirect_uri"].endswith("/account/oidc/organisation/login/callback/")
    values = {"code": "once", "state": query["state"], **altered}
    return client.get("/account/oidc/organisation/login/callback/", values)


def is_signed_in(client: Client) -> bool:
    return client.get("/console/").status_code == 200


def test_verified_address_signs_in(provider: Provider, asha: User):
    assert "Sign in with Example" in Client().get("/console/sign-in").content.decode()
    client = Client()

    assert sign_in(client)["Location"] == "/console/"

    assert is_signed_in(client)
    assert provider.asked[0]["code"] == ["once"]
    assert len(provider.asked[0]["code_verifier"][0]) >= 43
    assert not SocialToken.objects.exists()
    assert "opaque" not in str(client.cookies) + str(dict(client.session))
    assert AuditEvent.objects.get().actor == "asha"
    asha.refresh_from_db()
    assert asha.check_password("a long enough one")  # it stays
    # from now on by the provider's id
    provider.claims["email"] = "asha.new@example.org"
    assert sign_in(Client())["Location"] == "/console/"


@pytest.mark.parametrize(
    "claims",
    [
        {"email": "stranger@example.org"},
        {"email_verified": False},
        {"email_verified": None},
        {"email": ""},
    ],
)
def test_stranger_gets_no_account(provider: Provider, asha: User, claims: dict[str, Any]):
    provider.claims |= claims
    client = Client()

    answer = sign_in(client)

    assert "You have no account here" in answer.content.decode()
    assert not is_signed_in(client)
    assert User.objects.count() == 1
    failures.flush_counts()
    assert AuthFailureCount.objects.get().action == "login.failed"


def test_address_of_two_users_opens_none(provider: Provider, asha: User):
    User.objects.create_user("bela", "asha@example.org")
    client = Client()
    sign_in(client)

    assert not is_signed_in(client)


def test_inactive_user_stays_out(provider: Provider, asha: User):
    asha.is_active = False
    asha.save()
    client = Client()

    assert sign_in(client)["Location"] == reverse("account_inactive")
    assert not is_signed_in(client)


@pytest.mark.parametrize(
    "token_claims",
    [{"aud": "another"}, {"iss": "https://evil.example"}, {"exp": 1}, {"sub": "another"}],
)
def test_token_for_others_is_refused(provider: Provider, asha: User, token_claims: dict[str, Any]):
    provider.token_claims = token_claims
    client = Client()
    sign_in(client)

    assert not is_signed_in(client)


def test_forged_state_is_refused(provider: Provider, asha: User):
    client = Client()
    sign_in(client, state="forged")

    assert not is_signed_in(client)
    assert provider.asked == []


def test_provider_that_fails_is_named(provider: Provider, asha: User):
    answer = sign_in(Client(), error="server_error")

    assert "did not answer as it should" in answer.content.decode()


def test_second_factor_is_asked_for(provider: Provider, asha: User):
    Authenticator.objects.create(user=asha, type="totp", data={"secret": ""})
    client = Client()

    assert sign_in(client)["Location"] == reverse("mfa_authenticate")
    assert not is_signed_in(client)


@pytest.mark.parametrize(
    ("claim", "groups"),
    [
        (["bots", "elsewhere"], ["bots"]),
        ("bots", ["bots"]),
        ([], []),
        (None, []),
        ({"bots": 1}, []),
        ([["bots"]], []),
    ],
)
def test_claim_sets_groups(
    provider: Provider, asha: User, settings: Any, claim: Any, groups: list[str]
):
    settings.EXHAUST_OIDC_GROUPS_CLAIM = "groups"
    provider.claims["groups"] = claim
    Group.objects.create(name="bots")
    asha.groups.add(Group.objects.create(name="before"))

    sign_in(Client())

    assert list(asha.groups.values_list("name", flat=True)) == groups
    assert AuditEvent.objects.filter(action="user.changed").get().details == {"groups": groups}


def test_no_claim_leaves_groups(provider: Provider, asha: User):
    provider.claims["groups"] = []
    asha.groups.add(Group.objects.create(name="before"))
    sign_in(Client())

    assert asha.groups.count() == 1


def test_account_is_not_connected(provider: Provider, asha: User):
    """A signed-in user adds no other identity."""
    bela = User.objects.create_user("bela")
    client = Client()
    client.force_login(bela)
    address = client.get(START.replace("=login", "=connect"))["Location"]
    state = parse_qs(urlsplit(address).query)["state"][0]

    answer = client.get(
        "/account/oidc/organisation/login/callback/", {"code": "once", "state": state}
    )

    assert answer["Location"] == reverse("account")
    assert not bela.socialaccount_set.exists()
