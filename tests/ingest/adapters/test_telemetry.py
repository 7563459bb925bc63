import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.adapters import ADAPTERS, json_body
from ingest.adapters.telemetry import parser as telemetry
from ingest.events import Batch, Call, RequestError
from ingest.models import StoredEvent
from tests.ingest.telemetry_samples import (
    CHANNEL,
    CONVERSATION,
    DEVICE,
    PUBLISHED,
    RECEIVED_AT,
    SESSION,
    answer,
    batch,
    drop_fields,
    encode_batch,
    parse_sample,
)

NDJSON = "application/x-ndjson"


def line(event: Any) -> bytes:
    return json.dumps(event).encode()


def refusal(raw: bytes, content_type: str = "application/json") -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_sample(raw, content_type)
    return caught.value


def rejection(event: Any) -> tuple[str, str]:
    read = batch(event)
    assert len(read.events) == 0
    assert len(read.rejections) == 1
    assert read.rejections[0].position == 0
    assert read.rejections[0].raw == line(event)
    return read.rejections[0].reason, read.rejections[0].detail


# Shapes -----------------------------------------------------------------------------------------


def test_telemetry_is_registered():
    assert ADAPTERS["telemetry"].parse is telemetry.parse


def test_parse_answer():
    event = answer(3)

    read = batch(event)

    assert (read.source, read.received_at, read.rejections) == ("telemetry", RECEIVED_AT, [])
    assert len(read.events) == 1
    got = read.events[0]
    assert (got.type, got.is_answer, got.note) == ("ASSESS", True, "")
    assert got.occurred_at == datetime(2022, 4, 1, 4, 0, 3, tzinfo=UTC)
    assert (got.device_id, got.session_id, got.conversation) == (DEVICE, SESSION, CONVERSATION)
    assert json.loads(got.payload) == event


def test_parse_ten_events():
    read = parse_sample(PUBLISHED)

    assert len(read.rejections) == 0
    assert [event.type for event in read.events] == [
        *["ASSESS"] * 6, "START", "INTERACT", "FEEDBACK", "END",
    ]  # fmt: skip
    assert [event.is_answer for event in read.events] == [True] * 6 + [False] * 4
    assert len({event.identity for event in read.events}) == 10
    assert len({json.loads(event.payload)["mid"] for event in read.events}) == 8


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
def test_bare_event_is_a_batch_of_one(content_type: str):
    assert len(parse_sample(line(answer()), content_type).events) == 1


def test_array_is_a_batch():
    assert len(parse_sample(line([answer(1), answer(2)])).events) == 2


def test_empty_batch_is_a_batch():
    assert batch() == Batch("telemetry", RECEIVED_AT, [], [])
    assert parse_sample(b"[]") == Batch("telemetry", RECEIVED_AT, [], [])


def test_pretty_printed_json_is_one_document():
    pretty = json.dumps({"events": [answer(1), answer(2)]}, indent=2).encode()

    assert len(parse_sample(pretty).events) == 2
    assert len(parse_sample(json.dumps(answer(1), indent=4).encode()).events) == 1


@pytest.mark.parametrize("content_type", ["application/json", NDJSON])
def test_lines_are_a_batch(content_type: str):
    raw = b"\r\n".join(line(answer(n)) for n in range(3)) + b"\n\n"

    assert len(parse_sample(raw, content_type).events) == 3


def test_line_may_hold_a_batch():
    raw = encode_batch(answer(1), answer(2)) + b"\n" + line([answer(3)]) + b"\n" + line(answer(4))

    assert len(parse_sample(raw, NDJSON).events) == 4


@pytest.mark.parametrize("content_type", ["application/json", NDJSON])
def test_invalid_line_rejects_only_itself(content_type: str):
    raw = line(answer(1)) + b'\n{"eid": "ASS\n' + line(answer(2))

    read = parse_sample(raw, content_type)

    assert len(read.events) == 2
    assert [(r.position, r.reason, r.raw) for r in read.rejections] == [
        (1, "not_json", b'{"eid": "ASS')
    ]


@pytest.mark.parametrize("wrap", [b'{"events": [%b, %b]}', b"[%b, %b]"])
def test_lone_surrogate_rejects_no_event(wrap: bytes):
    odd = line(answer(1)).replace(b"Which class", rb"\ud800 class")
    body = wrap.replace(b"%b", odd, 1).replace(b"%b", line(answer(2)))

    read = parse_sample(body + b"\n" + line(answer(3)), NDJSON)

    assert (len(read.events), len(read.rejections)) == (3, 0)


def test_invalid_event_rejects_only_itself():
    read = batch(answer(1), 5, answer(2), {"eid": "ASSESS"}, answer(3))

    assert len(read.events) == 3
    assert [(r.position, r.reason) for r in read.rejections] == [(1, "not_an_object"), (3, "ets")]


def test_lone_surrogate_in_the_first_line():
    first = line(answer(1)).replace(b"Which class", rb"\ud800 class")

    read = parse_sample(first + b"\n" + line(answer(2)))

    assert (len(read.events), len(read.rejections)) == (2, 0)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "not_json"),
        (b"nonsense", "not_json"),
        (b'{"events": [{"a": NaN}]}', "not_json"),
        (b"5", "not_a_batch"),
        (b'"text"', "not_a_batch"),
        (b"null", "not_a_batch"),
        (b"{}", "not_a_batch"),
        (b'{"events": null}', "not_a_batch"),
        (b'{"events": 5}', "not_a_batch"),
        (b'{"events": {"0": {}}}', "not_a_batch"),
        (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
        (b'{"events":' * 100_000, "too_deep"),
    ],
    ids=lambda part: repr(part)[:28],
)
def test_non_batch_is_refused(raw: bytes, reason: str):
    refused = refusal(raw)

    assert (refused.status, refused.reason) == (400, reason)


# Rejections -------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [5, None, "text", [], True], ids=repr)
def test_non_object_is_rejected(event: Any):
    assert rejection(event) == ("not_an_object", "An event is a JSON object.")


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (drop_fields(answer(), "eid"), "eid"),
        (answer(eid=""), "eid"),
        (answer(eid=None), "eid"),
        (answer(eid=["ASSESS"]), "eid"),
        (answer(eid="x" * 256), "eid"),
        (answer(ets=None), "ets"),
        (answer(ets=True), "ets"),
        (answer(ets="1648785600123"), "ets"),
        (drop_fields(answer(), "ets"), "ets"),
        (drop_fields(answer(), "context"), "context"),
        (answer() | {"context": "web"}, "context"),
        (answer() | {"context": None}, "context"),
        (drop_fields(answer(), "edata"), "edata"),
        (answer() | {"edata": []}, "edata"),
        (answer(actor="me", context={"did": ""}), "actor"),
        (answer(mid=["m"]), "mid"),
        (answer(mid="m" * 256), "mid"),
        (answer(mid=1.5), "mid"),
        (answer(context={"did": {}}), "context.did"),
        (answer(context={"did": "d" * 256}), "context.did"),
        (answer(context={"sid": False}), "context.sid"),
        (answer(context={"did": "", "sid": ""}, actor={"id": []}), "actor.id"),
        (answer(item={"id": {"a": 1}}), "edata.item.id"),
        (answer(context={"cdata": {"type": "Conversation", "id": "c"}}), "context.cdata"),
        (answer(context={"cdata": "Conversation"}), "context.cdata"),
        (
            answer(context={"cdata": [{"type": "Conversation", "id": ["c"]}]}),
            "context.cdata[Conversation].id",
        ),
    ],
)
def test_invalid_field_is_named(event: dict[str, Any], reason: str):
    code, detail = rejection(event)

    assert code == reason
    assert detail.startswith(reason)


@pytest.mark.parametrize(
    "ets",
    [
        -62_167_219_200_000,  # year 0
        0,
        946_684_799_999,
        9_224_318_015_999_999,  # year 294277 in milliseconds, 2262 read as microseconds
        9_224_318_015_999_999_999,
        10**400,
    ],
    ids=lambda ets: repr(ets)[:20],
)
def test_time_out_of_range_rejects_event(ets: int):
    read = batch(answer(1), answer(2, ets=ets), answer(3))

    assert len(read.events) == 2
    assert len(read.rejections) == 1
    assert read.rejections[0].position == 1
    assert read.rejections[0].reason in {"time_out_of_range", "number_out_of_range"}


def test_ets_up_to_one_day_ahead():
    latest = int((RECEIVED_AT + timedelta(days=1)).timestamp() * 1000)

    assert len(batch(answer(ets=latest)).events) == 1
    assert rejection(answer(ets=latest + 1)) == (
        "time_out_of_range",
        "ets lies more than a day in the future.",
    )


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (b'"\xc3("', "not_utf8"),
        (b"1e400", "number_out_of_range"),
        (b"9" * 4301, "number_out_of_range"),
    ],
    ids=["utf8", "1e400", "4301 digits"],
)
def test_unstorable_value_rejects_event(inside: bytes, reason: str):
    bad = line(answer(2)).replace(b'"Yes"', inside)

    read = parse_sample(b"[" + b",".join([line(answer(1)), bad, line(answer(3))]) + b"]")

    assert len(read.events) == 2
    assert [(r.position, r.reason, r.raw) for r in read.rejections] == [(1, reason, bad)]


# Events -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ets",
    [
        b"1648785600123",
        b"1.648785600123E12",
        b"1648785600123.0",
        b"1648785600.123",
        b"1648785600123000",
    ],
)
def test_ets_units(ets: bytes):
    raw = line(answer(ets=1)).replace(b'"ets": 1,', b'"ets": ' + ets + b",")

    assert parse_sample(raw).events[0].occurred_at == datetime(
        2022, 4, 1, 4, 0, 0, 123_000, tzinfo=UTC
    )


@pytest.mark.parametrize("channel", ["", " ", "ANOTHER", None])
def test_channel_comes_from_the_key(channel: str | None):
    assert batch(answer(context={"channel": channel})).events[0].identity == (
        batch(answer()).events[0].identity
    )


def test_events_are_per_channel():
    here = telemetry.parse(encode_batch(answer()), Call(CHANNEL, RECEIVED_AT))
    there = telemetry.parse(encode_batch(answer()), Call("ORG_002", RECEIVED_AT))

    assert here.events[0].identity != there.events[0].identity


@pytest.mark.parametrize(
    "other",
    [
        answer(context={"did": "another"}),
        answer(context={"sid": "another"}),
        answer(item={"id": "another"}),
        answer(ets=answer()["ets"] + 1),
        answer(mid="another"),
    ],
    ids=["device", "session", "item", "time", "mid"],
)
def test_mid_is_only_part_of_identity(other: dict[str, Any]):
    read = batch(answer(), other)

    assert len(read.events) == 2
    assert read.events[0].identity != read.events[1].identity


def test_pipeline_fields_keep_identity():
    replay = answer(syncts=1_648_785_603_456, flags={"dd_processed": True})

    assert batch(replay).events[0].identity == batch(answer()).events[0].identity


def test_identity_without_mid_is_the_bytes():
    plain, other = drop_fields(answer(), "mid"), drop_fields(answer(edata={"score": 0}), "mid")

    read = batch(plain, plain, other)

    assert len(read.events) == 3
    assert read.events[0].identity == read.events[1].identity
    assert read.events[0].identity != read.events[2].identity


@pytest.mark.parametrize("context", [{"did": ""}, {"did": None}])
def test_actor_replaces_missing_device(context: dict[str, Any]):
    assert batch(answer(context=context, actor={"id": "actor-1"})).events[0].device_id == "actor-1"


@pytest.mark.parametrize(
    ("context", "header", "device"),
    [
        ({"did": "own"}, "d-7", "own"),
        ({"did": ""}, "d-7", "d-7"),
        ({"did": None}, "d-7", "d-7"),
        ({"did": ""}, "", "actor-1"),
        ({"did": ""}, "x" * 256, "actor-1"),
    ],
    ids=range(5),
)
def test_header_fills_an_empty_device(
    sender: Client, context: dict[str, Any], header: str, device: str
):
    sent = json.dumps(answer(context=context, actor={"id": "actor-1"}))

    for headers in ({"X-Device-ID": header}, {}):  # a resend is the same event
        sender.post("/v1/telemetry", sent, "application/json", headers=headers)

    assert StoredEvent.objects.get().device_id == device


def test_feedback_without_context():
    event = {
        "eid": "FEEDBACK",
        "ets": 1_648_785_690_000,
        "mid": "FEEDBACK:1",
        "context": {"channel": CHANNEL, "env": "web.pwa"},
        "edata": {"rating": 4, "comments": "ok"},
    }

    got = batch(event).events[0]

    assert (got.device_id, got.session_id, got.conversation) == ("", "", "")
    assert got.is_answer is False


def test_numeric_ids_become_text():
    got = batch(answer(context={"did": 42, "sid": 7, "cdata": [{"type": "Conversation", "id": 9}]}))

    assert (got.events[0].device_id, got.events[0].session_id) == ("42", "7")
    assert got.events[0].conversation == "9"


@pytest.mark.parametrize(
    ("cdata", "conversation"),
    [
        (None, ""),
        ([], ""),
        ([None, 5, "Conversation", []], ""),
        ([{"type": "Conversation"}], ""),
        ([{"type": "Conversation", "id": None}], ""),
        ([{"id": "c"}], ""),
        ([{"type": "conversation", "id": "c"}], ""),
        ([{"type": ["Conversation"], "id": "c"}], ""),
        ([{"type": "XPath", "id": "x"}, {"type": "Conversation", "id": "c"}], "c"),
        ([{"type": "Conversation", "id": "c"}, {"type": "Conversation", "id": "d"}], "c"),
    ],
)
def test_conversation_is_the_first_of_cdata(cdata: Any, conversation: str):
    got = batch(answer(context={"cdata": cdata})).events[0]

    assert got.conversation == conversation
    assert got.is_answer is (conversation != "")


@pytest.mark.parametrize(
    "event",
    [
        answer(eid="RESPONSE"),
        answer(context={"cdata": []}),
        answer(edata={"item": None}),
        answer(edata={"item": "q1"}),
        answer(edata={"item": []}),
        drop_fields(answer(), "edata", "item"),
    ],
)
def test_only_assess_with_item_is_an_answer(event: dict[str, Any]):
    assert batch(event).events[0].is_answer is False


@pytest.mark.parametrize("odd", [rb"\u0000", rb"\ud800", rb"\udfff x"])
@pytest.mark.parametrize("wrap", [b"%b", b"[%b]", b'{"events": [%b]}'])
def test_repaired_event_has_note(odd: bytes, wrap: bytes):
    raw = line(answer(edata={"resvalues": [{"ans1": "HERE"}]})).replace(b"HERE", odd)

    read = parse_sample(wrap.replace(b"%b", raw))

    assert (len(read.events), len(read.rejections)) == (1, 0)
    assert json.loads(read.events[0].payload)["edata"]["resvalues"][0]["ans1"][0] == "\ufffd"
    assert read.events[0].note == json_body.REPAIRED_NOTE


def test_payload_is_unchanged():
    raw = b'{ "eid":"X", "ets":1648785600123, "context":{}, "edata":{"n":1.50,"n":1E2}, "mid":"m" }'

    assert parse_sample(b"[ " + raw + b" ]").events[0].payload == raw


# Any bytes --------------------------------------------------------------------------------------

_float = st.floats(allow_nan=False, allow_infinity=False)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | _float | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
_nearly = st.fixed_dictionaries(
    {},
    optional={
        "eid": st.just("ASSESS") | _json,
        "ets": st.just(1_648_785_600_123) | st.integers() | _float | _json,
        "mid": st.text() | _json,
        "actor": st.fixed_dictionaries({"id": _json}) | _json,
        "context": st.fixed_dictionaries(
            {}, optional={"did": _json, "sid": _json, "cdata": st.lists(_json) | _json}
        ),
        "edata": st.fixed_dictionaries({}, optional={"item": _json}) | _json,
    },
)
_content_types = st.sampled_from(["", "application/json", NDJSON, "text/plain"])
_quick = settings(max_examples=150, deadline=None, database=None)


@_quick
@given(st.binary() | st.text().map(str.encode), _content_types)
def test_any_bytes_parse_or_are_refused(raw: bytes, content_type: str):
    told: Batch | RequestError
    try:
        told = parse_sample(raw, content_type)
    except RequestError as refused:
        told = refused

    if isinstance(told, RequestError):
        assert told.status == 400
        assert told.detail
    else:
        assert all(len(event.identity) == 16 for event in told.events)


@_quick
@given(st.lists(_nearly | _json, max_size=6), st.booleans())
def test_each_element_is_event_or_rejection(elements: list[Any], ascii_only: bool):
    raw = json.dumps(elements, ensure_ascii=ascii_only).encode("utf-8", "replace")

    read = parse_sample(raw)

    assert len(read.events) + len(read.rejections) == len(elements)
    positions = [r.position for r in read.rejections]
    assert positions == sorted(set(positions))
    assert all(0 <= position < len(elements) for position in positions)
    for event in read.events:
        json.loads(event.payload)
        assert len(event.identity) == 16
