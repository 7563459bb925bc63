"""`users-exhaust`: users of applications as senders described them, by last change."""

from exhaust.datasets.arrivals import POSITION_SQL, FeedDataset
from exhaust.datasets.cells import Column, decode_json, format_json


class UsersDataset(FeedDataset):
    name = "users-exhaust"
    title = "User profiles"
    is_private = True
    scope = "export:private"
    pull_resource = "users"
    name_suffix = "users"
    optional_fields = ("since",)
    unsupported_reasons = {
        "conversationId": "A user belongs to the channel, not to a conversation; leave it out.",
        "application": "A user belongs to the channel, not to an application; leave it out.",
    }
    is_derived = True
    table = "ingest_appuser"
    time_column = "modified_at"
    sql_fields = {
        "identifier": "e.identifier",
        "external_user_id": "e.user_id",
        "anonymous": "CASE WHEN e.anonymous THEN 'true' ELSE 'false' END",
        "device_id": "e.device_id",
        "first_seen_at": "e.first_seen_at",
        "last_seen_at": "e.last_seen_at",
        "version": "CAST(e.version AS text)",
        "modified_at": "e.modified_at",
        "position": POSITION_SQL,
    }
    # an attribute holds its value and the time it was set
    payload_sql = (
        "(SELECT COALESCE(jsonb_object_agg(a.key, a.value -> 'value'), '{}')"
        " FROM jsonb_each(e.attributes) a)"
    )
    raw_column = "attributes"
    columns = (
        Column(
            "User ID",
            "text",
            ("identifier",),
            "The sender's id, else the device's.",
            is_personal=True,
        ),
        Column(
            "External User ID",
            "text",
            ("external_user_id",),
            "The sender's id.",
            is_personal=True,
        ),
        Column("Anonymous", "text", ("anonymous",), "true when only a device is known."),
        Column(
            "Device ID", "text", ("device_id",), "The first one that arrived.", is_personal=True
        ),
        Column("Email", "text", ("payload", "email"), "As sent.", is_personal=True),
        Column("Phone", "text", ("payload", "phone"), "As sent.", is_personal=True),
        Column("First Name", "text", ("payload", "firstName"), "As sent.", is_personal=True),
        Column("Last Name", "text", ("payload", "lastName"), "As sent.", is_personal=True),
        Column("Gender", "text", ("payload", "gender"), "As sent.", is_personal=True),
        Column("Company", "text", ("payload", "company"), "As sent.", is_personal=True),
        Column("Job Title", "text", ("payload", "jobTitle"), "As sent.", is_personal=True),
        Column(
            "Attributes", "json", ("payload",), "All sent attributes, as JSON.", is_personal=True
        ),
        Column("First Seen", "time", ("first_seen_at",), "First event, in UTC."),
        Column("Last Seen", "time", ("last_seen_at",), "Last event, in UTC."),
        Column("Version", "number", ("version",), "Grows with every change."),
        Column("Last Modified", "time", ("modified_at",), "Its last change, in UTC."),
        Column("Position", "text", ("position",), "Its place in the feed, of its last change."),
    )

    def build_payload(self, raw_json: str, is_refused: bool) -> str:
        return format_json(
            {name: attribute["value"] for name, attribute in decode_json(raw_json).items()}
        )


USERS = UsersDataset()
