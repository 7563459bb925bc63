"""The OpenAPI document: drf-spectacular reads the views, this adds what all of them share."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver
from drf_spectacular.extensions import OpenApiSerializerFieldExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import (
    ResolvedComponent,
    build_root_object,
    get_doc,
    normalize_result_object,
)
from drf_spectacular.utils import OpenApiResponse
from rest_framework.views import APIView

from exhaust.openapi.examples import add_examples
from ingest.http.response_fields import Schema
from ingest.http.schema import PROBLEM, Problem

PAGES = ("/account/", "/admin/", "/console/")
KEY: list[Schema] = [{"bearer": []}, {"key": []}]  # alternatives
ALSO_UNDER_API = [{"url": "/"}, {"url": "/api", "description": "The same."}]
TAGS = {
    "Send events": "Each kind of sender has addresses of its own, in its own protocol.",
    "Request datasets": "Request exports, follow them, download their files and schedule them.",
    "Pull": "Events, sessions and users page by page; Croct's export clients work here.",
    "Push": "Destinations that receive sessions and events as they arrive, or files.",
    "People's rights": "Send names, phones and consents, and erase a person.",
    "Operate": "Audit log, probes, metrics and this document.",
}
STATUSES = {
    "200": "Success.",
    "503": "Overload, or the database cannot be used. Send it again after `Retry-After` seconds.",
    "202": "Not finished yet: send it again.",
    "304": "Nothing has changed.",
    "400": "The request cannot be read; the message names the field and the remedy.",
    "401": "No key, or one that is unknown, expired or revoked.",
    "403": "The key lacks the scope or the channel.",
    "404": "Not found. Another channel's looks the same.",
    "409": "Not possible in the present state.",
    "410": "Too old: it is no longer kept.",
    "429": "Too many requests. Send it again after `Retry-After` seconds.",
    "4XX": "Any other rejection.",
    "5XX": "An error of the service. Its log has the cause.",
}
PATH_PARAMETERS = {
    "tag": "The tag, without the channel.",
    "name": "The name within the channel.",
    "token": "The permission in a download link.",
    "identifier": "The id.",
    "index": "The index of lines that name none.",
}
RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
SAME_JOB = {"tag": "$request.body#/request/tag", "requestId": "$response.body#/result/requestId"}
LINKS = {
    "submitJob": {verb: (f"{verb}Job", SAME_JOB) for verb in ("read", "cancel", "retry")},
    **{
        name: {"next": (name, {"cursor": "$response.body#/nextCursor"})}
        for name in ("exportEvents", "exportSessions", "exportUsers")
    },
}
COMPONENTS = {
    "securitySchemes": {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A key."},
        "metrics": {"type": "http", "scheme": "bearer", "description": "EXHAUST_METRICS_TOKEN."},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A key."},
        "application": {
            "type": "http",
            "scheme": "basic",
            "description": "The id and the password of an application.",
        },
    },
    "parameters": {
        "Channel": {
            "name": "X-Channel-ID",
            "in": "header",
            "description": "The channel. A key of one channel needs none.",
            "schema": {"type": "string"},
            "example": "ORG_001",
        }
    },
}


class ApiSchema(AutoSchema):
    """Describes one operation; its docstring gives the summary and the description."""

    def get_summary(self) -> str:
        return " ".join(self._documented[0].split()).removesuffix(".")

    def get_description(self) -> str:  # type: ignore[override]
        return self._documented[2]

    @property
    def _documented(self) -> tuple[str, str, str]:
        return get_doc(getattr(self.view, self.method.lower())).partition("\n\n")

    def get_tags(self) -> list[str]:
        if not type(self.view).__module__.startswith("ingest."):
            return [getattr(self.view, "openapi_tag", "Operate")]
        return ["People's rights" if "participants" in self.path else "Send events"]

    def get_auth(self) -> list[Schema]:
        return KEY

    def _resolve_path_parameters(self, variables: list[str]) -> list[Schema]:
        return [
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": PATH_PARAMETERS[name],
                "schema": {"type": "string", "minLength": 1},
            }
            for name in variables
        ]

    def _get_parameters(self) -> list[Schema]:
        parameters: list[Schema] = super()._get_parameters()
        if self.get_auth() == KEY:
            parameters.append({"$ref": "#/components/parameters/Channel"})
        return parameters

    def _get_response_bodies(self, direction: str = "response") -> Schema:
        """The answers that the view names, and the rejections that every operation has."""
        named = self.get_response_serializers()
        answers: dict[tuple[str, ...], Any] = {
            (str(key[0]), *key[1:]) if isinstance(key, tuple) else (str(key),): answer
            for key, answer in (named if isinstance(named, dict) else {200: named}).items()
        }
        own_error = getattr(self.view, "error_body", Problem)
        if ("304",) in answers:
            answers["304",] = OpenApiResponse(None, STATUSES["304"])
        rejection = answers.pop(("4XX",), own_error)
        if rejection is not None:
            usual = {"400", "403", "429", "4XX"} | ({"401"} if self.get_auth() else set())
            usual |= {key[0] for key, answer in answers.items() if answer is None} - {"200"}
            answers |= {(status,): rejection for status in sorted(usual)}
            answers["5XX",] = own_error
            if rejection is not own_error:  # a source says it in a few fixed words
                answers["503",] = OpenApiResponse({"type": "object"}, STATUSES["503"])
        bodies: dict[str, Any] = {}
        for (status, *media), answer in answers.items():
            body = self._describe_answer(status, tuple(media), answer)
            content = bodies.setdefault(status, body).get("content", {})
            content.update(body.get("content", {}))
        if rejection is not None:
            bodies["429"]["headers"] = RETRY_AFTER
        return bodies

    def _describe_answer(self, status: str, media: tuple[str, ...], answer: Any) -> Schema:
        media = (PROBLEM,) if answer is Problem else media
        if status < "3" and hasattr(self.view, "error_body") and isinstance(answer, type):
            answer = self._wrap_in_envelope(answer)
        if not isinstance(answer, OpenApiResponse):
            answer = OpenApiResponse(answer, STATUSES[status])
        body: Schema = self._get_response_for_code(answer, status, media or None)
        return body

    def _wrap_in_envelope(self, answer: Any) -> Schema:
        result = self.resolve_serializer(answer, "response")
        name = f"{result.name}Answer"
        error = self.resolve_serializer(type(self.view).error_body, "response").schema  # type: ignore[attr-defined]
        schema = {
            **error,
            "description": "A result, in the envelope of every answer.",
            "properties": {
                **error["properties"],
                "responseCode": {"type": "string", "description": "OK.", "enum": ["OK"]},
                "result": result.ref,
            },
        }
        component = ResolvedComponent(name, ResolvedComponent.SCHEMA, schema, object=name)
        self.registry.register_on_missing(component)
        return dict(component.ref)

    def _get_request_for_media_type(
        self, serializer: Any, direction: str = "request"
    ) -> tuple[Schema | None, bool]:
        if isinstance(serializer, tuple):  # any of these
            describe = super()._get_request_for_media_type
            return {"anyOf": [describe(option, direction)[0] for option in serializer]}, True
        schema, _ = super()._get_request_for_media_type(serializer, direction)
        return schema, True

    def _map_basic_serializer(self, serializer: Any, direction: str) -> Schema:
        schema: Schema = super()._map_basic_serializer(serializer, direction)
        if getattr(serializer, "is_extensible", False):
            schema["additionalProperties"] = True
        if example := getattr(serializer, "example", None):
            schema["examples"] = [example]
        return schema


class TextSchema(OpenApiSerializerFieldExtension):
    target_class = "ingest.http.schema.Text"
    match_subclasses = True

    def map_serializer_field(self, auto_schema: Any, direction: str) -> Schema:
        return {"type": "string", **self.target.schema}


class DescribedSchema(OpenApiSerializerFieldExtension):
    target_class = "ingest.http.response_fields.Described"

    def map_serializer_field(self, auto_schema: Any, direction: str) -> Schema:
        return dict(self.target.schema)


class OneOrManySchema(OpenApiSerializerFieldExtension):
    target_class = "exhaust.api.list_fields.OneOrMany"

    def map_serializer_field(self, auto_schema: Any, direction: str) -> Schema:
        item = auto_schema._map_serializer_field(self.target.child, direction)
        return {"anyOf": [item, {"type": "array", "items": item}]}


def list_endpoints(
    patterns: Sequence[URLPattern | URLResolver], prefix: str = "/"
) -> Iterator[tuple[str, str, str, Any]]:
    """(path, regular expression, method, view) of each operation."""
    for pattern in patterns:
        path = prefix + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(pattern.pattern))
        if path.startswith(PAGES) or path == "/api/":
            continue
        if isinstance(pattern, URLResolver):
            yield from list_endpoints(pattern.url_patterns, path)
        else:
            for method, view in list_methods(pattern.callback):
                yield path, "", method, view


def list_methods(view: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The methods of an address with their views, as views of REST framework."""
    if hasattr(view, "views"):  # one address for several views
        for method, shared_view in view.views.items():
            yield from (pair for pair in list_methods(shared_view) if pair[0] == method)
    elif hasattr(view, "cls"):
        methods = view.cls(**view.initkwargs).allowed_methods
        yield from ((method, view) for method in methods if method != "OPTIONS")
    else:
        handlers = {method.lower(): staticmethod(view) for method in view.methods}
        cls = type(view.__name__, (APIView,), {"__module__": view.__module__, **handlers})
        yield from ((method, cls.as_view()) for method in view.methods)  # type: ignore[attr-defined]


class Generator(SchemaGenerator):
    def _initialise_endpoints(self) -> None:
        self.endpoints: Any = list(list_endpoints(get_resolver().url_patterns))


@cache
def document() -> dict[str, Any]:
    generator = Generator()
    paths = generator.parse(None, True)
    name_aliases(paths)
    for path, item in paths.items():
        if path.startswith(("/dataset/", "/export/")) and path != "/export/events":
            item["servers"] = ALSO_UNDER_API
    components = generator.registry.build(COMPONENTS)
    add_examples(paths, components["schemas"])
    root = build_root_object(paths, components, {}, None)
    root["tags"] = [{"name": name, "description": meaning} for name, meaning in TAGS.items()]
    root["servers"] = [{"url": "/"}]
    return dict(normalize_result_object(root))


def name_aliases(paths: dict[str, Any]) -> None:
    """The second operation of a view is an alias of the first, under a name of its own."""
    first: dict[str, str] = {}
    for path, item in paths.items():
        for method, operation in item.items():
            name = operation["operationId"]
            if name not in first:
                first[name] = f"{method.upper()} {path}"
                if name in LINKS:
                    operation["responses"]["200"]["links"] = {
                        link: {"operationId": target, "parameters": parameters}
                        for link, (target, parameters) in LINKS[name].items()
                    }
                continue
            parts = [word.strip("_{}").title() for word in path.split("/") if word]
            operation["operationId"] = f"{name}By{method.title()}{''.join(parts)}"
            operation["summary"] = f"Alias of {first[name]}"
