"""JSON Schema in few words: each with its description."""

from typing import Any

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def whole(description: str, **more: Any) -> Schema:
    return {"type": "integer", "description": description, **more}


def moment(description: str) -> Schema:
    return whole(f"{description}, in milliseconds since 1970.", format="int64")


def number(description: str) -> Schema:
    return {"type": "number", "description": description}


def flag(description: str) -> Schema:
    return {"type": "boolean", "description": description}


def anything(description: str) -> Schema:
    return {"description": description}


def listed(description: str, items: Schema, **more: Any) -> Schema:
    return {"type": "array", "description": description, "items": items, **more}


def maybe(schema: Schema) -> Schema:
    """The same, or null."""
    if "$ref" in schema:
        return {"oneOf": [schema, {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"]}


def shape(description: str, optional: tuple[str, ...] = (), /, **fields: Schema) -> Schema:
    """An object."""
    required = [name for name in fields if name not in optional]
    made: Schema = {"type": "object", "description": description, "properties": fields}
    if required:
        made["required"] = required
    return made


def extensible(description: str, optional: tuple[str, ...] = (), /, **fields: Schema) -> Schema:
    """An object whose fields are not all told."""
    return {**shape(description, optional, **fields), "additionalProperties": True}


def free(description: str) -> Schema:
    return {"type": "object", "description": description, "additionalProperties": True}
