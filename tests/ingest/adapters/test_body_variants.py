"""The fast path of a parser reads what the thorough one reads: each source, any bytes."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.adapters import ADAPTERS, json_body
from ingest.events import Batch, Call, RequestError, parse_timestamp

RECEIVED_AT = datetime(2026, 1, 1, tzinfo=UTC)
MS = 1_735_717_832_131

EVENTS: dict[str, dict[str, Any]] = {
    "telemetry": {
        "eid": "ASSESS", "ets": MS, "mid": "m", "actor": {"id": "a"},
        "context": {"did": "d", "sid": "s", "cdata": [{"type": "Conversation", "id": "c"}]},
        "edata": {"item": {"id": "q", "params": [{"1": {"text": "ODD"}}]}, "score": 1.5},
    },
    "clickstream": {
        "event_type": "_page_view", "event_id": "e", "timestamp": MS, "device_id": "d",
        "attributes": {"_session_id": "s", "title": "ODD", "price": 1.5},
    },
    "skalin": {
        "name": "f", "eventId": "e", "identity": {"id": "p"}, "ts": "2025-01-01T10:00:00",
        "event": {"plan": "ODD", "count": 1.5},
    },
    "desk": {
        "tenantId": "t", "userSessionId": "s", "startTime": MS, "internalUserId": "u",
        "userActions": [{"name": "ODD", "startTime": MS, "duration": 1.5}, 5],
        "events": [{}], "stringTags": {"plan": "team"},
    },
}  # fmt: skip
BODIES: dict[str, tuple[bytes, bytes]] = {
    "telemetry": (b'{"events": [%b]}', b", "),
    "clickstream": (b"[%b]", b","),
    "skalin": (b'{"identities": [], "features": [%b]}', b","),
    "desk": (b"%b", b"\n"),
}


def deep(levels: int) -> list[bytes]:
    return [
        b"[" * levels + b"]" * levels,
        b'{"a":' * levels + b"1" + b"}" * levels,
        b'[{"a":' * (levels // 2) + b"1" + b"}]" * (levels // 2),
    ]


WHOLE = [2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**18, 10**19]
ODD = [
    *(str(sign * number).encode() for number in WHOLE for sign in (1, -1)),
    *(b"9" * digits for digits in (20, 308, 309, 310, 400, 4300, 4301, 10_000)),
    *(b"-" + b"9" * digits for digits in (309, 310, 4301)),
    *(b"9" * 309 + b".5", b"9" * 308 + b"e1", b"0." + b"1" * 5000, b'"' + b"9" * 400 + b'"'),
    *(b"1e308", b"1.8e308", b"1e309", b"-1e309", b"1E+400", b"1e-400", b"0e999999999999", b"1e22"),
    *(b"-0", b"-0.0", b"1.0", b"1E2", b"01", b"1.", b".5", b"+1", b"-", b"1e", b"NaN", b"Infinity"),
    *(each for levels in (6, 7, 8, 9, 10, 98, 99, 100, 101, 102, 1200) for each in deep(levels)),
    *(b"[" + b"[]," * 200 + b"1]", b"[[]", b"[1,]", b'{"a":1,}', b"{'a':1}", b"{}", b"[]", b"nul"),
    *(rb'"\u0000"', rb'"\\u0000"', rb'"\\\u0000"', rb'"\ud800"', rb'"\udc00 x"', rb'"\ud800A"'),
    *(rb'"\ud83d\ude00"', rb'"\ude00\ud83d"', rb'"\uD800\u0041"', rb'"\uZZZZ"', rb'"\x41"'),
    *(rb'{"\u0000": 1}', rb'{"\ud800": 1}', b'{"a": 1, "a": 2}', b'{"": "", "e": {"e": 1e400}}'),
    *(b'"\xc3("', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xff"', b'{"\xc3(": 1}', b'"\xe2\x82\xac"'),
    *(b'"\xf0\x9f\x98\x80"', b'"\xf4\x90\x80\x80"', b'"a\0b"', b'"a\nb"', b'"\x7f"', b'"', b""),
]  # fmt: skip


def describe_batch(read: Callable[..., Any], *args: Any) -> Any:
    """Returns the result of a call, or the members of its error."""
    try:
        return read(*args)
    except RequestError as refused:
        return refused.reason, refused.detail, refused.status


def parse_both_ways(raw: bytes) -> None:
    quick, whole = (
        describe_batch(json_body.parse_value, raw),
        describe_batch(json_body.parse_unusual, raw),
    )
    assert repr(quick) == repr(whole)  # 1 is not 1.0, nor True


def batch(source: str, sent: bytes) -> Any:
    content_type = json_body.NDJSON if source == "desk" else ""
    return describe_batch(
        ADAPTERS[source].parse, sent, Call("c", RECEIVED_AT, content_type, "app", 1)
    )


def parse_batch_both_ways(source: str, sent: bytes) -> None:
    quick = batch(source, sent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "parse_value", json_body.parse_unusual)
        assert repr(quick) == repr(batch(source, sent))


def bodies(source: str, odd: bytes) -> list[bytes]:
    """Bodies of three events, the middle one with something odd at one place."""
    good = json.dumps(EVENTS[source]).encode()
    around, between = BODIES[source]
    middle = [good.replace(what, odd) for what in (b'"ODD"', b"1.5", str(MS).encode())]
    middle += [good[:-1] + b', "more": ' + odd + b"}", b'{"more": ' + odd + b", " + good[1:], odd]
    return [around % between.join([good, each, good]) for each in middle]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: f"{odd[:16]!r} of {len(odd)}")
def test_fast_path_finds_unusual_values(odd: bytes):
    parse_both_ways(odd)
    parse_both_ways(b'{"a": [' + odd + b', 1], "b": ' + odd + b"}")


@pytest.mark.parametrize("source", sorted(EVENTS))
def test_unusual_batch_parses_the_same(source: str):
    usual = batch(source, bodies(source, b'"plain"')[0])
    assert isinstance(usual, Batch)
    assert usual.rejections == []

    for odd in ODD:
        for sent in bodies(source, odd):
            parse_batch_both_ways(source, sent)


def test_usual_event_takes_the_fast_path():
    for event in EVENTS.values():
        raw = json.dumps(event).encode()

        assert json_body.decode_usual(raw) == event


# Any bytes --------------------------------------------------------------------------------------

_number = st.integers() | st.integers(-(10**400), 10**400) | st.floats(allow_nan=False)
_json = st.recursive(
    st.none() | st.booleans() | _number | st.text() | st.text('\0\\u0d8e1"{[', max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
_written = st.builds(
    lambda said, ascii_only: json.dumps(said, ensure_ascii=ascii_only).encode("utf-8", "replace"),
    _json,
    st.booleans(),
)


@st.composite
def _damaged_text(draw: st.DrawFn) -> bytes:
    """JSON in which a few bytes became others."""
    raw = bytearray(draw(_written))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 2))] = draw(
            st.sampled_from(
                [b"", b"\\", b'"', b"{", b"]", b"e9", b"999", b"\xc3", rb"\u0000", b",", b"\0"]
            )
        )
    return bytes(raw)


_quick = settings(max_examples=300, deadline=None, database=None)


@_quick
@given(_damaged_text() | st.sampled_from(ODD) | st.binary())
def test_any_text_parses_the_same(raw: bytes):
    parse_both_ways(raw)
    parse_both_ways(b'{"a": ' + raw + b"}")


@pytest.mark.parametrize("source", sorted(EVENTS))
@settings(max_examples=60, deadline=None, database=None)
@given(raw=_damaged_text() | st.sampled_from(ODD))
def test_any_batch_parses_the_same(source: str, raw: bytes):
    for sent in bodies(source, raw):
        parse_batch_both_ways(source, sent)


@_quick
@given(st.integers(-(10**14), 10**14) | st.integers(10**11, 10**14 - 1))
def test_whole_milliseconds_are_not_rounded(value: int):
    assert describe_batch(parse_timestamp, value, "ets") == describe_batch(
        parse_timestamp, float(value), "ets"
    )
