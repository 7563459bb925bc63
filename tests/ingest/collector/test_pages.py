"""Pages of registered origins send to every source; pages of others learn nothing."""

import base64
import json
from typing import Any

import pytest
from django.db import DatabaseError
from django.http import HttpResponse
from django.test import Client

from ingest.adapters import ADAPTERS
from ingest.auth import keys
from ingest.collector import senders
from ingest.models import Application, StoredEvent
from tests.conftest import bearer, make_channel, make_key
from tests.ingest.telemetry_samples import answer, encode_batch

pytestmark = pytest.mark.django_db(transaction=True)
SHOP, BLOG, STRANGER = "https://shop.example", "https://blog.example", "https://evil.example"
TELEMETRY = ADAPTERS["telemetry"].endpoints[0].routes
SESSION = b'{"userSessionId": "s-1", "startTime": 1648785600123}\n'


@pytest.fixture(autouse=True)
def passwords() -> dict[str, str]:
    """Two channels with an application each; the passwords by application."""
    return {
        name: keys.create_application(name, make_channel(channel), allowed_origins=origin)[1]
        for name, channel, origin in (("shop", "ORG_001", SHOP), ("blog", "ORG_002", BLOG))
    }


def basic(application: str, password: str) -> dict[str, str]:
    encoded = base64.b64encode(f"{application}:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


def preflight(path: str, origin: str) -> HttpResponse:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    response = Client().options(path, headers=headers)
    assert (response.status_code, response.content) == (204, b"")
    return response


def is_readable(response: HttpResponse, origin: str) -> bool:
    """Whether the page may read the response."""
    assert response["Vary"] == "Origin"
    told = response.get("Access-Control-Allow-Origin")
    assert told in {None, origin}
    assert told is None or response["Access-Control-Expose-Headers"] == "Retry-After, X-Request-ID"
    return told == origin


@pytest.mark.parametrize(
    "path",
    [*(f"/{route}" for route in TELEMETRY), "/v1/participants", "/export/events", "/_bulk",
     "/sessions/_bulk"],
)  # fmt: skip
def test_preflight_without_a_credential(path: str):
    for origin in (SHOP, BLOG):
        response = preflight(path, origin)
        assert is_readable(response, origin)
        assert "authorization" in response["Access-Control-Allow-Headers"].lower()
        assert "POST" in response["Access-Control-Allow-Methods"]

    hidden = preflight(path, STRANGER)
    assert not is_readable(hidden, STRANGER)
    assert "Access-Control-Allow-Headers" not in hidden


@pytest.mark.parametrize(
    "path", ["/collect?appId=", "/ping?appId=", "/hit?client_id=", "/hit/bulk?clientId="]
)
def test_preflight_names_its_application(path: str):
    assert is_readable(preflight(path + "shop", SHOP), SHOP)
    assert not is_readable(preflight(path + "shop", BLOG), BLOG)
    unknown = Client().options(path + "nobody", headers={"Origin": SHOP})
    assert (unknown.status_code, is_readable(unknown, SHOP)) == (403, False)


def send_telemetry(origin: str, body: bytes = b"", **headers: str) -> HttpResponse:
    return Client(headers={**headers, "Origin": origin}).post(
        "/content/data/v1/telemetry", body or encode_batch(answer(1)), "application/json"
    )


def test_key_answers_pages_of_its_channel():
    key = bearer(make_key("ingest"))

    assert is_readable(send_telemetry(SHOP, **key), SHOP)
    assert not is_readable(send_telemetry(BLOG, **key), BLOG)
    assert not is_readable(send_telemetry(STRANGER, **key), STRANGER)
    assert StoredEvent.objects.count() == 1

    Application.objects.update(disabled_at="2026-01-01T00:00:00Z")
    assert not is_readable(send_telemetry(SHOP, **key), SHOP)


def test_key_with_a_chosen_channel():
    key = bearer(make_key("ingest", channels=("ORG_001", "ORG_002")))

    response = send_telemetry(BLOG, **key, **{"X-Channel-ID": "ORG_002"})

    assert (response.status_code, is_readable(response, BLOG)) == (200, True)
    assert not is_readable(send_telemetry(BLOG, **key, **{"X-Channel-ID": "ORG_001"}), BLOG)


def test_pages_read_errors():
    key = bearer(make_key("ingest"))
    for response, status in (
        (send_telemetry(SHOP, b"no JSON", **key), 400),
        (send_telemetry(SHOP, **bearer("wrong")), 401),
        (send_telemetry(SHOP), 401),
        (Client(headers={"Origin": SHOP}).put("/v1/telemetry"), 405),
    ):
        assert (response.status_code, is_readable(response, SHOP)) == (status, True)
    assert not is_readable(send_telemetry(STRANGER), STRANGER)


def test_participants_from_a_page():
    profile = json.dumps({"deviceId": "d-1", "userName": "Asha"})
    client = Client(headers=bearer(make_key("ingest"), Origin=SHOP))

    response = client.post("/v1/participants", profile, "application/json")

    assert (response.status_code, is_readable(response, SHOP)) == (200, True)


def test_hits_from_a_page():
    hit = json.dumps({"features": [{"identity": {"id": "u"}, "name": "report"}]})
    for origin, is_read in ((SHOP, True), (BLOG, False)):
        client = Client(headers={"Origin": origin})
        response = client.post("/hit/bulk?client_id=shop", hit, "application/json")
        assert (response.status_code, is_readable(response, origin)) == (200, is_read)


@pytest.mark.parametrize("path", ["/export/events", "/_bulk"])
def test_sessions_from_a_page(path: str, passwords: dict[str, str]):
    lines = SESSION if path == "/export/events" else b'{"index": {}}\n' + SESSION
    client = Client(headers=basic("shop", passwords["shop"]))

    for origin, is_read in ((SHOP, True), (BLOG, False)):
        response = client.post(path, lines, "application/x-ndjson", headers={"Origin": origin})
        assert (response.status_code, is_readable(response, origin)) == (200, is_read)

    refused = Client(headers=basic("shop", "wrong")).post(
        path, lines, "application/x-ndjson", headers={"Origin": BLOG}
    )
    assert (refused.status_code, is_readable(refused, BLOG)) == (401, True)


def test_failing_lookup_of_origins(monkeypatch: pytest.MonkeyPatch):
    def fail() -> Any:
        raise DatabaseError

    monkeypatch.setattr(senders, "fetch_origins", fail)

    response = send_telemetry(SHOP, **bearer(make_key("ingest")))

    assert (response.status_code, is_readable(response, SHOP)) == (200, False)
