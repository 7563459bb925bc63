"""The OpenAPI 3.1 document of all operations.

The first request loads the generator, so that a start does not pay for it.
"""

import json
from functools import cache
from threading import Lock
from typing import Any

from django.http import HttpRequest, HttpResponseBase
from django.views.decorators.cache import cache_control
from django.views.decorators.http import require_safe

from ingest.http.kept_body import KeptBody, keep_body, respond
from ingest.http.schema import extend_schema

_keep = cache_control(public=True, max_age=300)  # by browsers and proxies
making = Lock()  # two threads would share the parts of a document


def describe_document(media: str, kind: str = "object") -> dict[Any, Any]:
    more = {"additionalProperties": True} if kind == "object" else {}
    schema: dict[str, Any] = {"type": kind, "description": "This document.", **more}
    return {(200, media): schema, "4XX": None}


PAGE = describe_document("text/html", "string")


@cache
def _write(kind: str) -> KeptBody:
    import yaml

    from exhaust.openapi.document import document

    text = json.dumps(document()) if kind == "json" else yaml.safe_dump(document(), sort_keys=False)
    return keep_body(text.encode())


def _answer(request: HttpRequest, kind: str) -> HttpResponseBase:
    with making:
        return respond(request, _write(kind), f"application/{kind}")


@require_safe
@_keep
@extend_schema("openapiJson", describe_document("application/json"), 304, methods=["GET"], auth=[])
def as_json(request: HttpRequest) -> HttpResponseBase:
    """Get this document as JSON."""
    return _answer(request, "json")


@require_safe
@_keep
@extend_schema("openapiYaml", describe_document("application/yaml"), 304, methods=["GET"], auth=[])
def as_yaml(request: HttpRequest) -> HttpResponseBase:
    """Get this document as YAML."""
    return _answer(request, "yaml")
