"""A batch of any source holds up to ten thousand events."""

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from ingest.adapters import ADAPTERS, body_limits, json_body
from ingest.adapters.base import MAX_LISTED_REJECTIONS
from ingest.events import Batch, Call, RequestError
from tests.ingest.telemetry_samples import answer

MOST = body_limits.MAX_EVENTS
RECEIVED_AT = datetime(2026, 3, 1, tzinfo=UTC)
Body = Callable[[int], bytes]


def array(item: str) -> Body:
    return lambda count: f"[{','.join([item] * count)}]".encode()


def lines(item: str) -> Body:
    return lambda count: "\n".join([item] * count).encode()


def envelope(count: int) -> bytes:
    return b'{"events": %b}' % array("5")(count)


def two_arrays(count: int) -> bytes:
    return array("5")(count - 7) + b"\n" + array("5")(7)


def session(count: int) -> bytes:
    """A session of so many events, with the session itself."""
    actions = [{}] * (count - 1)
    return json.dumps(
        {"userSessionId": "s", "startTime": 1648785600123, "userActions": actions}
    ).encode()


def parse(source: str, body: bytes, content_type: str = "") -> Batch:
    return ADAPTERS[source].parse(body, Call("ORG_001", RECEIVED_AT, content_type, "app", 1))


def count(batch: Batch) -> int:
    return len(batch.events) + len(batch.rejections) + len(batch.profiles)


@pytest.mark.parametrize(
    ("source", "make", "content_type"),
    [
        ("telemetry", array("5"), ""),
        ("telemetry", array("{}"), ""),
        ("telemetry", envelope, ""),
        ("telemetry", two_arrays, json_body.NDJSON),
        ("telemetry", lines("5"), json_body.NDJSON),
        ("telemetry", lines('{"eid": "X"}'), "application/json"),
        ("telemetry", array('"\\ud800"'), ""),
        ("clickstream", array("5"), ""),
        ("clickstream", array("{}"), ""),
        ("participants", array("5"), ""),
        ("participants", array('{"deviceId": "d"}'), ""),
        ("participants", lines('{"deviceId": "d"}'), json_body.NDJSON),
        ("participants", two_arrays, json_body.NDJSON),
    ],
)
def test_ten_thousand_and_no_more(source: str, make: Body, content_type: str):
    assert count(parse(source, make(MOST), content_type)) == MOST

    with pytest.raises(RequestError, match="up to 10000 events; send less at once") as caught:
        parse(source, make(MOST + 1), content_type)
    assert (caught.value.reason, caught.value.status) == ("too_many", 413)


def test_session_of_ten_thousand():
    assert len(parse("desk", session(MOST)).events) == MOST

    batch = parse("desk", session(MOST + 1))
    assert batch.events == []
    assert batch.rejections[0].reason == "too_many"
    assert "more than 10000 events; send less" in batch.rejections[0].detail


def test_every_source_is_tried():
    assert set(ADAPTERS) == {"telemetry", "clickstream", "participants", "desk", "skalin"}


@pytest.mark.parametrize("source", ["telemetry", "clickstream", "participants"])
def test_unlisted_rejections_are_exact(source: str):
    """Beyond those that a response lists, a text that is no object is not parsed."""
    good = {
        "telemetry": answer(1),
        "clickstream": {"event_type": "t", "event_id": "e", "timestamp": 1648785600123},
        "participants": {"deviceId": "d"},
    }[source]
    items = ["5", '"x"', "null", "[[1]]", "1e400", "{}", json.dumps(good)]
    body = f"[{','.join(items * 50)}]".encode()

    batch = parse(source, body)

    assert len(batch.events) + len(batch.profiles) == 50
    assert [each.position for each in batch.rejections] == [n for n in range(350) if n % 7 != 6]
    listed = batch.rejections[:MAX_LISTED_REJECTIONS]
    assert [each.reason for each in listed if each.position % 7 == 4] == (
        ["number_out_of_range"] * 16
    )
    scalars = {each.reason for each in batch.rejections[100:] if each.position % 7 < 5}
    assert scalars == {"not_an_object"}
