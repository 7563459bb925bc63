"""What views say of themselves in the OpenAPI document, which `exhaust.openapi` makes of it.

That loads late: drf-spectacular would add 70 ms to each start, its decorator adds 3.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

from drf_spectacular.utils import extend_schema as spectacular_extend_schema
from rest_framework import serializers
from rest_framework.schemas.inspectors import ViewInspector

Schema = dict[str, Any]
Getter = Callable[[Any], Any]
View = TypeVar("View", bound=Callable[..., Any])
JSON, NDJSON, PROBLEM = "application/json", "application/x-ndjson", "application/problem+json"
BASIC: list[Schema] = [{"application": []}]
MAX_ID = {"maxLength": 255}
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


class Described(serializers.Field[Any, Any, Any, Any]):
    """A value of a body, in the words of JSON Schema. `get` reads it off the rendered object."""

    def __init__(self, schema: Schema, get: Getter | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.schema = schema
        self.get = get


class Body(serializers.Serializer[Any]):
    """The body of a response: written by `render`, or only described and held to it by the tests."""

    is_extensible = False  # whether it has fields that are not described
    example: Any = None

    @classmethod
    def render(cls, instance: Any) -> dict[str, Any]:
        """Returns the body of an object, by attribute, `source` or `get` of each field.

        An optional field that is None is left out. It takes a tenth of `to_representation`.
        """
        return {
            name: value
            for name, get, is_required in _list_getters(cls)
            if (value := get(instance)) is not None or is_required
        }


@cache
def _list_getters(body: type[Body]) -> list[tuple[str, Getter, bool]]:
    fields = body._declared_fields.items()
    return [(name, _make_getter(name, field), field.required) for name, field in fields]


def _make_getter(name: str, field: Any) -> Getter:
    source = field.source or name
    get: Getter = getattr(field, "get", None) or (
        (lambda instance: instance) if source == "*" else attrgetter(source)
    )
    if isinstance(field, serializers.ListSerializer):
        render_each = field.child.render  # type: ignore[union-attr]
        return lambda instance: [render_each(each) for each in get(instance)]
    if isinstance(field, Body):
        render = field.render
        return lambda instance: None if (value := get(instance)) is None else render(value)
    if getattr(field, "is_time", False):
        return lambda instance: _to_epoch_ms(get(instance))
    return get


def _to_epoch_ms(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1000)


# Fields of a body, one a line: the stubs know better of names like `errors`, hence Any


def text(description: str, schema: Schema | None = None, **options: Any) -> Any:
    return Described({"type": "string", **(schema or {})}, help_text=description, **options)


def choice(description: str, values: Sequence[str], **options: Any) -> Any:
    return text(description, {"enum": list(values)}, **options)


def integer(description: str, schema: Schema | None = None, **options: Any) -> Any:
    return Described({"type": "integer", **(schema or {})}, help_text=description, **options)


def epoch_ms(description: str, **options: Any) -> Any:
    field = integer(f"{description}, in milliseconds since 1970.", {"format": "int64"}, **options)
    field.is_time = True
    return field


def number(description: str, **options: Any) -> Any:
    return Described({"type": "number"}, help_text=description, **options)


def flag(description: str, **options: Any) -> Any:
    return Described({"type": "boolean"}, help_text=description, **options)


def anything(description: str, **options: Any) -> Any:
    return Described({}, help_text=description, **options)


def free_object(description: str, **options: Any) -> Any:
    schema = {"type": "object", "additionalProperties": True}
    return Described(schema, help_text=description, **options)


def empty_object() -> Any:
    return Described({"type": "object", "properties": {}}, help_text="Empty.")


def list_of(description: str, child: Any, get: Getter | None = None, **options: Any) -> Any:
    return nested(serializers.ListField(child=child, help_text=description, **options), get)


def nested(field: Any, get: Getter | None) -> Any:
    field.get = get
    return field


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
