"""`sessions-exhaust`: sessions, by last change."""

from exhaust.datasets.arrivals import APPLICATION_SQL, POSITION_SQL, FeedDataset
from exhaust.datasets.cells import Column
from ingest.adapters import page_view_types

_page_views = ", ".join(f"'{name}'" for name in sorted(page_view_types()))


class SessionsDataset(FeedDataset):
    name = "sessions-exhaust"
    title = "Sessions"
    is_private = True
    scope = "pull"
    pull_resource = "sessions"
    name_suffix = "sessions"
    optional_fields = ("application", "since")
    unsupported_reasons = {
        "conversationId": "A session belongs to a device, not to a conversation; leave it out.",
    }
    is_derived = True
    table = "ingest_session"
    time_column = "closes_at"
    sql_fields = {
        "key": "e.key",
        "user_id": "COALESCE(NULLIF(e.user_id, ''), e.device_id)",
        "external_user_id": "e.user_id",
        "parent": "(SELECT p.key FROM ingest_session p WHERE p.id = e.parent_id)",
        "application": APPLICATION_SQL,
        "device_id": "e.device_id",
        "sender_session_id": "e.sender_session_id",
        "started_at": "e.started_at",
        "ended_at": "e.ended_at",
        "closes_at": "e.closes_at",
        "landing_url": "e.landing_url",
        "page_views": (
            "(SELECT CAST(COALESCE(SUM(CAST(t.value AS bigint)), 0) AS text)"  # noqa: S608
            f" FROM json_each(e.types) t WHERE t.key IN ({_page_views}))"
        ),
        "event_count": "CAST(e.event_count AS text)",
        "answer_count": "CAST(e.answer_count AS text)",
        "version": "CAST(e.version AS text)",
        "modified_at": "e.modified_at",
        "position": POSITION_SQL,
    }
    payload_sql = "e.types"
    raw_column = "types"
    columns = (
        Column("Session ID", "uuid", ("key",), "Our id; it stays when the session changes."),
        Column(
            "User ID", "text", ("user_id",), "The sender's id, else the device's.", is_personal=True
        ),
        Column(
            "External User ID", "text", ("external_user_id",), "The sender's id.", is_personal=True
        ),
        Column("Parent Session ID", "uuid", ("parent",), "The session that it became a part of."),
        Column("Application", "text", ("application",), "The application that sent it."),
        Column("Device ID", "text", ("device_id",), "The device of the session.", is_personal=True),
        Column("Sender Session ID", "text", ("sender_session_id",), "The sender's own id of it."),
        Column("Start", "time", ("started_at",), "Its first event, in UTC."),
        Column("End", "time", ("ended_at",), "Its last event, in UTC."),
        Column("Close Time", "time", ("closes_at",), "When no event can extend it any more."),
        Column("Landing Page URL", "text", ("landing_url",), "As sent.", is_personal=True),
        Column("Page Views", "number", ("page_views",), "Number of page views."),
        Column("Events", "number", ("event_count",), "Number of events."),
        Column("Answers", "number", ("answer_count",), "Number of answers."),
        Column("Event Types", "json", ("payload",), "Number of events by type, as JSON."),
        Column("Version", "number", ("version",), "Grows with every change."),
        Column("Last Modified", "time", ("modified_at",), "Its last change, in UTC."),
        Column("Position", "text", ("position",), "Its place in the feed, of its last change."),
    )  # fmt: skip


SESSIONS = SessionsDataset()
