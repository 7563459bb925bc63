"""The operations and bodies of AWS Clickstream, as the OpenAPI document describes them."""

from ingest.adapters.base import Operation
from ingest.http.bodies import MAX_ID, Body, free_object, integer, list_of, number, text
from ingest.http.schema import JSON


class ClickstreamEvent(Body):
    """An event of the AWS Clickstream SDKs."""

    is_extensible = True
    event_type = text("The name.", {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,49}$"})
    event_id = text("The id.", {"minLength": 1, **MAX_ID})
    timestamp = number("The time, in milliseconds since 1970.")
    device_id = text("The device.", MAX_ID, required=False)
    app_id = text("The application.", required=False)
    attributes = free_object(
        "Up to 500; `conversation_id` and `question_id` make it an answer.", required=False
    )
    user = free_object(
        "Up to 100 attributes of the user, each `{value, set_timestamp}`.", required=False
    )
    items = list_of("Up to 100 items.", free_object("An item."), required=False)
    example = {
        "event_type": "answer", "event_id": "e-1", "timestamp": 1648785600123, "device_id": "d-2",
        "attributes": {"conversation_id": "bot-1", "question_id": "q-1",
                       "question_title": "How was lunch?", "response": "good"},
    }  # fmt: skip


class PingQuery(Body):
    """The query of a ping."""

    appId = text("The application's id.")


class CollectQuery(PingQuery):
    """The query of a batch."""

    hashCode = text("The first 8 hex digits of the body's SHA-256.", required=False)
    upload_timestamp = integer("The sender's clock, in milliseconds.", required=False)


class Pong(Body):
    """The service's clock."""

    timestamp = number("Seconds since 1970.")


OPERATIONS = (
    Operation(
        id="collectClicks",
        description="""Send AWS Clickstream events.

        200 without a body means that they are stored. The body may be gzip, or base64 of
        gzip.
        """,
        request={JSON: (ClickstreamEvent(many=True), ClickstreamEvent)},
        response=None,
        parameters=(CollectQuery,),
    ),
    Operation(
        id="pingClicks",
        description="Get the service's clock, as the AWS Clickstream SDKs do.",
        response=Pong,
        parameters=(PingQuery,),
    ),
)
