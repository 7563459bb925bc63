"""`events-exhaust`: every event of every source as it was sent, in the order of arrival."""

from typing import Any

from exhaust.datasets.arrivals import FeedDataset
from exhaust.datasets.cells import Column, decode_json, format_json
from exhaust.datasets.event_table import CONSENT_REFUSED_SQL, ENVELOPE_SQL
from exhaust.datasets.selection import Selection


class EventsDataset(FeedDataset):
    name = "events-exhaust"
    title = "Events"
    is_private = True
    scope = "pull"
    pull_resource = "events"
    name_suffix = "events"
    optional_fields = ("conversationId", "types", "application", "since")
    table = "ingest_storedevent"
    time_column = "occurred_at"
    sql_fields = {name: sql for name, sql in ENVELOPE_SQL.items() if name != "conversation_name"}
    refused_sql = f"(e.is_answer AND {CONSENT_REFUSED_SQL})"
    payload_sql = (
        f"CASE WHEN {refused_sql} AND jsonb_typeof(e.payload -> 'edata') = 'object'"
        " THEN jsonb_set(e.payload, '{edata,resvalues}', '[]') ELSE e.payload END"
    )
    raw_column = "payload"
    columns = (
        Column("Event ID", "uuid", ("identity",), "The same for all versions of an event."),
        Column("Position", "text", ("position",), "Its place in the feed."),
        Column("Type", "text", ("type",), "The sender's name for it."),
        Column("Dialect", "text", ("source",), "The wire format it came in."),
        Column("Application", "text", ("application",), "The application that sent it."),
        Column("Conversation ID", "text", ("conversation",), "The bot's id."),
        Column("Device ID", "text", ("device_id",), "The device.", is_personal=True),
        Column("Session ID", "text", ("session_id",), "The sender's session."),
        Column("Timestamp", "time", ("occurred_at",), "When it happened, in UTC."),
        Column("Received", "time", ("received_at",), "When it arrived, in UTC."),
        Column(
            "Payload", "json", ("payload",),
            "The sender's JSON; without the answer where consent is refused.",
            is_personal=True,
        ),
    )  # fmt: skip

    def build_payload(self, raw_json: str, is_refused: bool) -> str:
        if not is_refused:
            return raw_json
        payload: dict[str, Any] = decode_json(raw_json)
        if isinstance(edata := payload.get("edata"), dict):
            edata["resvalues"] = []
        return format_json(payload)

    def _filter_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        return selection.event_filter()


EVENTS = EventsDataset()
