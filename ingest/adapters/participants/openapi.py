"""The operations and bodies of participants, as the OpenAPI document describes them."""

from ingest.adapters.base import Operation
from ingest.http import response_fields, schema

PHONE = r"^(\+[1-9][0-9]{6,14})?$"
DATE_TIME = {"format": "date-time"}
OPTIONAL = {"required": False, "allow_null": True}


class Participant(response_fields.Body):
    """A person. Fields that are left out change nothing."""

    is_extensible = True
    deviceId = response_fields.text(
        "The person's device.", {"minLength": 1, **response_fields.MAX_ID}
    )
    userName = response_fields.text("The name.", response_fields.MAX_ID, **OPTIONAL)
    phone = response_fields.text(
        "E.164; empty deletes a stored one.", {"pattern": PHONE}, **OPTIONAL
    )
    consent = response_fields.flag("Whether files may have name and phone.", **OPTIONAL)
    consentAt = response_fields.text("The time of the consent; newest wins.", DATE_TIME, **OPTIONAL)
    example = {
        "deviceId": "d-1", "userName": "Asha", "phone": "+910000000001", "consent": True,
        "consentAt": "2022-04-01T00:00:00Z",
    }  # fmt: skip


class ParticipantsAnswer(schema.RejectionCounts):
    """The outcome of a batch."""

    accepted = response_fields.integer("Participants that were stored.")


OPERATIONS = (
    Operation(
        "sendParticipants",
        """Send profiles and consents.

        An array of up to 10,000, or one a line. Needs `ingest`.
        """,
        ParticipantsAnswer,
        {schema.JSON: (Participant(many=True), Participant)},
    ),
)
