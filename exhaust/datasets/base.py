"""What a dataset is, and how its rows are streamed."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.db import connection

from exhaust.datasets.cells import Cell, Column
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
    scope: str  # that a key must have
    name_suffix: str  # in the names of downloads
    columns: Sequence[Column]
    required_fields: Sequence[str] = ()  # of datasetConfig, beside the dates
    optional_fields: Sequence[str] = ()
    unsupported_reasons: Mapping[str, str] = {}  # by field
    pull_resource = ""  # the resource of the pull API with the same records
    is_derived = False  # whether its records are derived from events

    @abstractmethod
    def iterate_rows(self, selection: Selection) -> Iterator[list[Cell]]:
        """The cells, row by row, on any database; formulas are not escaped."""

    def copy_sql(
        self, selection: Selection, *, escape_formulas: bool = False
    ) -> tuple[str, dict[str, Any]] | None:
        """The query whose cells PostgreSQL formats; None for a dataset that Python formats.

        `escape_formulas` is for CSV: it escapes free text like `cells.escape_formula`.
        """
        return None

    def time_span(self, selection: Selection) -> tuple[datetime, datetime] | None:
        """The times of the first and the last row; None without rows, or in another order."""
        return None

    @abstractmethod
    def count_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        """A query with as many rows as the file."""

    def count_rows(self, selection: Selection) -> int:
        """The number of rows."""
        sql, params = self.count_sql(selection)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM ({sql}) counted", params)  # noqa: S608
            return int(cursor.fetchone()[0])

    def estimate_rows(self, selection: Selection) -> int:
        """About how many rows there are: the planner's estimate, or SQLite's count."""
        if connection.vendor != "postgresql":
            return self.count_rows(selection)
        sql, params = self.count_sql(selection)
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", params)
            plan = cursor.fetchone()[0]
        plan = json.loads(plan) if isinstance(plan, str) else plan
        return int(plan[0]["Plan"]["Plan Rows"])

    def prune_state(self, channel_id: int) -> PruneState | None:
        """Up to where the channel's rows were pruned; None where none were, or for derived ones."""
        return None if self.is_derived else pruning.fetch_prune_state(channel_id)

    def may_contain(self, selection: Selection, device_ids: Sequence[str]) -> bool:
        """Whether a row of one of these devices exists, or may have existed."""
        where, params = selection.event_filter()
        # repeats the conditions of the two partial indexes by device
        sources = ", ".join(f"'{name}'" for name in client_session_sources())
        is_session_event = f"e.source IN ({sources})"
        other_events = f"NOT (e.device_id = '') AND NOT ({is_session_event})"
        return any(
            has_device(f"ingest_storedevent e WHERE {where} AND {condition}", params, device_ids)
            for condition in (other_events, is_session_event)
        )

    def find_errors(self, given_fields: Collection[str]) -> dict[str, str]:
        """The required fields that are missing and the unsupported ones, each with its remedy."""
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
    """Whether `rows`, a FROM and a WHERE over `e`, include one of these devices."""
    for start in range(0, len(device_ids), 500):
        device_params = {
            f"device_{n}": name for n, name in enumerate(device_ids[start : start + 500])
        }
        placeholders = ", ".join(f"%({name})s" for name in device_params)
        with connection.cursor() as cursor:
            sql = f"SELECT 1 FROM {rows} AND e.device_id IN ({placeholders}) LIMIT 1"  # noqa: S608
            cursor.execute(sql, params | device_params)
            if cursor.fetchone():
                return True
    return False


FETCH_ROWS = 2000


@contextmanager
def stream_rows(sql: str, params: dict[str, Any]) -> Iterator[Iterator[Sequence[Any]]]:
    """Streams a query's rows in bounded memory; on PostgreSQL by a server-side cursor."""
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
