"""A small campaign of hostile calls in each run; the large ones are `python -m tools.fuzz`."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tools.fuzz import adapters, api, wire
from tools.fuzz.wire import Answer, Wire

REQUESTS = 500
INPUTS = 300


@pytest.mark.django_db(transaction=True)
def test_api_fuzz_finds_no_fault(settings: Any) -> None:
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 100_000
    campaign = api.run_in_process(REQUESTS, seed=1)
    assert campaign.findings == {}
    assert campaign.count >= REQUESTS
    assert {200, 400, 404} <= set(campaign.statuses)
    assert [status for status in campaign.statuses if status >= 500] == []


@pytest.mark.parametrize("name", adapters.ADAPTERS)
def test_adapter_fuzz_finds_no_fault(name: str) -> None:
    """Without coverage to lead it, on the same inputs each time."""
    target = adapters.build_reader(name)
    for data in adapters.mutated_inputs(name, INPUTS, seed=1):
        target(data)


def test_adapter_fuzz_detects_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from ingest.adapters.telemetry import parser as telemetry

    def careless(*_: Any, **__: Any) -> Any:
        raise KeyError("ets")

    monkeypatch.setattr(telemetry, "parse", careless)
    target = adapters.build_reader("telemetry")
    with pytest.raises(KeyError):
        target(adapters.SEEDS["telemetry"][0])


@pytest.mark.django_db(transaction=True)
def test_api_fuzz_detects_server_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import schemathesis

    from config.wsgi import application
    from exhaust.monitoring import health

    def careless() -> Any:
        raise KeyError("oldest")

    monkeypatch.setattr(health, "read_state", careless)
    schema = schemathesis.openapi.from_wsgi("/docs/openapi.json", application)
    campaign = api.Campaign(schema.include(path="/readyz"), api.create_credentials(), requests=1)
    campaign.run()
    assert campaign.statuses[500] >= 1
    assert any("/readyz" in kind and "500" in kind for kind in campaign.findings)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("spoil", "finding"),
    [
        (lambda answer: replace(answer, status=302), "UndefinedStatusCode"),
        (lambda answer: replace(answer, headers=[("Content-Type", "text/css")]), "ContentType"),
        (lambda answer: replace(answer, content=b'{"count": "many"}'), "JsonSchema"),
    ],
)
def test_api_fuzz_detects_undescribed_answer(
    spoil: Callable[[Answer], Answer], finding: str
) -> None:
    import schemathesis

    from config.wsgi import application

    served = wire.send_to_application(application)
    schema = schemathesis.openapi.from_wsgi("/docs/openapi.json", application)

    campaign = api.Campaign(
        schema.include(path="/dataset/v1/schedule"),
        api.create_credentials(),
        requests=1,
        send=lambda wire: spoil(served(wire)),
    )
    campaign.run()

    assert any(finding in kind and "GET /dataset/v1/schedule" in kind for kind in campaign.findings)
    assert any("curl -X GET" in detail for detail in campaign.findings.values())


def test_fuzz_variants_extend_sent_bodies() -> None:
    one = Wire("POST", "/a/1", "q=1&r=2", (("Content-Type", "application/json"),), b'{"a": 12}')
    other = Wire("POST", "/a/2", "q=3", (), b'{"b": "text"}')
    variants = wire.Variants(random.Random(1))
    variants.learn("POST /a", one)
    variants.learn("POST /a", other)

    variant_calls = [variants.mutate("POST /a", one) for _ in range(500)]

    assert {each.method for each in variant_calls} == {"POST"}
    assert {each.path for each in variant_calls} == {"/a/1", "/a/2"}
    assert {"q=1&r=2", "q=3", "q=1"} < {each.query for each in variant_calls}
    assert any("%00" in each.query for each in variant_calls)
    assert any(each.content == other.content and each.path == one.path for each in variant_calls)
    assert any(b"\0" in each.content for each in variant_calls)
    assert any(("Content-Encoding", "br") in each.headers for each in variant_calls)
