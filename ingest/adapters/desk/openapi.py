"""The operations and bodies of Dynatrace sessions, as the OpenAPI document describes them."""

from rest_framework import serializers

from ingest.adapters.base import Operation
from ingest.adapters.desk.http import BULK_NDJSON
from ingest.http.bodies import MAX_ID, Body, flag, free_object, integer, list_of, number, text
from ingest.http.schema import JSON, LINES, NDJSON, BatchCounts

BULK_LINES = {
    "type": "string",
    "description": "An action line, then a session, in turn.",
    "examples": ['{"index": {"_index": "sessions"}}\n' + LINES["examples"][0]],
}


class DeskSession(Body):
    """A user session as Dynatrace exports it."""

    is_extensible = True
    tenantId = text("The tenant.", MAX_ID, required=False)
    userSessionId = text("The session's id.", {"minLength": 1, **MAX_ID})
    startTime = number("The start, in milliseconds since 1970.")
    internalUserId = text("The device.", MAX_ID, required=False)
    userId = text("The user.", MAX_ID, required=False)
    userActions = list_of("The actions.", free_object("An action."), required=False)
    events = list_of("The events.", free_object("An event."), required=False)
    errors = list_of("The errors.", free_object("An error."), required=False)
    example = {"userSessionId": "1394_1008", "startTime": 1648785600123, "userActions": []}


class DeskAnswer(BatchCounts):
    """The outcome of a batch."""

    sessions = integer("Sessions that were read.")


class BulkFailure(Body):
    """The reason of a rejection."""

    type = text("Elasticsearch's code.")
    reason = text("The error and the remedy.")


class BulkItem(Body):
    """The outcome of one item."""

    _index = text("The index that the item named.")
    _id = text("The id.", allow_null=True)
    status = integer("The HTTP status of a single call.")
    result = text("created, updated or noop: of the batch as a whole.", required=False)
    error = BulkFailure(required=False)


class BulkAnswer(Body):
    """The outcome of each item, in Elasticsearch's words."""

    took = integer("Milliseconds.")
    errors = flag("Whether any item was rejected.")
    items = list_of("The items.", serializers.DictField(child=BulkItem(), help_text="By action."))


class BulkCause(BulkFailure):
    """The reason of a rejection."""

    root_cause = BulkFailure(many=True, required=False, help_text="The same again.")


class BulkError(Body):
    """A rejection."""

    error = BulkCause()
    status = integer("The HTTP status.")


OPERATIONS = (
    Operation(
        id="sendBulk",
        description="Send sessions by Elasticsearch's bulk protocol.",
        request=dict.fromkeys((NDJSON, BULK_NDJSON), BULK_LINES),
        response=BulkAnswer,
        rejection=BulkError,
    ),
    Operation(
        id="sendSessions",
        description="Send Dynatrace sessions, one a line.",
        request={NDJSON: LINES, JSON: DeskSession},
        response=DeskAnswer,
    ),
)
