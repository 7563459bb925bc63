import json
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path

from config.urls import urlpatterns as served
from ingest import audit
from ingest.auth import keys
from ingest.limits import rate_limits, token_bucket
from ingest.models import AuditEvent
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.console.test_console import sign_in


def act(request: HttpRequest) -> HttpResponse:
    audit.record("channel.changed")
    return HttpResponse()


def act_by_key(request: HttpRequest) -> HttpResponse:
    keys.authenticate(request)
    return act(request)


def fail(request: HttpRequest) -> HttpResponse:
    keys.authenticate(request)
    raise RuntimeError


for view in (act, act_by_key, fail):
    view.methods = ()  # type: ignore[attr-defined] # the OpenAPI document has none of them
urlpatterns = [path("act", act), path("act/key", act_by_key), path("fail", fail), *served]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


def acted() -> tuple[str, str, str]:
    entry = AuditEvent.objects.latest("id")
    return entry.actor, entry.key, entry.address


def test_key_is_audited_by_name_and_network():
    key = make_key("ingest")

    Client(headers=bearer(key), REMOTE_ADDR="203.0.113.77").get("/act/key")

    assert acted() == ("test", key[4:12], "203.0.113.0/24")


@pytest.mark.parametrize(("behind", "network"), [(True, "198.51.100.0/24"), (False, "10.0.0.0/24")])
def test_actor_address_matches_limiter(settings: Any, behind: bool, network: str):
    settings.EXHAUST_BEHIND_PROXY = behind
    headers = bearer(make_key(), **{"X-Forwarded-For": "192.0.2.1, 198.51.100.9"})

    Client(headers=headers, REMOTE_ADDR="10.0.0.1").get("/act/key")

    assert acted()[2] == network


def test_signed_in_user_is_the_actor():
    client = Client()
    client.force_login(get_user_model().objects.create_user("asha"))

    client.get("/act")

    assert acted() == ("asha", "", "127.0.0.0/24")


def test_unknown_caller_is_anonymous():
    Client().get("/act")

    assert acted()[0] == "anonymous"


def test_actor_is_reset_after_request():
    key = make_key()
    client = Client(headers=bearer(key), raise_request_exception=False)

    for address in ("/act/key", "/fail"):
        client.get(address)
        assert audit.current_actor.get() is audit.SERVICE_ACTOR
    Client().get("/act")

    assert acted()[:2] == ("anonymous", "")


def test_api_call_opens_no_session():
    staff = Client()
    staff.force_login(get_user_model().objects.create_user("asha"))
    client = Client(headers=bearer(make_key()))
    client.cookies = staff.cookies

    with CaptureQueriesContext(connection) as asked:
        answer = client.get("/act/key")

    assert "ingest_browsersession" not in "".join(query["sql"] for query in asked)
    assert "Cookie" not in answer.headers.get("Vary", "")


def test_key_is_the_actor_of_a_consent():
    key = make_key("ingest")
    profile = {"deviceId": "d", "consent": True, "consentAt": "2026-11-01T00:00:00Z"}

    answer = Client(headers=bearer(key)).post(
        "/v1/participants", json.dumps([profile]), "application/json", REMOTE_ADDR="192.0.2.7"
    )

    assert answer.status_code == 200, answer.content
    event = AuditEvent.objects.get(action="consent.changed")
    assert (event.actor, event.key, event.address) == ("test", key[4:12], "192.0.2.0/24")


def noted_channel(client: Client, address: str, **headers: str) -> Any:
    """Returns what admission control learns: a channel, -1 for a caller of none or several."""
    return client.get(address, headers=headers).wsgi_request.META.get("exhaust.channel")


def test_channel_of_a_key_is_noted():
    one, both = make_key("pull"), make_key("pull", channels=("ORG_001", "ORG_002"))
    address = "/dataset/v1/destination"

    assert noted_channel(Client(), address, **bearer(one)) == make_channel().pk
    assert noted_channel(Client(), address, **bearer(both)) == -1
    named = bearer(both, **{"X-Channel-ID": "ORG_002"})
    assert noted_channel(Client(), address, **named) == make_channel("ORG_002").pk
    assert noted_channel(Client(), address, **bearer("exh_wrong")) is None


def test_channel_of_a_session_is_noted():
    address = "/console/ORG_001/exports"
    assert noted_channel(sign_in(submit_response=True), address) == make_channel().pk
    assert noted_channel(Client(), address) is None
    superuser = Client()
    superuser.force_login(get_user_model().objects.create_superuser("root"))
    assert noted_channel(superuser, address) == -1


def test_sender_without_the_collector_is_noted():
    event = {"eid": "LOG", "ets": 1648785600123, "mid": "m", "context": {}, "edata": {}}
    for key, noted in ((make_key("ingest"), -1), ("exh_wrong", None)):
        answer = Client(headers=bearer(key)).post("/v1/telemetry", [event], "application/json")
        assert answer.wsgi_request.META.get("exhaust.channel") == noted


def test_signed_in_user_has_a_rate_limit(settings: Any, monkeypatch: pytest.MonkeyPatch):
    settings.EXHAUST_RATE_LIMIT_MULTIPLIER = 1.0
    buckets = token_bucket.ProcessLimiter(lambda: 10**12)
    monkeypatch.setattr(token_bucket, "get_limiter", lambda _: buckets)
    monkeypatch.setattr(rate_limits, "local_quota", rate_limits.LocalQuota())
    monkeypatch.setattr(rate_limits, "READS", rate_limits.Limit("reads", 0.02, 2))
    make_channel()
    asha, ben = sign_in("asha", audit=True), sign_in("ben", audit=True)
    page = "/console/ORG_001/"

    answers = [asha.get(page, headers={"Accept": "text/html"}) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert "Wait a few seconds." in answers[2].content.decode()
    assert answers[2]["Retry-After"] == "50"
    assert asha.get(page).json()["detail"].startswith("Your account sends too many requests.")
    assert ben.get(page).status_code == 200
