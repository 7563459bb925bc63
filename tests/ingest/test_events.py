from datetime import UTC, datetime, timedelta, timezone

import pytest

from ingest.events import Refused, identity, instant, measured

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
def test_seconds_milliseconds_and_microseconds_name_one_moment(value: float):
    assert instant(value, "ets") == MOMENT


def test_a_moment_is_aware_and_in_utc():
    assert instant(1_648_785_600, "ets").utcoffset() == timedelta(0)


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
def test_a_time_before_2000_or_beyond_the_calendar_is_refused(value: float):
    with pytest.raises(Refused) as caught:
        instant(value, "ets")

    assert caught.value.reason == "time_out_of_range"
    assert caught.value.detail == "ets lies before 2000 or beyond the calendar."


def test_the_first_moment_of_2000_is_taken():
    assert instant(946_684_800_000, "ets") == datetime(2000, 1, 1, tzinfo=UTC)


def test_an_identity_is_16_bytes_led_by_the_time():
    made = identity(MOMENT, "ORG_001", "mid")

    assert len(made) == 16
    assert int.from_bytes(made[:6]) == 1_648_785_600_123
    assert made < identity(MOMENT + timedelta(milliseconds=1), "ORG_001", "mid")


def test_an_identity_asks_for_the_moment_not_for_its_zone():
    there = MOMENT.astimezone(timezone(timedelta(hours=5, minutes=30)))

    assert identity(there, "a") == identity(MOMENT, "a")


def test_an_identity_tells_the_parts_apart():
    made = {
        identity(MOMENT, *parts)
        for parts in [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("c", "ab")]
    }

    assert len(made) == 6


@pytest.mark.parametrize("occurred_at", [MOMENT, None])
def test_an_identity_begun_is_that_of_all_its_parts(occurred_at: datetime | None):
    parts = ("é", "", "x" * 300, "d")

    for at in range(len(parts) + 1):
        begun = measured(*parts[:at])

        assert identity(occurred_at, *parts[at:], begun=begun) == identity(occurred_at, *parts)
