"""`uci-private-exhaust`: a conversation's participants, one a row, by first event."""

from collections.abc import Iterator
from typing import Any

from django.db import connection

from exhaust.datasets.base import Dataset, stream_rows
from exhaust.datasets.cells import Cell, Column, format_time
from exhaust.datasets.selection import Selection
from ingest.privacy.encryption import decrypt


class ParticipantsDataset(Dataset):
    name = "uci-private-exhaust"
    title = "Participants (names, phones)"
    is_private = True
    scope = "export:private"
    name_suffix = "userinfo"
    required_fields = ("conversationId",)
    unsupported_reasons = {
        "since": "Names and consent may have changed since: leave it out, and take the new file"
        " in place of the old one.",
    }
    columns = (
        Column("Conversation ID", "text", ("conversation",), "The bot's id."),
        Column("Conversation Name", "text", ("conversation_name",), "The bot's name."),
        Column(
            "Device ID", "text", ("device_id",), "The key to the response file.", is_personal=True
        ),
        Column("User Name", "text", ("user_name",), "The participant's name.", is_personal=True),
        Column(
            "Phone Number", "text", ("phone",), "E.164; only with consent, else empty.",
            is_personal=True,
        ),
        Column("First Seen", "time", ("first_seen",), "First event in your range, in UTC."),
        Column("Last Seen", "time", ("last_seen",), "Last event in your range, in UTC."),
    )  # fmt: skip

    def iterate_rows(self, selection: Selection) -> Iterator[list[Cell]]:
        where, params = selection.event_filter()
        # the same order on both databases, in any locale
        collation = ' COLLATE "C"' if connection.vendor == "postgresql" else ""
        sql = f"""
            SELECT seen.device_id, p.user_name, CASE WHEN p.consent THEN p.encrypted_phone END,
                   seen.first_seen, seen.last_seen
            FROM (SELECT e.device_id, MIN(e.occurred_at) AS first_seen,
                         MAX(e.occurred_at) AS last_seen
                  FROM ingest_storedevent e WHERE {where} AND e.device_id <> ''
                  GROUP BY e.device_id) seen
            LEFT JOIN ingest_participant p
                   ON p.channel_id = %(channel)s AND p.device_id = seen.device_id
            ORDER BY seen.first_seen, seen.device_id{collation}{selection.limit_clause}
        """  # noqa: S608
        name = selection.conversation_name or None
        with stream_rows(sql, params) as rows:
            for device_id, user_name, encrypted_phone, first_seen, last_seen in rows:
                yield [
                    selection.conversation,
                    name,
                    selection.displayed_device_id(device_id),
                    user_name or None,
                    decrypt(encrypted_phone).decode() if encrypted_phone else None,
                    format_time(first_seen),
                    format_time(last_seen),
                ]

    def count_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        where, params = selection.event_filter()
        return (
            f"SELECT DISTINCT e.device_id FROM ingest_storedevent e"  # noqa: S608
            f" WHERE {where} AND e.device_id <> ''",
            params,
        )


PARTICIPANTS = ParticipantsDataset()
