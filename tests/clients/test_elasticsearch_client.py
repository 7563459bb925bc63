"""Elasticsearch's own Python client against the service as it runs: it finds what it looks for."""

from collections.abc import Iterator
from typing import Any

import pytest
from elasticsearch import ApiError, AuthenticationException, Elasticsearch, helpers

from tests.service import CHANNEL, HOST, Service

STARTED = 1_648_785_600_000


@pytest.fixture(scope="module")
def password(service: Service) -> str:
    return service.run("manage.py", "create_application", "bulks", "--channel", CHANNEL)


@pytest.fixture
def client(service: Service, password: str) -> Iterator[Elasticsearch]:
    with connect(service, password) as client:
        yield client


def connect(service: Service, password: str) -> Elasticsearch:
    url = f"http://{HOST}:{service.port}"
    return Elasticsearch(url, basic_auth=("bulks", password), max_retries=0, request_timeout=30)


def session(number: int, **more: Any) -> dict[str, Any]:
    return {
        "userSessionId": f"es-{number}",
        "startTime": STARTED + number,
        "userActions": [],
        **more,
    }


def test_client_accepts_the_product(client: Elasticsearch):
    told = client.info()

    assert told["tagline"] == "You Know, for Search"
    assert told["version"]["number"].startswith("8.")
    assert told["version"]["build_flavor"] == "default"
    assert client.ping()


def test_bulk_helper_sends_sessions(client: Elasticsearch):
    actions = [{"_index": "sessions", "_id": f"b-{n}", "_source": session(n)} for n in range(25)]

    assert helpers.bulk(client, actions, chunk_size=10) == (25, [])
    again = [ok for ok, _ in helpers.streaming_bulk(client, actions)]
    assert again == [True] * 25


def test_bulk_helper_reports_a_bad_session(client: Elasticsearch):
    actions = [
        {"_index": "sessions", "_source": session(100)},
        {"_index": "sessions", "_source": {"startTime": STARTED}},
    ]

    sent, errors = helpers.bulk(client, actions, raise_on_error=False)

    assert sent == 1
    assert [error["index"]["error"]["type"] for error in errors] == ["document_parsing_exception"]


def test_wrong_password_is_told(service: Service, client: Elasticsearch):
    with connect(service, "wrong") as stranger:
        with pytest.raises(AuthenticationException) as refused:
            stranger.info()
        assert refused.value.status_code == 401
        assert not stranger.ping()


def test_bulk_without_product_call_first(client: Elasticsearch):
    told = client.bulk(operations=[{"index": {"_index": "s"}}, session(200)])

    assert (told["errors"], told["items"][0]["index"]["status"]) == (False, 201)
    with pytest.raises(ApiError):
        client.bulk(operations=[{"index": {"_index": "s" * 300}}, session(201)], index="s" * 300)


def test_browser_finds_no_product(service: Service):
    browser = service.call("GET", "/", b"", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert (browser.status, browser.headers["Location"]) == (302, "/console/")
    for accept in ("*/*", ""):
        answer = service.call("GET", "/", b"", Accept=accept)
        assert (answer.status, list(answer.json)) == (200, ["linkset"])
    answer = service.call("GET", "/", b"", Accept="application/json")
    assert (answer.status, answer.headers["X-Elastic-Product"]) == (401, "Elasticsearch")
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
