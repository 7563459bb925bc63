"""The operations and bodies of Sunbird telemetry, as the OpenAPI document describes them."""

from typing import Any

from ingest.adapters.base import Operation
from ingest.http import bodies, schema

CODES = ["CLIENT_ERROR", "FORBIDDEN", "TOO_MANY_REQUESTS", "SERVER_ERROR"]
EXAMPLE_EVENT = {
    "eid": "ASSESS", "ets": 1648785600123, "mid": "ASSESS:1", "actor": {"id": "d-1"},
    "context": {"did": "d-1", "sid": "s-1", "cdata": [{"type": "Conversation", "id": "bot-1"}]},
    "edata": {"item": {"id": "q-1", "title": "How was lunch?"}, "resvalues": [{"ans1": "good"}]},
}  # fmt: skip


class TelemetryEvent(bodies.Body):
    """A Sunbird telemetry v3 event."""

    is_extensible = True
    eid = bodies.text("The kind of event: ASSESS is an answer.", {"minLength": 1, **bodies.MAX_ID})
    ets = bodies.number("The time since 1970: milliseconds; seconds or microseconds by their size.")
    ver = bodies.text("The version of the specification.", required=False)
    mid = bodies.text("The message id.", bodies.MAX_ID, required=False)
    actor = bodies.free_object("The actor: `id` and `type`.", required=False)
    context = bodies.free_object("The context: `did`, `sid`, `cdata`, `rollup`.")
    edata = bodies.free_object("The data; of an answer `item`, `resvalues`, `score`, `duration`.")


class TelemetryBatch(bodies.Body):
    """A batch."""

    is_extensible = True
    id = bodies.text("The id of the batch.", required=False)
    ver = bodies.text("The version of the specification.", required=False)
    events = TelemetryEvent(many=True, help_text="The events.")
    example = {"id": "ekstep.telemetry", "ver": "3.0", "events": [EXAMPLE_EVENT]}


class TelemetryParams(bodies.Body):
    """The outcome of a call."""

    resmsgid = bodies.text("The id of this answer.", {"format": "uuid"})
    status = bodies.choice("Whether the call succeeded.", ["successful", "failed"])
    err = bodies.text("The code.", required=False)
    errmsg = bodies.text("The error and the remedy.", required=False)


class TelemetryError(bodies.Body):
    """A rejection."""

    id = bodies.text("Always api.telemetry.")
    ver = bodies.text("The version of the answer.")
    ets = bodies.epoch_ms("When the call arrived")
    params = TelemetryParams()
    responseCode = bodies.choice("The kind.", CODES)
    result = bodies.empty_object()


class TelemetryAnswer(TelemetryError):
    """The outcome of a batch."""

    responseCode = bodies.choice("SUCCESS.", ["SUCCESS"])
    result: Any = schema.BatchCounts()


OPERATIONS = (
    Operation(
        "sendTelemetry",
        """Send Sunbird telemetry.

        A batch, events or one event. Needs `ingest`. Events that cannot be read are kept aside; the
        others are stored.
        """,
        TelemetryAnswer,
        {schema.JSON: (TelemetryBatch, TelemetryEvent(many=True), TelemetryEvent),
         schema.NDJSON: schema.LINES},
        rejection=TelemetryError,
    ),
)  # fmt: skip
