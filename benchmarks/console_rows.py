"""The rows of a full channel, of which `benchmarks.console` times the pages."""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from benchmarks.harness import CHANNEL, FIRST_DAY

DAYS = 180
CONVERSATIONS, DEVICES = 300, 20_000
BATCH = 2_000
SOURCES = ("telemetry", "telemetry", "telemetry", "clickstream", "skalin")
# of the jobs that have ended; the newest are queued or running
STATUSES = (*["SUCCESS"] * 17, "FAILED", "FAILED", "CANCELLED")
QUEUED, RUNNING = 100, 4
DATASETS = ("uci-response-exhaust", "uci-private-exhaust", "uci-survey-exhaust")
REASONS = ("missing_mid", "invalid_time", "unknown_field", "not_an_object")
DESTINATIONS, SCHEDULES = 50, 50  # as many as a channel may have


def fill(jobs: int, events: int) -> None:
    """Fills one channel; a second one makes the list of channels a page."""
    from django.db import connection

    from ingest.models import Channel, Conversation

    channel = Channel.objects.create(identifier=CHANNEL)
    Channel.objects.create(identifier="ORG_002")
    names = ("Lunch", "Road", "School", "Harvest")
    Conversation.objects.bulk_create(
        Conversation(
            channel=channel,
            identifier=f"bot-{number:06}",
            name=f"{names[number % len(names)]} bot {number}",
        )
        for number in range(CONVERSATIONS)
    )
    steps: dict[str, Callable[[], object]] = {
        "events": lambda: fill_events(channel.pk, events),
        "people, rejected events, audit log": lambda: fill_rest(channel, jobs),
        "jobs": lambda: fill_jobs(channel, jobs),
    }
    for name, step in steps.items():
        print(f"filling {name}", file=sys.stderr, flush=True)
        step()
    with connection.cursor() as cursor:
        # as PostgreSQL does itself within a minute
        cursor.execute("VACUUM ANALYZE" if connection.vendor == "postgresql" else "ANALYZE")


def fill_events(channel_id: int, count: int) -> None:
    """Stores events in the order of arrival, a transaction for each `BATCH`, and derives none."""
    from django.db import connection, transaction

    from exhaust.demo.conversations import generate_answers
    from ingest.models import Application, Conversation

    Application.objects.create(channel_id=channel_id, identifier="APP_1", name="Shop")
    conversations = list(Conversation.objects.order_by("pk").values_list("pk", flat=True))
    samples = generate_answers(BATCH, 300, start=FIRST_DAY, days=5, channel=CHANNEL)
    payloads = [json.dumps(each, ensure_ascii=False) for each in samples]
    end = datetime.now(UTC)
    is_postgresql = connection.vendor == "postgresql"
    columns = (
        "occurred_at, received_at, channel_id, conversation_id, is_answer, identity, source, type,"
        " device_id, session_id, note, payload"
    )
    for first in range(0, count, BATCH):
        rows = []
        for number in range(first, min(count, first + BATCH)):
            received = end - timedelta(days=DAYS) * (count - number) / count
            occurred = received - timedelta(seconds=number * 7919 % 90_000)
            source = SOURCES[number % len(SOURCES)]
            is_answer = source == "telemetry" and number % 3 > 0
            # a third of the answers are of the first conversation
            nth = 0 if number % 9 < 3 else number * 31 % len(conversations)
            device = number // 12 * 7 % DEVICES
            rows.append((
                f"{occurred:%Y-%m-%d %H:%M:%S.%f}", f"{received:%Y-%m-%d %H:%M:%S.%f}", channel_id,
                conversations[nth] if is_answer else None, is_answer, uuid4().hex, source,
                "ASSESS" if is_answer else ("INTERACT", "page_view", "visit")[number % 3],
                f"device-{device}", f"session-{number // 12}", "", payloads[number % len(payloads)],
            ))  # fmt: skip
        with transaction.atomic(), connection.cursor() as cursor:
            if is_postgresql:
                with cursor.copy(f"COPY ingest_storedevent ({columns}) FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)
            else:
                marks = ", ".join(["%s"] * (len(rows[0]) + 1))
                cursor.executemany(
                    f"INSERT INTO ingest_storedevent (xid, {columns}) VALUES ({marks})",
                    [(first + 1, *row) for row in rows],
                )


def bulk_create(rows: Iterator[Any]) -> list[Any]:
    created: list[Any] = []
    while batch := list(itertools.islice(rows, 5000)):
        created += type(batch[0]).objects.bulk_create(batch)
    return created


def fill_rest(channel: Any, count: int) -> None:
    """As many participants, rejected events and audit events as jobs; schedules, destinations."""
    from exhaust.feed import pages
    from exhaust.models import Destination, Schedule
    from ingest.auth import keys
    from ingest.feed import daily_counts
    from ingest.models import AuditEvent, DerivationState, Participant, RejectedEvent
    from ingest.privacy.encryption import encrypt

    now = datetime.now(UTC)
    body = encrypt(b'{"eid": "ASSESS", "ets": "yesterday"}' * 20)

    def at(number: int) -> datetime:
        return now - timedelta(days=DAYS) * (count - number) / count

    bulk_create(
        Participant(
            channel=channel,
            device_id=f"device-{number}",
            user_name=f"Person {number}",
            encrypted_phone=body[:120],
            phone_digest=number,
            consent=(True, True, False, None)[number % 4],
            consent_at=at(number),
            updated_at=at(number),
        )
        for number in range(count)
    )
    bulk_create(
        RejectedEvent(
            channel=channel,
            source=SOURCES[number % len(SOURCES)],
            received_at=at(number),
            position=number % 100,
            reason=REASONS[number % len(REASONS)],
            detail="ets: not a time in milliseconds",
            digest=f"{number:064x}",
            size=740,
            encrypted_body=body,
            is_indexed=True,
        )
        for number in range(count)
    )
    actions = ("job.submitted", "file.downloaded", "key.created", "participants.viewed")
    bulk_create(
        AuditEvent(
            recorded_at=at(number),
            action=actions[number % 4],
            actor=f"person-{number % 40}",
            channel=CHANNEL,
            subject=f"{number % 1000:032X}",
            address="192.0.2.0/24",
            details={"dataset": DATASETS[0]},
        )
        for number in range(count)
    )
    for number in range(40):
        keys.create_key(f"key {number}", ["export:response"], [channel])
    end = pages.fetch_current_position(channel.pk, "events")
    DerivationState.objects.create(channel=channel, xid=end.xid, event_id=end.id)
    daily_counts.count_all()  # as the deriver does
    bulk_create(
        Schedule(
            channel=channel,
            name=f"schedule-{number}",
            cron="0 6 * * *",
            dataset=DATASETS[0],
            conversation="bot-000000",
            window="yesterday",
            tag="{name}-{start}",
            requested_by="benchmark",
            next_at=now + timedelta(hours=6),
            last_error="The queue was full." if number % 20 == 0 else "",
        )
        for number in range(SCHEDULES)
    )
    bulk_create(
        Destination(
            channel=channel,
            name=f"destination-{number}",
            resource=("events", "sessions")[number % 2],
            url="https://receiver.example/events",
            # every tenth lags by all events
            cursor_xid=end.xid if number % 10 else 0,
            cursor_id=end.id if number % 10 else 0,
            next_at=now + timedelta(days=1),
        )
        for number in range(DESTINATIONS)
    )


def fill_jobs(channel: Any, count: int) -> None:
    """Jobs of every status over the days, with files, steps, links, callbacks and deliveries."""
    from exhaust.models import Delivery, Destination, File, Job, Schedule, Transition

    now = datetime.now(UTC)
    schedules = list(Schedule.objects.all())

    def make_job(number: int) -> Job:
        newest = count - number  # 1 is the last
        status = STATUSES[number * 7 % len(STATUSES)]
        if newest <= min(QUEUED, count // 4):
            status = "PROCESSING" if newest <= RUNNING else "SUBMITTED"
        submitted = now - timedelta(days=DAYS) * newest / count
        is_ended = status in STATUSES
        ended = submitted + timedelta(seconds=2 + number % 600)
        return Job(
            channel=channel,
            tag=f"{('daily', 'april', 'adhoc')[number % 3]}-{number // 10}",
            request_id=uuid4().hex.upper(),
            dataset=DATASETS[number % len(DATASETS)],
            config={
                "type": DATASETS[number % len(DATASETS)],
                "conversationId": f"bot-{number % CONVERSATIONS:06}",
                "startDate": "2025-01-01",
                "endDate": "2025-01-31",
            },
            fingerprint="f" * 64,
            requested_by=f"person-{number % 40}",
            status=status,
            status_message="The storage was out." if status == "FAILED" else "",
            schedule=schedules[number % len(schedules)] if number % 4 == 0 else None,
            attempt=0 if status == "SUBMITTED" else 1,
            rows_done=1000 if is_ended else 10,
            rows_estimated=1000,
            submitted_at=submitted,
            due_at=now + timedelta(days=30),
            lease_until=now + timedelta(days=30) if status == "PROCESSING" else None,
            started_at=None if status == "SUBMITTED" else submitted + timedelta(seconds=1),
            completed_at=ended if is_ended else None,
            execution_ms=1000 if is_ended else None,
            callback_url="https://caller.example/done" if number % 5 == 0 else "",
        )

    jobs = bulk_create(make_job(number) for number in range(count))
    bulk_create(
        File(
            job=job,
            key=f"response/{job.pk}/1.csv",
            name=f"{job.request_id}_response_20250131.csv",
            content_type="text/csv; charset=utf-8",
            row_count=1000,
            byte_count=500_000,
            sha256="0" * 64,
            created_at=job.completed_at,
            deleted_at=now if job.submitted_at < now - timedelta(days=60) else None,
        )
        for job in jobs
        if job.status == "SUCCESS"
    )
    bulk_create(
        Transition(job=job, status=status, attempt=1, changed_at=job.started_at)
        for job in jobs
        if job.completed_at
        for status in ("PROCESSING", job.status)
    )
    destinations = list(Destination.objects.order_by("pk"))
    bulk_create(
        Delivery(
            channel=channel,
            kind="callback" if number % 2 else "feed",
            job=job if number % 2 else None,
            destination=None if number % 2 else destinations[number % len(destinations)],
            status="dead" if number % 50 == 0 else "delivered",
            job_status=job.status if number % 2 else "",
            documents=500,
            attempt=1,
            answer=200,
            created_at=job.submitted_at,
            attempted_at=job.submitted_at,
            ended_at=job.submitted_at,
        )
        for number, job in enumerate(jobs)
    )
