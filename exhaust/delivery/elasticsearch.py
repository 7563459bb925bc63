"""Elasticsearch's bulk protocol, as far as a sender speaks it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from exhaust.feed.documents import encode

ANSWER_BYTES = 8 * 1024 * 1024
MAX_REASON = 500


class Item(NamedTuple):
    """What became of one document."""

    status: int
    reason: str

    @property
    def taken(self) -> bool:
        """409 says that it is there already."""
        return 200 <= self.status < 300 or self.status == 409

    @property
    def passing(self) -> bool:
        """Sent again later, it may be taken."""
        return self.status == 429 or self.status >= 500


def lines(index: str, doc_type: str, identifier: str, document: bytes) -> bytes:
    """The action line and the source line of a document."""
    action: dict[str, Any] = {"_index": index}
    if doc_type:
        action["_type"] = doc_type
    action["_id"] = identifier
    return encode({"index": action}) + b"\n" + document + b"\n"


class _Said(msgspec.Struct):
    status: int
    error: Any = None


class _Answer(msgspec.Struct):
    items: list[dict[str, _Said]]


_answer = msgspec.json.Decoder(_Answer).decode


def items(body: bytes, sent: Sequence[Any]) -> list[Item]:
    """What an answer says of each document that was sent, in their order.

    Raises `ValueError` for one that does not tell of all of them.
    """
    try:
        said = [next(iter(item.values())) for item in _answer(body).items]
    except (msgspec.MsgspecError, StopIteration):
        raise ValueError("The answer was no answer of Elasticsearch's bulk protocol.") from None
    if len(said) != len(sent):
        raise ValueError(f"The answer tells of {len(said)} documents; {len(sent)} were sent.")
    return [Item(each.status, _reason(each.error)) for each in said]


def _reason(error: Any) -> str:
    if isinstance(error, dict):
        error = ": ".join(str(error[key]) for key in ("type", "reason") if error.get(key))
    return str(error or "")[:MAX_REASON]
