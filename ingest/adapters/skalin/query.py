"""Skalin's queries: parameters, a bulk that curl's `-G` moved there, and single hits."""

import json
import re
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from ingest.adapters import json_body
from ingest.events import RequestError

MAX_PARAMETERS = 100
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

# the start of a parameter that is JSON
_JSON_START = re.compile(rb"(?:^|(?<=&))(?:\{|%7[Bb])")


def split_query(query: bytes) -> tuple[bytes, bytes]:
    """Splits a bulk's raw query into the parameters and the JSON after them.

    curl's `-G` moves a body there, as in the published example. Its `&` end no parameters.
    """
    match = _JSON_START.search(query)
    return (query[: match.start()], query[match.start() :]) if match else (query, b"")


def parse_query(query: bytes) -> dict[str, str]:
    """Returns the parameters of a raw query; bytes that are no UTF-8 become surrogates."""
    try:
        pairs = parse_qsl(
            query.decode(errors="surrogateescape"),
            keep_blank_values=True,
            errors="surrogateescape",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError:
        raise RequestError(
            "too_many", f"The query holds more than {MAX_PARAMETERS} parameters."
        ) from None
    return dict(pairs)


def bulk_from_query(residue: bytes) -> bytes:
    """Returns the bulk body that was sent in the query, plain or percent-encoded.

    Raises `RequestError` for no JSON, or for an encoded text with a '+' inside a string, where it
    may be a plus or a blank. A line feed in its place is no JSON there, and is white space outside.
    """
    if _is_json(json_body.repair(residue)):
        return residue
    decoded = unquote_to_bytes(residue.replace(b"+", b"\n"))
    if _is_json(json_body.repair(decoded)):
        return decoded
    raise RequestError(
        "json_in_query",
        "The body is empty and the JSON is in the query, where it cannot be read for certain:"
        " drop -G, so that it becomes the body.",
    )


_ACTIONS = {"ui": "identities", "ev": "features"}
_RENAMED = {
    "customer_id": "customerId",
    "event_id": "eventId",
    "visitor_id": "visitorId",
    "visit_id": "visitId",
}


def bulk_from_hit(parameters: dict[str, str]) -> bytes:
    """Returns the bulk body of a single hit's query.

    Raises `RequestError` for an action that is neither `ui` nor `ev`.
    """
    kind = _ACTIONS.get(parameters.get("action", ""))
    if kind is None:
        raise RequestError("action", "action must be 'ui' (an identity) or 'ev' (an event).")
    row = {
        _RENAMED.get(name, name): _quote(value)
        for name, value in parameters.items()
        if name not in {"rec", "action", "client_id", "clientId"}
    }
    if "identity" in parameters:
        row["identity"] = _json_or_quoted(parameters["identity"])
    if kind == "features" and "event" in parameters:
        row["event"] = _json_or_quoted(parameters["event"])
        try:
            event = _decode_members(json_body.repair(row["event"]))
        except _UNREADABLE:
            event = {}
        if "name" in event:
            del row["event"]
            row["name"] = bytes(event.pop("name"))
            if bytes(event.get("event_name", b"")) == b'"feature"':
                del event["event_name"]
            if event:
                row["event"] = _build_object({name: bytes(raw) for name, raw in event.items()})
    return _build_object({kind: b"[%b]" % _build_object(row)})


def _build_object(members: dict[str, bytes]) -> bytes:
    return b"{%b}" % b",".join(b"%b:%b" % (_quote(name), raw) for name, raw in members.items())


def _quote(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode(errors="surrogateescape")


def _json_or_quoted(said: str) -> bytes:
    raw = said.encode(errors="surrogateescape")
    return raw if _is_json(json_body.repair(raw)) else _quote(said)


def _is_json(raw: bytes) -> bool:
    try:
        _decode_raw(raw)
    except _UNREADABLE:
        return False
    return True
