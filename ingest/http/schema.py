"""What views say of themselves in the OpenAPI document, which `exhaust.openapi` makes of it.

That loads late: drf-spectacular would add 70 ms to each start, its decorator adds 3.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from drf_spectacular.utils import extend_schema as spectacular_extend_schema
from rest_framework import serializers
from rest_framework.schemas.inspectors import ViewInspector

from ingest.http.response_fields import Body, Schema, integer, text

View = TypeVar("View", bound=Callable[..., Any])
JSON, NDJSON, PROBLEM = "application/json", "application/x-ndjson", "application/problem+json"
BASIC: list[Schema] = [{"application": []}]
LINES: Schema = {
    "type": "string",
    "description": "A JSON object a line; gzip where Content-Encoding says so.",
    "examples": ['{"userSessionId": "1394_1008", "startTime": 1648785600123}\n'],
}


def extend_schema(
    operation_id: str,
    response: Any,
    *errors: int,
    rejection: Any = None,
    request: Any = None,
    **options: Any,
) -> Callable[[View], View]:
    """drf-spectacular's `extend_schema` with the words that most operations need.

    The docstring gives the summary, and behind an empty line the description. `response` is the
    body of 200, or bodies by status. `errors` are the statuses beyond those of every operation,
    `rejection` their body if it is not the view's usual one. A tuple as a `request` means any of
    these. A function names its `methods`. Of operations with the same id the first one counts, the
    others are its aliases.
    """
    responses = dict(response) if isinstance(response, dict) else {200: response}
    responses |= dict.fromkeys(errors) | ({"4XX": rejection} if rejection else {})

    def decorate(view: View) -> View:
        view.schema = ViewInspector  # type: ignore[attr-defined] # the default would load it all
        view.methods = options.get("methods", ())  # type: ignore[attr-defined]
        describe = spectacular_extend_schema(
            operation_id, request=request, responses=responses, **options
        )
        return describe(view)

    return decorate


class Text(serializers.CharField):
    """A text; `schema` says in the document what a later check knows of it."""

    schema: Schema = {}

    def __init__(self, schema: Schema | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.schema = schema or self.schema


class Problem(Body):
    """A rejection (RFC 9457)."""

    type = text("Always about:blank.")
    title = text("The code.")
    status = integer("The HTTP status.")
    detail = text("The field and the remedy.")
    details = text("The same, where Croct's clients look for it.", required=False)


class Rejection(Body):
    """An event of a batch that could not be read."""

    position = integer("Its place in the batch, from 0.", {"minimum": 0})
    reason = text("The code.")
    detail = text("The error.")


class RejectionCounts(Body):
    """The outcome of a batch."""

    rejected = integer("Events that could not be read and are kept with a reason.")
    rejections = Rejection(many=True, help_text="The first hundred of them.")


class BatchCounts(RejectionCounts):
    """The outcome of a batch."""

    stored = integer("New events.")
    duplicate = integer("Events that were stored before.")
