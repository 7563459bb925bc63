"""Makes the examples of the answers from their schemas. A body that is sent has its own example."""

from typing import Any

EPOCH_MS = 1648785600123
VALUES: dict[str, Any] = {  # by field
    "action": "job.submitted", "actor": "our warehouse", "address": "203.0.113.0/24",
    "channel": "ORG_001", "conversationId": "bot-1", "cron": "0 6 * * *",
    "dataset": "uci-response-exhaust", "datasetConfig": {"conversationId": "bot-1"},
    "detail": "cursor: was altered; use it exactly as it was given.", "deviceId": "d-1",
    "documentId": "ORG_001-1394_1008-1648785600123", "email": "asha@people.example",
    "erased": {"events": 12}, "err": "CLIENT_ERROR", "errmsg": "request.tag: must be named.",
    "format": "csv", "header": "Message ID", "key": "Ab3dE5fG", "kind": "text", "name": "warehouse",
    "nextTag": "daily-2022-03-31", "outcome": "done", "phase": "ended", "position": "742.1",
    "queuePosition": None, "requestId": "3C6C7C0A5B2E4F1D9A8B7C6D5E4F3A2B", "requestedBy": "asha",
    "requestedChannel": "ORG_001", "sha256": "9f86d081884c7d659a2feaa0c55ad015" * 2,
    "tag": "april:ORG_001", "timezone": "Asia/Kolkata", "title": "cursor", "userId": "u-1",
    "url": "https://warehouse.example/sessions", "ver": "1.0", "window": "yesterday",
}  # fmt: skip
FORMATS = {
    "date": "2022-04-01",
    "date-time": "2022-04-01T04:00:00.123+00:00",
    "int64": EPOCH_MS,
    "uri": "https://exhaust.example/dataset/v1/download/eyJmIjoxfQ:1nZ",
    "uuid": "017fe309-8a7b-5d2f-8c4e-0123456789ab",
}
TYPES: dict[str, Any] = {
    "boolean": True, "integer": 1, "null": None, "number": 0.5, "object": {}, "string": "",
}  # fmt: skip


def add_examples(paths: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Adds an example to each body of each operation."""
    for item in paths.values():
        for operation in item.values():
            if isinstance(operation, dict):
                for body in (operation.get("requestBody", {}), *operation["responses"].values()):
                    for content in body.get("content", {}).values():
                        content["example"] = make_example(content["schema"], schemas)


def make_example(schema: dict[str, Any], schemas: dict[str, Any], field: str = "") -> Any:
    """A value that the schema allows, without optional fields; `field` is its name."""
    if "$ref" in schema:
        return make_example(schemas[schema["$ref"].rpartition("/")[2]], schemas, field)
    for alternatives in ("allOf", "anyOf", "oneOf"):
        if alternatives in schema:
            return make_example(schema[alternatives][0], schemas, field)
    if "examples" in schema:
        return schema["examples"][0]
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("format") in FORMATS:
        return FORMATS[schema["format"]]
    kind = schema.get("type", "object")
    kind = kind if isinstance(kind, str) else next(name for name in kind if name != "null")
    if kind == "array":
        return [make_example(schema["items"], schemas, field)]
    if isinstance(schema.get("additionalProperties"), dict):
        return {"index": make_example(schema["additionalProperties"], schemas)}
    if "properties" in schema:
        return {
            name: make_example(property_, schemas, name)
            for name, property_ in schema["properties"].items()
            if name in schema.get("required", [])
        }
    value = VALUES.get(field, TYPES[kind])
    return value if value is None or isinstance(value, type(TYPES[kind])) else TYPES[kind]
