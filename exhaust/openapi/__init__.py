"""The OpenAPI 3.1 document of all operations, and the page that shows it.

The first request loads the generator, so that a start does not pay for it.
"""

from threading import Lock
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from ingest.http.schema import extend_schema

# Swagger UI draws its arrows from data: addresses
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_making = Lock()


def _describe_document(media: str, kind: str = "object") -> dict[Any, Any]:
    schema: dict[str, Any] = {"type": kind, "description": "This document."}
    if kind == "object":
        schema["additionalProperties"] = True
    return {(200, media): schema, "4XX": None}


def _document() -> dict[str, Any]:
    # two threads would share the parts of a document
    with _making:
        from exhaust.openapi.document import document

        return document()


@require_safe
@extend_schema("docs", _describe_document("text/html", "string"), methods=["GET"], auth=[])
def page(request: HttpRequest) -> HttpResponse:
    """Read and try this document as a page."""
    response = render(request, "exhaust/docs.html")
    response["Content-Security-Policy"] = POLICY
    return response


@require_safe
@extend_schema("openapiJson", _describe_document("application/json"), methods=["GET"], auth=[])
def as_json(request: HttpRequest) -> JsonResponse:
    """Get this document as JSON."""
    return JsonResponse(_document())


@require_safe
@extend_schema("openapiYaml", _describe_document("application/yaml"), methods=["GET"], auth=[])
def as_yaml(request: HttpRequest) -> HttpResponse:
    """Get this document as YAML."""
    import yaml

    text = yaml.safe_dump(_document(), sort_keys=False, allow_unicode=True)
    return HttpResponse(text, content_type="application/yaml")
