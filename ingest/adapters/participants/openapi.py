"""The operations and bodies of participants, as the OpenAPI document describes them."""

from ingest.adapters.base import Operation
from ingest.http.bodies import MAX_ID, Body, flag, integer, text
from ingest.http.schema import JSON, RejectionCounts


class Participant(Body):
    """A person. Fields that are left out change nothing."""

    is_extensible = True
    deviceId = text("The person's device.", {"minLength": 1, **MAX_ID})
    userName = text("The name.", MAX_ID, required=False, allow_null=True)
    phone = text(
        "E.164; empty deletes a stored one.",
        {"pattern": r"^(\+[1-9][0-9]{6,14})?$"},
        required=False,
        allow_null=True,
    )
    consent = flag("Whether name and phone may be given out.", required=False, allow_null=True)
    consentAt = text(
        "The time of the consent; the newest one wins.",
        {"format": "date-time"},
        required=False,
        allow_null=True,
    )
    example = {
        "deviceId": "d-1", "userName": "Asha", "phone": "+910000000001", "consent": True,
        "consentAt": "2022-04-01T00:00:00Z",
    }  # fmt: skip


class ParticipantsAnswer(RejectionCounts):
    """The outcome of a batch."""

    accepted = integer("Participants that were stored.")


OPERATIONS = (
    Operation(
        id="sendParticipants",
        description="""Send profiles and consents.

        An array, or one a line. Needs `ingest`.
        """,
        request={JSON: (Participant(many=True), Participant)},
        response=ParticipantsAnswer,
    ),
)
