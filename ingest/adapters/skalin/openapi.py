"""The operations and bodies of Skalin, as the OpenAPI document describes them."""

from ingest.adapters.base import Operation
from ingest.http import bodies, schema


class SkalinIdentity(bodies.Body):
    """One of the two."""

    is_extensible = True
    email = bodies.text("The address.", bodies.MAX_ID, required=False)
    id = bodies.text("The id.", bodies.MAX_ID, required=False)


class SkalinHit(bodies.Body):
    """An identity, or the use of a feature."""

    is_extensible = True
    identity = SkalinIdentity()
    eventId = bodies.text("The id; the last event of an id wins.", bodies.MAX_ID, required=False)
    ts = bodies.text("The time, in UTC or with a zone.", bodies.MAX_ID, required=False)
    visitId = bodies.text("The visit.", bodies.MAX_ID, required=False)
    name = bodies.text("The feature.", bodies.MAX_ID, required=False)


class SkalinBulk(bodies.Body):
    """Up to a hundred of each."""

    is_extensible = True
    identities = bodies.list_of("Identities.", SkalinHit(), required=False, max_length=100)
    features = bodies.list_of("Features.", SkalinHit(), required=False, max_length=100)
    example = {"features": [{"identity": {"email": "asha@people.example"}, "name": "report"}]}


class SkalinAnswer(schema.BatchCounts):
    """The outcome of a batch."""

    status = bodies.text("success.")


class SkalinError(bodies.Body):
    """A rejection."""

    status = bodies.text("error.")
    message = bodies.text("The error and the remedy.")
    code = bodies.integer("The HTTP status.")
    reason = bodies.text("The code.")


class BulkQuery(bodies.Body):
    """The query of a bulk."""

    client_id = bodies.text("The application's id; also as clientId.", required=False)


class HitQuery(BulkQuery):
    """One identity or feature."""

    action = bodies.choice("ui for an identity, ev for a feature.", ["ui", "ev"])
    identity = bodies.text("The person as schema.JSON: `email` or `id`.")
    event = bodies.text("The feature as schema.JSON: its `name`.", required=False)
    event_id = bodies.text("The id; the last event of an id wins.", required=False)
    ts = bodies.text("The time; by default now.", required=False)
    visit_id = bodies.text("The visit.", required=False)


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
