"""The base of a dataset, and how its rows are streamed."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal, Self

import psycopg
from django.db import connection

from exhaust.datasets.cells import Cell, Column
from exhaust.datasets.selection import Selection
from ingest.adapters import client_session_sources
from ingest.feed import pruning
from ingest.models import PruneState

DefaultDays = Literal["", "yesterday", "ever"]
FILTER_FIELDS = ("conversationId", "types", "application", "since", "rows", "answers", "by")


class DatasetLimitExceeded(Exception):
    """The rows exceed a limit of the dataset. The message is for the requester."""


class Dataset(ABC):
    """A named, documented query: its columns, and rows in a fixed order."""

    name: str
    title: str
    is_private: bool  # picks storage prefix and link kind
    scope: str  # that a key must have
    name_suffix: str  # in the names of downloads
    columns: Sequence[Column]
    legacy_columns: Sequence[Column] = ()  # of the followed system; only in files that name them
    layouts: Mapping[str, Sequence[str]] = {}  # headers of columns, by the layout's name
    required_fields: Sequence[str] = ()  # of datasetConfig, beside the dates
    optional_fields: Sequence[str] = ()
    unsupported_reasons: Mapping[str, str] = {}  # by field
    types: Sequence[str] = ()  # of its events; empty for all, or those of the request
    pull_resource = ""  # the resource of the pull API with the same records
    default_days: DefaultDays = ""  # of a request without dates
    is_derived = False  # whether its records are derived from events
    preview_note = ""  # a sentence about the rows of a preview
    definition: Mapping[str, Any] | None = None  # of an own dataset, which a job keeps

    @property
    def own_scope(self) -> str:
        """The scope of an own dataset; empty for a built-in one."""
        return "" if self.definition is None else self.scope

    def pin_columns(self, selection: Selection, config: Mapping[str, Any]) -> Self:
        """The dataset with the columns that these rows have; itself where all rows have the same.

        `config` is the request's. Raises `DatasetLimitExceeded`.
        """
        return self

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

    def count_rows(self, selection: Selection, at_most: int | None = None) -> int:
        """The number of rows; counts no further than `at_most`."""
        sql, params = self.count_sql(selection)
        if at_most is not None:
            sql = f"SELECT 1 FROM ({sql}) rows LIMIT {at_most:d}"  # noqa: S608
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
def copy_texts(
    sql: str, params: dict[str, Any], seconds: int | None = None
) -> Iterator[Iterator[Sequence[Any]]]:
    """Streams a query's rows from PostgreSQL as texts, in bounded memory.

    COPY runs in parallel and may sort on disk, where a cursor does neither well. `seconds` end the
    statement.
    """
    connection.ensure_connection()
    with (
        connection.wrap_database_errors,
        connection.connection.transaction(),
        psycopg.Cursor(connection.connection) as cursor,
    ):
        cursor.execute("SET LOCAL work_mem = '64MB'")
        if seconds is not None:
            cursor.execute(f"SET LOCAL statement_timeout = {seconds * 1000:d}")
        with cursor.copy(f"COPY ({sql}) TO STDOUT", params) as copy:
            yield copy.rows()


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
