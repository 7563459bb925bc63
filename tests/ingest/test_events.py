from datetime import UTC, datetime, timedelta, timezone

import pytest

from ingest.events import RequestError, event_identity, length_prefixed, parse_timestamp

MOMENT = datetime(2022, 4, 1, 4, 0, 0, 123_000, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        1_648_785_600.123,
        1_648_785_600_123,
        1.648785600123e12,
        1_648_785_600_123_456,
        1648785600123.4,
    ],
)
def test_timestamp_units(value: float):
    assert parse_timestamp(value, "ets") == MOMENT


def test_timestamp_is_aware_utc():
    assert parse_timestamp(1_648_785_600, "ets").utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        -62_167_219_200_000,  # year 0
        946_684_799_999,  # a millisecond before 2000
        9_224_318_015_999_999_999,  # year 294277 in microseconds
        10**300,
        1e300,
        10**400,
    ],
    ids=lambda value: repr(value)[:24],
)
def test_timestamp_out_of_range_is_refused(value: float):
    with pytest.raises(RequestError) as caught:
        parse_timestamp(value, "ets")

    assert caught.value.reason == "time_out_of_range"
    assert caught.value.detail == "ets lies before 2000 or beyond the calendar."


def test_timestamp_of_2000_is_accepted():
    assert parse_timestamp(946_684_800_000, "ets") == datetime(2000, 1, 1, tzinfo=UTC)


def test_identity_starts_with_the_time():
    made = event_identity(MOMENT, "ORG_001", "mid")

    assert len(made) == 16
    assert int.from_bytes(made[:6]) == 1_648_785_600_123
    assert made < event_identity(MOMENT + timedelta(milliseconds=1), "ORG_001", "mid")


def test_identity_ignores_the_time_zone():
    there = MOMENT.astimezone(timezone(timedelta(hours=5, minutes=30)))

    assert event_identity(there, "a") == event_identity(MOMENT, "a")


def test_identity_separates_its_parts():
    made = {
        event_identity(MOMENT, *parts)
        for parts in [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("c", "ab")]
    }

    assert len(made) == 6


@pytest.mark.parametrize("occurred_at", [MOMENT, None])
def test_identity_with_prefix(occurred_at: datetime | None):
    parts = ("é", "", "x" * 300, "d")

    for at in range(len(parts) + 1):
        begun = length_prefixed(*parts[:at])

        assert event_identity(occurred_at, *parts[at:], prefix=begun) == event_identity(
            occurred_at, *parts
        )
