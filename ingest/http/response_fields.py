"""Bodies of responses: each field with its meaning and, if it is rendered, its value."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import Any

from rest_framework import serializers

Schema = dict[str, Any]
Getter = Callable[[Any], Any]
MAX_ID = {"maxLength": 255}


class Described(serializers.Field[Any, Any, Any, Any]):
    """A value of a body, in the words of JSON Schema. `get` reads it off the rendered object."""

    def __init__(self, schema: Schema, get: Getter | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.schema = schema
        self.get = get


class Body(serializers.Serializer[Any]):
    """A response body, written by `render` or only described; the tests hold responses to it."""

    is_extensible = False  # whether it has fields that are not described
    example: Any = None

    @classmethod
    def render(cls, instance: Any) -> dict[str, Any]:
        """Returns the body of an object, by attribute, `source` or `get` of each field.

        An optional field that is None is left out. REST framework's `data` copies each field first,
        which takes milliseconds.
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
