"""The tables of the archive: their columns, types, orders and field ids. It knows no Django."""

from dataclasses import dataclass

import pyarrow as pa

_TIME = pa.timestamp("us", tz="UTC")

# payload columns of `uci-response-exhaust`, named by their headers; an empty cell is null
PAYLOAD_CELLS = (
    "message_id", "question_id", "question_type", "question_title", "question_description",
    "question_duration", "question_score", "question_max_score", "question_options",
    "question_response", "x_path", "eof",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of the archive. A file holds one month of one channel, in the table's order."""

    name: str
    schema: pa.Schema
    group_rows: int  # of a row group
    month_of: str  # the time whose month the file's key names
    delta_columns: tuple[str, ...]  # numbers that differ little from row to row
    plain_columns: tuple[str, ...]  # texts that hardly repeat

    @property
    def columns(self) -> list[str]:
        return list(self.schema.names)


def _number_fields(*fields: tuple[str, pa.DataType, bool]) -> pa.Schema:
    """Gives each field its id: Iceberg knows columns by these. New columns are added at the end."""
    return pa.schema(
        [
            pa.field(name, kind, nullable, {"PARQUET:field_id": str(number)})
            for number, (name, kind, nullable) in enumerate(fields, 1)
        ]
    )


# One answer a row, and one more for each further conversation that it is in.
ANSWERS = Table(
    name="answers",
    schema=_number_fields(
        ("channel_id", pa.int64(), False),
        ("conversation_id", pa.int64(), False),
        ("conversation", pa.string(), False),
        ("occurred_at", _TIME, False),
        ("id", pa.int64(), False),
        ("xid", pa.int64(), False),
        ("superseded_xid", pa.int64(), True),
        ("application_id", pa.int64(), True),
        ("device_id", pa.string(), False),
        ("session_id", pa.string(), False),
        *((name, pa.string(), True) for name in PAYLOAD_CELLS),
    ),
    group_rows=16_384,
    month_of="occurred_at",
    delta_columns=("occurred_at", "id", "xid"),
    plain_columns=("message_id",),
)

# Every event, its replaced versions too. `conversation` and `application` are the senders' names.
EVENTS = Table(
    name="events",
    schema=_number_fields(
        ("channel_id", pa.int64(), False),
        ("xid", pa.int64(), False),
        ("id", pa.int64(), False),
        ("superseded_xid", pa.int64(), True),
        ("identity", pa.uuid(), False),
        ("occurred_at", _TIME, False),
        ("received_at", _TIME, False),
        ("conversation_id", pa.int64(), True),
        ("conversation", pa.string(), True),
        ("application_id", pa.int64(), True),
        ("application", pa.string(), True),
        ("is_answer", pa.bool_(), False),
        ("source", pa.string(), False),
        ("type", pa.string(), False),
        ("device_id", pa.string(), False),
        ("session_id", pa.string(), False),
        ("note", pa.string(), False),
        ("other_conversations", pa.string(), True),
        ("payload", pa.string(), False),
    ),
    group_rows=8_192,
    month_of="received_at",
    delta_columns=("xid", "id", "occurred_at", "received_at"),
    plain_columns=("identity", "payload"),
)

TABLES = {table.name: table for table in (ANSWERS, EVENTS)}
