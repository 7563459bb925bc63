"""The operations and bodies of Sunbird telemetry, as the OpenAPI document describes them."""

from typing import Any

from ingest.adapters.base import Operation
from ingest.http.bodies import (
    MAX_ID,
    Body,
    choice,
    empty_object,
    epoch_ms,
    free_object,
    number,
    text,
)  # fmt: skip
from ingest.http.schema import JSON, LINES, NDJSON, BatchCounts

EXAMPLE_EVENT = {
    "eid": "ASSESS", "ets": 1648785600123, "ver": "3.0", "mid": "ASSESS:1",
    "actor": {"id": "d-1", "type": "User"},
    "context": {"channel": "ORG_001", "did": "d-1", "sid": "s-1",
                "cdata": [{"type": "Conversation", "id": "bot-1"}]},
    "edata": {"item": {"id": "q-1", "type": "ftp", "title": "How was lunch?", "params": []},
              "resvalues": [{"ans1": "good"}], "score": 1, "duration": 12},
}  # fmt: skip


class TelemetryEvent(Body):
    """A Sunbird telemetry v3 event."""

    is_extensible = True
    eid = text("The kind of event: ASSESS is an answer.", {"minLength": 1, **MAX_ID})
    ets = number("The time since 1970: milliseconds; seconds or microseconds by their size.")
    ver = text("The version of the specification.", required=False)
    mid = text("The message id.", MAX_ID, required=False)
    actor = free_object("The actor: `id` and `type`.", required=False)
    context = free_object("The context: `did`, `sid`, `cdata`, `rollup`.")
    edata = free_object("The data; of an answer `item`, `resvalues`, `score`, `duration`.")


class TelemetryBatch(Body):
    """A batch."""

    is_extensible = True
    id = text("The id of the batch.", required=False)
    ver = text("The version of the specification.", required=False)
    events = TelemetryEvent(many=True, help_text="The events.")
    example = {"id": "ekstep.telemetry", "ver": "3.0", "events": [EXAMPLE_EVENT]}


class TelemetryParams(Body):
    """The outcome of a call."""

    resmsgid = text("The id of this answer.", {"format": "uuid"})
    status = choice("Whether the call succeeded.", ["successful", "failed"])
    err = text("The code.", required=False)
    errmsg = text("The error and the remedy.", required=False)


class TelemetryError(Body):
    """A rejection."""

    id = text("Always api.telemetry.")
    ver = text("The version of the answer.")
    ets = epoch_ms("When the call arrived")
    params = TelemetryParams()
    responseCode = choice(
        "The kind.", ["CLIENT_ERROR", "FORBIDDEN", "TOO_MANY_REQUESTS", "SERVER_ERROR"]
    )
    result = empty_object()


class TelemetryAnswer(TelemetryError):
    """The outcome of a batch."""

    responseCode = choice("SUCCESS.", ["SUCCESS"])
    result: Any = BatchCounts()


OPERATIONS = (
    Operation(
        id="sendTelemetry",
        description="""Send Sunbird telemetry.

        A batch, events or one event. Needs `ingest`. Events that cannot be read are kept
        aside; the others are stored.
        """,
        request={
            JSON: (
                TelemetryBatch,
                TelemetryEvent(many=True),
                TelemetryEvent,
            ),
            NDJSON: LINES,
        },
        response=TelemetryAnswer,
        rejection=TelemetryError,
    ),
)
