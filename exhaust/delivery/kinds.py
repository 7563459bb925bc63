"""The kinds of destination. To add one, copy the nearest and list it in `KINDS`."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from exhaust.delivery import elasticsearch, http_client
from exhaust.delivery.elasticsearch import ItemResult
from exhaust.models import Destination

_INDEX_PATTERN = re.compile(r"(?![-_+.])[^A-Z\\/*?\"<>| ,#:\x00-\x1f]{1,255}")


@dataclass(frozen=True)
class DestinationKind:
    """The protocol of a receiver: how it is addressed, framed and understood.

    `parse_items` returns a result for each document of a 2xx answer, or raises `ValueError`;
    without it, a 2xx answer accepts all documents.
    """

    name: str
    title: str
    default_method: str
    frame_document: Callable[[Destination, str, bytes], bytes]
    find_errors: Callable[[Destination, str], dict[str, str]] = lambda destination, path: {}
    parse_items: Callable[[bytes, Sequence[Any]], list[ItemResult]] | None = None
    max_answer_bytes: int = http_client.MAX_ANSWER_BYTES


def _frame_line(destination: Destination, identifier: str, document: bytes) -> bytes:
    return document + b"\n"


def _frame_bulk_lines(destination: Destination, identifier: str, document: bytes) -> bytes:
    return elasticsearch.format_bulk_lines(
        destination.index, destination.doc_type, identifier, document
    )


def _find_elasticsearch_errors(destination: Destination, path: str) -> dict[str, str]:
    errors: dict[str, str] = {}
    if path and not path.endswith("_bulk"):
        errors["url"] = "Elasticsearch's address ends in _bulk."
    if not _INDEX_PATTERN.fullmatch(destination.index):
        errors["index"] = "Name the index, as Elasticsearch allows it: in small letters."
    return errors


KINDS = {
    kind.name: kind
    for kind in (
        DestinationKind(Destination.Kind.WEBHOOK.value, "Webhook", "PUT", _frame_line),
        DestinationKind(
            Destination.Kind.ELASTICSEARCH.value,
            "Elasticsearch (bulk API)",
            "POST",
            _frame_bulk_lines,
            _find_elasticsearch_errors,
            elasticsearch.parse_item_results,
            elasticsearch.MAX_ANSWER_BYTES,
        ),
    )
}


def kind_of(destination: Destination) -> DestinationKind:
    return KINDS[destination.kind]
