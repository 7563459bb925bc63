"""The page of the API, the page to try it, and Postman's collection; each is made once."""

import html
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.template.loader import render_to_string
from django.utils.safestring import SafeString
from django.views.decorators.cache import cache_control
from django.views.decorators.http import require_safe

from exhaust.docs.calls import LANGUAGES, Call, format_json, list_aliases, list_calls
from exhaust.openapi import PAGE, describe_document, making
from ingest.http.kept_body import KeptBody, keep_body, respond
from ingest.http.schema import extend_schema

MAX_DEPTH = 3  # of the fields of a body
_keep = cache_control(public=True, max_age=300)  # by browsers and proxies


@require_safe
@_keep
@extend_schema("docs", PAGE, 304, methods=["GET"], auth=[])
def show_page(request: HttpRequest) -> HttpResponseBase:
    """Read the API as a page, with examples."""
    return _respond_once(request, _write_page, "text/html; charset=utf-8")


@require_safe
@_keep
@extend_schema("tryDocs", PAGE, methods=["GET"], auth=[])
def show_trial(request: HttpRequest) -> HttpResponse:
    """Try calls in a browser."""
    return render(request, "exhaust/try.html")


@require_safe
@_keep
@extend_schema("postman", describe_document("application/json"), 304, methods=["GET"], auth=[])
def serve_collection(request: HttpRequest) -> HttpResponseBase:
    """Get this API as a collection for Postman."""
    return _respond_once(request, _write_collection, "application/json")


def _respond_once(
    request: HttpRequest, write: Callable[[], KeptBody], content_type: str
) -> HttpResponseBase:
    with making:
        body = write()
    return respond(request, body, content_type)


@cache
def _write_collection() -> KeptBody:
    from exhaust.docs.postman import make_collection
    from exhaust.openapi.document import document

    collection = make_collection(document(), settings.EXHAUST_PUBLIC_URL)
    return keep_body(json.dumps(collection, ensure_ascii=False).encode())


@cache
def _write_page() -> KeptBody:
    from exhaust.openapi.document import document

    contents = document()
    schemas, aliases = contents["components"]["schemas"], list_aliases(contents)
    calls = [
        (
            call,
            _describe_call(call, schemas) | {"aliases": aliases[f"{call.method} {call.template}"]},
        )
        for call in list_calls(contents)
    ]
    groups = [
        {**tag, "calls": [details for call, details in calls if call.tag == tag["name"]]}
        for tag in contents["tags"]
    ]
    context = {
        "groups": groups,
        "statuses": _list_statuses(contents),
        "url": settings.EXHAUST_PUBLIC_URL,
    }
    return keep_body(render_to_string("exhaust/docs.html", context).encode())


def _describe_call(call: Call, schemas: dict[str, Any]) -> dict[str, Any]:
    content = call.operation.get("requestBody", {}).get("content", {})
    schema = next(iter(content.values()))["schema"] if content else {}
    success = next(answer for code, answer in call.operation["responses"].items() if code < "3")
    answers = list(success.get("content", {}).values())
    answer = answers[0].get("example", "") if answers else ""
    return {
        "id": call.id,
        "method": call.method,
        "path": call.template,
        "summary": call.operation["summary"],
        "description": " ".join(call.operation.get("description", "").split()),
        "try": f"{call.tag}/{call.id}".replace(" ", "%20"),
        "parameters": [each for each in call.operation.get("parameters", ()) if "name" in each],
        "fields": list(_list_fields(schema, schemas)),
        "examples": [
            (language, _escape_text(write(call))) for language, write in LANGUAGES.items()
        ],
        "answer": _escape_text(answer if isinstance(answer, str) else format_json(answer)),
    }


def _escape_text(text: str) -> SafeString:
    """Escapes a text node: its many quotes need no escapes, which would be a third of the page."""
    return SafeString(html.escape(text, quote=False))


def _list_fields(
    schema: dict[str, Any], schemas: dict[str, Any], prefix: str = "", depth: int = MAX_DEPTH
) -> Iterator[dict[str, Any]]:
    """Yields name, description and whether it is required, of each field of a body and below."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    for options in ("anyOf", "oneOf", "allOf"):
        if options in schema:
            yield from _list_fields(schema[options][0], schemas, prefix, depth)
    if "items" in schema:
        yield from _list_fields(schema["items"], schemas, f"{prefix.rstrip('.')}[].", depth)
    for name, field in schema.get("properties", {}).items():
        yield {
            "name": prefix + name,
            "description": field.get("description", ""),
            "is_required": name in schema.get("required", ()),
        }
        if depth > 1:
            yield from _list_fields(field, schemas, f"{prefix}{name}.", depth - 1)


def _list_statuses(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns each status of a rejection with its meaning, which are the same everywhere."""
    meanings = {
        status: answer["description"]
        for item in document["paths"].values()
        for operation in item.values()
        if isinstance(operation, dict)
        for status, answer in operation["responses"].items()
        if status >= "3"
    }
    return sorted(meanings.items())
