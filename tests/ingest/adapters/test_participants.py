import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ingest.adapters import participants
from ingest.events import Call, Profile, Rejection, RequestError
from tests.ingest.telemetry_samples import RECEIVED_AT


def parse(body: bytes, content_type: str = "") -> tuple[list[Profile], list[Rejection]]:
    batch = participants.parse(body, Call("ORG_001", RECEIVED_AT, content_type))
    return list(batch.profiles), batch.rejections


def read(*people: Any) -> tuple[list[Profile], list[Rejection]]:
    return parse(json.dumps(people).encode(), "application/json")


def refused(**said: Any) -> str:
    profiles, rejections = read({"deviceId": "d", **said})
    assert profiles == []
    assert len(rejections) == 1
    assert rejections[0].raw == json.dumps({"deviceId": "d", **said}).encode()
    return rejections[0].reason


def test_parse_profile():
    profiles, rejections = read(
        {
            "deviceId": "d",
            "userName": "Asha",
            "phone": "+919000000001",
            "consent": True,
            "consentAt": "2022-04-01T10:00:00+05:30",
        }
    )

    assert rejections == []
    assert profiles == [
        Profile("d", "Asha", "+919000000001", True, datetime(2022, 4, 1, 4, 30, tzinfo=UTC))
    ]


@pytest.mark.parametrize("said", [{}, {"userName": None, "phone": None, "consent": None}])
def test_missing_fields_are_none(said: dict[str, Any]):
    assert read({"deviceId": "d", **said})[0] == [Profile("d", None, None, None, RECEIVED_AT)]


@pytest.mark.parametrize(
    "body",
    [b'[{"deviceId": "a"}, {"deviceId": "b"}]', b'{"deviceId": "a"}\n{"deviceId": "b"}'],
)
def test_array_and_lines_are_equivalent(body: bytes):
    profiles, rejections = parse(body)

    assert [p.device_id for p in profiles] == ["a", "b"]
    assert rejections == []


def test_one_object_is_one_participant():
    assert len(parse(b'{"deviceId": "a"}')[0]) == 1


@pytest.mark.parametrize("phone", ["+919000000001", "+1234567", "+123456789012345", ""])
def test_e164_phones_are_accepted(phone: str):
    assert read({"deviceId": "d", "phone": phone})[0][0].phone == phone


@pytest.mark.parametrize(
    "phone",
    [
        "919000000001",
        "+0919000000001",
        "+91 90000 00001",
        "+91-9000000001",
        "+123456",
        "+1234567890123456",
        "+919000000001\n",
        " +919000000001",
        "++919000000001",
        "+91900000000a",
        "+٩١٩٠٠٠٠٠٠٠٠١",  # digits of another script
        "=+919000000001",
        "phone:9000000001",
        919000000001,
        True,
        ["+919000000001"],
    ],
    ids=repr,
)
def test_other_phones_are_rejected(phone: Any):
    assert refused(phone=phone) == "phone"


@pytest.mark.parametrize("consent", ["true", 1, "yes", [], {}, "maybe", 0.5], ids=repr)
def test_consent_must_be_boolean(consent: Any):
    assert refused(consent=consent) == "consent"


@pytest.mark.parametrize(
    "beside",
    [
        b'"consent": "false"',
        b'"consent": " No "',
        b'"consent": 0',
        b'"consent": false, "phone": "98765 43210"',
        b'"consent": false, "consentAt": "2022-04-01T10:00:00"',
        b'"consent": false, "consentAt": "2999-01-01T00:00:00Z"',
        b'"consent": false, "consentAt": 5, "userName": 7',
        b'"consent": false, "age": 1e999',
        b'"consent": false, "userName": "\\ud800", "phone": "x"',
        b'"consent": false, "more": ' + b"[" * 200 + b"]" * 200,
    ],
    ids=repr,
)
def test_refusal_is_taken_as_of_arrival(beside: bytes):
    profiles, rejections = parse(b'[{"deviceId": "d", %b}]' % beside)

    assert profiles == [Profile("d", None, None, False, RECEIVED_AT)]
    assert len(rejections) == 1
    assert rejections[0].detail.endswith("What it withdraws is taken, as of its arrival.")


def test_removed_phone_is_taken():
    profiles, _ = read({"deviceId": 47, "phone": "", "consent": "unsure"})

    assert profiles == [Profile("47", None, "", None, RECEIVED_AT)]


@pytest.mark.parametrize(
    "moment",
    [
        "yesterday",
        "",
        1_648_785_600,
        "2022-04-01T10:00:00",
        "2022-04-01",
        "2022-02-30T10:00:00Z",
        "0001-01-01T00:00:00+23:00",
        (RECEIVED_AT + timedelta(days=1, seconds=1)).isoformat(),
    ],
    ids=repr,
)
def test_consent_time_needs_a_zone(moment: Any):
    assert refused(consent=True, consentAt=moment) == "consentAt"


@pytest.mark.parametrize("device_id", [None, "", 5, ["d"], "d" * 256], ids=lambda d: repr(d)[:8])
def test_device_id_is_required(device_id: Any):
    assert refused(deviceId=device_id) == "deviceId"


def test_name_limit_is_255_characters():
    assert refused(userName="n" * 256) == "userName"
    assert len(read({"deviceId": "d", "userName": "n" * 255})[0]) == 1


def test_invalid_participant_rejects_itself():
    profiles, rejections = read(
        {"deviceId": "a"}, 5, {"deviceId": "b", "phone": "x"}, {"deviceId": "c"}
    )

    assert [p.device_id for p in profiles] == ["a", "c"]
    assert [(r.position, r.reason) for r in rejections] == [(1, "not_an_object"), (2, "phone")]


@pytest.mark.parametrize("body", [b"{", b"[{]", b"nonsense", b"[" * 100_000])
def test_invalid_json_is_refused(body: bytes):
    with pytest.raises(RequestError) as caught:
        parse(body, "application/json")

    assert caught.value.status == 400
