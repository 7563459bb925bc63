"""`events-exhaust`: every event of every door, as its sender wrote it, in the order of arrival."""

from typing import Any

from exhaust.datasets.arrivals import APPLICATION, POSITION, Arrivals
from exhaust.datasets.columns import Column, decode, json_text
from exhaust.datasets.response import REFUSED
from exhaust.datasets.selection import Selection


class Events(Arrivals):
    name = "events-exhaust"
    title = "Events"
    private = True
    scope = "pull"
    pulled = "events"
    suffix = "events"
    optional = ("conversationId", "types", "application", "since")
    table = "ingest_storedevent"
    moment = "occurred_at"
    fields = {
        "identity": "e.identity",
        "position": POSITION,
        "type": "e.type",
        "dialect": "e.dialect",
        "application": APPLICATION,
        "conversation": (
            "(SELECT c.identifier FROM ingest_conversation c WHERE c.id = e.conversation_id)"
        ),
        "device_id": "e.device_id",
        "session_id": "e.session_id",
        "occurred_at": "e.occurred_at",
        "received_at": "e.received_at",
    }
    refused = f"(e.is_answer AND {REFUSED})"
    payload = (
        f"CASE WHEN {refused} AND jsonb_typeof(e.payload -> 'edata') = 'object'"
        " THEN jsonb_set(e.payload, '{edata,resvalues}', '[]') ELSE e.payload END"
    )
    raw = "payload"
    columns = (
        Column("Event ID", "uuid", ("identity",), "One for all versions of an event."),
        Column("Position", "text", ("position",), "Its place in the order of arrival."),
        Column("Type", "text", ("type",), "As its sender calls it."),
        Column("Dialect", "text", ("dialect",), "The wire format it came in."),
        Column("Application", "text", ("application",), "The application that sent it."),
        Column("Conversation ID", "text", ("conversation",), "The bot's id."),
        Column("Device ID", "text", ("device_id",), "Who was there.", personal=True),
        Column("Session ID", "text", ("session_id",), "The sender's session."),
        Column("Timestamp", "time", ("occurred_at",), "When it happened, in UTC."),
        Column("Received", "time", ("received_at",), "When it came in, in UTC."),
        Column(
            "Payload", "json", ("payload",),
            "What its sender wrote; without the answer of a participant who refused consent.",
            personal=True,
        ),
    )  # fmt: skip

    def opened(self, raw: str, refused: bool) -> str:
        if not refused:
            return raw
        said: dict[str, Any] = decode(raw)
        if isinstance(edata := said.get("edata"), dict):
            edata["resvalues"] = []
        return json_text(said)

    def _where(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        return selection.where()


EVENTS = Events()
