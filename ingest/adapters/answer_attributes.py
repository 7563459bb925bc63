"""Answers in attributes: the same names for every source whose events carry named values.

`conversation_id` alone puts an event into a conversation; with `question_id` it is an answer.
Beside them: `question_type`, `question_title`, `question_description`, `question_options`,
`response`, `score`, `max_score`, `duration`, `x_path`, `eof`, `message_id`.
"""

from typing import Any

import msgspec

from ingest.adapters import json_body
from ingest.adapters.fields import identifier
from ingest.events import RequestError

_ITEM = {
    "question_type": "type",
    "question_title": "title",
    "question_description": "desc",
    "max_score": "maxscore",
}
_ROLLUP = {"x_path": "l3", "eof": "l4"}
NAMES = frozenset(
    {
        *_ITEM, *_ROLLUP, "conversation_id", "question_id", "question_options", "response", "score",
        "duration", "message_id",
    }
)  # fmt: skip
_encode = msgspec.json.encode


def read_answer(
    attributes: dict[str, Any], message_id: str, where: str = "attributes."
) -> tuple[str, dict[str, Any]]:
    """Returns the conversation's id, "" for none, and the fields of an answer, if it is one.

    Raises `RequestError` for an id that is no text.
    """
    if "conversation_id" not in attributes:
        return "", {}
    conversation = identifier(attributes, "conversation_id", where)
    question = identifier(attributes, "question_id", where)
    if not conversation or not question:
        return conversation, {}
    item: dict[str, Any] = {"id": question, **_pick_renamed(attributes, _ITEM)}
    edata: dict[str, Any] = {"item": item}
    if (options := attributes.get("question_options")) is not None:
        item["params"] = _parse_json_text(options)
    if (response := attributes.get("response")) is not None:
        edata["resvalues"] = _response_list(_parse_json_text(response))
    edata |= _pick_renamed(attributes, {"score": "score", "duration": "duration"})
    return conversation, {
        "mid": identifier(attributes, "message_id", where) or message_id,
        "edata": edata,
        "context": {"rollup": _pick_renamed(attributes, _ROLLUP)},
    }


def add_answer(payload: bytes, event: dict[str, Any], fields: dict[str, Any]) -> bytes:
    """Returns the payload of `event` with the answer's fields behind its own.

    Of two fields with one name the later counts, on both databases; what the event itself has
    under `edata` and `context` is kept beside the answer's.
    """
    for name, value in fields.items():
        own = event.get(name)
        if isinstance(own, dict) and isinstance(value, dict):
            fields = {**fields, name: own | value}
    return payload[:-1] + b"," + _encode(fields)[1:]


def _pick_renamed(attributes: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {
        stored_name: attributes[sent_name]
        for sent_name, stored_name in names.items()
        if attributes.get(sent_name) is not None
    }


def _parse_json_text(value: Any) -> Any:
    """Returns the list or object in a JSON text, since SDKs send text only; else the value."""
    if isinstance(value, str) and value.lstrip()[:1] in {"[", "{"}:
        try:
            return json_body.parse_value(value.encode())[0]
        except RequestError:
            return value
    return value


def _response_list(response: Any) -> list[Any]:
    """Returns chosen options as sent, and free text as telemetry writes it."""
    if isinstance(response, list):
        return response
    return [response if isinstance(response, dict) else {"ans1": response}]
