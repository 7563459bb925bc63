"""The operations and bodies of Skalin, as the OpenAPI document describes them."""

from ingest.adapters.base import Operation
from ingest.http import response_fields, schema


class SkalinIdentity(response_fields.Body):
    """One of the two."""

    is_extensible = True
    email = response_fields.text("The address.", response_fields.MAX_ID, required=False)
    id = response_fields.text("The id.", response_fields.MAX_ID, required=False)


class SkalinHit(response_fields.Body):
    """An identity, or the use of a feature."""

    is_extensible = True
    identity = SkalinIdentity()
    eventId = response_fields.text(
        "The id; the last event of an id wins.", response_fields.MAX_ID, required=False
    )
    ts = response_fields.text(
        "The time, in UTC or with a zone.", response_fields.MAX_ID, required=False
    )
    visitId = response_fields.text("The visit.", response_fields.MAX_ID, required=False)
    name = response_fields.text("The feature.", response_fields.MAX_ID, required=False)


class SkalinBulk(response_fields.Body):
    """Up to a hundred of each."""

    is_extensible = True
    identities = response_fields.list_of("Identities.", SkalinHit(), required=False, max_length=100)
    features = response_fields.list_of("Features.", SkalinHit(), required=False, max_length=100)
    example = {"features": [{"identity": {"email": "asha@people.example"}, "name": "report"}]}


class SkalinAnswer(schema.BatchCounts):
    """The outcome of a batch."""

    status = response_fields.text("success.")


class SkalinError(response_fields.Body):
    """A rejection."""

    status = response_fields.text("error.")
    message = response_fields.text("The error and the remedy.")
    code = response_fields.integer("The HTTP status.")
    reason = response_fields.text("The code.")


class BulkQuery(response_fields.Body):
    """The query of a bulk."""

    client_id = response_fields.text("The application's id; also as clientId.", required=False)


class HitQuery(BulkQuery):
    """One identity or feature."""

    action = response_fields.choice("ui for an identity, ev for a feature.", ["ui", "ev"])
    identity = response_fields.text("The person as schema.JSON: `email` or `id`.")
    event = response_fields.text("The feature as schema.JSON: its `name`.", required=False)
    event_id = response_fields.text("The id; the last event of an id wins.", required=False)
    ts = response_fields.text("The time; by default now.", required=False)
    visit_id = response_fields.text("The visit.", required=False)


OPERATIONS = (
    Operation(
        "sendHit", "Send one identity or feature in the query.", SkalinAnswer,
        rejection=SkalinError, parameters=(HitQuery,),
    ),
    Operation(
        "sendHits",
        """Send identities and features as Skalin's clients do.

        Any content type will do: curl calls a body a form by default.
        """,
        SkalinAnswer, {schema.JSON: SkalinBulk}, SkalinError, (BulkQuery,),
    ),
)  # fmt: skip
