"""The views of the dataset API share these: the envelope, the channel, names, scopes."""

from collections.abc import Callable, Mapping
from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from exhaust.api import envelope, responses
from exhaust.datasets import DATASETS
from exhaust.datasets.own import OWN_SCOPES
from exhaust.datasets.participants import PARTICIPANTS
from ingest.auth import keys
from ingest.auth.keys import Caller
from ingest.http import request_body


def required_scope(dataset: str, own_scope: str = "") -> str:
    """Returns the scope that a key needs for a job; `own_scope` is empty for a built-in dataset."""
    return own_scope or (DATASETS[dataset].scope if dataset in DATASETS else PARTICIPANTS.scope)


class DatasetView(APIView):
    """Answers and rejects in the envelope."""

    operation: str
    openapi_tag = "Request datasets"
    error_body = responses.EnvelopeError

    def get_exception_handler(self) -> Callable[..., Any]:
        return envelope.build_error

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        request_body.require_length(request._request)

    def resolve_channel(self, request: Request) -> tuple[int, str]:
        caller = keys.get_caller(request)
        return caller.resolve_channel(request.headers.get("X-Channel-ID"))


class NamedView(DatasetView):
    """One object of a channel by its name: `/dataset/v1/{operation}/{name}`."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        verbs = {"PUT": "save", "GET": "read", "DELETE": "delete"}
        if "." not in self.operation and request.method in verbs:
            self.operation = f"{self.operation}.{verbs[request.method]}"
        super().initial(request, *args, **kwargs)

    def fetch_object(self, request: Request, name: str) -> Any:
        """Raises `NotFound`, also for one of another channel."""
        raise NotImplementedError

    def present(self, instance: Any) -> dict[str, Any]:
        raise NotImplementedError

    def respond(self, request: Request, name: str) -> Response:
        return envelope.build_success(
            self.operation, self.present(self.fetch_object(request, name))
        )

    @staticmethod
    def raise_first_fault(faults: Mapping[str, str], wire_names: Mapping[str, str]) -> None:
        """Raises `ValidationError` for the first fault, under its name in the API."""
        for field, remedy in faults.items():
            field_path = f"request.{wire_names[field]}" if field in wire_names else field
            raise serializers.ValidationError({field_path: remedy})


def list_readable(caller: Caller) -> list[str]:
    """Returns the built-in datasets whose jobs a key may see, and the scopes of own ones."""
    names = [name for name in DATASETS if required_scope(name) in caller.scopes]
    return [*names, *(scope for scope in OWN_SCOPES if scope in caller.scopes)]
