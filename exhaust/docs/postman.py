"""Postman's collection (v2.1) of the OpenAPI document: a folder for each group of calls."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from exhaust.docs.calls import VARIABLE, Call, format_json, list_calls

SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"


def make_collection(document: Mapping[str, Any], url: str) -> dict[str, Any]:
    """Returns the collection. Its variables are named as in the other examples, and are empty."""
    calls = list(list_calls(document))
    folders = [
        {
            "name": tag["name"],
            "description": tag["description"],
            "item": [_make_item(call) for call in calls if call.tag == tag["name"]],
        }
        for tag in document["tags"]
    ]
    collection = {
        "info": {"name": document["info"]["title"], "schema": SCHEMA},
        "auth": _bearer("<EXHAUST_KEY>"),
        "item": folders,
    }
    names = sorted(set(VARIABLE.findall(json.dumps(collection))) - {"EXHAUST_URL"})
    collection["variable"] = [
        {"key": "EXHAUST_URL", "value": url},
        *({"key": name, "value": ""} for name in names),
    ]
    filled: dict[str, Any] = json.loads(VARIABLE.sub(r"{{\1}}", json.dumps(collection)))
    return filled


def _make_item(call: Call) -> dict[str, Any]:
    path, _, query = call.address.partition("?")
    url: dict[str, Any] = {
        "raw": f"<EXHAUST_URL>{call.address}",
        "host": ["<EXHAUST_URL>"],
        "path": path.strip("/").split("/"),
    }
    if query:
        pairs = (pair.split("=", 1) for pair in query.split("&"))
        url["query"] = [{"key": unquote(key), "value": value} for key, value in pairs]
    headers = {name: value for name, value in call.headers.items() if name != "Authorization"}
    request: dict[str, Any] = {
        "method": call.method,
        "header": [{"key": name, "value": value} for name, value in headers.items()],
        "url": url,
        "description": call.operation.get("description", ""),
    }
    if "Authorization" not in call.headers:
        request["auth"] = _basic(*call.user) if call.user else {"type": "noauth"}
    elif "<EXHAUST_KEY>" not in call.headers["Authorization"]:
        request["auth"] = _bearer(call.headers["Authorization"].removeprefix("Bearer "))
    if call.body is not None:
        raw = format_json(call.body) if call.is_json else call.body
        language = "json" if call.is_json else "text"
        request["body"] = {"mode": "raw", "raw": raw, "options": {"raw": {"language": language}}}
    return {"name": call.operation["summary"], "request": request, "response": []}


def _bearer(token: str) -> dict[str, Any]:
    return {"type": "bearer", "bearer": [{"key": "token", "value": token, "type": "string"}]}


def _basic(username: str, password: str) -> dict[str, Any]:
    values = {"username": username, "password": password}
    pairs = [{"key": key, "value": value, "type": "string"} for key, value in values.items()]
    return {"type": "basic", "basic": pairs}
