"""The operations and bodies of AWS Clickstream, as the OpenAPI document describes them."""

from ingest.adapters.base import Operation
from ingest.http import response_fields, schema


class ClickstreamEvent(response_fields.Body):
    """An event of the AWS Clickstream SDKs."""

    is_extensible = True
    event_type = response_fields.text("The name.", {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,49}$"})
    event_id = response_fields.text("The id.", {"minLength": 1, **response_fields.MAX_ID})
    timestamp = response_fields.number("The time, in milliseconds since 1970.")
    device_id = response_fields.text("The device.", response_fields.MAX_ID, required=False)
    app_id = response_fields.text("The application.", required=False)
    attributes = response_fields.free_object(
        "Up to 500; with a question it is an answer.", required=False
    )
    user = response_fields.free_object("Up to 100 of `{value, set_timestamp}`.", required=False)
    items = response_fields.list_of(
        "Up to 100 items.", response_fields.free_object("An item."), required=False
    )
    example = {
        "event_type": "answer", "event_id": "e-1", "timestamp": 1648785600123, "device_id": "d-2",
        "attributes": {"conversation_id": "bot-1", "question_id": "q-1",
                       "question_title": "How was lunch?", "response": "good"},
    }  # fmt: skip


class PingQuery(response_fields.Body):
    """The query of a ping."""

    appId = response_fields.text("The application's id.")


class CollectQuery(PingQuery):
    """The query of a batch."""

    hashCode = response_fields.text("The first 8 hex digits of the body's SHA-256.", required=False)
    upload_timestamp = response_fields.integer(
        "The sender's clock, in milliseconds.", required=False
    )


class Pong(response_fields.Body):
    """The service's clock."""

    timestamp = response_fields.number("Seconds since 1970.")


OPERATIONS = (
    Operation(
        "collectClicks",
        """Send AWS Clickstream events.

        200 without a body means that they are stored. The body may be gzip, or base64 of gzip: up
        to 1 MiB as sent, and 16 MiB unpacked.
        """,
        None,
        {schema.JSON: (ClickstreamEvent(many=True), ClickstreamEvent)},
        parameters=(CollectQuery,),
    ),
    Operation(
        "pingClicks", "Get the service's clock, as the AWS Clickstream SDKs do.", Pong,
        parameters=(PingQuery,),
    ),
)  # fmt: skip
