"""The operations and bodies of AWS Clickstream, as the OpenAPI document describes them."""

from ingest.adapters.base import Operation
from ingest.http import bodies, schema


class ClickstreamEvent(bodies.Body):
    """An event of the AWS Clickstream SDKs."""

    is_extensible = True
    event_type = bodies.text("The name.", {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,49}$"})
    event_id = bodies.text("The id.", {"minLength": 1, **bodies.MAX_ID})
    timestamp = bodies.number("The time, in milliseconds since 1970.")
    device_id = bodies.text("The device.", bodies.MAX_ID, required=False)
    app_id = bodies.text("The application.", required=False)
    attributes = bodies.free_object("Up to 500; with a question it is an answer.", required=False)
    user = bodies.free_object("Up to 100 of `{value, set_timestamp}`.", required=False)
    items = bodies.list_of("Up to 100 items.", bodies.free_object("An item."), required=False)
    example = {
        "event_type": "answer", "event_id": "e-1", "timestamp": 1648785600123, "device_id": "d-2",
        "attributes": {"conversation_id": "bot-1", "question_id": "q-1",
                       "question_title": "How was lunch?", "response": "good"},
    }  # fmt: skip


class PingQuery(bodies.Body):
    """The query of a ping."""

    appId = bodies.text("The application's id.")


class CollectQuery(PingQuery):
    """The query of a batch."""

    hashCode = bodies.text("The first 8 hex digits of the body's SHA-256.", required=False)
    upload_timestamp = bodies.integer("The sender's clock, in milliseconds.", required=False)


class Pong(bodies.Body):
    """The service's clock."""

    timestamp = bodies.number("Seconds since 1970.")


OPERATIONS = (
    Operation(
        "collectClicks",
        """Send AWS Clickstream events.

        200 without a body means that they are stored. The body may be gzip, or base64 of gzip.
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
