"""`users-exhaust`: who used an application, as far as senders told, by their last change."""

from exhaust.datasets.arrivals import POSITION, Arrivals
from exhaust.datasets.columns import Column, decode, json_text


class Users(Arrivals):
    name = "users-exhaust"
    title = "Users"
    private = True
    scope = "export:private"
    pulled = "users"
    suffix = "users"
    optional = ("since",)
    refusals = {
        "conversationId": "A user belongs to the channel, not to a conversation; leave it out.",
        "application": "A user belongs to the channel, not to an application; leave it out.",
    }
    derived = True
    table = "ingest_appuser"
    moment = "modified_at"
    fields = {
        "identifier": "e.identifier",
        "external_user_id": "e.user_id",
        "anonymous": "CASE WHEN e.anonymous THEN 'true' ELSE 'false' END",
        "device_id": "e.device_id",
        "first_seen_at": "e.first_seen_at",
        "last_seen_at": "e.last_seen_at",
        "version": "CAST(e.version AS text)",
        "modified_at": "e.modified_at",
        "position": POSITION,
    }
    # kept are the value and when it was set
    payload = (
        "(SELECT COALESCE(jsonb_object_agg(a.key, a.value -> 'value'), '{}')"
        " FROM jsonb_each(e.attributes) a)"
    )
    raw = "attributes"
    columns = (
        Column(
            "User ID", "text", ("identifier",), "The sender's, else the device's.", personal=True
        ),
        Column("External User ID", "text", ("external_user_id",), "The sender's.", personal=True),
        Column("Anonymous", "text", ("anonymous",), "true when only a device is known."),
        Column("Device ID", "text", ("device_id",), "The first one seen.", personal=True),
        Column("Email", "text", ("payload", "email"), "As sent.", personal=True),
        Column("Phone", "text", ("payload", "phone"), "As sent.", personal=True),
        Column("First Name", "text", ("payload", "firstName"), "As sent.", personal=True),
        Column("Last Name", "text", ("payload", "lastName"), "As sent.", personal=True),
        Column("Gender", "text", ("payload", "gender"), "As sent.", personal=True),
        Column("Company", "text", ("payload", "company"), "As sent.", personal=True),
        Column("Job Title", "text", ("payload", "jobTitle"), "As sent.", personal=True),
        Column("Attributes", "json", ("payload",), "All that was sent, as JSON.", personal=True),
        Column("First Seen", "time", ("first_seen_at",), "First event, in UTC."),
        Column("Last Seen", "time", ("last_seen_at",), "Last event, in UTC."),
        Column("Version", "number", ("version",), "Grows with every change."),
        Column("Last Modified", "time", ("modified_at",), "When it changed last, in UTC."),
        Column("Position", "text", ("position",), "Of its last change."),
    )

    def opened(self, raw: str, refused: bool) -> str:
        return json_text({name: held["value"] for name, held in decode(raw).items()})


USERS = Users()
