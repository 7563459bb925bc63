"""Answers on which tables, spreadsheets and databases like to break, a second between them."""

import json
from datetime import timedelta
from typing import Any

from exhaust.datasets.selection import Selection
from ingest.adapters import telemetry
from ingest.events import Batch, Call, Event, event_identity
from ingest.models import Conversation
from ingest.store import batches
from tests.conftest import make_channel
from tests.ingest.telemetry_samples import CHANNEL, CONVERSATION, RECEIVED_AT, answer

NAME = '=Tara, the "Global" bot'

TEXTS = {
    "plain": "Which class are you in?",
    "nothing": "",
    "a blank": " ",
    "blanks around": "  both sides  ",
    "quote": 'Tell us, "in your words", why',
    "only a quote": '"',
    "comma": "one, two",
    "apostrophe": "'tis",
    "line feed": "two\nlines",
    "return": "two\rlines",
    "return and line feed": "two\r\nlines",
    "other line ends": "a\x0bb\x0cc\x85d\u2028e\u2029f",
    "end of data": "\\.",
    "backslashes": "C:\\new\\table\\",
    "null by name": "NULL",
    "controls": "\x01\x08\x1b\x1f\x7f",
    "emoji": "👩‍👩‍👧‍👦 🇮🇳 🙂",
    "right to left": "\u202eשלום مرحبا\u202c",
    "Devanagari": "नमस्ते, दुनिया",
    "combining": "e\u0301 \u00e9",
    "byte order mark": "\ufeffmark",
    "formula": "=SUM(1,2)",
    "formula plus": "+SUM(1)",
    "formula minus": "-SUM(1)",
    "formula at": "@SUM(1)",
    "formula tab": "\t=1",
    "formula return": "\r=1",
    "formula line feed": "\n=1",
    "formula full-width": "＝1+1",
    "formula full-width plus": "＋1",
    "formula full-width minus": "－1",
    "formula full-width at": "＠SUM(1)",
    "formula that begins as a number": "-1+cmd|' /C calc'!A0",
    "formula behind a number's line": "+1\n=2",
    "a sign": "-",
    "number": "-5",
    "amount": "-1,234.50",
    "phone": "+91 98765 43210",
    "phone in brackets": "+1 (555) 010-9999",
    "long": "x" * 5000,
}
NUMBERS = [
    "0",
    "1",
    "-1",
    "-0",
    "-0.0",
    "1.0",
    "1.50",
    "100.00",
    "0.5",
    "-0.4",
    "-0.5",
    "2.5",
    "3.5",
    "-2.5",
    "1E2",
    "1e+2",
    "1.5e3",
    "12E-1",
    "1e-7",
    "1e21",
    "-1E22",
    "5e-324",
    "1.7976931348623157e308",
    "123456789012345678901234567890",
    "0.30000000000000004",
    "0e5",
]
VALUES = {
    "true": "true",
    "false": "false",
    "null": "null",
    "text": '"3"',
    "no text": '""',
    "formula": '"=1"',
    "negative text": '"-1.0"',
    "list": '[1, "a", null]',
    "object": '{"b": 1, "a": 2}',
    "nested": (
        '{"bb":{"z":[{"y":1E2,"x":[ ]},{}]},"a":1.50,"é":true,"B":null,"":"x","aa":"\\u0001"}'
    ),
    "repeated": '{"a": 1, "b": 2, "a": {"c": 1, "c": -0}}',
    "escapes": '"\\u00e9\\ud83d\\ude42\\/\\b\\f\\n\\r\\t\\"\\\\ \\u2028\\u007f"',
    "mended": '"a\\u0000b\\ud800c"',
}
SHAPES: dict[str, Any] = {
    "edata a text": {"edata": "text"},
    "edata a list": {"edata": [1]},
    "edata null": {"edata": None},
    "edata missing": {},
    "item a list": {"edata": {"item": ["id"], "score": 1}},
    "item a text": {"edata": {"item": "id", "duration": 1.5}},
    "item empty": {"edata": {"item": {}}},
    "item null": {"edata": {"item": None}},
    "context a text": {"context": "c", "edata": {"item": {"id": "q"}}},
    "rollup a list": {"context": {"rollup": []}, "mid": None},
    "rollup a text": {"context": {"rollup": "l3"}, "mid": 5},
    "ids of other kinds": {
        "mid": ["m"],
        "edata": {"item": {"id": 1.0, "type": None, "title": {"en": "=1"}, "desc": False}},
        "context": {"rollup": {"l3": ["="], "l4": True}},
    },
}


def raw_events() -> list[bytes]:
    """The answers as a sender writes them."""
    encoded: list[bytes] = []

    def add(event: dict[str, Any], **literal: str) -> None:
        raw = json.dumps(event, ensure_ascii=False).encode()
        for name, text in literal.items():
            raw = raw.replace(f'"<{name}>"'.encode(), text.encode())
        encoded.append(raw)

    for name, text in TEXTS.items():
        number = len(encoded)
        add(
            answer(
                number,
                mid=f"text: {name}",
                item={"title": text, "desc": text, "type": text[:9], "params": [{text[:20]: text}]},
                edata={"resvalues": [{"ans1": text}]},
                context={"sid": text[:200], "rollup": {"l3": text, "l4": text}},
            )
        )
    for spelling in NUMBERS:
        number = len(encoded)
        add(
            answer(
                number,
                mid=f"number: {spelling}",
                item={"maxscore": "<n>", "title": "<n>", "params": [{"n": "<n>"}]},
                edata={"score": "<n>", "duration": "<n>", "resvalues": "<n>"},
            ),
            n=spelling,
        )
    for name, value in VALUES.items():
        number = len(encoded)
        add(
            answer(
                number,
                mid=f"value: {name}",
                item={"maxscore": "<v>", "title": "<v>", "params": "<v>"},
                edata={"score": "<v>", "duration": "<v>", "resvalues": "<v>"},
                context={"rollup": {"l3": "<v>"}},
            ),
            v=value,
        )
    encoded.append(json.dumps(answer(len(encoded), mid="=id", context={"did": "@device"})).encode())
    return encoded


def store_corpus() -> Selection:
    """Stores the corpus, and selects it."""
    channel = make_channel()
    Conversation.objects.create(channel=channel, identifier=CONVERSATION, name=NAME)
    parsed = telemetry.parse(b"[" + b",".join(raw_events()) + b"]", Call(CHANNEL, RECEIVED_AT))
    assert parsed.rejections == []
    last = max(event.occurred_at for event in parsed.events)
    odd_events = [
        Event(
            identity=event_identity(last, CHANNEL, name),
            type="ASSESS",
            occurred_at=last + timedelta(milliseconds=1500 * index),
            device_id="",
            session_id="",
            conversation=CONVERSATION,
            is_answer=True,
            payload=json.dumps({"mid": f"shape: {name}", **shape}).encode(),
        )
        for index, (name, shape) in enumerate(SHAPES.items(), 1)
    ]
    outcome = batches.append_batch(
        channel.id, Batch("telemetry", RECEIVED_AT, parsed.events + odd_events, [])
    )
    assert (outcome.stored, outcome.duplicate) == (row_count(), 0)
    return select_corpus()


def row_count() -> int:
    return len(TEXTS) + len(NUMBERS) + len(VALUES) + 1 + len(SHAPES)


def select_corpus(**overrides: Any) -> Selection:
    """Everything of the conversation, however late it arrived."""
    channel = make_channel()
    conversation = Conversation.objects.filter(channel=channel, identifier=CONVERSATION).first()
    return Selection(
        **{
            "channel_id": channel.id,
            "conversation_id": conversation.id if conversation else 0,
            "conversation": CONVERSATION,
            "conversation_name": conversation.name if conversation else "",
            "start": RECEIVED_AT - timedelta(days=30),
            "end": RECEIVED_AT + timedelta(days=30),
            "watermark": 2**62,
            **overrides,
        }
    )
