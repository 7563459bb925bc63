"""What a dataset is, and how its rows are streamed."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.db import connection

from exhaust.datasets.columns import Cell, Column
from exhaust.datasets.selection import Selection
from ingest.feed import pruning
from ingest.models import Horizon

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
