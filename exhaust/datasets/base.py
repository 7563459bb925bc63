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
from ingest.adapters import client_session_sources
from ingest.feed import pruning
from ingest.models import PruneState

FILTER_FIELDS = ("conversationId", "types", "application", "since")


class Dataset(ABC):
    """A named, documented query: its columns, and rows in a fixed order."""

    name: str
    title: str
    is_private: bool  # picks storage prefix and link kind
    scope: str  # what a key must have
    name_suffix: str  # of the downloaded name
    columns: Sequence[Column]
    required_fields: Sequence[str] = ()  # of datasetConfig, beside the days
    optional_fields: Sequence[str] = ()
    unsupported_reasons: Mapping[str, str] = {}  # why it does not take a field that others take
    pull_resource = ""  # the resource that pull pages through the same records by
    is_derived = False  # read from records that are made of events, so they must be up to date

    @abstractmethod
    def iterate_rows(self, selection: Selection) -> Iterator[list[Cell]]:
        """The cells, row by row, on any database; no text is guarded."""

    def copy_sql(
        self, selection: Selection, *, escape_formulas: bool = False
    ) -> tuple[str, dict[str, Any]] | None:
        """The query whose cells PostgreSQL makes whole; None where Python must finish one.

        `guarded` is for CSV: free text as `columns.guarded` leaves it.
        """
        return None

    def time_span(self, selection: Selection) -> tuple[datetime, datetime] | None:
        """When the first row and the last one were, where rows are ordered by the moment that
        `start` and `end` are about; None where they are not, or there is none."""
        return None

    @abstractmethod
    def count_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        """A query whose rows are as many as the file's."""

    def count_rows(self, selection: Selection) -> int:
        sql, params = self.count_sql(selection)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM ({sql}) counted", params)  # noqa: S608
            return int(cursor.fetchone()[0])

    def estimate_rows(self, selection: Selection) -> int:
        """About how many rows there will be: the planner's guess, or SQLite's count."""
        if connection.vendor != "postgresql":
            return self.count_rows(selection)
        sql, params = self.count_sql(selection)
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", params)
            plan = cursor.fetchone()[0]
        plan = json.loads(plan) if isinstance(plan, str) else plan
        return int(plan[0]["Plan"]["Plan Rows"])

    def prune_state(self, channel_id: int) -> PruneState | None:
        """Where the channel's rows begin; None where none was pruned. Derived ones never are."""
        return None if self.is_derived else pruning.fetch_prune_state(channel_id)

    def may_contain(self, selection: Selection, device_ids: Sequence[str]) -> bool:
        """Whether there is a row of one of these devices, or may have been one."""
        where, params = selection.event_filter()
        # said as the indexes by device say it, of which there is one for each
        sources = ", ".join(f"'{name}'" for name in client_session_sources())
        is_session_event = f"e.source IN ({sources})"
        other_events = f"NOT (e.device_id = '') AND NOT ({is_session_event})"
        return any(
            has_device(f"ingest_storedevent e WHERE {where} AND {condition}", params, device_ids)
            for condition in (other_events, is_session_event)
        )

    def find_errors(self, given_fields: Collection[str]) -> dict[str, str]:
        """What of `FILTERS` a datasetConfig lacks or must not say: field and remedy."""
        errors = {
            name: "This field is required."
            for name in self.required_fields
            if name not in given_fields
        }
        for name in FILTER_FIELDS:
            if name in given_fields and name not in (*self.required_fields, *self.optional_fields):
                errors[name] = self.unsupported_reasons.get(
                    name, f"{self.name} takes none; leave it out."
                )
        return errors


def has_device(rows: str, params: dict[str, Any], device_ids: Sequence[str]) -> bool:
    """Whether one of the rows, a FROM and a WHERE over `e`, is of one of these devices."""
    for start in range(0, len(device_ids), 500):
        params_by_name = {
            f"device_{n}": name for n, name in enumerate(device_ids[start : start + 500])
        }
        placeholders = ", ".join(f"%({name})s" for name in params_by_name)
        with connection.cursor() as cursor:
            sql = f"SELECT 1 FROM {rows} AND e.device_id IN ({placeholders}) LIMIT 1"  # noqa: S608
            cursor.execute(sql, params | params_by_name)
            if cursor.fetchone():
                return True
    return False


FETCH_ROWS = 2000


@contextmanager
def stream_rows(sql: str, params: dict[str, Any]) -> Iterator[Iterator[Sequence[Any]]]:
    """Rows of a query in bounded memory: a server-side cursor where there is a server."""
    if connection.vendor == "postgresql":
        connection.ensure_connection()
        with (
            connection.wrap_database_errors,
            connection.connection.transaction(),
            connection.connection.cursor(name="exhaust") as cursor,
        ):
            cursor.itersize = FETCH_ROWS
            cursor.execute(sql, params)
            yield iter(cursor)
    else:
        with connection.cursor() as cursor:
            cursor.execute(sql, params)
            yield (row for batch in iter(lambda: cursor.fetchmany(FETCH_ROWS), []) for row in batch)
