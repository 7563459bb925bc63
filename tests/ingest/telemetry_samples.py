"""Telemetry as senders write it: plain functions with overrides."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ingest.adapters import telemetry
from ingest.events import Batch, Call

CHANNEL = "ORG_001"
CONVERSATION = "c63b6faa-11a9-4259-b941-11cd2f8446c6"
DEVICE = "0b1f6f0e-5a55-4f7c-9a0e-2d8f6b7c1a10"
SESSION = "7b0f3a34-0c3b-4d0e-8f0a-9a1d6f5c2b11"
STARTED_MS = 1_648_785_600_000  # 2022-04-01T04:00:00Z
RECEIVED_AT = datetime(2022, 4, 2, 12, tzinfo=UTC)
PUBLISHED = (Path(__file__).parent.parent / "samples" / "telemetry.json").read_bytes()


def answer(number: int = 0, **overrides: Any) -> dict[str, Any]:
    """An ASSESS event, its second and its mid by number.

    `edata`, `item` and `context` are merged into the event's own; anything else replaces.
    """
    item = {
        "id": "65292cdc-0000-4000-8000-000000000002",
        "type": "mcq",
        "title": "Which class are you in?",
        "desc": "",
        "maxscore": 1.0,
        "params": [{"1": {"text": "1 Class 1"}}, {"2": {"text": "2 Class 2"}}],
        **overrides.pop("item", {}),
    }
    edata = {
        "item": item,
        "pass": "Yes",
        "score": 1,
        "resvalues": [{"2": {"text": "2 Class 2"}}],
        "duration": 12,
        **overrides.pop("edata", {}),
    }
    context = {
        "channel": CHANNEL,
        "env": "WhatsApp.gupshup",
        "sid": SESSION,
        "did": DEVICE,
        "cdata": [
            {"type": "ConversationOwner", "id": "95e4942d-0000-4000-8000-000000000001"},
            {"type": "Conversation", "id": CONVERSATION},
        ],
        "rollup": {"l1": "own", "l2": CONVERSATION, "l3": "question./data/a[1]", "l4": "false"},
        **overrides.pop("context", {}),
    }
    return {
        "eid": "ASSESS",
        "ets": STARTED_MS + number * 1000,
        "ver": "3.0",
        "mid": f"ASSESS:{number:032x}",
        "actor": {"id": DEVICE, "type": "User"},
        "context": context,
        "edata": edata,
        **overrides,
    }


def drop_fields(event: dict[str, Any], *path: str) -> dict[str, Any]:
    """Returns the event without one field."""
    inner = event
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return event


def encode_batch(*events: Any) -> bytes:
    """The body of a batch."""
    return json.dumps({"id": "ekstep.telemetry", "ver": "3.0", "events": events}).encode()


def parse_sample(body: bytes, content_type: str = "application/json") -> Batch:
    return telemetry.parse(body, Call(CHANNEL, RECEIVED_AT, content_type))


def batch(*events: Any) -> Batch:
    return parse_sample(encode_batch(*events))
