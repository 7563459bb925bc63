"""`uci-response-exhaust`: a conversation's answers, one a row, by time."""

from exhaust.datasets.cells import Column
from exhaust.datasets.event_table import EventTable

_ITEM = ("payload", "edata", "item")
_ROLLUP = ("payload", "context", "rollup")

_COLUMNS = (
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
RESPONSE = EventTable(
    name="uci-response-exhaust",
    title="Responses",
    is_private=False,
    scope="export:response",
    name_suffix="response",
    required_fields=("conversationId",),
    optional_fields=("since",),
    default_days="yesterday",
    condition="e.is_answer",
    columns=_COLUMNS,
    layouts={"uci-2022": [each.header for each in _COLUMNS if each.header != "Session ID"]},
)
