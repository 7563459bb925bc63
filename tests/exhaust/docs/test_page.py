"""The API page and Postman's collection: complete, grouped, small, and kept in memory."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from django.test import Client
from jsonschema import Draft202012Validator

from exhaust.docs.calls import LANGUAGES, Call, format_json, list_calls
from exhaust.docs.postman import SCHEMA
from exhaust.openapi.document import TAGS, document

CALLS = {call.id: call for call in list_calls(document())}
TEXTS: dict[str, Any] = {"type": ["string", "null"]}
PAIR = {
    "type": "object", "required": ["key", "value"],
    "properties": {"key": TEXTS, "value": TEXTS},
}  # fmt: skip
ATTRIBUTES = {"type": "array", "items": PAIR}
# the rules of Postman's schema v2.1.0 for the parts of it that ours uses; nothing else is allowed
COLLECTION: dict[str, Any] = {
    "type": "object",
    "required": ["info", "item"],
    "additionalProperties": False,
    "properties": {
        "info": {
            "type": "object",
            "required": ["name", "schema"],
            "additionalProperties": False,
            "properties": {"name": {"type": "string"}, "schema": {"const": SCHEMA}},
        },
        "auth": {"$ref": "#/$defs/auth"},
        "variable": ATTRIBUTES,
        "item": {"type": "array", "items": {"$ref": "#/$defs/folder"}},
    },
    "$defs": {
        "folder": {
            "type": "object",
            "required": ["name", "item"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string"},
                "description": {"type": "string"},
                "item": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/item"}},
            },
        },
        "item": {
            "type": "object",
            "required": ["name", "request"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string"},
                "request": {"$ref": "#/$defs/request"},
                "response": {"type": "array"},
            },
        },
        "request": {
            "type": "object",
            "required": ["method", "url"],
            "additionalProperties": False,
            "properties": {
                "method": {"enum": ["GET", "POST", "PUT", "DELETE"]},
                "description": {"type": "string"},
                "header": ATTRIBUTES,
                "auth": {"$ref": "#/$defs/auth"},
                "url": {
                    "type": "object",
                    "required": ["raw", "host", "path"],
                    "additionalProperties": False,
                    "properties": {
                        "raw": {"type": "string"},
                        "host": {"type": "array", "items": {"type": "string"}},
                        "path": {"type": "array", "items": {"type": "string"}},
                        "query": ATTRIBUTES,
                    },
                },
                "body": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["mode", "raw"],
                    "properties": {
                        "mode": {"const": "raw"},
                        "raw": {"type": "string"},
                        "options": {"type": "object"},
                    },
                },
            },
        },
        "auth": {
            "type": "object",
            "required": ["type"],
            "additionalProperties": False,
            "properties": {
                "type": {"enum": ["noauth", "basic", "bearer"]},
                "basic": ATTRIBUTES,
                "bearer": ATTRIBUTES,
            },
        },
    },
}


class Outline(HTMLParser):
    """The ids and the texts of a page's headings."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.is_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.is_heading = tag == "h2"

    def handle_data(self, data: str) -> None:
        if self.is_heading:
            self.headings.append(data)
            self.is_heading = False


def test_page_groups_calls_by_task(client: Client) -> None:
    html = client.get("/docs/").content.decode()
    outline = Outline()
    outline.feed(html)
    assert outline.headings[1:-1] == list(TAGS)
    assert len(set(outline.ids)) == len(outline.ids)
    assert set(CALLS) <= set(outline.ids)
    assert {call.tag for call in CALLS.values()} == set(TAGS)
    assert html.count("<summary>curl</summary>") == len(CALLS)
    assert "Also <code>POST /data/v1/telemetry</code>" in html
    assert len(html) < 200_000


@pytest.mark.parametrize("address", ["/docs/", "/docs/postman.json"])
def test_page_is_revalidated(address: str, client: Client) -> None:
    first = client.get(address, headers={"Accept-Encoding": "gzip"})
    assert first["Content-Encoding"] == "gzip"
    assert first["Cache-Control"] == "public, max-age=300"
    again = client.get(address, headers={"If-None-Match": first["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_rights_have_their_group() -> None:
    rights = {call.id for call in CALLS.values() if call.tag == "People's rights"}
    assert rights == {"sendParticipants", "readErasure", "eraseParticipant"}
    assert CALLS["listAuditEvents"].tag == "Operate"


def test_collection_follows_the_schema(client: Client) -> None:
    collection = client.get("/docs/postman.json").json()
    errors = Draft202012Validator(COLLECTION).iter_errors(collection)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []
    assert [folder["name"] for folder in collection["item"]] == list(TAGS)
    assert sum(len(folder["item"]) for folder in collection["item"]) == len(CALLS)
    known = {variable["key"] for variable in collection["variable"]}
    assert set(re.findall(r"{{(\w+)}}", json.dumps(collection))) == known
    assert {"EXHAUST_URL", "EXHAUST_KEY", "REQUEST_ID"} <= known


def test_every_example_can_be_read() -> None:
    for call in CALLS.values():
        compile(LANGUAGES["Python"](call), call.id, "exec")
        for write in LANGUAGES.values():
            assert "<EXHAUST" not in write(call)


def make_call(**overrides: Any) -> Call:
    fields: dict[str, Any] = {
        "operation": {}, "method": "POST", "template": "/x", "path": "/x", "query": {},
        "headers": {}, "user": None, "body": None,
    }  # fmt: skip
    return Call(**fields | overrides)


def test_examples_are_quoted() -> None:
    call = make_call(query={"q": "a b&<X_ID>"}, body={"text": 'it\'s "true" $HOME', "on": True})
    assert LANGUAGES["curl"](call).splitlines() == [
        'curl --fail-with-body -X POST "$EXHAUST_URL/x?q=a%20b%26$X_ID" \\',
        """  --data-binary '{"text": "it'"'"'s \\"true\\" $HOME", "on": true}'""",
    ]
    assert r"""json={"text": "it's \"true\" $HOME", "on": True},""" in LANGUAGES["Python"](call)
    javascript = LANGUAGES["JavaScript"](call)
    assert "fetch(`${process.env.EXHAUST_URL}/x?q=a%20b%26${process.env.X_ID}`, {" in javascript


def test_json_is_broken_where_it_is_long() -> None:
    value = {"a": [1, 2], "b": {"c": "x" * 90}, "d": []}
    text = format_json(value)
    assert json.loads(text) == value
    assert text.splitlines()[1] == '  "a": [1, 2],'
