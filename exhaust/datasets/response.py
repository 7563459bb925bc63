"""`uci-response-exhaust`: a conversation's answers, one a row, by time."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.db import connection

from exhaust.datasets import cells
from exhaust.datasets.base import Dataset, stream_rows
from exhaust.datasets.cells import Cell, Column
from exhaust.datasets.selection import Selection

_ITEM = ("payload", "edata", "item")
_ROLLUP = ("payload", "context", "rollup")


class ResponseDataset(Dataset):
    name = "uci-response-exhaust"
    title = "Responses"
    is_private = False
    scope = "export:response"
    name_suffix = "response"
    required_fields = ("conversationId",)
    optional_fields = ("since",)
    columns = (
        Column("Message ID", "text", ("payload", "mid"), "The sender's id; not unique."),
        Column("Conversation ID", "text", ("conversation",), "The bot's id."),
        Column("Conversation Name", "text", ("conversation_name",), "The bot's name."),
        Column(
            "Device ID", "text", ("device_id",), "The device; the key to the private file.",
            is_personal=True,
        ),
        Column("Session ID", "text", ("session_id",), "The sender's session."),
        Column("Question Id", "text", (*_ITEM, "id"), "The question's id."),
        Column("Question Type", "text", (*_ITEM, "type"), "mcq (choices) or ftp (free text)."),
        Column("Question Title", "text", (*_ITEM, "title"), "The text of the question."),
        Column("Question Description", "text", (*_ITEM, "desc"), "More text of the question."),
        Column("Question Duration", "whole", ("payload", "edata", "duration"), "Whole seconds."),
        Column("Question Score", "number", ("payload", "edata", "score"), "As sent."),
        Column("Question Max Score", "number", (*_ITEM, "maxscore"), "As sent."),
        Column("Question Options", "json", (*_ITEM, "params"), "The choices, as JSON."),
        Column(
            "Question Response", "json", ("payload", "edata", "resvalues"),
            "The answer, as JSON; empty where consent is refused.", needs_consent=True,
            is_personal=True,
        ),
        Column("X Path", "text", (*_ROLLUP, "l3"), "Its place in the form."),
        Column("Eof", "text", (*_ROLLUP, "l4"), "true on the form's last question."),
        Column("Timestamp", "time", ("occurred_at",), "When, in UTC to the millisecond."),
    )  # fmt: skip
    # equal in every row of a file
    _constant_columns = ("conversation", "conversation_name")

    def copy_sql(
        self, selection: Selection, *, escape_formulas: bool = False
    ) -> tuple[str, dict[str, Any]]:
        where, params = self._filter_sql(selection)
        device, pads = selection.displayed_device_id_sql("NULLIF(e.device_id, '')")
        cell_overrides = {name: f"%({name})s" for name in self._constant_columns}
        if pads:  # a hash needs no escaping
            cell_overrides["device_id"] = device
        select_list = [
            cell_overrides.get(column.path[0], cell)
            for column, cell in zip(
                self.columns,
                cells.cells_sql(self.columns, CONSENT_REFUSED_SQL, escape_formulas=escape_formulas),
                strict=True,
            )
        ]
        escape = cells.escape_formula if escape_formulas else str
        separator = ",\n"
        return (
            f"SELECT {separator.join(select_list)}\n"
            f"FROM ingest_storedevent e\n{cells.joins_sql(self.columns)}\n"
            f"WHERE {where} ORDER BY e.occurred_at, e.id{selection.limit_clause}",
            {
                **params,
                **pads,
                "conversation": escape(selection.conversation),
                "conversation_name": escape(selection.conversation_name) or None,
            },
        )

    def iterate_rows(self, selection: Selection) -> Iterator[list[Cell]]:
        where, params = self._filter_sql(selection)
        payload = "e.payload::text" if connection.vendor == "postgresql" else "e.payload"
        sql = (
            f"SELECT {payload}, e.device_id, e.session_id, e.occurred_at, {CONSENT_REFUSED_SQL}"  # noqa: S608
            f" FROM ingest_storedevent e WHERE {where}"
            f" ORDER BY e.occurred_at, e.id{selection.limit_clause}"
        )
        read_cells = cells.make_cell_reader(self.columns)
        envelope = {
            "conversation": selection.conversation,
            "conversation_name": selection.conversation_name,
        }
        with stream_rows(sql, params) as rows:
            for payload_text, device_id, session_id, occurred_at, is_refused in rows:
                envelope["device_id"] = selection.displayed_device_id(device_id)
                envelope["session_id"] = session_id
                envelope["occurred_at"] = occurred_at
                yield read_cells(envelope, payload_text, is_refused)

    def time_span(self, selection: Selection) -> tuple[datetime, datetime] | None:
        if selection.limit is not None:
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

    def _filter_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        where, params = selection.event_filter()
        return f"{where} AND e.is_answer", params


# uncorrelated, so that PostgreSQL hashes it once whatever its statistics are
CONSENT_REFUSED_SQL = (
    "(e.device_id IN"
    " (SELECT device_id FROM ingest_participant WHERE channel_id = %(channel)s AND NOT consent))"
)
RESPONSE = ResponseDataset()
