"""Loads the answers to export: one month, repeated as often as needed."""

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.harness import CHANNEL, FIRST_DAY, PAYLOAD_BYTES
from exhaust.demo.conversations import (
    CONVERSATION_ID,
    CONVERSATION_NAME,
    generate_answers,
    generate_participants,
)

MONTH = timedelta(days=30)
MONTH_ROWS = 100_000
QUICK_MONTH_ROWS = 20_000  # the first month takes four times as long as its copies
DEVICES = 3_000


def load_rows(rows: int, month_rows: int = MONTH_ROWS) -> tuple[int, int, str]:
    """Loads whole months of about `rows` answers; returns rows, months and a description."""
    start_time = time.monotonic()
    months = max(1, rows // month_rows)
    rows = months * min(rows, month_rows)
    load(rows // months, months)
    seconds = time.monotonic() - start_time
    return rows, months, f"{rows:,} answers of {PAYLOAD_BYTES} bytes, loaded in {seconds:.0f} s"


def load(month_rows: int, months: int) -> None:
    """Loads a month of answers through the adapter, then copies it to later months."""
    from django.db import connection

    from ingest.adapters.participants import parser as profiles_parser
    from ingest.adapters.telemetry import parser
    from ingest.events import Call
    from ingest.models import Channel, Conversation
    from ingest.store import batches

    channel, _ = Channel.objects.get_or_create(identifier=CHANNEL)
    Conversation.objects.update_or_create(
        channel=channel, identifier=CONVERSATION_ID, defaults={"name": CONVERSATION_NAME}
    )
    now = datetime.now(UTC)
    devices = min(DEVICES, month_rows // 5)
    for body in telemetry_bodies(
        generate_answers(
            month_rows, devices, start=FIRST_DAY, days=MONTH.days, channel=CHANNEL,
            payload_bytes=PAYLOAD_BYTES,
        )
    ):  # fmt: skip
        batches.append_batch(channel.pk, parser.parse(body, Call(CHANNEL, now)))
    profiles = json.dumps(list(generate_participants(devices, start=FIRST_DAY))).encode()
    batches.append_batch(channel.pk, profiles_parser.parse(profiles, Call(CHANNEL, now)))
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        for month in range(1, months):
            values: dict[str, Any] = {
                "later": MONTH * month,
                "later_ms": MONTH.total_seconds() * 1000 * month,
                "month": str(month),
                "until": FIRST_DAY + MONTH,
            }
            cursor.execute(_COPY_MONTH_SQL, values)
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("CHECKPOINT")


_COPY_MONTH_SQL = """
INSERT INTO ingest_storedevent (occurred_at, received_at, channel_id, conversation_id, is_answer,
    identity, source, type, device_id, session_id, note, payload)
SELECT occurred_at + %(later)s, received_at, channel_id, conversation_id, is_answer,
    md5(identity::text || %(month)s)::uuid, source, type, device_id,
    md5(session_id || %(month)s)::uuid::text, note,
    jsonb_set(payload, '{ets}', to_jsonb((payload->>'ets')::numeric + %(later_ms)s))
FROM ingest_storedevent WHERE occurred_at < %(until)s ORDER BY id
"""


def prune_and_derive() -> None:
    """Marks all events as derived, so that the deriver uses no core meanwhile."""
    from exhaust.feed import pages
    from ingest.models import Channel, DerivationState

    channel = Channel.objects.get(identifier=CHANNEL)
    position = pages.fetch_current_position(channel.pk, "events")
    DerivationState.objects.update_or_create(
        channel=channel,
        defaults={"xid": position.xid, "event_id": position.id},
    )


def telemetry_bodies(events: Iterable[dict[str, Any]], each: int = 1000) -> Iterator[bytes]:
    events = iter(events)
    while batch := list(itertools.islice(events, each)):
        yield json.dumps({"events": batch}, ensure_ascii=False).encode()


def dataset_config(months: int) -> dict[str, str]:
    last = FIRST_DAY + MONTH * months - timedelta(days=1)
    return {
        "conversationId": CONVERSATION_ID,
        "startDate": FIRST_DAY.isoformat(),
        "endDate": last.isoformat(),
    }


def create_job(
    tag: str, months: int, output_format: str = "csv", dataset: str = "uci-response-exhaust"
) -> int:
    from exhaust.jobs import submit
    from ingest.models import Channel

    channel = Channel.objects.get(identifier=CHANNEL)
    return submit.submit(
        submit.Submission(
            channel.pk,
            CHANNEL,
            tag,
            dataset,
            dataset_config(months),
            "benchmark",
            output_format,
        )
    ).pk


def build_selection(months: int) -> Any:
    from exhaust.datasets.selection import Selection, day_range
    from ingest.feed.watermark import fetch_watermark
    from ingest.models import Conversation

    conversation = Conversation.objects.get(identifier=CONVERSATION_ID)
    last = FIRST_DAY + MONTH * months - timedelta(days=1)
    start, end = day_range(FIRST_DAY, last, "UTC")
    return Selection(
        conversation.channel_id, conversation.pk, CONVERSATION_ID, CONVERSATION_NAME, start, end,
        fetch_watermark(),
    )  # fmt: skip
