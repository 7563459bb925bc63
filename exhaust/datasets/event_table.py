"""Tables of events: a definition makes the statement for PostgreSQL, the portable reader, the
schema of each format and the docs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import connection

from exhaust.datasets import cells
from exhaust.datasets.arrivals import APPLICATION_SQL, POSITION_SQL
from exhaust.datasets.base import Dataset, DefaultDays, stream_rows
from exhaust.datasets.cells import Cell, Column
from exhaust.datasets.selection import Selection

_CONVERSATION_SQL = "(SELECT c.{} FROM ingest_conversation c WHERE c.id = e.conversation_id)"
# uncorrelated, so that PostgreSQL hashes it once whatever its statistics are
CONSENT_REFUSED_SQL = (
    "(e.device_id IN"
    " (SELECT device_id FROM ingest_participant WHERE channel_id = %(channel)s AND NOT consent))"
)
# the envelope of an event: each name with an expression that both databases understand
ENVELOPE_SQL = {
    "identity": "e.identity",
    "position": POSITION_SQL,
    "type": "e.type",
    "source": "e.source",
    "application": APPLICATION_SQL,
    "conversation": _CONVERSATION_SQL.format("identifier"),
    "conversation_name": _CONVERSATION_SQL.format("name"),
    "device_id": "e.device_id",
    "session_id": "e.session_id",
    "occurred_at": "e.occurred_at",
    "received_at": "e.received_at",
}


@dataclass(eq=False, kw_only=True)
class EventTable(Dataset):
    """Events of a channel, one a row: of one conversation by time, of several by arrival.

    An index has each of these orders. Everything is made from `columns`: a copy with other columns
    is another view of the same rows.
    """

    name: str
    title: str
    is_private: bool
    scope: str
    name_suffix: str
    columns: Sequence[Column]
    required_fields: Sequence[str] = ()
    optional_fields: Sequence[str] = ()
    default_days: DefaultDays = ""
    layouts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unsupported_reasons: Mapping[str, str] = field(default_factory=dict)
    types: Sequence[str] = ()
    pull_resource: str = ""
    definition: Mapping[str, Any] | None = None
    condition: str = "true"  # on the events `e`, beside the request's

    def copy_sql(
        self, selection: Selection, *, escape_formulas: bool = False
    ) -> tuple[str, dict[str, Any]]:
        where, params = self._filter_sql(selection)
        select_list = cells.cells_sql(
            self.columns,
            CONSENT_REFUSED_SQL,
            envelope_sql=ENVELOPE_SQL,
            escape_formulas=escape_formulas,
        )
        cell_overrides = {}  # that need no escaping
        device, pads = selection.displayed_device_id_sql("NULLIF(e.device_id, '')")
        if pads:
            cell_overrides["device_id"] = device
        for name, text in read_constants(selection).items():
            cell_overrides[name] = f"%({name})s"
            params[name] = (cells.escape_formula(text) if escape_formulas else text) or None
        separator = ",\n"
        select_list = [
            cell_overrides.get(column.path[0], cell)
            for column, cell in zip(self.columns, select_list, strict=True)
        ]
        return (
            f"SELECT {separator.join(select_list)}\n"
            f"FROM ingest_storedevent e\n{cells.joins_sql(self.columns)}\n"
            f"WHERE {where} {_order_clause(selection)}",
            params | pads,
        )

    def iterate_rows(self, selection: Selection) -> Iterator[list[Cell]]:
        where, params = self._filter_sql(selection)
        constants = read_constants(selection)
        names = {column.path[0] for column in self.columns} - {"payload", *constants}
        envelope_sql = {name: ENVELOPE_SQL[name] for name in sorted(names)}
        payload = "e.payload::text" if connection.vendor == "postgresql" else "e.payload"
        needs_consent = any(column.needs_consent for column in self.columns)
        refused = CONSENT_REFUSED_SQL if needs_consent else "false"
        sql = (
            f"SELECT {', '.join((payload, refused, *envelope_sql.values()))}"  # noqa: S608
            f" FROM ingest_storedevent e WHERE {where} {_order_clause(selection)}"
        )
        read_cells = cells.make_cell_reader(self.columns)
        envelope: dict[str, Any] = dict(constants)
        with stream_rows(sql, params) as rows:
            for payload_text, is_refused, *values in rows:
                envelope |= zip(envelope_sql, values, strict=True)
                if "device_id" in envelope_sql:
                    envelope["device_id"] = selection.displayed_device_id(envelope["device_id"])
                yield read_cells(envelope, payload_text, is_refused)

    def time_span(self, selection: Selection) -> tuple[datetime, datetime] | None:
        if selection.limit is not None or selection.conversation_id is None:
            return None
        where, params = self._filter_sql(selection)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT min(e.occurred_at), max(e.occurred_at)"  # noqa: S608
                f" FROM ingest_storedevent e WHERE {where}",
                params,
            )
            first, last = cursor.fetchone()
        return (first, last) if first else None

    def count_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        where, params = self._filter_sql(selection)
        return f"SELECT 1 FROM ingest_storedevent e WHERE {where}", params  # noqa: S608

    def find_latest_xid(self, selection: Selection, rows: int) -> int:
        """The xid since which about so many rows arrived; 0 without rows."""
        where, params = self._filter_sql(selection)
        sql = (
            "SELECT CAST(CAST(e.xid AS text) AS bigint) FROM ingest_storedevent e"  # noqa: S608
            f" WHERE {where} ORDER BY e.xid DESC, e.id DESC LIMIT {rows:d}"
        )
        with connection.cursor() as cursor:
            cursor.execute(sql, params)
            return min((xid for (xid,) in cursor.fetchall()), default=0)

    def _filter_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        where, params = selection.event_filter()
        return f"{where} AND {self.condition}", params


def read_constants(selection: Selection) -> dict[str, str]:
    """Returns the envelope fields that are equal in every row."""
    if selection.conversation_id is None:
        return {}
    return {
        "conversation": selection.conversation,
        "conversation_name": selection.conversation_name,
    }


def _order_clause(selection: Selection) -> str:
    order = "e.xid, e.id" if selection.conversation_id is None else "e.occurred_at, e.id"
    return f"ORDER BY {order}{selection.limit_clause}"
