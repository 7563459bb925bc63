"""Whether an answer is as its operation's description says."""

import json
import re
from copy import deepcopy
from functools import cache
from typing import Any

import jsonschema_rs
from jsonschema import Draft202012Validator

from exhaust.openapi.document import document

METHODS = {"get", "put", "post", "delete"}


def named() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """(method, address, operation) by operation id."""
    return {
        said["operationId"]: (method, path, said)
        for path, item in document()["paths"].items()
        for method, said in item.items()
        if method in METHODS
    }


@cache
def _addresses() -> list[tuple[re.Pattern[str], str]]:
    paths = sorted(document()["paths"], key=lambda path: path.count("{"))
    return [(re.compile(re.sub(r"\\?{\w+\\?}", "[^/]+", re.escape(path))), path) for path in paths]


def operation(method: str, address: str) -> dict[str, Any] | None:
    """What is said of a call; None where nothing is."""
    for at in (address, address.removeprefix("/api")):
        for pattern, path in _addresses():
            if pattern.fullmatch(at):
                said: dict[str, Any] | None = document()["paths"][path].get(method.lower())
                return said
    return None


def faults(said: dict[str, Any], status: int, media: str, body: bytes) -> list[str]:
    """What of an answer is not as described; fields that are not described are faults too."""
    answers = said["responses"]
    answer = answers.get(str(status)) or answers.get(f"{status // 100}XX")
    if answer is None:
        return [f"{said['operationId']} answers {status}, which is not described"]
    content = answer.get("content", {})
    kind = media.partition(";")[0].strip()
    if not content:
        return [f"{said['operationId']} {status}: has a body"] if body else []
    entry = content.get(kind) or content.get(media)
    if entry is None:
        return [f"{said['operationId']} {status}: is {media}, not {', '.join(content)}"]
    if "json" not in kind or "ndjson" in kind or "schema" not in entry:
        return []
    found = _validator(json.dumps(entry["schema"])).iter_errors(json.loads(body))
    return [
        f"{said['operationId']} {status}: {'.'.join(map(str, each.instance_path))}:"
        f" {each.message[:300]}"
        for each in found
    ]


def validator(schema: dict[str, Any], *, closed: bool) -> Draft202012Validator:
    """Of a schema that may refer to components."""
    whole = _whole(schema)
    if closed:
        _close(whole)
    return Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)


def _whole(schema: dict[str, Any]) -> dict[str, Any]:
    return {"components": deepcopy(document()["components"]), **deepcopy(schema)}


@cache
def _validator(schema: str) -> jsonschema_rs.Draft202012Validator:
    """For every answer of the suite: Rust's takes a hundredth of the time."""
    whole = _whole(json.loads(schema))
    _close(whole)
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


def _close(schema: Any) -> None:
    """A field that is not described is a fault."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            schema.setdefault("additionalProperties", False)
        for each in schema.values():
            _close(each)
    elif isinstance(schema, list):
        for each in schema:
            _close(each)
