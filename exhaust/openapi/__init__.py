"""The description of every address in OpenAPI 3.1, and the page that shows it.

What makes it is loaded with the first question: drf-spectacular would cost every start.
"""

from threading import Lock
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

# Swagger UI draws its arrows from data: addresses
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_making = Lock()


def _document() -> dict[str, Any]:
    # two that made it at once would take its parts from each other
    with _making:
        from exhaust.openapi.document import document

        return document()


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """`GET /docs/`: the description, to read and to try."""
    answer = render(request, "exhaust/docs.html")
    answer["Content-Security-Policy"] = POLICY
    return answer


@require_safe
def as_json(request: HttpRequest) -> JsonResponse:
    """`GET /docs/openapi.json`"""
    return JsonResponse(_document())


@require_safe
def as_yaml(request: HttpRequest) -> HttpResponse:
    """`GET /docs/openapi.yaml`"""
    import yaml

    text = yaml.safe_dump(_document(), sort_keys=False, allow_unicode=True)
    return HttpResponse(text, content_type="application/yaml")
