"""The sender's side of Elasticsearch's bulk protocol."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from exhaust.feed.documents import encode
from ingest.events import format_count

MAX_ANSWER_BYTES = 8 * 1024 * 1024
MAX_REASON_LENGTH = 500


class ItemResult(NamedTuple):
    """The result of one document."""

    status: int
    reason: str

    @property
    def is_indexed(self) -> bool:
        """Whether the document is in the index; 409 means that it was there before."""
        return 200 <= self.status < 300 or self.status == 409

    @property
    def is_retryable(self) -> bool:
        """Whether the document may be accepted later."""
        return self.status == 429 or self.status >= 500


def format_bulk_lines(index: str, doc_type: str, identifier: str, document: bytes) -> bytes:
    """Returns the action line and the source line of a document."""
    action: dict[str, Any] = {"_index": index}
    if doc_type:
        action["_type"] = doc_type
    action["_id"] = identifier
    return encode({"index": action}) + b"\n" + document + b"\n"


class _ItemStatus(msgspec.Struct):
    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    error: Any = None


class _BulkResponse(msgspec.Struct):
    items: list[dict[str, _ItemStatus]]


_decode_response = msgspec.json.Decoder(_BulkResponse).decode


def parse_item_results(body: bytes, documents: Sequence[Any]) -> list[ItemResult]:
    """Returns the result of each document that was sent, in their order.

    Raises `ValueError` for one that does not tell of all of them.
    """
    try:
        statuses = [next(iter(item.values())) for item in _decode_response(body).items]
    except (msgspec.MsgspecError, RecursionError, StopIteration):
        raise ValueError("The answer was no answer of Elasticsearch's bulk protocol.") from None
    if len(statuses) != len(documents):
        raise ValueError(
            f"The answer tells of {format_count(len(statuses), 'document')}, and we sent"
            f" {len(documents)}."
        )
    return [ItemResult(status.status, _format_reason(status.error)) for status in statuses]


def _format_reason(error: Any) -> str:
    parts = [error.get("type"), error.get("reason")] if isinstance(error, dict) else [error]
    reason = ": ".join(part for part in parts if isinstance(part, str) and part)
    return reason[:MAX_REASON_LENGTH].replace("\0", "�")  # PostgreSQL's text holds no NUL
