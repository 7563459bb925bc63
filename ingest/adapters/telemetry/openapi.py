"""The operations and bodies of Sunbird telemetry, as the OpenAPI document describes them."""

from typing import Any

from ingest.adapters.base import Operation
from ingest.http import response_fields, schema

CODES = ["CLIENT_ERROR", "FORBIDDEN", "TOO_MANY_REQUESTS", "SERVER_ERROR"]
EXAMPLE_EVENT = {
    "eid": "ASSESS", "ets": 1648785600123, "mid": "ASSESS:1", "actor": {"id": "d-1"},
    "context": {"did": "d-1", "sid": "s-1", "cdata": [{"type": "Conversation", "id": "bot-1"}]},
    "edata": {"item": {"id": "q-1", "title": "How was lunch?"}, "resvalues": [{"ans1": "good"}]},
}  # fmt: skip


class TelemetryEvent(response_fields.Body):
    """A Sunbird telemetry v3 event."""

    is_extensible = True
    eid = response_fields.text(
        "The kind of event: ASSESS is an answer.", {"minLength": 1, **response_fields.MAX_ID}
    )
    ets = response_fields.number(
        "The time since 1970: milliseconds; seconds or microseconds by their size."
    )
    ver = response_fields.text("The version of the specification.", required=False)
    mid = response_fields.text("The message id.", response_fields.MAX_ID, required=False)
    actor = response_fields.free_object("The actor: `id` and `type`.", required=False)
    context = response_fields.free_object("The context: `did`, `sid`, `cdata`, `rollup`.")
    edata = response_fields.free_object(
        "The data; of an answer `item`, `resvalues`, `score`, `duration`."
    )


class TelemetryBatch(response_fields.Body):
    """A batch."""

    is_extensible = True
    id = response_fields.text("The id of the batch.", required=False)
    ver = response_fields.text("The version of the specification.", required=False)
    events = TelemetryEvent(many=True, help_text="The events.")
    example = {"id": "ekstep.telemetry", "ver": "3.0", "events": [EXAMPLE_EVENT]}


class TelemetryParams(response_fields.Body):
    """The outcome of a call."""

    resmsgid = response_fields.text("The id of this answer.", {"format": "uuid"})
    status = response_fields.choice("Whether the call succeeded.", ["successful", "failed"])
    err = response_fields.text("The code.", required=False)
    errmsg = response_fields.text("The error and the remedy.", required=False)


class TelemetryError(response_fields.Body):
    """A rejection."""

    id = response_fields.text("Always api.telemetry.")
    ver = response_fields.text("The version of the answer.")
    ets = response_fields.epoch_ms("When the call arrived")
    params = TelemetryParams()
    responseCode = response_fields.choice("The kind.", CODES)
    result = response_fields.empty_object()


class TelemetryAnswer(TelemetryError):
    """The outcome of a batch."""

    responseCode = response_fields.choice("SUCCESS.", ["SUCCESS"])
    result: Any = schema.BatchCounts()


OPERATIONS = (
    Operation(
        "sendTelemetry",
        """Send Sunbird telemetry.

        A batch of up to 10,000 events, or one event. Needs `ingest`. Events that cannot be read are
        kept aside; the others are stored.
        """,
        TelemetryAnswer,
        {schema.JSON: (TelemetryBatch, TelemetryEvent(many=True), TelemetryEvent),
         schema.NDJSON: schema.LINES},
        rejection=TelemetryError,
    ),
)  # fmt: skip
