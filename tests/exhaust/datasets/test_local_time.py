"""Local times: zoneinfo's, at each change of a zone, from PostgreSQL and from Python."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.db import connection

from exhaust.datasets.cells import Column, make_cell_reader
from exhaust.datasets.local_time import format_local, format_time_sql, list_offsets

# half hours, both hemispheres, fasting months, a day that was skipped, a zone that moved for good
ZONES = [
    "Asia/Kolkata", "Asia/Kathmandu", "Europe/London", "America/New_York", "America/St_Johns",
    "Australia/Lord_Howe", "Africa/Casablanca", "Africa/Cairo", "Pacific/Apia", "America/Caracas",
    "Asia/Pyongyang", "Pacific/Chatham", "Etc/GMT+12", "Africa/Monrovia",
]  # fmt: skip
each_zone = pytest.mark.parametrize("zone", ZONES)
MS = timedelta(milliseconds=1)


def list_moments(zone: str) -> list[datetime]:
    """Moments around each change, and some others."""
    changes = [change.replace(tzinfo=UTC) for change in list_offsets(zone).changes]
    around = [change + gap for change in changes for gap in (-MS, 0 * MS, 3_600_000 * MS)]
    start = datetime(2000, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    return [*around, *(start + timedelta(days=97.3 * number) for number in range(300))]


def format_by_zoneinfo(moment: datetime, zone: str) -> str:
    return moment.astimezone(ZoneInfo(zone)).isoformat(timespec="milliseconds")


def format_utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


@each_zone
def test_local_times_are_those_of_zoneinfo(zone: str):
    moments = list_moments(zone)

    assert [format_local(format_utc(moment), zone) for moment in moments] == [
        format_by_zoneinfo(moment, zone) for moment in moments
    ]


@pytest.mark.postgresql
@pytest.mark.django_db
@each_zone
def test_postgresql_makes_same_local_times(zone: str):
    moments = list_moments(zone)

    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL timezone = 'America/New_York'")  # of no influence
        cursor.execute(
            f"SELECT {format_time_sql('moment', zone)}"
            " FROM unnest(%s::timestamptz[]) WITH ORDINALITY AS each(moment, number)"
            " ORDER BY number",
            [moments],
        )
        found = [text for (text,) in cursor.fetchall()]

    assert found == [format_by_zoneinfo(moment, zone) for moment in moments]


@pytest.mark.parametrize(
    ("utc", "local"),
    [
        ("2022-03-27T00:59:59.999Z", "2022-03-27T00:59:59.999+00:00"),
        ("2022-03-27T01:00:00.000Z", "2022-03-27T02:00:00.000+01:00"),  # an hour is skipped
        ("2022-10-30T00:30:00.000Z", "2022-10-30T01:30:00.000+01:00"),
        ("2022-10-30T01:30:00.000Z", "2022-10-30T01:30:00.000+00:00"),  # and one comes twice
    ],
)
def test_clock_changes(utc: str, local: str):
    assert format_local(utc, "Europe/London") == local


@pytest.mark.parametrize("value", ["2022-04-01 00:00:00.123999", datetime(2022, 4, 1, tzinfo=UTC)])
def test_cell_in_zone(value: str | datetime):
    column = Column("Seen", "time", ("seen",), "When, in UTC.").in_zone("Asia/Kolkata")

    (cell,) = make_cell_reader([column])({"seen": value}, "{}", False)

    assert cell is not None
    assert cell[:19] + cell[23:] == "2022-04-01T05:30:00+05:30"
    assert column.description == "When, in Asia/Kolkata."
    assert make_cell_reader([column])({"seen": None}, "{}", False) == [None]


def test_zone_without_changes_needs_no_array():
    assert "width_bucket" not in format_time_sql("moment", "Asia/Kolkata")
    assert "width_bucket" in format_time_sql("moment", "Europe/London")
