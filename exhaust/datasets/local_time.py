"""Times in a time zone, as text with the offset: the same from PostgreSQL and from Python.

Their zone data are of different versions. Python's decides: its offsets stand in the SQL.
"""

from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

# ingest takes no earlier event; from the last year on one offset stays
_FIRST, _LAST = datetime(2000, 1, 1), datetime(2100, 1, 1)  # noqa: DTZ001 # in UTC
_WEEK, _SECOND, _MINUTE = timedelta(weeks=1), timedelta(seconds=1), timedelta(minutes=1)


@dataclass(frozen=True)
class ZoneOffsets:
    """A zone's offsets in minutes: the first, and one from each change on. Changes are in UTC."""

    changes: tuple[datetime, ...]
    minutes: tuple[int, ...]

    def minutes_at(self, moment: datetime) -> int:
        """The offset in minutes at a moment in UTC."""
        return self.minutes[bisect_right(self.changes, moment)]


@lru_cache(64)
def list_offsets(zone_name: str) -> ZoneOffsets:
    """The offsets of a zone from 2000 to 2100."""
    zone = ZoneInfo(zone_name)

    def read_minutes(moment: datetime) -> int:
        offset = moment.replace(tzinfo=UTC).astimezone(zone).utcoffset()
        return (offset or timedelta()) // _MINUTE

    changes, minutes = [], [read_minutes(_FIRST)]
    week = _FIRST
    while week < _LAST:
        before, week = week, week + _WEEK
        if (later := read_minutes(week)) == minutes[-1]:
            continue
        after = week
        while after - before > _SECOND:
            middle = before + (after - before) // _SECOND // 2 * _SECOND
            before, after = (before, middle) if read_minutes(middle) == later else (middle, after)
        changes.append(after)
        minutes.append(later)
    return ZoneOffsets(tuple(changes), tuple(minutes))


def format_local(utc_text: str, zone_name: str) -> str:
    """A time such as `2022-04-01T00:00:00.123Z` as `2022-04-01T05:30:00.123+05:30`."""
    moment = datetime.fromisoformat(utc_text[:-1])
    minutes = list_offsets(zone_name).minutes_at(moment)
    local = moment + minutes * _MINUTE
    return local.isoformat(timespec="milliseconds") + _format_offset(minutes)


def format_time_sql(value_sql: str, zone_name: str) -> str:
    """The same as PostgreSQL's expression over a `timestamptz`."""
    if zone_name == "UTC":
        return _format_sql(value_sql, "'UTC'", "Z")
    offsets = list_offsets(zone_name)
    texts = {
        minutes: _format_sql(value_sql, f"INTERVAL '{minutes} minutes'", _format_offset(minutes))
        for minutes in offsets.minutes
    }
    if len(texts) == 1:
        return texts[offsets.minutes[0]]
    changes = ",".join(f"{moment.isoformat()}Z" for moment in offsets.changes)
    minutes_sql = (
        f"('{{{','.join(map(str, offsets.minutes))}}}'::int[])"
        f"[width_bucket({value_sql}, '{{{changes}}}'::timestamptz[]) + 1]"
    )
    cases = " ".join(f"WHEN {minutes} THEN {text}" for minutes, text in texts.items())
    return f"CASE {minutes_sql} {cases} END"


_PATTERN = 'YYYY-MM-DD"T"HH24:MI:SS.MS'


def _format_sql(value_sql: str, zone_sql: str, suffix: str) -> str:
    return f"to_char({value_sql} AT TIME ZONE {zone_sql}, '{_PATTERN}\"{suffix}\"')"


def _format_offset(minutes: int) -> str:
    hours, rest = divmod(abs(minutes), 60)
    return f"{'-' if minutes < 0 else '+'}{hours:02}:{rest:02}"
