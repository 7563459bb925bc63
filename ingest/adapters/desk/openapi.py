"""The operations and bodies of Dynatrace sessions, as the OpenAPI document describes them."""

from rest_framework import serializers

from ingest.adapters.base import Operation
from ingest.adapters.desk.http import BULK_NDJSON
from ingest.http import bodies, schema

BULK_LINES = {
    "type": "string",
    "description": "An action line, then a session, in turn.",
    "examples": ['{"index": {"_index": "sessions"}}\n' + schema.LINES["examples"][0]],
}


class DeskSession(bodies.Body):
    """A user session as Dynatrace exports it."""

    is_extensible = True
    tenantId = bodies.text("The tenant.", bodies.MAX_ID, required=False)
    userSessionId = bodies.text("The session's id.", {"minLength": 1, **bodies.MAX_ID})
    startTime = bodies.number("The start, in milliseconds since 1970.")
    internalUserId = bodies.text("The device.", bodies.MAX_ID, required=False)
    userId = bodies.text("The user.", bodies.MAX_ID, required=False)
    userActions = bodies.list_of("The actions.", bodies.free_object("An action."), required=False)
    events = bodies.list_of("The events.", bodies.free_object("An event."), required=False)
    errors = bodies.list_of("The errors.", bodies.free_object("An error."), required=False)
    example = {"userSessionId": "1394_1008", "startTime": 1648785600123, "userActions": []}


class DeskAnswer(schema.BatchCounts):
    """The outcome of a batch."""

    sessions = bodies.integer("Sessions that were read.")


class BulkFailure(bodies.Body):
    """The reason of a rejection."""

    type = bodies.text("Elasticsearch's code.")
    reason = bodies.text("The error and the remedy.")


class BulkItem(bodies.Body):
    """The outcome of one item."""

    _index = bodies.text("The index that the item named.")
    _id = bodies.text("The id.", allow_null=True)
    status = bodies.integer("The HTTP status of a single call.")
    result = bodies.text("created, updated or noop: of the batch as a whole.", required=False)
    error = BulkFailure(required=False)


class BulkAnswer(bodies.Body):
    """The outcome of each item, in Elasticsearch's words."""

    took = bodies.integer("Milliseconds.")
    errors = bodies.flag("Whether any item was rejected.")
    items = bodies.list_of("The items.", serializers.DictField(child=BulkItem(), help_text="One."))


class BulkCause(BulkFailure):
    """The reason of a rejection."""

    root_cause = BulkFailure(many=True, required=False, help_text="The same again.")


class BulkError(bodies.Body):
    """A rejection."""

    error = BulkCause()
    status = bodies.integer("The HTTP status.")


OPERATIONS = (
    Operation(
        "sendBulk", "Send sessions by Elasticsearch's bulk protocol.", BulkAnswer,
        dict.fromkeys((schema.NDJSON, BULK_NDJSON), BULK_LINES), BulkError,
    ),
    Operation(
        "sendSessions", "Send Dynatrace sessions, one a line.", DeskAnswer,
        {schema.NDJSON: schema.LINES, schema.JSON: DeskSession},
    ),
)  # fmt: skip
