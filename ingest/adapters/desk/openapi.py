"""The operations and bodies of Dynatrace sessions, as the OpenAPI document describes them."""

from drf_spectacular.utils import OpenApiResponse
from rest_framework import serializers

from ingest.adapters.base import Operation
from ingest.adapters.desk.http import BULK_NDJSON
from ingest.http import response_fields, schema

BULK_LINES = {
    "type": "string",
    "description": "An action line, then a session, in turn.",
    "examples": ['{"index": {"_index": "sessions"}}\n' + schema.LINES["examples"][0]],
}
LINKS = {"type": "object", "description": "As RFC 9264 has it.", "additionalProperties": True}


class DeskSession(response_fields.Body):
    """A user session as Dynatrace exports it."""

    is_extensible = True
    tenantId = response_fields.text("The tenant.", response_fields.MAX_ID, required=False)
    userSessionId = response_fields.text(
        "The id; visitId in older versions.", {"minLength": 1, **response_fields.MAX_ID}
    )
    startTime = response_fields.number("The start, in milliseconds since 1970.")
    internalUserId = response_fields.text("The device.", response_fields.MAX_ID, required=False)
    userId = response_fields.text("The user.", response_fields.MAX_ID, required=False)
    userActions = response_fields.list_of(
        "The actions.", response_fields.free_object("An action."), required=False
    )
    events = response_fields.list_of(
        "The events.", response_fields.free_object("An event."), required=False
    )
    errors = response_fields.list_of(
        "The errors.", response_fields.free_object("An error."), required=False
    )
    example = {"userSessionId": "1394_1008", "startTime": 1648785600123, "userActions": []}


class DeskAnswer(schema.BatchCounts):
    """The outcome of a batch."""

    sessions = response_fields.integer("Sessions that were read.")


class BulkFailure(response_fields.Body):
    """The reason of a rejection."""

    type = response_fields.text("Elasticsearch's code.")
    reason = response_fields.text("The error and the remedy.")


class BulkItem(response_fields.Body):
    """The outcome of one item."""

    _index = response_fields.text("The index that the item named.")
    _id = response_fields.text("The id.", allow_null=True)
    status = response_fields.integer("The HTTP status of a single call.")
    result = response_fields.text(
        "created, updated or noop: of the batch as a whole.", required=False
    )
    error = BulkFailure(required=False)


class BulkAnswer(response_fields.Body):
    """The outcome of each item, in Elasticsearch's words."""

    took = response_fields.integer("Milliseconds.")
    errors = response_fields.flag("Whether any item was rejected.")
    items = response_fields.list_of(
        "The items.", serializers.DictField(child=BulkItem(), help_text="One.")
    )


class BulkCause(BulkFailure):
    """The reason of a rejection."""

    root_cause = BulkFailure(many=True, required=False, help_text="The same again.")


class BulkError(response_fields.Body):
    """A rejection."""

    error = BulkCause()
    status = response_fields.integer("The HTTP status.")


class ProductVersion(response_fields.Body):
    """The version whose bulks are read."""

    is_extensible = True
    number = response_fields.text("The version.")
    build_flavor = response_fields.text("Always default.")


class Product(response_fields.Body):
    """What an Elasticsearch says of itself."""

    name = response_fields.text("Always exhaust.")
    cluster_name = response_fields.text("Always exhaust.")
    cluster_uuid = response_fields.text("Always the same.")
    version = ProductVersion()
    tagline = response_fields.text("As Elasticsearch says it.")


OPERATIONS = (
    Operation(
        "getProduct", "Pass the product check of Elasticsearch's clients.\n\nOnly where `Accept`"
        " asks for JSON. Other programs get our addresses, and browsers the console.",
        {200: Product, (200, "application/linkset+json"): LINKS,
         302: OpenApiResponse(None, "A browser goes to the console.")}, rejection=BulkError,
    ),
    Operation(
        "sendBulk", "Send sessions by Elasticsearch's bulk protocol.", BulkAnswer,
        dict.fromkeys((schema.NDJSON, BULK_NDJSON), BULK_LINES), BulkError,
    ),
    Operation(
        "sendSessions", "Send Dynatrace sessions, one a line.", DeskAnswer,
        {schema.NDJSON: schema.LINES, schema.JSON: DeskSession},
    ),
)  # fmt: skip
