"""The OpenAPI document, put together once a process."""

import re
from functools import cache
from typing import Any

from drf_spectacular.drainage import set_override
from drf_spectacular.extensions import OpenApiSerializerFieldExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ComponentRegistry, build_root_object, normalize_result_object
from rest_framework.serializers import Serializer
from rest_framework.views import APIView

from exhaust.api import destinations, schedules, validation
from exhaust.datasets import DATASETS
from exhaust.files.formats import FORMATS
from exhaust.models import Destination
from exhaust.openapi.examples import EXAMPLES, enveloped
from exhaust.openapi.json_schema import Schema, ref, text, whole
from exhaust.openapi.operations import JSON, PROBLEM, REFUSED, TAGS, Operation, operations
from exhaust.openapi.schemas import SCHEMAS

# "Put" and "Words" say enough where they stand, not here
NAMES: dict[type[Serializer[Any]], str] = {
    validation.SubmitBody: "Submit",
    validation.SubmitRequest: "SubmitWords",
    validation.SearchBody: "SearchJobs",
    validation.SearchRequest: "SearchWords",
    schedules.ScheduleBody: "SaveSchedule",
    schedules.ScheduleFields: "ScheduleWords",
    destinations.DestinationBody: "SaveDestination",
    destinations.DestinationFields: "DestinationFields",
    destinations.RewindBody: "Rewind",
    destinations.RewindRequest: "RewindWords",
}
# what a request's word may be where a function, not its field, judges it
_FORMAT = {"enum": list(FORMATS)}
_DATASET = {"enum": list(DATASETS)}
JUDGED: dict[str, dict[str, Schema]] = {
    "SubmitWordsRequest": {
        "dataset": _DATASET,
        "outputFormat": _FORMAT,
        "output_format": _FORMAT,
        "callbackUrl": {"format": "uri", "maxLength": 2000},
        "encryptionKey": {"minLength": 12, "maxLength": 128},
    },
    "ScheduleWordsRequest": {"dataset": _DATASET, "outputFormat": _FORMAT},
    "DestinationFieldsRequest": {
        "kind": {"enum": Destination.Kind.values},
        "resource": {"enum": Destination.Resource.values},
        "method": {"enum": Destination.Method.values},
        "contentType": {"enum": Destination.ContentType.values},
        "url": {"format": "uri", "maxLength": 2000},
    },
}


class Day(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    target_class = "exhaust.api.validation.DayField"

    def map_serializer_field(self, auto_schema: Any, direction: str) -> Schema:
        return {"type": "string", "format": "date"}


class Several(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    target_class = "exhaust.api.validation.OneOrMany"

    def map_serializer_field(self, auto_schema: Any, direction: str) -> Schema:
        one = auto_schema._map_serializer_field(self.target.child, direction)
        return {"anyOf": [one, {"type": "array", "items": one}]}


class Reader(AutoSchema):
    """drf-spectacular's reading of serializers."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = ComponentRegistry()
        self.method = self.path = ""
        self.view = APIView(request=None)  # it wants to know one

    def body(self, serializer: type[Serializer[Any]]) -> tuple[str, Schema]:
        """Its name among the components, and the reference to it."""
        component = self.resolve_serializer(serializer, "request")
        return component.name, component.ref

    def query(self, serializer: type[Serializer[Any]]) -> list[Schema]:
        read = self._map_serializer(serializer(), "request")  # type: ignore[no-untyped-call]
        return [
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": said.pop("description", ""),
                "schema": said,
            }
            for name, said in read["properties"].items()
        ]


@cache
def document() -> dict[str, Any]:
    for serializer, name in NAMES.items():
        set_override(serializer, "component_name", name)
    reader = Reader()
    paths: dict[str, Any] = {}
    for operation in operations():
        item = paths.setdefault(operation.path, {})
        if operation.path.startswith(("/dataset/", "/export/")):
            item["servers"] = [{"url": "/"}, {"url": "/api", "description": "The same."}]
        item[operation.method] = _told(operation, reader)
    if "/export/events" in paths:  # a door too, and as one it is not under /api
        paths["/export/events"].pop("servers", None)
    components = reader.registry.build({"schemas": SCHEMAS, **_COMPONENTS})
    for name, fields in JUDGED.items():
        for field, said in fields.items():
            components["schemas"][name]["properties"][field] |= said
    root = build_root_object(paths, components, {}, None)
    root["tags"] = [{"name": name, "description": said} for name, said in TAGS.items()]
    root["servers"] = [{"url": "/"}]
    made: dict[str, Any] = normalize_result_object(root)  # type: ignore[no-untyped-call]
    return made


_COMPONENTS = {
    "securitySchemes": {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A key."},
        "metrics": {"type": "http", "scheme": "bearer", "description": "EXHAUST_METRICS_TOKEN."},
        "key": {
            "type": "apiKey",
            "in": "header",
            "name": "X-API-Key",
            "description": "A key.",
        },
        "application": {
            "type": "http",
            "scheme": "basic",
            "description": "An application's id and password.",
        },
    },
    "parameters": {
        "Channel": {
            "name": "X-Channel-ID",
            "in": "header",
            "required": False,
            "description": "Which channel; a key that has only one needs none.",
            "schema": {"type": "string"},
            "example": "ORG_001",
        }
    },
}


def _told(operation: Operation, reader: Reader) -> dict[str, Any]:
    said: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "security": [{scheme: []} for scheme in operation.auth],
        "responses": {str(status): answer for status, answer in _answers(operation).items()},
    }
    if operation.says:
        said["description"] = operation.says
    parameters: list[Schema] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": operation.path_says,
            "schema": {"type": "string", "minLength": 1},
        }
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    if isinstance(operation.query, tuple):
        parameters += operation.query
    elif operation.query is not None:
        parameters += reader.query(operation.query)
    if operation.channel:
        parameters.append({"$ref": "#/components/parameters/Channel"})
    if parameters:
        said["parameters"] = parameters
    if sent := _sent(operation, reader):
        said["requestBody"] = {"required": True, "content": sent}
    return said


def _sent(operation: Operation, reader: Reader) -> dict[str, Any]:
    sent = operation.sent
    if isinstance(sent, dict):
        return {
            media: {"schema": schema, "example": EXAMPLES[example]}
            for media, (schema, example) in sent.items()
        }
    if sent is None:
        return {}
    name, schema = reader.body(sent)
    return {JSON: {"schema": schema, "example": EXAMPLES[name]}}


def _answers(operation: Operation) -> dict[Any, Any]:
    answers: dict[Any, Any] = {200: _success(operation)}
    if operation.error:
        refused = {400, 429, *operation.refused} | ({401, 403} if operation.auth else {403})
        for status in sorted(refused):
            answers[status] = _refusal(operation.error, REFUSED[status])
        answers[429]["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": whole("Seconds.")}
        }
        answers["4XX"] = _refusal(operation.error, "Any other refusal.")
        ours = "EnvelopeError" if operation.error == "EnvelopeError" else "Problem"
        answers["5XX"] = _refusal(ours, "We failed; the cause is in our log.")
    answers.update(operation.also)
    return answers


def _refusal(shape: str, why: str) -> Schema:
    media = PROBLEM if shape == "Problem" else JSON
    schema = {"schema": ref(shape), "example": EXAMPLES[shape]}
    return {"description": why, "content": {media: schema}}


def _success(operation: Operation) -> Schema:
    name = operation.answer
    said: Schema = {"description": "As asked."}
    if operation.headers:
        said["headers"] = {
            header: {"description": schema["description"], "schema": schema}
            for header, schema in operation.headers.items()
        }
    if operation.links:
        said["links"] = operation.links
    if operation.envelope:
        schema, example = ref(f"{name}Answer"), enveloped(operation.envelope, name)
    elif name in SCHEMAS:
        schema, example = ref(name), EXAMPLES[name]
    elif name:
        schema, example = text("All of it."), EXAMPLES[name]
    else:
        return said
    said["content"] = {operation.media: {"schema": schema, "example": example}}
    return said
