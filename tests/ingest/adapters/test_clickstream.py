import base64
import csv
import gzip
import hashlib
import io
import json
import time
import tracemalloc
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple

import pytest
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from exhaust.datasets import DATASETS
from exhaust.datasets.selection import Selection
from exhaust.files import writer
from ingest.adapters import ADAPTERS, body_limits, json_body
from ingest.adapters.clickstream import parser as clickstream
from ingest.adapters.clickstream.http import MAX_BODY_BYTES
from ingest.auth import failures, keys
from ingest.events import Batch, Call, Event, RequestError
from ingest.limits import rate_limits, token_bucket
from ingest.models import AuthFailureCount, Conversation, RejectedEvent, StoredEvent
from ingest.privacy.encryption import decrypt
from ingest.store.replay import replay
from tests.conftest import make_channel

APP = "shop"
DEVICE = "0b1f6f0e-5a55-4f7c-9a0e-2d8f6b7c1a10"
SESSION = "b7c1a101-20220401-040000000"
RECEIVED_AT = datetime(2022, 4, 1, 5, tzinfo=UTC)
RECEIVED_MS = 1_648_789_200_000
HAPPENED_AT = datetime(2022, 4, 1, 4, 0, 0, 123_000, tzinfo=UTC)
HAPPENED_MS = 1_648_785_600_123


def event(number: int = 0, **overrides: Any) -> dict[str, Any]:
    """An event as the Web SDK writes it; `attributes` are merged, anything else replaces."""
    attributes = {
        "_session_id": SESSION,
        "_session_number": 1,
        "_page_url": "http://localhost/",
        "color": "red",
        **overrides.pop("attributes", {}),
    }
    return {
        "event_type": "button_click",
        "event_id": f"c1a10b7c-0000-4000-8000-{number:012d}",
        "device_id": DEVICE,
        "unique_id": "unique-1",
        "app_id": APP,
        "timestamp": HAPPENED_MS,
        "platform": "Web",
        "user": {"_user_id": {"value": "u-1", "set_timestamp": HAPPENED_MS}},
        "attributes": attributes,
        **overrides,
    }


def answered(number: int = 0, **attributes: Any) -> dict[str, Any]:
    return event(
        number, attributes={"conversation_id": "bot-1", "question_id": "q-1", **attributes}
    )


def without(said: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in said.items() if key != name}


def encode_events(*events: Any) -> bytes:
    return json.dumps(events).encode()


def mobile(raw: bytes) -> bytes:
    """A body as the Android and Swift SDKs send it."""
    return base64.b64encode(gzip.compress(raw))


def load_generator_batch() -> bytes:
    """A batch in the size and the shape that AWS' own load generator sends by default."""
    random = Random(1)
    events = []
    for number in range(10_000):
        if number % 4 == 0:  # the next user, with four events
            unique_id, device_id = f"{random.getrandbits(128):032x}", f"{random.getrandbits(64):x}"
            begun = HAPPENED_MS + random.randrange(40_000_000)
        at = begun + number % 4 * 9000 + random.randrange(2000)
        events.append(
            {
                "unique_id": unique_id, "event_type": "_screen_view", "app_id": APP,
                "event_id": f"{random.getrandbits(128):032x}", "timestamp": at,
                "device_id": device_id, "platform": "Android", "os_version": "12.1",
                "make": "Samsung", "brand": "Samsung", "model": "Galaxy S22", "locale": "en_US",
                "carrier": "T-Mobile", "network_type": "Mobile", "screen_height": 2400,
                "screen_width": 1080, "zone_offset": 28_800_000, "system_language": "en",
                "country": "United States", "country_code": "US", "sdk_version": "0.7.1",
                "sdk_name": "aws-solution-clickstream-sdk", "app_version": "1.2.0",
                "app_package_name": "com.example.notepad", "app_title": "Notepad",
                "user": {
                    name: {"value": value, "set_timestamp": begun}
                    for name, value in (
                        ("_user_first_touch_timestamp", begun),
                        ("_user_id", unique_id[:8]),
                        ("_user_name", "Asha of " + unique_id[:4]),
                    )
                },
                "attributes": {
                    "_session_id": f"{unique_id[-8:]}-{begun}", "_session_duration": at - begun,
                    "_session_start_timestamp": begun, "_channel": "Play Store",
                    "_traffic_source_source": "search", "_traffic_source_medium": "organic",
                    "_screen_name": "NotepadActivity", "_entrances": 0,
                    "_screen_id": "com.example.notepad.NotepadActivity",
                    "_previous_screen_name": "LoginActivity",
                    "_previous_screen_id": "com.example.notepad.LoginActivity",
                    "_engagement_time_msec": random.randrange(60_000),
                    "note_id": random.randrange(500),
                },
            }
        )  # fmt: skip
    return mobile(json.dumps(events).encode())


def traced_peak(read: Callable[[], object]) -> int:
    """Returns the most bytes that were held meanwhile."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:8]


def parse_body(raw: bytes, received_at: datetime = RECEIVED_AT, **parameters: str) -> Batch:
    call = Call("ORG_001", received_at, application=APP, application_id=7, parameters=parameters)
    return clickstream.parse(raw, call)


def parse_one(said: dict[str, Any], **parameters: str) -> Event:
    read = parse_body(encode_events(said), **parameters)
    assert read.rejections == []
    assert len(read.events) == 1
    return read.events[0]


def rejected(said: Any) -> tuple[str, str]:
    """Returns reason and detail of an event that is rejected between two stored ones."""
    read = parse_body(encode_events(event(1), said, event(2)))
    assert len(read.events) == 2
    assert [each.position for each in read.rejections] == [1]
    kept = json.loads(read.rejections[0].raw)
    assert kept == (said if isinstance(said, dict) else [said])
    return read.rejections[0].reason, read.rejections[0].detail


# Events -----------------------------------------------------------------------------------------


def test_clickstream_is_registered():
    assert ADAPTERS["clickstream"].parse is clickstream.parse


def test_parse_event():
    said = event(3)

    read = parse_body(encode_events(said))

    assert (read.source, read.received_at) == ("clickstream", RECEIVED_AT)
    assert (read.application_id, read.last_wins) == (7, False)
    got = read.events[0]
    assert (got.type, got.device_id, got.session_id) == ("button_click", DEVICE, SESSION)
    assert got.occurred_at == HAPPENED_AT
    assert (got.conversation, got.is_answer, got.note) == ("", False, "")
    assert json.loads(got.payload) == said


def test_payload_is_unchanged():
    raw = b'{ "event_type":"a", "event_id":"1", "timestamp":1648785600123, "n":1.50, "n":1E2 }'

    assert parse_body(b"[ " + raw + b" ]").events[0].payload == raw


def test_events_keep_order_and_position():
    read = parse_body(encode_events(*(event(n) for n in range(50))))

    assert [got.position for got in read.events] == list(range(50))
    assert len({got.identity for got in read.events}) == 50


def test_identity_is_application_and_id():
    assert parse_one(event(1)).identity == parse_one(event(1, timestamp=HAPPENED_MS + 1)).identity
    assert parse_one(event(1)).identity != parse_one(event(2)).identity
    there = clickstream.parse(
        encode_events(event(1)), Call("ORG_001", RECEIVED_AT, application="other")
    )
    assert there.events[0].identity != parse_one(event(1)).identity


@pytest.mark.parametrize("missing", [{"device_id": ""}, {"device_id": None}])
def test_unique_id_replaces_missing_device(missing: dict[str, Any]):
    assert parse_one(event(**missing)).device_id == "unique-1"


@pytest.mark.parametrize(
    ("own", "query", "expected"),
    [
        ("iOS", "Web", "iOS"),
        (None, "Android", "Android"),
        (None, "", None),
        (None, "x" * 256, None),
        (None, "We\0b", None),
    ],
    ids=range(5),
)
def test_platform_of_the_query_is_kept(own: str | None, query: str, expected: str | None):
    sent = event() if own is None else event(platform=own)
    if own is None:
        sent.pop("platform", None)

    got = parse_one(sent, platform=query)

    assert json.loads(got.payload).get("platform") == expected
    assert got.identity == parse_one(sent).identity


def test_platform_is_beside_an_answer():
    sent = without(answered(response="good"), "platform")

    got = parse_one(sent, platform="Web")

    payload = json.loads(got.payload)
    assert (payload["platform"], payload["edata"]["resvalues"]) == ("Web", [{"ans1": "good"}])


@pytest.mark.parametrize("absent", ["device_id", "unique_id", "user", "attributes", "app_id"])
def test_optional_fields_may_be_missing(absent: str):
    assert parse_one(without(event(), absent)).type == "button_click"
    assert parse_one({**event(), absent: None}).type == "button_click"


def test_app_id_mismatch_is_noted():
    got = parse_one(event(app_id="other"))

    assert got.identity == parse_one(event()).identity
    assert got.note == clickstream.APPLICATION_MISMATCH


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (5, "not_an_object"),
        (None, "not_an_object"),
        ([event()], "not_an_object"),
        ("text", "not_an_object"),
        (without(event(), "event_type"), "event_type"),
        (event(event_type=5), "event_type"),
        (without(event(), "event_id"), "event_id"),
        (event(event_id=""), "event_id"),
        (event(event_id=["x"]), "event_id"),
        (event(event_id="x" * 256), "event_id"),
        (without(event(), "timestamp"), "timestamp"),
        (event(timestamp=None), "timestamp"),
        (event(timestamp=True), "timestamp"),
        (event(timestamp="1648785600123"), "timestamp"),
        (event(device_id={"a": 1}), "device_id"),
        (event(device_id="d" * 256), "device_id"),
        ({**event(), "attributes": []}, "attributes"),
        ({**event(), "attributes": "x"}, "attributes"),
        (event(attributes={"_session_id": False}), "attributes._session_id"),
        (event(attributes={"conversation_id": ["c"]}), "attributes.conversation_id"),
        (event(attributes={"conversation_id": "c" * 256}), "attributes.conversation_id"),
        (answered(question_id={}), "attributes.question_id"),
        (answered(message_id=1.5), "attributes.message_id"),
        (event(user="me"), "user"),
        (event(items={"id": 1}), "items"),
        (event(items=["x"]), "items"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_invalid_field_is_named(said: Any, reason: str):
    assert rejected(said)[0] == reason


# Limits -----------------------------------------------------------------------------------------


def many(count: int, prefix: str = "a") -> dict[str, int]:
    return {f"{prefix}{n}": n for n in range(count)}


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (event(event_type=""), "1001"),
        (event(event_type="1st"), "1001"),
        (event(event_type="a-b"), "1001"),
        (event(event_type="a\n"), "1001"),
        (event(event_type="größe"), "1001"),
        (event(event_type="٣"), "1001"),
        (event(event_type="-" * 51), "1001"),
        (event(event_type="a" * 51), "1002"),
    ],
)
def test_bad_name_of_event_has_sdk_error_code(said: dict[str, Any], code: str):
    assert rejected(said)[0] == code


@pytest.mark.parametrize(
    ("part", "sent", "kept", "note"),
    [
        ("attributes", {"a" * 51: 1, "b": 2}, {"b": 2}, "2001: attributes." + "a" * 50),
        ("attributes", {"-" * 51: 1, "b": 2}, {"b": 2}, "2001: attributes." + "-" * 50),
        ("attributes", {"a b": 1, "b": 2}, {"b": 2}, "2002: attributes.a b"),
        ("attributes", {"": 1, "b": 2}, {"b": 2}, "2002: attributes."),
        ("attributes", {"9a": 1, "8a": 1, "b": 2}, {"b": 2}, "2002: attributes.9a"),
        ("attributes", {"a": "x" * 1025, "b": 2}, {"b": 2}, "2003: attributes.a"),
        ("attributes", {"response": "x" * 1025, "b": 2}, {"b": 2}, "2003: attributes.response"),
        ("attributes", many(502), many(500), "2004: attributes.a500"),
        ("user", many(101), many(100), "3001: user.a100"),
        ("user", {"a" * 51: 1, "b": 2}, {"b": 2}, "3002: user." + "a" * 50),
        ("user", {"a.b": {"value": 1}, "b": 2}, {"b": 2}, "3003: user.a.b"),
        ("user", {"a": "x" * 257, "b": 2}, {"b": 2}, "3004: user.a"),
        ("user", {"a": {"value": "x" * 257}, "b": 2}, {"b": 2}, "3004: user.a"),
        ("items", [{"id": "1"}] * 102, [{"id": "1"}] * 100, "4001: items[100]"),
        ("items", [{"id": "1", "name": "x" * 257}], [{"id": "1"}], "4002: items.name"),
        ("items", [{"id": "1", "mine": "x" * 257}], [{"id": "1"}], "4002: items.mine"),
        ("items", [{"id": "1"}, many(11)], [{"id": "1"}, many(10)], "4003: items.a10"),
        ("items", [{"id": "1", "a" * 51: 1}], [{"id": "1"}], "4004: items." + "a" * 50),
        ("items", [{"id": "1", "a-b": 1}], [{"id": "1"}], "4005: items.a-b"),
    ],
)
def test_attribute_over_a_limit_is_dropped(part: str, sent: Any, kept: Any, note: str):
    got = parse_one({**event(), part: sent})

    assert json.loads(got.payload) == {**event(), part: kept}
    assert got.note == f"{note} dropped"


def test_each_limit_is_noted_once_and_other_numbers_stay_as_sent():
    raw = (
        b'{"event_type":"a","event_id":"1","timestamp":1648785600123,"app_id":"other","n":1.50,'
        b'"attributes":{"a-b":1,"c-d":1,"e":"'
        + b"x" * 1025
        + b'","f":1E2,"f":12345678901234567890}}'
    )

    got = parse_body(b"[" + raw + b"]").events[0]

    assert got.note == (
        "2002: attributes.a-b dropped; 2003: attributes.e dropped; "
        + clickstream.APPLICATION_MISMATCH
    )
    assert b'"attributes":{"f":12345678901234567890}' in got.payload
    assert b'"n":1.50' in got.payload


def test_answer_over_limits_of_attributes_is_stored_whole():
    options = [{str(n): {"text": f"option {n}"}} for n in range(60)]
    said = [
        answered(1, response="x" * 1025),
        answered(2, response="good", question_title="t" * 1025),
        answered(3, response="good", question_options=json.dumps(options)),
        answered(4, **many(499), response="good"),
        answered(5, **{"product-name": "x"}, response="good"),
    ]

    read = parse_body(encode_events(*said))

    assert read.rejections == []
    assert [got.is_answer for got in read.events] == [True] * 5
    assert [got.note for got in read.events] == [
        "", "", "", "", "2002: attributes.product-name dropped",
    ]  # fmt: skip
    payloads = [json.loads(got.payload) for got in read.events]
    assert payloads[0]["edata"]["resvalues"] == [{"ans1": "x" * 1025}]
    assert payloads[1]["edata"]["item"]["title"] == "t" * 1025
    assert payloads[2]["edata"]["item"]["params"] == options
    assert payloads[4]["edata"]["resvalues"] == [{"ans1": "good"}]
    assert payloads[4]["attributes"] == answered(response="good")["attributes"]


@pytest.mark.parametrize(
    "said",
    [
        event(event_type="_page_view"),
        event(event_type="a" * 50),
        event(attributes={"a" * 50: "x" * 1024}),
        event(attributes={"_page_url": "x" * 5000}),
        event(attributes={"n": None, "b": True, "f": 1.5}),
        {**event(), "attributes": {**many(500), **many(20, "_r")}},
        event(user={**many(100), "_user_id": {"value": "x" * 300, "set_timestamp": 1}}),
        event(user={}),
        event(items=[]),
        event(items=[{"id": "1", "price": 1.5, "category5": "x" * 256, **many(10)}] * 100),
    ],
    ids=range(10),
)
def test_values_at_a_limit_are_accepted(said: dict[str, Any]):
    assert parse_one(said).note == ""


# Clocks -----------------------------------------------------------------------------------------


def from_milliseconds(milliseconds: float) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


class ClockCase(NamedTuple):
    timestamp: float
    upload: str
    happened_ms: float
    note: str


ARRIVAL = "clock: set to arrival"


@pytest.mark.parametrize(
    "told",
    [
        ClockCase(HAPPENED_MS, str(RECEIVED_MS - 50), HAPPENED_MS, ""),
        ClockCase(HAPPENED_MS, str(RECEIVED_MS - 600_000), HAPPENED_MS, ""),
        ClockCase(
            HAPPENED_MS, str(RECEIVED_MS - 600_001), HAPPENED_MS + 600_001,
            "clock: shifted by 600001 ms",
        ),
        ClockCase(
            HAPPENED_MS + 86_400_000, str(RECEIVED_MS + 86_400_000), HAPPENED_MS,
            "clock: shifted by -86400000 ms",
        ),
        ClockCase(
            RECEIVED_MS + 40, str(RECEIVED_MS + 60), RECEIVED_MS - 20, "clock: shifted by -60 ms"
        ),
        ClockCase(RECEIVED_MS + 5000, str(RECEIVED_MS - 50), RECEIVED_MS, ARRIVAL),
        ClockCase(RECEIVED_MS, str(RECEIVED_MS), RECEIVED_MS, ""),
        # a clock that was reset runs from 1970
        ClockCase(86_400_000, "86460000", RECEIVED_MS - 60_000,
             f"clock: shifted by {RECEIVED_MS - 86_460_000} ms"),
        # without the upload time, up to a day ahead is accepted
        ClockCase(RECEIVED_MS + 86_400_000, "", RECEIVED_MS + 86_400_000, ""),
        ClockCase(RECEIVED_MS + 86_400_001, "", RECEIVED_MS, ARRIVAL),
        ClockCase(RECEIVED_MS + 1, "soon", RECEIVED_MS + 1, ""),
        ClockCase(RECEIVED_MS + 1, "-5", RECEIVED_MS + 1, ""),
        ClockCase(RECEIVED_MS + 1, "0", RECEIVED_MS + 1, ""),
        ClockCase(RECEIVED_MS + 1, "٣", RECEIVED_MS + 1, ""),
        ClockCase(RECEIVED_MS + 1, "9" * 5000, RECEIVED_MS + 1, ""),
        ClockCase(1_648_785_600, "", 1_648_785_600_000, ""),
        ClockCase(1_648_785_600, str(RECEIVED_MS), 1_648_785_600_000, ""),
        ClockCase(1_648_785_600_123_000, "", HAPPENED_MS, ""),
        ClockCase(1_648_785_600_123.0, "", HAPPENED_MS, ""),
        ClockCase(1e308, "", RECEIVED_MS, ARRIVAL),
        ClockCase(10**308, "", RECEIVED_MS, ARRIVAL),
        ClockCase(9_224_318_016_000_000, "", RECEIVED_MS, ARRIVAL),
    ],
    ids=lambda told: f"{told.timestamp:.15g} {told.upload[:16]}",
)  # fmt: skip
def test_wrong_clock_is_repaired_and_noted(told: ClockCase):
    got = parse_one(
        event(timestamp=told.timestamp),
        **({"upload_timestamp": told.upload} if told.upload else {}),
    )

    assert got.occurred_at == from_milliseconds(told.happened_ms)
    assert got.note == told.note


@pytest.mark.parametrize("timestamp", [0, -1, 5, -62_167_219_200_000, 946_684_799_999, -1e308])
def test_time_before_2000_is_rejected(timestamp: float):
    assert rejected(event(timestamp=timestamp)) == (
        "time_out_of_range",
        "timestamp lies before 2000.",
    )


# Hashes ----------------------------------------------------------------------------------------


def test_hash_of_published_example():
    call = Call("ORG_001", RECEIVED_AT, parameters={"hashCode": "ec47e3c8"})

    assert clickstream.has_valid_hash(b'[{"event_type":"a"}]', call)


@pytest.mark.parametrize("wrap", [bytes, mobile, gzip.compress])
def test_hash_covers_body_as_sent(wrap: Any):
    raw = wrap(json.dumps([event(attributes={"color": "größe 日本"})], ensure_ascii=False).encode())

    assert parse_body(raw, hashCode=digest(raw)).events[0].note == ""


def test_hash_mismatch_is_noted():
    read = parse_body(encode_events(event(1), event(2, app_id="other")), hashCode="00000000")

    assert [got.note for got in read.events] == [
        "hashCode differs from the body's",
        "hashCode differs from the body's; app_id differs from the query's",
    ]


# Answers ----------------------------------------------------------------------------------------


def test_conversation_and_question_is_answer():
    said = answered(
        question_type="mcq",
        question_title="Which class?",
        question_description="Choose one",
        question_options=[{"1": {"text": "One"}}],
        response=[{"1": {"text": "One"}}],
        score=1.5,
        max_score=2,
        duration=12,
        x_path="question./data/a[1]",
        eof="false",
        message_id="m-1",
    )

    got = parse_one(said)

    assert (got.conversation, got.is_answer) == ("bot-1", True)
    assert json.loads(got.payload) == {
        **said,
        "mid": "m-1",
        "edata": {
            "item": {
                "id": "q-1",
                "type": "mcq",
                "title": "Which class?",
                "desc": "Choose one",
                "maxscore": 2,
                "params": [{"1": {"text": "One"}}],
            },
            "resvalues": [{"1": {"text": "One"}}],
            "score": 1.5,
            "duration": 12,
        },
        "context": {"rollup": {"l3": "question./data/a[1]", "l4": "false"}},
    }


def test_answer_has_only_sent_fields():
    said = answered(4)

    assert json.loads(parse_one(said).payload) == {
        **said,
        "mid": said["event_id"],
        "edata": {"item": {"id": "q-1"}},
        "context": {"rollup": {}},
    }


@pytest.mark.parametrize(
    ("response", "resvalues"),
    [
        ("good, very", [{"ans1": "good, very"}]),
        ("", [{"ans1": ""}]),
        (4, [{"ans1": 4}]),
        (False, [{"ans1": False}]),
        ([{"2": {"text": "Two"}}], [{"2": {"text": "Two"}}]),
        ({"2": {"text": "Two"}}, [{"2": {"text": "Two"}}]),
        ('[{"2": {"text": "Two"}}]', [{"2": {"text": "Two"}}]),
        (' {"2": 1} ', [{"2": 1}]),
        ("[not json", [{"ans1": "[not json"}]),
        ("[1e400]", [{"ans1": "[1e400]"}]),
        (r'["\u0000"]', ["\ufffd"]),
        ("[" * 512 + "]" * 512, [{"ans1": "[" * 512 + "]" * 512}]),
        ("5", [{"ans1": "5"}]),
    ],
    ids=lambda part: repr(part)[:20],
)
def test_response_is_text_or_options(response: Any, resvalues: list[Any]):
    payload = json.loads(parse_one(answered(response=response)).payload)

    assert payload["edata"]["resvalues"] == resvalues


def test_options_as_json_text():
    payload = json.loads(parse_one(answered(question_options='[{"1": "One"}]')).payload)

    assert payload["edata"]["item"]["params"] == [{"1": "One"}]


def test_own_edata_and_context_are_merged():
    said = {**answered(), "edata": {"mine": 1}, "context": {"mine": 2}, "mid": "mine"}

    payload = json.loads(parse_one(said).payload)

    assert payload["edata"] == {"mine": 1, "item": {"id": "q-1"}}
    assert payload["context"] == {"mine": 2, "rollup": {}}
    assert payload["mid"] == said["event_id"]


@pytest.mark.parametrize("question", [{}, {"question_id": ""}, {"question_id": None}])
def test_conversation_alone_is_no_answer(question: dict[str, Any]):
    said = event(attributes={"conversation_id": "bot-1", "score": 1, **question})

    got = parse_one(said)

    assert (got.conversation, got.is_answer) == ("bot-1", False)
    assert json.loads(got.payload) == said


@pytest.mark.parametrize("conversation", [{}, {"conversation_id": ""}, {"conversation_id": None}])
def test_question_alone_is_no_answer(conversation: dict[str, Any]):
    got = parse_one(event(attributes={"question_id": "q-1", **conversation}))

    assert (got.conversation, got.is_answer) == ("", False)


def test_numeric_ids_become_text():
    got = parse_one(answered(conversation_id=9, question_id=4))

    assert (got.conversation, got.is_answer) == ("9", True)
    assert json.loads(got.payload)["edata"]["item"]["id"] == "4"


# Large bodies -----------------------------------------------------------------------------------


def test_load_generator_batch_is_stored(shop: Client):
    sent = load_generator_batch()
    assert 0.8e6 < len(sent) < MAX_BODY_BYTES
    assert len(clickstream.decompress(sent)) > 12e6

    assert post(shop, sent, platform="Android", compression="gzip").status_code == 200
    assert StoredEvent.objects.count() == 10_000
    assert not RejectedEvent.objects.exists()


def test_large_batch_is_in_memory_twice():
    sent = load_generator_batch()
    size = len(clickstream.decompress(sent))

    assert traced_peak(lambda: clickstream.decompress(sent)) < 1.25 * size
    # the text, and the events made of it
    assert traced_peak(lambda: parse_body(sent)) < 2.5 * size


def test_unpacked_size_and_ratio_limit():
    noise = Random(2).randbytes(300_000).hex().encode()  # unpacks to twice its size
    largest = body_limits.MAX_UNPACKED_BYTES - 2
    for inside in (noise.ljust(largest), b" " * 8_000_000):
        assert parse_body(gzip.compress(b"[" + inside + b"]")).events == []

    for inside in (noise.ljust(largest + 1), b" " * 9_000_000):
        with pytest.raises(RequestError) as refused:
            parse_body(gzip.compress(b"[" + inside + b"]"))
        assert (refused.value.status, refused.value.reason) == (413, "too_large")


def test_bomb_is_refused_after_eight_mebibytes():
    for sent in (bomb(), base64.b64encode(bomb()[:700_000])):
        assert traced_peak(lambda sent=sent: read_or_refused(sent)) < 13 * 2**20


# Any bytes --------------------------------------------------------------------------------------


def bomb() -> bytes:
    """1 MB of gzip that decompresses to 1 GB."""
    folder = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = folder.compress(bytes(1 << 20)) + folder.flush(zlib.Z_FULL_FLUSH)
    block = folder.compress(bytes(1 << 20)) + folder.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + block * ((MAX_BODY_BYTES - 10) // len(block))


def event_with(inside: bytes, number: int = 2) -> bytes:
    """Three events, the second with these bytes as an attribute's value."""
    odd = json.dumps(event(number, attributes={"odd": "HERE"})).encode().replace(b'"HERE"', inside)
    return b"[" + json.dumps(event(1)).encode() + b"," + odd + b"," + encode_events(event(3))[1:]


GOOD = encode_events(event(1))
TIMES = {"s": 1_648_785_600, "ms": HAPPENED_MS, "us": HAPPENED_MS * 1000}


class Hostile(NamedTuple):
    """A body, and its outcome: status, stored events, reasons of rejections."""

    raw: bytes
    stored: int
    reasons: tuple[str, ...] = ()
    status: int = 200


HOSTILE = {
    "nothing": Hostile(b"", 0, ("empty",)),
    "blanks": Hostile(b" \r\n\t ", 0, ("empty",)),
    "a BOM and nothing": Hostile(b"\xef\xbb\xbf", 0, ("empty",)),
    "an empty list": Hostile(b"[]", 0),
    "an empty object": Hostile(b"{}", 0, ("event_type",)),
    "one event": Hostile(encode_events(event(1))[1:-1], 1),
    "one event with junk behind": Hostile(encode_events(event(1))[1:-1] + b" x", 0, ("not_json",)),
    "a list with junk behind": Hostile(GOOD + b"x", 0, ("not_json",)),
    "a list that is cut off": Hostile(GOOD[:-9], 0, ("not_json",)),
    "a list of lists": Hostile(b"[[], [[]], " + GOOD[1:], 1, ("not_an_object",) * 2),
    "a BOM": Hostile(b"\xef\xbb\xbf" + GOOD, 1),
    "a BOM in the gzip": Hostile(mobile(b"\xef\xbb\xbf" + GOOD), 1),
    "blanks around": Hostile(b"\r\n " + GOOD + b" \n", 1),
    "text": Hostile(b"hello", 0, ("not_a_batch",)),
    "a number": Hostile(b"5", 0, ("not_a_batch",)),
    "null": Hostile(b"null", 0, ("not_a_batch",)),
    "form data": Hostile(b"a=1&b=2", 0, ("not_a_batch",)),
    "random bytes": Hostile(bytes(range(128, 256)), 0, ("not_a_batch",)),
    "base64 of no gzip": Hostile(base64.b64encode(GOOD), 0, ("not_a_batch",)),
    "base64 as mobile SDKs send it": Hostile(mobile(GOOD), 1),
    "base64 in lines": Hostile(base64.encodebytes(gzip.compress(GOOD)), 1),
    "base64 that is cut off": Hostile(mobile(GOOD)[:-8], 0, ("gzip",)),
    "base64 with junk behind": Hostile(mobile(GOOD) + b"!", 0, ("not_a_batch",)),
    "gzip": Hostile(gzip.compress(GOOD), 1),
    "gzip around base64": Hostile(gzip.compress(mobile(GOOD)), 1),
    "gzip that is cut off": Hostile(gzip.compress(GOOD)[:-9], 0, ("gzip",)),
    "gzip with junk behind": Hostile(gzip.compress(GOOD) + b"junk", 0, ("gzip",)),
    "gzip that is broken": Hostile(gzip.compress(GOOD)[:20] + b"\0" * 50, 0, ("gzip",)),
    "gzip's first bytes": Hostile(b"\x1f\x8b", 0, ("gzip",)),
    "gzip of nothing": Hostile(gzip.compress(b""), 0, ("empty",)),
    "gzip in gzip": Hostile(gzip.compress(gzip.compress(GOOD)), 0, ("not_a_batch",)),
    "gzip in gzip in base64": Hostile(mobile(gzip.compress(GOOD)), 0, ("not_a_batch",)),
    "a gzip bomb": Hostile(bomb(), 0, status=413),
    "a gzip bomb in base64": Hostile(base64.b64encode(bomb()[:700_000]), 0, status=413),
    "50,000 gzip members of nothing": Hostile(gzip.compress(b"") * 50_000, 0, ("empty",)),
    "more than a megabyte": Hostile(b" " * (MAX_BODY_BYTES + 1), 0, status=413),
    "too many events": Hostile(b"[" + b"5," * body_limits.MAX_EVENTS + b"5]", 0, status=413),
    "millions of events": Hostile(
        gzip.compress(b"[" + b"5," * (4 * 1024 * 1024 - 8) + b"5]"), 0, status=413
    ),
    "lists 100,000 deep": Hostile(b"[" * 100_000 + b"]" * 100_000, 0, ("too_deep",)),
    "objects 100,000 deep": Hostile(b'{"a":' * 100_000, 0, ("too_deep",)),
    "an attribute 700 deep": Hostile(event_with(b"[" * 700 + b"]" * 700), 2, ("too_deep",)),
    "an attribute 90 deep": Hostile(event_with(b"[" * 90 + b"]" * 90), 3),
    "4,301 digits": Hostile(event_with(b"9" * 4301), 2, ("number_out_of_range",)),
    "300 digits": Hostile(event_with(b"9" * 300), 3),
    "1e400": Hostile(event_with(b"1e400"), 2, ("number_out_of_range",)),
    "1e-20000": Hostile(event_with(b"1e-20000"), 2, ("number_out_of_range",)),
    "NaN": Hostile(event_with(b"NaN"), 0, ("not_json",)),
    "Infinity": Hostile(event_with(b"-Infinity"), 0, ("not_json",)),
    "a NUL": Hostile(event_with(b'"\0"'), 0, ("not_json",)),
    "an escaped NUL": Hostile(event_with(rb'"\u0000"'), 3),
    "a lone surrogate": Hostile(event_with(rb'"\ud800 \udfff"'), 3),
    "invalid UTF-8": Hostile(event_with(b'"\xc3("'), 2, ("not_utf8",)),
    "a surrogate in UTF-8": Hostile(event_with(b'"\xed\xa0\x80"'), 2, ("not_utf8",)),
    "UTF-16": Hostile(GOOD.decode().encode("utf-16"), 0, ("not_a_batch",)),
    "duplicate keys": Hostile(GOOD[:-2] + b',"event_type":"b","event_id":"2"}]', 1),
    "a text of 10 MB": Hostile(
        gzip.compress(event_with(b'"' + b"x" * 10_000_000 + b'"')), 0, (), 413
    ),
    "a text of 7 MB": Hostile(
        gzip.compress(event_with(b'"' + b"x" * 7_000_000 + b'"')), 3
    ),
    "a name of 7 MB": Hostile(
        gzip.compress(encode_events(event(1), event(2, event_type="x" * 7_000_000))), 1, ("1002",)
    ),
    **{
        f"a time in {unit}": Hostile(encode_events(event(1, timestamp=when)), 1)
        for unit, when in TIMES.items()
    },
    "the year 0": Hostile(
        encode_events(event(timestamp=-62_167_219_200_000)), 0, ("time_out_of_range",)
    ),
    "the year 294277": Hostile(encode_events(event(timestamp=9_224_318_016_000_000)), 1),
    "the year 294277 in us": Hostile(encode_events(event(timestamp=9_224_318_016_000_000_000)), 1),
    "another event of the same id": Hostile(encode_events(event(1), event(1, event_type="b")), 1),
}  # fmt: skip


def read_or_refused(raw: bytes) -> Batch | RequestError:
    try:
        return parse_body(raw)
    except RequestError as refused:
        return refused


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes(name: str, shop: Client):
    hostile = HOSTILE[name]

    response = post(shop, hostile.raw, hashCode=digest(hostile.raw))

    assert response.status_code == hostile.status
    if hostile.status == 200:
        assert response.content == b""
    assert StoredEvent.objects.count() == hostile.stored
    reasons = RejectedEvent.objects.order_by("position").values_list("reason", flat=True)
    assert tuple(reasons) == hostile.reasons
    notes = set(StoredEvent.objects.values_list("note", flat=True)) - {
        "",
        json_body.REPAIRED_NOTE,
        ARRIVAL,
        "2003: attributes.odd dropped",
    }
    assert notes == set()


@pytest.mark.parametrize("raw", [bomb(), base64.b64encode(bomb()[:780_000])], ids=["raw", "base64"])
def test_gzip_bomb_is_refused_cheaply(raw: bytes):
    begun = time.process_time()
    refused = read_or_refused(raw)
    spent = time.process_time() - begun
    tracemalloc.start()
    read_or_refused(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert isinstance(refused, RequestError)
    assert (refused.status, refused.reason) == (413, "too_large")
    assert spent < 0.05
    assert peak < 16 * 1024 * 1024


@pytest.mark.parametrize("name", ["a lone surrogate", "an escaped NUL"])
def test_only_repaired_event_has_note(name: str):
    read = parse_body(HOSTILE[name].raw)

    assert [got.note for got in read.events] == ["", json_body.REPAIRED_NOTE, ""]


@pytest.mark.parametrize("name", [n for n, h in HOSTILE.items() if h.reasons])
def test_rejected_bytes_can_be_resent(name: str):
    for rejection in parse_body(HOSTILE[name].raw).rejections:
        again = parse_body(rejection.raw)

        assert again.events == []
        assert [(each.reason, each.raw) for each in again.rejections] == [
            (rejection.reason, rejection.raw)
        ]


_float = st.floats(allow_nan=False, allow_infinity=False)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | _float | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
_named = st.sampled_from(["conversation_id", "question_id", "response", "_session_id", "score"])
_nearly = st.fixed_dictionaries(
    {},
    optional={
        "event_type": st.just("a") | _json,
        "event_id": st.text() | _json,
        "timestamp": st.just(HAPPENED_MS) | st.integers() | _float | _json,
        "device_id": st.text() | _json,
        "attributes": st.dictionaries(_named | st.text(), _json, max_size=6) | _json,
        "user": st.dictionaries(st.text(), _json, max_size=3) | _json,
        "items": st.lists(st.dictionaries(st.text(), _json, max_size=3), max_size=3) | _json,
    },
)
_upload = st.integers().map(str) | st.text() | st.just(str(RECEIVED_MS))
_quick = settings(max_examples=200, deadline=None, database=None)


@_quick
@given(
    st.binary()
    | st.text().map(str.encode)
    | st.binary().map(gzip.compress)
    | st.binary().map(mobile)
    | st.text().map(lambda text: b"[" + text.encode() + b"]"),
    _upload,
)
def test_any_bytes_parse_or_reject(raw: bytes, upload: str):
    read = parse_body(raw, upload_timestamp=upload)

    assert all(len(got.identity) == 16 for got in read.events)
    assert all(each.reason and each.detail for each in read.rejections)
    if not read.events and not is_empty_list(raw):
        assert len(read.rejections) >= 1


def is_empty_list(raw: bytes) -> bool:
    try:
        return b"".join(clickstream.decompress(raw).split()) == b"[]"
    except RequestError:
        return False


@_quick
@given(st.lists(_nearly | _json, max_size=6), st.booleans(), st.sampled_from([bytes, mobile]))
def test_each_element_is_event_or_rejection(elements: list[Any], ascii_only: bool, wrap: Any):
    raw = wrap(json.dumps(elements, ensure_ascii=ascii_only).encode("utf-8", "replace"))

    read = parse_body(raw)

    assert len(read.events) + len(read.rejections) == len(elements)
    positions = [got.position for got in read.events] + [r.position for r in read.rejections]
    assert sorted(positions) == list(range(len(elements)))
    for got in read.events:
        json.loads(got.payload)
        assert len(got.identity) == 16


# HTTP -------------------------------------------------------------------------------------------

PAGE = "https://shop.example"


@pytest.fixture
def shop(db: None) -> Client:
    """A client and a registered application."""
    register()
    return Client()


def register(identifier: str = APP, **fields: Any) -> keys.Application:
    origins = f"{PAGE}\r\nhttp://localhost:3000\n"
    return keys.create_application(
        identifier, make_channel(), **{"allowed_origins": origins, **fields}
    )[0]


def post(client: Client, raw: bytes, app: str | None = APP, **query: str) -> HttpResponse:
    headers = query.pop("headers", None)
    parameters = {"platform": "Web", **({} if app is None else {"appId": app}), **query}
    return client.generic(
        "POST",
        "/collect",
        raw,
        "application/json; charset=utf-8",
        query_params=parameters,
        headers=headers,
    )


def nothing_happened() -> bool:
    return not (StoredEvent.objects.exists() or RejectedEvent.objects.exists())


def problem(response: HttpResponse, status: int, reason: str) -> str:
    assert response.status_code == status
    assert response["Content-Type"] == "application/problem+json"
    assert response.json()["title"] == reason
    assert nothing_happened()
    return str(response.json()["detail"])


def cors(response: HttpResponse) -> dict[str, str]:
    return {name: value for name, value in response.items() if name.startswith("Access-Control-")}


def test_batch_is_stored_with_empty_answer(shop: Client):
    raw = mobile(encode_events(event(1), answered(2)))

    response = post(
        shop,
        raw,
        hashCode=digest(raw),
        compression="",
        event_bundle_sequence_id="4",
        upload_timestamp=str(int(timezone.now().timestamp() * 1000)),
    )

    assert (response.status_code, response.content) == (200, b"")
    rows = StoredEvent.objects.order_by("type", "is_answer")
    assert [(row.source, row.is_answer, row.note) for row in rows] == [
        ("clickstream", False, ""),
        ("clickstream", True, ""),
    ]
    assert {row.application.identifier for row in rows} == {APP}
    assert {row.channel.identifier for row in rows} == {"ORG_001"}
    assert Conversation.objects.get().identifier == "bot-1"


def test_resend_adds_nothing(shop: Client):
    raw = encode_events(event(1), event(2, timestamp="x"))

    assert [post(shop, raw).status_code for _ in range(3)] == [200] * 3
    assert (StoredEvent.objects.count(), RejectedEvent.objects.count()) == (1, 1)


def test_first_event_of_an_id_wins(shop: Client):
    post(shop, encode_events(event(1, event_type="first"), event(1, event_type="second")))
    post(shop, encode_events(event(1, event_type="third")))

    assert StoredEvent.objects.get().type == "first"


def test_event_ids_are_per_application(shop: Client):
    register("other")

    for app in (APP, "other"):
        post(shop, encode_events(event(1)), app)

    assert StoredEvent.objects.count() == 2


def test_rejected_event_keeps_code_and_bytes(shop: Client):
    response = post(shop, encode_events(event(1), event(2, event_type="9"), event(3)))

    assert response.status_code == 200
    assert StoredEvent.objects.count() == 2
    kept = RejectedEvent.objects.get()
    assert (kept.position, kept.reason, kept.source) == (1, "1001", "clickstream")
    assert (kept.channel.identifier, kept.application.identifier) == ("ORG_001", APP)
    assert json.loads(decrypt(kept.encrypted_body)) == event(2, event_type="9")


def test_unreadable_body_is_kept_whole(shop: Client):
    raw = mobile(GOOD)[:-8]

    assert post(shop, raw).status_code == 200
    assert decrypt(RejectedEvent.objects.get().encrypted_body) == raw


def test_replay_after_fix_stores_event(shop: Client, monkeypatch: pytest.MonkeyPatch):
    post(shop, encode_events(event(1, event_type="a" * 51), 5))
    monkeypatch.setattr(clickstream, "MAX_NAME", 60)

    counts = replay(RejectedEvent.objects.select_related("channel", "application").order_by("id"))

    assert (counts.accepted, counts.still_rejected, counts.unreadable) == (1, 1, 0)
    assert StoredEvent.objects.get().identity.bytes == parse_one(event(1)).identity


@pytest.mark.parametrize(
    "app", [None, "", "nobody", "SHOP", "shop ", "größe", "\0", "shop\0", "x" * 5000]
)
def test_unknown_application_is_forbidden(shop: Client, app: str | None):
    headers = {"Origin": PAGE}
    query = {} if app is None else {"appId": app}

    for response in (
        post(shop, GOOD, app, headers=headers),
        shop.get("/ping", query_params=query, headers=headers),
        shop.options("/collect", query_params=query, headers=headers),
    ):
        problem(response, 403, "forbidden")
        assert cors(response) == {}
        assert response["Vary"] == "Origin"


def test_disabled_application_is_forbidden(shop: Client):
    keys.Application.objects.update(disabled_at=timezone.now())

    problem(post(shop, GOOD), 403, "forbidden")


def test_unknown_parameters_are_ignored(shop: Client):
    response = post(
        shop, GOOD, fakeIp="1.2.3.4", compression="brotli", x="", **{"Content-Encoding": "zstd"}
    )
    shop.generic(
        "POST", "/collect?appId=shop", gzip.compress(encode_events(event(2))), "text/csv",
        headers={"Content-Encoding": "gzip", "X-Forwarded-For": "1.2.3.4, x"},
    )  # fmt: skip

    assert response.status_code == 200
    assert StoredEvent.objects.count() == 2
    assert "1.2.3.4" not in "".join(map(str, StoredEvent.objects.values()))


def test_too_large_body_is_refused_unread(shop: Client):
    stream = io.BytesIO(b"x" * 100)

    response = shop.generic(
        "POST", "/collect?appId=shop", b"",
        CONTENT_LENGTH=str(MAX_BODY_BYTES + 1), **{"wsgi.input": stream},
    )  # fmt: skip

    problem(response, 413, "too_large")
    assert stream.tell() == 0


def test_body_of_exactly_one_mebibyte(shop: Client):
    raw = encode_events(event(1)).ljust(MAX_BODY_BYTES)

    assert post(shop, raw, hashCode=digest(raw)).status_code == 200
    assert StoredEvent.objects.get().note == ""


@pytest.mark.parametrize(
    "meta",
    [
        {"HTTP_TRANSFER_ENCODING": "chunked"},
        {"SERVER_PROTOCOL": "HTTP/2.0", "CONTENT_LENGTH": ""},
        {"CONTENT_LENGTH": "many"},
        {"CONTENT_LENGTH": "-5"},
        {"CONTENT_LENGTH": "9" * 5000},
    ],
    ids=repr,
)
def test_body_without_length_is_refused(shop: Client, meta: dict[str, str]):
    response = shop.generic("POST", "/collect?appId=shop", GOOD, "application/json", **meta)

    problem(response, 411, "length_required")


def test_short_body_is_refused(shop: Client):
    response = shop.generic(
        "POST", "/collect?appId=shop", b"", CONTENT_LENGTH="10", **{"wsgi.input": io.BytesIO(b"[")}
    )

    problem(response, 400, "cut_off")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD"])
def test_other_methods_are_refused(shop: Client, method: str):
    response = shop.generic(method, "/collect?appId=shop", GOOD, "application/json")

    assert (response.status_code, response["Allow"]) == (405, "POST, OPTIONS")
    assert nothing_happened()


def test_strict_hash_refuses_wrong_hash(shop: Client):
    keys.Application.objects.update(strict_hash=True)

    problem(post(shop, GOOD, hashCode="ec47e3c8"), 400, "hash")
    problem(post(shop, GOOD), 400, "hash")
    assert post(shop, GOOD, hashCode=digest(GOOD)).status_code == 200

    keys.Application.objects.update(strict_hash=False)
    assert post(shop, encode_events(event(2)), hashCode="ec47e3c8").status_code == 200
    assert list(StoredEvent.objects.order_by("id").values_list("note", flat=True)) == [
        "",
        clickstream.HASH_MISMATCH,
    ]


@pytest.mark.parametrize("cookie", [None, "", "session=abc", "session=abcd; x=1", "\xe9"])
def test_wrong_cookie_is_forbidden(db: None, cookie: str | None):
    register(cookie="session=abcd")
    headers = {"Origin": PAGE} if cookie is None else {"Origin": PAGE, "Cookie": cookie}

    for response in (
        post(Client(), GOOD, headers=headers),
        Client().get("/ping?appId=shop", headers=headers),
    ):
        problem(response, 403, "forbidden")
        assert response["Access-Control-Allow-Origin"] == PAGE


def test_cookie_guesses_are_limited(db: None, settings: Any, monkeypatch: pytest.MonkeyPatch):
    settings.EXHAUST_RATE_LIMIT_MULTIPLIER = 1.0
    buckets = token_bucket.ProcessLimiter(lambda: 10**12)
    monkeypatch.setattr(token_bucket, "get_limiter", lambda _: buckets)
    for name in ("blocked_addresses", "verified_credentials"):
        monkeypatch.setattr(rate_limits, name, rate_limits.RecentValues())
    monkeypatch.setattr(rate_limits, "AUTH_FAILURES", rate_limits.Limit("failures", 0.02, 2))
    register(cookie="session=abcd")

    def sends(cookie: str, **extra: str) -> HttpResponse:
        headers = {"Origin": PAGE, "Cookie": cookie}
        return Client(**extra).get("/ping?appId=shop", headers=headers)

    assert sends("session=abcd").status_code == 200
    answers = [sends(f"session={number}") for number in range(4)]

    assert [answer.status_code for answer in answers] == [403, 403, 429, 429]
    assert all(answer.has_header("Retry-After") for answer in answers[2:])
    assert answers[3]["Access-Control-Allow-Origin"] == PAGE
    # three were checked; a request may have flushed some of them
    failures.flush_counts()
    counted = AuthFailureCount.objects.values_list("action", "count")
    assert list(counted) == [("application.rejected", 3)]
    assert sends("session=abcd").status_code == 200  # it was right before
    assert sends("session=4", REMOTE_ADDR="192.0.2.1").status_code == 403
    assert Client().options("/collect?appId=shop").status_code == 204


def test_right_cookie_is_accepted(db: None):
    register(cookie="session=abcd")

    assert post(Client(), GOOD, headers={"Cookie": "session=abcd"}).status_code == 200
    assert Client().options("/collect?appId=shop").status_code == 204


@pytest.mark.parametrize(("cookie", "passes"), [("", 2), ("session=abcd", 4)])
def test_network_gets_half_of_the_calls(
    db: None, settings: Any, monkeypatch: pytest.MonkeyPatch, cookie: str, passes: int
):
    settings.EXHAUST_RATE_LIMIT_MULTIPLIER = 1.0
    buckets = token_bucket.ProcessLimiter(lambda: 10**12)
    monkeypatch.setattr(token_bucket, "get_limiter", lambda _: buckets)
    monkeypatch.setattr(rate_limits, "local_quota", rate_limits.LocalQuota())
    monkeypatch.setattr(rate_limits, "EVENTS", rate_limits.Limit("events", 0.02, 4))
    register(cookie=cookie)
    headers = {"Origin": PAGE, "Cookie": cookie}

    answers = [Client().get("/ping?appId=shop", headers=headers) for _ in range(5)]

    assert [answer.status_code for answer in answers] == [200] * passes + [429] * (5 - passes)
    assert answers[-1].has_header("Retry-After")
    assert answers[-1]["Access-Control-Allow-Origin"] == PAGE
    elsewhere = Client(REMOTE_ADDR="192.0.2.1").get("/ping?appId=shop", headers=headers)
    assert elsewhere.status_code == (429 if cookie else 200)


def test_ping_returns_server_time(shop: Client):
    response = shop.get("/ping?appId=shop")

    assert (response.status_code, response["Cache-Control"]) == (200, "no-store")
    told = response.json()
    assert list(told) == ["timestamp"]
    assert abs(told["timestamp"] - timezone.now().timestamp()) < 60
    assert shop.post("/ping?appId=shop").status_code == 405


# Browsers ---------------------------------------------------------------------------------------

CORS = {
    "Access-Control-Allow-Origin": PAGE,
    "Access-Control-Allow-Credentials": "true",
    "Access-Control-Expose-Headers": "Retry-After, X-Request-ID",
}


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/collect", "POST", 200), ("/collect", "GET", 405), ("/ping", "GET", 200)],
)
def test_cors_for_registered_origin(shop: Client, path: str, method: str, status: int):
    response = shop.generic(method, f"{path}?appId=shop", GOOD, headers={"Origin": PAGE})

    assert response.status_code == status
    assert cors(response) == CORS
    assert response["Vary"] == "Origin"


def test_cors_on_error_response(shop: Client):
    keys.Application.objects.update(strict_hash=True)

    response = post(shop, GOOD, headers={"Origin": PAGE})

    assert response.status_code == 400
    assert cors(response) == CORS


@pytest.mark.parametrize("path", ["/collect", "/ping"])
def test_preflight_lists_headers(shop: Client, path: str):
    response = shop.options(
        f"{path}?appId=shop",
        headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"},
    )

    assert (response.status_code, response.content) == (204, b"")
    assert cors(response) == {
        **CORS,
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": (
            "DNT, X-CustomHeader, Keep-Alive, User-Agent, X-Requested-With, If-Modified-Since,"
            " Cache-Control, Content-Type"
        ),
        "Access-Control-Max-Age": "600",
    }
    assert response["Vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    ["https://shop.example.evil", "http://shop.example", "https://SHOP.example", "null", "*", ""],
)
def test_no_cors_for_other_origin(shop: Client, origin: str):
    for response in (
        post(shop, GOOD, headers={"Origin": origin}),
        shop.options("/collect?appId=shop", headers={"Origin": origin}),
    ):
        assert response.status_code in {200, 204}
        assert cors(response) == {}
        assert response["Vary"] == "Origin"


# Exports ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("portable", [False, True])
def test_answer_is_in_response_dataset(shop: Client, portable: bool):
    post(
        shop,
        encode_events(
            event(1, attributes={"conversation_id": "bot-1"}),
            answered(2, question_type="ftp", question_title="How was lunch?", max_score=1,
                     response='=good, "very"', score=1, duration=12, x_path="/data/a", eof=True),
            answered(3, question_options='[{"1": "One"}]', response='[{"1": "One"}]'),
        ),
    )  # fmt: skip
    conversation = Conversation.objects.get()
    selection = Selection(
        channel_id=conversation.channel_id,
        conversation_id=conversation.pk,
        conversation=conversation.identifier,
        conversation_name=conversation.name,
        start=HAPPENED_AT - timedelta(days=1),
        end=HAPPENED_AT + timedelta(days=1),
        watermark=2**62,
    )

    data = b"".join(
        writer.iter_blocks(
            DATASETS["uci-response-exhaust"], selection, writer.Progress(), portable=portable
        )
    )

    rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    assert len(rows) == 2
    rows.sort(key=lambda row: row["Message ID"])
    assert rows[0] == {
        "Message ID": event(2)["event_id"],
        "Conversation ID": "bot-1",
        "Conversation Name": "",
        "Device ID": DEVICE,
        "Session ID": SESSION,
        "Question Id": "q-1",
        "Question Type": "ftp",
        "Question Title": "How was lunch?",
        "Question Description": "",
        "Question Duration": "12",
        "Question Score": "1",
        "Question Max Score": "1",
        "Question Options": "",
        "Question Response": '[{"ans1": "=good, \\"very\\""}]',
        "X Path": "/data/a",
        "Eof": "true",
        "Timestamp": "2022-04-01T04:00:00.123Z",
    }
    assert rows[1]["Question Options"] == rows[1]["Question Response"] == '[{"1": "One"}]'
