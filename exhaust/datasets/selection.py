"""What of a channel a job is about, and what a dataset is."""

import hashlib
import hmac
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.db import connection

from exhaust.datasets.columns import Cell, Column
from exhaust.models import Job
from ingest.feed import pruning
from ingest.models import Application, Channel, Conversation, Horizon
from ingest.privacy import device_hash


@dataclass(frozen=True)
class Selection:
    """What happened in [start, end) and arrived in [since, watermark), of one channel."""

    channel_id: int
    conversation_id: int | None  # 0 when the channel never saw it, None when all are asked for
    conversation: str
    conversation_name: str
    start: datetime
    end: datetime
    watermark: int
    since: int = 0
    types: tuple[str, ...] = ()
    application_id: int | None = None  # 0 when the channel has none of that name
    limit: int | None = None
    device_key: bytes | None = field(default=None, repr=False)  # to hash devices with

    def where(self, event: str = "e") -> tuple[str, dict[str, Any]]:
        """The SQL condition over an event's alias, and its parameters.

        Of an event in several versions it is the one that stood at the watermark.
        """
        where, params = self.standing("occurred_at", event)
        cast = _xid()
        where += (
            f" AND ({event}.superseded_xid IS NULL"
            f" OR {event}.superseded_xid >= %(watermark)s{cast})"
        )
        if self.conversation_id is not None:
            where += f" AND {event}.conversation_id = %(conversation_pk)s"
            params["conversation_pk"] = self.conversation_id
        if self.types:
            types = {f"type_{place}": name for place, name in enumerate(self.types)}
            where += f" AND {event}.type IN ({', '.join(f'%({name})s' for name in types)})"
            params |= types
        return where, params

    def standing(self, moment: str, row: str = "e") -> tuple[str, dict[str, Any]]:
        """The same for any table with positions, whose days are of its column `moment`."""
        cast = _xid()
        adapt = connection.ops.adapt_datetimefield_value
        where = (
            f"{row}.channel_id = %(channel)s"
            f" AND {row}.{moment} >= %(start)s AND {row}.{moment} < %(end)s"
            f" AND {row}.xid < %(watermark)s{cast}"
        )
        params = {
            "channel": self.channel_id,
            "start": adapt(self.start),
            "end": adapt(self.end),
            "watermark": str(self.watermark) if cast else self.watermark,
        }
        if self.since:
            where += f" AND {row}.xid >= %(since)s{cast}"
            params["since"] = str(self.since) if cast else self.since
        if self.application_id is not None:
            where += f" AND {row}.application_id = %(application)s"
            params["application"] = self.application_id
        return where, params

    def device(self, device_id: str) -> str:
        """A device as response and private files name it."""
        if self.device_key is None or not device_id:
            return device_id
        return hmac.digest(self.device_key, device_id.encode(), hashlib.sha256)[:16].hex()

    def device_sql(self, cell: str) -> tuple[str, dict[str, bytes]]:
        """The same of a cell in PostgreSQL, whose core has SHA-256 but no HMAC."""
        if self.device_key is None:
            return cell, {}
        block = self.device_key.ljust(64, b"\0")
        pads = {
            name: bytes(byte ^ pad for byte in block)
            for name, pad in (("inner_pad", 0x36), ("outer_pad", 0x5C))
        }
        inner = f"sha256(%(inner_pad)s::bytea || convert_to({cell}, 'UTF8'))"
        return f"encode(substr(sha256(%(outer_pad)s::bytea || {inner}), 1, 16), 'hex')", pads

    @property
    def tail(self) -> str:
        """What ends a query for its first rows only."""
        return "" if self.limit is None else f" LIMIT {self.limit:d}"


def _xid() -> str:
    return "::xid8" if connection.vendor == "postgresql" else ""


def selected(
    dataset: str,
    channel_id: int,
    config: Mapping[str, Any],
    watermark: int,
    limit: int | None = None,
) -> Selection:
    """What a valid datasetConfig asks for. Raises `LookupError` where its `since` names no file."""
    identifier = _text(config.get("conversationId"))
    conversation = Conversation.objects.filter(channel=channel_id, identifier=identifier).first()
    start, end = days(
        date.fromisoformat(config["startDate"]),
        date.fromisoformat(config["endDate"]),
        config.get("timezone") or "UTC",
    )
    return Selection(
        channel_id=channel_id,
        conversation_id=None if identifier is None else _pk(conversation),
        conversation=identifier or "",
        conversation_name=conversation.name if conversation else "",
        start=start,
        end=end,
        watermark=watermark,
        since=_since(dataset, channel_id, config),
        types=tuple(sorted({str(name) for name in config.get("types") or ()})),
        application_id=_application(channel_id, config),
        limit=limit,
        device_key=device_key(channel_id),
    )


def _text(said: Any) -> str | None:
    return None if said is None else str(said)  # the configuration is kept as it was sent


def _pk(row: Conversation | Application | None) -> int:
    return row.pk if row is not None else 0


def _application(channel_id: int, config: Mapping[str, Any]) -> int | None:
    identifier = _text(config.get("application"))
    if identifier is None:
        return None
    return _pk(Application.objects.filter(channel=channel_id, identifier=identifier).first())


def _since(dataset: str, channel_id: int, config: Mapping[str, Any]) -> int:
    request_id = _text(config.get("since"))
    if request_id is None:
        return 0
    job = made(dataset, channel_id, request_id)
    if job is None or job.watermark is None:
        raise LookupError(f"There is no file of {request_id} to go on from.")
    if gap := missing(job):
        raise LookupError(gap)
    return int(job.watermark)


def missing(job: Job) -> str:
    """Why no supplement can follow a job's file: some that arrived since were pruned."""
    from exhaust.datasets import DATASETS  # which are made of what stands here

    dataset = DATASETS.get(job.dataset)
    begins = dataset.begins(job.channel_id) if dataset else pruning.of(job.channel_id)
    if begins is None or job.watermark is None or begins.xid < job.watermark:
        return ""
    return f"{pruning.told(begins)} Some of them came after that file; ask without since."


def made(dataset: str, channel_id: int, request_id: str) -> Job | None:
    """The job by that request id that has its file, of this dataset and channel."""
    return Job.objects.filter(
        channel=channel_id, dataset=dataset, request_id=request_id, status=Job.Status.SUCCESS
    ).first()


def device_key(channel_id: int) -> bytes | None:
    """What the channel's devices are hashed with; None where they are shown as they are."""
    if not Channel.objects.filter(pk=channel_id, hash_device_ids=True).exists():
        return None
    return device_hash.key_for(channel_id, "device")


def zone(name: str) -> ZoneInfo:
    """The time zone of that name. Raises `ValueError` with the remedy."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("Unknown time zone; write one like UTC or Asia/Kolkata.") from None


def days(first: date, last: date, zone_name: str) -> tuple[datetime, datetime]:
    """Whole days in a time zone, both ends included, as the half-open range of moments."""
    tz = zone(zone_name)
    return (
        datetime.combine(first, time.min, tz),
        datetime.combine(last + timedelta(days=1), time.min, tz),
    )


FILTERS = ("conversationId", "types", "application", "since")


class Dataset(ABC):
    """A named, documented query: its columns, and rows in a fixed order."""

    name: str
    title: str
    private: bool  # picks storage prefix and link kind
    scope: str  # what a key must have
    suffix: str  # of the downloaded name
    columns: Sequence[Column]
    required: Sequence[str] = ()  # of datasetConfig, beside the days
    optional: Sequence[str] = ()
    refusals: Mapping[str, str] = {}  # why it does not take a field that others take
    pulled = ""  # the resource that pull pages through the same records by
    derived = False  # read from records that are made of events, so they must be up to date

    @abstractmethod
    def rows(self, selection: Selection) -> Iterator[list[Cell]]:
        """The cells, row by row, on any database; no text is guarded."""

    def copy(
        self, selection: Selection, *, guarded: bool = False
    ) -> tuple[str, dict[str, Any]] | None:
        """The query whose cells PostgreSQL makes whole; None where Python must finish one.

        `guarded` is for CSV: free text as `columns.guarded` leaves it.
        """
        return None

    def span(self, selection: Selection) -> tuple[datetime, datetime] | None:
        """When the first row and the last one were, where rows are ordered by the moment that
        `start` and `end` are about; None where they are not, or there is none."""
        return None

    @abstractmethod
    def count_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        """A query whose rows are as many as the file's."""

    def count(self, selection: Selection) -> int:
        sql, params = self.count_sql(selection)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM ({sql}) counted", params)  # noqa: S608
            return int(cursor.fetchone()[0])

    def estimate(self, selection: Selection) -> int:
        """About how many rows there will be: the planner's guess, or SQLite's count."""
        if connection.vendor != "postgresql":
            return self.count(selection)
        sql, params = self.count_sql(selection)
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", params)
            plan = cursor.fetchone()[0]
        plan = json.loads(plan) if isinstance(plan, str) else plan
        return int(plan[0]["Plan"]["Plan Rows"])

    def begins(self, channel_id: int) -> Horizon | None:
        """Where the channel's rows begin; None where none was pruned. Derived ones never are."""
        return None if self.derived else pruning.of(channel_id)

    def holds(self, selection: Selection, device_ids: Sequence[str]) -> bool:
        """Whether there is a row of one of these devices, or may have been one."""
        where, params = selection.where()
        # said as the indexes by device say it, of which there is one for each
        of_session = "e.dialect = 'desk'"
        others = f"NOT (e.device_id = '') AND NOT ({of_session})"
        return any(
            has_device(f"ingest_storedevent e WHERE {where} AND {which}", params, device_ids)
            for which in (others, of_session)
        )

    def faults(self, said: Collection[str]) -> dict[str, str]:
        """What of `FILTERS` a datasetConfig lacks or must not say: field and remedy."""
        found = {name: "This field is required." for name in self.required if name not in said}
        for name in FILTERS:
            if name in said and name not in (*self.required, *self.optional):
                found[name] = self.refusals.get(name, f"{self.name} takes none; leave it out.")
        return found


def has_device(rows: str, params: dict[str, Any], device_ids: Sequence[str]) -> bool:
    """Whether one of the rows, a FROM and a WHERE over `e`, is of one of these devices."""
    for start in range(0, len(device_ids), 500):
        named = {f"device_{n}": name for n, name in enumerate(device_ids[start : start + 500])}
        among = ", ".join(f"%({name})s" for name in named)
        with connection.cursor() as cursor:
            sql = f"SELECT 1 FROM {rows} AND e.device_id IN ({among}) LIMIT 1"  # noqa: S608
            cursor.execute(sql, params | named)
            if cursor.fetchone():
                return True
    return False


FETCH = 2000


@contextmanager
def streaming(sql: str, params: dict[str, Any]) -> Iterator[Iterator[Sequence[Any]]]:
    """Rows of a query in bounded memory: a server-side cursor where there is a server."""
    if connection.vendor == "postgresql":
        connection.ensure_connection()
        with (
            connection.wrap_database_errors,
            connection.connection.transaction(),
            connection.connection.cursor(name="exhaust") as cursor,
        ):
            cursor.itersize = FETCH
            cursor.execute(sql, params)
            yield iter(cursor)
    else:
        with connection.cursor() as cursor:
            cursor.execute(sql, params)
            yield (row for batch in iter(lambda: cursor.fetchmany(FETCH), []) for row in batch)
