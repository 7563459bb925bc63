"""`uci-private-exhaust`: who conversed, one person a row, by first seen."""

from collections.abc import Iterator
from typing import Any

from django.db import connection

from exhaust.datasets.base import Dataset, streaming
from exhaust.datasets.columns import Cell, Column, iso_time
from exhaust.datasets.selection import Selection
from ingest.privacy.encryption import unseal


class Private(Dataset):
    name = "uci-private-exhaust"
    title = "Participants"
    private = True
    scope = "export:private"
    suffix = "userinfo"
    required = ("conversationId",)
    refusals = {
        "since": "Names and consent may have changed since: leave it out, and take the new file"
        " in place of the old one.",
    }
    columns = (
        Column("Conversation ID", "text", ("conversation",), "The bot's id."),
        Column("Conversation Name", "text", ("conversation_name",), "The bot's name."),
        Column("Device ID", "text", ("device_id",), "The key to the response file.", personal=True),
        Column("User Name", "text", ("user_name",), "As the participant is known.", personal=True),
        Column(
            "Phone Number", "text", ("phone",), "E.164; only with consent, else empty.",
            personal=True,
        ),
        Column("First Seen", "time", ("first_seen",), "First event in the range, in UTC."),
        Column("Last Seen", "time", ("last_seen",), "Last event in the range, in UTC."),
    )  # fmt: skip

    def rows(self, selection: Selection) -> Iterator[list[Cell]]:
        where, params = selection.where()
        # one order on both databases, whatever the server's language
        bytewise = ' COLLATE "C"' if connection.vendor == "postgresql" else ""
        sql = f"""
            SELECT seen.device_id, p.user_name, CASE WHEN p.consent THEN p.sealed_phone END,
                   seen.first_seen, seen.last_seen
            FROM (SELECT e.device_id, MIN(e.occurred_at) AS first_seen,
                         MAX(e.occurred_at) AS last_seen
                  FROM ingest_storedevent e WHERE {where} AND e.device_id <> ''
                  GROUP BY e.device_id) seen
            LEFT JOIN ingest_participant p
                   ON p.channel_id = %(channel)s AND p.device_id = seen.device_id
            ORDER BY seen.first_seen, seen.device_id{bytewise}{selection.tail}
        """  # noqa: S608
        name = selection.conversation_name or None
        with streaming(sql, params) as rows:
            for device_id, user_name, sealed_phone, first_seen, last_seen in rows:
                yield [
                    selection.conversation,
                    name,
                    selection.device(device_id),
                    user_name or None,
                    unseal(sealed_phone).decode() if sealed_phone else None,
                    iso_time(first_seen),
                    iso_time(last_seen),
                ]

    def count_sql(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        where, params = selection.where()
        return (
            f"SELECT DISTINCT e.device_id FROM ingest_storedevent e"  # noqa: S608
            f" WHERE {where} AND e.device_id <> ''",
            params,
        )


PRIVATE = Private()
