"""`uci-private-exhaust`: a conversation's participants, one a row, by first event."""

from collections.abc import Iterator
from typing import Any

from django.db import connection

from exhaust.datasets.base import Dataset, stream_rows
from exhaust.datasets.cells import Cell, Column, make_cell_reader
from exhaust.datasets.selection import Selection
from ingest.privacy.encryption import decrypt


class ParticipantsDataset(Dataset):
    name = "uci-private-exhaust"
    title = "Participants (names, phones)"
    is_private = True
    scope = "export:private"
    name_suffix = "userinfo"
    required_fields = ("conversationId",)
    default_days = "ever"
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
    legacy_columns = (
        Column(
            "Decrypted Device ID", "text", ("decrypted_device_id",),
            "phone: and the number with consent, else the device.", is_personal=True,
        ),
        Column("Encrypted Device ID", "text", ("encrypted_device_id",), "Always empty."),
        Column(
            "Device UUID", "text", ("device_id",), "The key to the response file.", is_personal=True
        ),
    )  # fmt: skip
    layouts = {
        "uci-2022": [
            "Conversation ID", "Conversation Name", "Decrypted Device ID", "Encrypted Device ID",
            "Device UUID",
        ]
    }  # fmt: skip

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
        read_cells = make_cell_reader(self.columns)
        shows_phone = any(
            column.path[0] in {"phone", "decrypted_device_id"} for column in self.columns
        )
        with stream_rows(sql, params) as rows:
            for stored_device_id, user_name, encrypted_phone, first_seen, last_seen in rows:
                device_id = selection.displayed_device_id(stored_device_id)
                phone = decrypt(encrypted_phone).decode() if shows_phone and encrypted_phone else ""
                row = {
                    "conversation": selection.conversation,
                    "conversation_name": selection.conversation_name,
                    "device_id": device_id,
                    "decrypted_device_id": f"phone:{phone}" if phone else device_id,
                    "user_name": user_name,
                    "phone": phone,
                    "first_seen": first_seen,
                    "last_seen": last_seen,
                }
                yield read_cells(row, "null", False)

    def count_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        where, params = selection.event_filter()
        return (
            f"SELECT DISTINCT e.device_id FROM ingest_storedevent e"  # noqa: S608
            f" WHERE {where} AND e.device_id <> ''",
            params,
        )


PARTICIPANTS = ParticipantsDataset()
