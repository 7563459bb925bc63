"""The operations and bodies of Skalin, as the OpenAPI document describes them."""

from ingest.adapters.base import Operation
from ingest.http.bodies import MAX_ID, Body, choice, integer, list_of, text
from ingest.http.schema import JSON, BatchCounts


class SkalinIdentity(Body):
    """One of the two."""

    is_extensible = True
    email = text("The address.", MAX_ID, required=False)
    id = text("The id.", MAX_ID, required=False)


class SkalinHit(Body):
    """An identity, or the use of a feature."""

    is_extensible = True
    identity = SkalinIdentity()
    eventId = text("The id; the last event of an id wins.", MAX_ID, required=False)
    ts = text("The time, like 2026-01-31T10:00:00, in UTC or with a zone.", MAX_ID, required=False)
    visitId = text("The visit.", MAX_ID, required=False)
    name = text("The feature.", MAX_ID, required=False)


class SkalinBulk(Body):
    """Up to a hundred of each."""

    is_extensible = True
    identities = list_of("Identities.", SkalinHit(), required=False, max_length=100)
    features = list_of("Features.", SkalinHit(), required=False, max_length=100)
    example = {
        "identities": [{"identity": {"email": "asha@people.example"}, "customerId": "c-1"}],
        "features": [{"identity": {"email": "asha@people.example"}, "name": "report"}],
    }


class SkalinAnswer(BatchCounts):
    """The outcome of a batch."""

    status = text("success.")


class SkalinError(Body):
    """A rejection."""

    status = text("error.")
    message = text("The error and the remedy.")
    code = integer("The HTTP status.")
    reason = text("The code.")


class BulkQuery(Body):
    """The query of a bulk."""

    client_id = text("The application's id; also as clientId.", required=False)


class HitQuery(BulkQuery):
    """One identity or feature."""

    action = choice("ui for an identity, ev for a feature.", ["ui", "ev"])
    identity = text("The person as JSON: `email` or `id`.")
    event = text("The feature as JSON: its `name`.", required=False)
    event_id = text("The id; the last event of an id wins.", required=False)
    ts = text("The time; by default now.", required=False)
    visit_id = text("The visit.", required=False)


OPERATIONS = (
    Operation(
        id="sendHit",
        description="Send one identity or feature in the query.",
        response=SkalinAnswer,
        rejection=SkalinError,
        parameters=(HitQuery,),
    ),
    Operation(
        id="sendHits",
        description="""Send identities and features as Skalin's clients do.

        Any content type will do: curl calls a body a form by default.
        """,
        request={JSON: SkalinBulk},
        response=SkalinAnswer,
        rejection=SkalinError,
        parameters=(BulkQuery,),
    ),
)
