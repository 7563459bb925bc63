"""The OpenAPI document is complete, and its examples are valid."""

import gzip
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from drf_spectacular.validation import validate_schema

from exhaust.openapi.document import document
from tests import openapi_checks
from tests.service import ROOT

STAFF_PREFIXES = ("/account/", "/admin/", "/console/")


def list_addresses(resolver: URLResolver, prefix: str = "/") -> Iterator[str]:
    for pattern in resolver.url_patterns:
        path = prefix + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(pattern.pattern))
        if f"{path}/".startswith(STAFF_PREFIXES) or path == "/docs":
            continue  # a path without its last slash leads to the other
        if isinstance(pattern, URLPattern):
            yield path
        else:
            yield from list_addresses(pattern, path)


@pytest.mark.parametrize("address", sorted(set(list_addresses(get_resolver()))))
def test_every_address_is_described(address: str) -> None:
    item = document()["paths"].get(address)
    if item is None and address.startswith("/api/"):
        item = document()["paths"][address.removeprefix("/api")]
        assert {"url": "/api", "description": "The same."} in item["servers"]
    assert item is not None


def test_nothing_else_is_described() -> None:
    assert set(document()["paths"]) <= set(list_addresses(get_resolver()))


def test_document_is_openapi_3_1() -> None:
    assert document()["openapi"] == "3.1.0"
    validate_schema(document())


OPERATIONS = openapi_checks.operations_by_id()
RESOURCES = {  # as Croct's client calls them
    "exportEvents", "exportEventById", "exportSessions", "exportSessionById", "exportUsers",
    "exportUserById",
}  # fmt: skip


def test_operation_ids_are_unique() -> None:
    count = sum(len(openapi_checks.METHODS & set(item)) for item in document()["paths"].values())
    assert len(OPERATIONS) == count
    assert set(OPERATIONS) >= RESOURCES


def find_undescribed(schema: Any, location: str) -> Iterator[str]:
    if isinstance(schema, dict):
        for name, field in schema.get("properties", {}).items():
            if not (field.get("description") or "$ref" in field or "oneOf" in field):
                yield f"{location}.{name}"
            yield from find_undescribed(field, f"{location}.{name}")
        for key in ("items", "additionalProperties"):
            yield from find_undescribed(schema.get(key), f"{location}.{key}")
        for option in schema.get("anyOf", []):
            yield from find_undescribed(option, location)


def test_every_field_is_described() -> None:
    schemas = document()["components"]["schemas"]
    assert [name for name, schema in schemas.items() if not schema.get("description")] == []
    assert [each for name in schemas for each in find_undescribed(schemas[name], name)] == []


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_have_valid_examples(name: str) -> None:
    _, _, operation = OPERATIONS[name]
    assert operation["summary"]
    assert operation["tags"][0] in [tag["name"] for tag in document()["tags"]]
    for parameter in operation.get("parameters", []):
        if "$ref" not in parameter:
            assert parameter["description"], parameter["name"]
    bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
    entries = [entry for body in bodies for entry in body.get("content", {}).values()]
    for entry in entries:
        if "example" in entry:
            validator = openapi_checks.build_validator(entry["schema"], closed=False)
            assert [error.message for error in validator.iter_errors(entry["example"])] == []
    request_content = operation.get("requestBody", {}).get("content", {})
    success = next(body for code, body in operation["responses"].items() if code < "300")
    response_content = success.get("content", {})
    for entry in (*request_content.values(), *response_content.values()):
        assert "example" in entry or name == "downloadFile"


def test_submit_example_is_accepted(asker: Client) -> None:
    example = OPERATIONS["submitJob"][2]["requestBody"]["content"]["application/json"]["example"]
    answer = asker.post("/dataset/v1/request/submit", example, content_type="application/json")
    assert answer.status_code == 200


def test_document_is_public(client: Client) -> None:
    import yaml

    assert client.get("/docs/").status_code == 200
    answer = client.get("/docs/openapi.json")
    assert answer.json() == document()
    assert answer["Cache-Control"] == "public, max-age=300"
    from_yaml = yaml.safe_load(client.get("/docs/openapi.yaml").content)
    assert from_yaml["paths"].keys() == document()["paths"].keys()


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_document_is_compressed_and_revalidated(kind: str, client: Client) -> None:
    address = f"/docs/openapi.{kind}"
    plain = client.get(address)
    packed = client.get(address, headers={"Accept-Encoding": "br, gzip"})
    assert "Content-Encoding" not in plain
    assert packed["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.content) == plain.content
    assert len(packed.content) < len(plain.content) / 5
    assert packed["ETag"] == plain["ETag"]
    assert packed["Vary"] == "Accept-Encoding"

    again = client.get(address, headers={"If-None-Match": plain["ETag"]})
    assert (again.status_code, again.content, again["ETag"]) == (304, b"", plain["ETag"])
    assert client.get(address, headers={"If-None-Match": '"other"'}).status_code == 200


def test_start_does_not_load_generator() -> None:
    code = (
        "import config.wsgi, config.urls, sys; print('drf_spectacular.openapi' in sys.modules);"
        "print(config.wsgi.SESSION_SETTINGS['statement_timeout'])"  # of a web process
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert completed.stdout.split() == ["False", "30000"]
