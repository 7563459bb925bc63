import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ingest.adapters import participants
from ingest.events import Refused
from tests.ingest.telemetry_samples import RECEIVED_AT


def read(*people: Any) -> Any:
    return participants.parse(json.dumps(people).encode(), "application/json", RECEIVED_AT)


def refused(**said: Any) -> str:
    profiles, rejections = read({"deviceId": "d", **said})
    assert profiles == []
    assert len(rejections) == 1
    assert rejections[0].raw == json.dumps({"deviceId": "d", **said}).encode()
    return rejections[0].reason


def test_a_profile_is_read():
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
        participants.Profile(
            "d", "Asha", "+919000000001", True, datetime(2022, 4, 1, 4, 30, tzinfo=UTC)
        )
    ]


@pytest.mark.parametrize("said", [{}, {"userName": None, "phone": None, "consent": None}])
def test_what_is_not_said_is_none(said: dict[str, Any]):
    assert read({"deviceId": "d", **said})[0] == [
        participants.Profile("d", None, None, None, RECEIVED_AT)
    ]


@pytest.mark.parametrize(
    "body",
    [b'[{"deviceId": "a"}, {"deviceId": "b"}]', b'{"deviceId": "a"}\n{"deviceId": "b"}'],
)
def test_an_array_and_one_a_line_are_the_same(body: bytes):
    profiles, rejections = participants.parse(body, "", RECEIVED_AT)

    assert [p.device_id for p in profiles] == ["a", "b"]
    assert rejections == []


def test_one_object_is_one_participant():
    assert len(participants.parse(b'{"deviceId": "a"}', "", RECEIVED_AT)[0]) == 1


@pytest.mark.parametrize("phone", ["+919000000001", "+1234567", "+123456789012345", ""])
def test_phones_in_e164_are_taken(phone: str):
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
def test_any_other_phone_is_refused(phone: Any):
    assert refused(phone=phone) == "phone"


@pytest.mark.parametrize("consent", ["true", 1, 0, "yes", [], {}], ids=repr)
def test_consent_is_true_or_false_and_nothing_like_it(consent: Any):
    assert refused(consent=consent) == "consent"


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
def test_a_consent_needs_a_moment_with_its_zone(moment: Any):
    assert refused(consent=True, consentAt=moment) == "consentAt"


@pytest.mark.parametrize("device_id", [None, "", 5, ["d"], "d" * 256], ids=lambda d: repr(d)[:8])
def test_a_participant_needs_a_device_id(device_id: Any):
    assert refused(deviceId=device_id) == "deviceId"


def test_a_long_name_is_refused_and_one_of_255_is_not():
    assert refused(userName="n" * 256) == "userName"
    assert len(read({"deviceId": "d", "userName": "n" * 255})[0]) == 1


def test_one_bad_participant_costs_no_other():
    profiles, rejections = read(
        {"deviceId": "a"}, 5, {"deviceId": "b", "phone": "x"}, {"deviceId": "c"}
    )

    assert [p.device_id for p in profiles] == ["a", "c"]
    assert [(r.position, r.reason) for r in rejections] == [(1, "not_an_object"), (2, "phone")]


@pytest.mark.parametrize("body", [b"{", b"[{]", b"nonsense", b"[" * 100_000])
def test_what_is_no_json_is_refused_whole(body: bytes):
    with pytest.raises(Refused) as caught:
        participants.parse(body, "application/json", RECEIVED_AT)

    assert caught.value.status == 400
