"""Reads JSON bodies of the APIs by the rules of ingest: bounded, repaired, numbers in range.

None of them holds events, so they are smaller than those of sources.
"""

from collections.abc import Mapping
from typing import Any

from rest_framework.parsers import BaseParser

from ingest.adapters import json_body
from ingest.http import request_body

MAX_BYTES = 1024 * 1024


class JSONParser(BaseParser):
    """DRF's parser for `application/json`. Raises `RequestError`."""

    media_type = "application/json"

    def parse(
        self,
        stream: Any,
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        request = (parser_context or {})["request"]
        value, _, _ = json_body.parse_value(request_body.read_body(request._request, MAX_BYTES))
        return value
