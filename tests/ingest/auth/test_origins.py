"""The web pages that may send: which origins, and what their browsers are told."""

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.utils import timezone

from ingest.adapters import ADAPTERS
from ingest.auth import keys, origins
from ingest.models import Application
from tests.conftest import make_channel

SHOP, BLOG = "https://shop.example", "https://blog.example:8443"


def register(identifier: str, channel: str, *allowed: str) -> Application:
    application, _ = keys.create_application(
        identifier, make_channel(channel), allowed_origins="\n".join(allowed)
    )
    return application


@pytest.mark.django_db
def test_origins_of_enabled_applications():
    first, second = register("a", "ONE", SHOP), register("b", "TWO", BLOG, SHOP)
    register("c", "ONE")
    register("d", "THREE", "https://gone.example")
    Application.objects.filter(identifier="d").update(disabled_at=timezone.now())

    known = origins.fetch_origins()

    assert known.anywhere == {SHOP, BLOG}
    assert known.by_channel == {first.channel_id: {SHOP}, second.channel_id: {SHOP, BLOG}}
    assert known.allow(BLOG, second.channel_id)
    assert not known.allow(BLOG, first.channel_id)
    assert not known.allow(BLOG, make_channel("THREE").pk)
    assert known.allow(BLOG)
    for origin in ("", "null", "*", "https://gone.example", SHOP.upper(), f"{SHOP}.evil"):
        assert not known.allow(origin)


@pytest.mark.django_db
def test_no_application_has_an_origin():
    assert origins.fetch_origins() == origins.Origins({}, frozenset())


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_preflight_headers_of_each_source(name: str):
    cors = ADAPTERS[name].cors
    assert cors

    told = origins.build_cors_headers(cors, "OPTIONS", SHOP, is_allowed=True)

    assert told["Access-Control-Allow-Origin"] == SHOP
    assert told["Access-Control-Allow-Credentials"] == "true"
    assert "*" not in "".join(told.values())
    allowed = {each.strip() for each in told["Access-Control-Allow-Methods"].split(",")}
    assert {method for endpoint in ADAPTERS[name].endpoints for method in endpoint.methods} <= {
        *allowed, "GET", "HEAD"  # which pages send without leave
    }  # fmt: skip
    assert "content-type" in _listed(told["Access-Control-Allow-Headers"])
    assert _listed(told["Access-Control-Expose-Headers"]) == {"retry-after", "x-request-id"}


def test_telemetry_takes_headers_of_sunbirds_sdk():
    cors = ADAPTERS["telemetry"].cors
    assert cors
    sent = {"authorization", "content-type", "datatype", "x-app-id", "x-device-id", "x-channel-id"}

    assert sent <= _listed(cors.headers)
    assert {"x-api-key", "content-encoding"} <= _listed(cors.headers)


def test_response_headers_by_origin():
    cors = ADAPTERS["telemetry"].cors
    assert cors

    told = origins.build_cors_headers(cors, "POST", SHOP, is_allowed=True)

    assert told["Vary"] == "Origin"
    assert "Access-Control-Allow-Headers" not in told
    for origin in ("", BLOG):
        hidden = origins.build_cors_headers(cors, "OPTIONS", origin, is_allowed=False)
        assert hidden == {"Vary": "Origin"}
    assert origins.build_cors_headers(cors, "POST", "", is_allowed=True) == {"Vary": "Origin"}


def _listed(names: str) -> set[str]:
    return {name.strip().lower() for name in names.split(",")}


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("https://shop.example/", "https://shop.example."),
        ("https://shop.example/cart?a=1", "https://shop.example."),
        ("HTTPS://Shop.example", "https://shop.example."),
        ("https://shop.example:443", "https://shop.example."),
        ("http://shop.example:80/", "http://shop.example."),
        ("https://bücher.example", "https://xn--bcher-kva.example."),
        ("shop.example", "write https://shop.example"),
        ("//shop.example", "write https://shop.example"),
        ("https://*.shop.example", "write https://shop.example"),
        ("https://user@shop.example", "write https://shop.example"),
        ("*", "write https://shop.example"),
        ("null", "write https://shop.example"),
    ],
)
def test_origin_that_never_matches_is_refused(line: str, remedy: str):
    with pytest.raises(ValidationError) as refused:
        Application(allowed_origins=f"{SHOP}\n{line}").clean()

    (message,) = refused.value.message_dict["allowed_origins"]
    assert message.startswith(line)
    assert remedy in message


def test_origins_that_match_are_kept():
    lines = [SHOP, BLOG, "http://localhost:3000", "http://[::1]:3000", "capacitor://localhost"]
    Application(allowed_origins="\n".join(lines)).clean()


@pytest.mark.django_db
def test_create_application_names_the_origin():
    with pytest.raises(CommandError, match=r"https://shop\.example/ never matches"):
        call_command("create_application", "a", "--channel", "ONE", "--origin", f"{SHOP}/")
