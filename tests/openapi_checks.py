"""Checks answers against the OpenAPI document."""

import gzip
import json
import re
from copy import deepcopy
from functools import cache
from threading import Lock
from typing import Any

import jsonschema_rs
from jsonschema import Draft202012Validator

from exhaust.openapi.document import document as make_document

_making = Lock()  # drf-spectacular cannot make two at a time, and tests call from threads


def document() -> dict[str, Any]:
    with _making:
        return make_document()


METHODS = {"get", "put", "post", "delete"}


def operations_by_id() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Returns (method, path, operation) by operation id."""
    return {
        operation["operationId"]: (method, path, operation)
        for path, item in document()["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


@cache
def _path_patterns() -> list[tuple[re.Pattern[str], str]]:
    paths = sorted(document()["paths"], key=lambda path: path.count("{"))
    return [(re.compile(re.sub(r"\\?{\w+\\?}", "[^/]+", re.escape(path))), path) for path in paths]


def find_operation(method: str, address: str) -> dict[str, Any] | None:
    """Returns the operation of a call, or None."""
    for candidate in (address, address.removeprefix("/api")):
        for pattern, path in _path_patterns():
            if pattern.fullmatch(candidate):
                operation: dict[str, Any] | None = document()["paths"][path].get(method.lower())
                return operation
    return None


def find_faults(operation: dict[str, Any], status: int, media: str, body: bytes) -> list[str]:
    """Returns the differences of an answer from its description, also undescribed fields."""
    answers = operation["responses"]
    answer = answers.get(str(status)) or answers.get(f"{status // 100}XX")
    if answer is None:
        return [f"{operation['operationId']} answers {status}, which is not described"]
    content = answer.get("content", {})
    kind = media.partition(";")[0].strip()
    if not content:
        return [f"{operation['operationId']} {status}: has a body"] if body else []
    entry = content.get(kind) or content.get(media)
    if entry is None:
        return [f"{operation['operationId']} {status}: is {media}, not {', '.join(content)}"]
    if "json" not in kind or "ndjson" in kind or "schema" not in entry:
        return []
    if body.startswith(b"\x1f\x8b"):
        body = gzip.decompress(body)
    errors = _cached_validator(json.dumps(entry["schema"])).iter_errors(json.loads(body))
    return [
        f"{operation['operationId']} {status}: {'.'.join(map(str, error.instance_path))}:"
        f" {error.message[:300]}"
        for error in errors
    ]


def build_validator(schema: dict[str, Any], *, closed: bool) -> Draft202012Validator:
    """Returns a validator of a schema that may refer to components."""
    full_schema = _with_components(schema)
    if closed:
        _forbid_extra_fields(full_schema)
    return Draft202012Validator(full_schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def _with_components(schema: dict[str, Any]) -> dict[str, Any]:
    return {"components": deepcopy(document()["components"]), **deepcopy(schema)}


@cache
def _cached_validator(schema: str) -> jsonschema_rs.Draft202012Validator:
    """Returns a validator written in Rust, for every answer: a hundred times as fast."""
    full_schema = _with_components(json.loads(schema))
    _forbid_extra_fields(full_schema)
    return jsonschema_rs.Draft202012Validator(full_schema, validate_formats=True)


def _forbid_extra_fields(schema: Any) -> None:
    """Makes undescribed fields an error."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            schema.setdefault("additionalProperties", False)
        for each in schema.values():
            _forbid_extra_fields(each)
    elif isinstance(schema, list):
        for each in schema:
            _forbid_extra_fields(each)
