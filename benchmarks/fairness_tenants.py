"""The two tenants of `benchmarks.fairness`: their rows, keys and sessions."""

import os
import re
from base64 import b64encode
from datetime import timedelta
from io import BytesIO
from typing import Any

from benchmarks import api, export_data
from benchmarks.fairness_loads import Caller, World
from benchmarks.harness import CHANNEL
from benchmarks.sources import APPLICATION

QUIET, QUIET_APPLICATION, QUIET_NETWORK = "ORG_002", "quiet-app", "198.51.100.7"
BUSY_NETWORK, STRANGER_NETWORK = "203.0.113.7", "203.0.113.99"
KEYS = 10  # of the busy tenant, and its users
JOBS, ROWS, REJECTED = 2_400, 40_000, 2_000  # of the busy tenant
TOKEN = "t" * 32  # of CSRF


def prepare() -> tuple[World, dict[str, str]]:
    """Fills the database; returns what requests of the busy and of the quiet tenant name."""
    from django.db import connection

    from exhaust.demo.conversations import CONVERSATION_ID
    from ingest.auth import keys
    from ingest.models import Channel, Conversation

    api.prepare(JOBS, 500)
    busy = Channel.objects.get(identifier=CHANNEL)
    export_data.load_rows(ROWS, export_data.QUICK_MONTH_ROWS)
    quiet = Channel.objects.create(identifier=QUIET)
    Conversation.objects.create(channel=quiet, identifier=CONVERSATION_ID)
    export_data.prune_and_derive()
    _, password = keys.create_application(APPLICATION, busy)
    keys.create_application(QUIET_APPLICATION, quiet)
    facts = _prepare_quiet(quiet)
    values = _prepare_busy(busy) | {"application": APPLICATION, "theirs": QUIET_APPLICATION}
    values["token"] = facts["link"].split("/")[4]
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    senders = [keys.create_key(f"sender {n}", ["ingest"], [busy])[1] for n in range(KEYS)]
    scopes = ["export:response", "export:private", "pull", "erase", "audit"]
    readers = [keys.create_key(f"reader {n}", scopes, [busy])[1] for n in range(KEYS)]
    busy_network, stranger = (
        f"\r\nX-Forwarded-For: {network}" for network in (BUSY_NETWORK, STRANGER_NETWORK)
    )
    basic = b64encode(f"{APPLICATION}:{password}".encode()).decode()
    csrf = f"; csrftoken={TOKEN}\r\nX-CSRFToken: {TOKEN}"
    headers = {
        Caller.KEY: [f"X-API-Key: {key}{busy_network}" for key in readers],
        Caller.SENDER: [f"Authorization: Bearer {key}{busy_network}" for key in senders],
        Caller.APPLICATION: [busy_network.strip()],
        Caller.PASSWORD: [f"Authorization: Basic {basic}{busy_network}"],
        Caller.SESSION: [
            f"Cookie: {_sign_in(f'busy-{n}', busy)}{csrf}{busy_network}" for n in range(KEYS)
        ],
        Caller.OUTSIDER: [stranger.strip()],
        Caller.NOBODY: [stranger.strip()],
        Caller.MADE_UP: [f"Cookie: sessionid=made-up-@########{csrf}{stranger}"],
    }
    return World(headers, values), facts


def _sign_in(name: str, channel: Any) -> str:
    """Creates a user of a channel; returns the session's cookie."""
    from django.conf import settings
    from django.contrib.auth import get_user_model
    from django.contrib.auth.models import Group
    from django.test import Client

    from ingest.auth.roles import PERMISSIONS
    from ingest.models import Role

    user = get_user_model().objects.create_user(name, is_staff=True)
    group, is_new = Group.objects.get_or_create(name=channel.identifier)
    if is_new:
        Role.objects.create(group=group, channel=channel, **dict.fromkeys(PERMISSIONS, True))
    user.groups.add(group)
    browser = Client()
    browser.force_login(user)
    cookie = settings.SESSION_COOKIE_NAME
    return f"{cookie}={browser.cookies[cookie].value}"


def _prepare_quiet(quiet: Any) -> dict[str, str]:
    from django.utils import timezone

    from exhaust.files import links, storage
    from exhaust.models import File, Job
    from ingest.auth import keys

    job = Job.objects.create(
        channel=quiet, tag="daily", request_id="A" * 32, dataset="uci-response-exhaust",
        config=export_data.dataset_config(1), fingerprint="f" * 64, requested_by="quiet",
        status=Job.Status.SUCCESS, completed_at=timezone.now(),
    )  # fmt: skip
    content = os.urandom(150_000)
    storage.get_storage().put("response/quiet.csv", BytesIO(content), "text/csv")
    file = File.objects.create(
        job=job, key="response/quiet.csv", name="quiet.csv", content_type="text/csv",
        row_count=1, byte_count=len(content), sha256="0" * 64,
    )  # fmt: skip
    link = links.share(file, seconds=86_400)
    assert link is not None  # noqa: S101
    return {
        "sender": keys.create_key("sender", ["ingest"], [quiet])[1],
        "reader": keys.create_key("reader", ["export:response", "pull"], [quiet])[1],
        "cookie": _sign_in("quiet", quiet),
        "tag": job.tag,
        "request_id": job.request_id,
        "dataset": job.dataset,
        "link": re.sub(r"^https?://[^/]+", "", links.build_url(link)),
    }


def _prepare_busy(busy: Any) -> dict[str, str]:
    """Gives the busy tenant as many rows of each kind as it may have; returns their names."""
    from django.utils import timezone

    from exhaust.models import DeadLetter, Destination, Job, Schedule
    from ingest.models import RejectedEvent, Session, StoredEvent
    from ingest.privacy.encryption import encrypt

    now = timezone.now()
    Schedule.objects.bulk_create(
        Schedule(
            channel=busy, name=f"s-{n}", cron="0 6 1 1 *", dataset="uci-response-exhaust",
            conversation="bot-000000", window="yesterday", tag="t", requested_by="busy",
            next_at=now + timedelta(days=9),
        )
        for n in range(50)
    )  # fmt: skip
    made = Destination.objects.bulk_create(
        Destination(
            channel=busy, name=f"d-{n}", url="https://receiver.example/hook", paused_at=now,
            types=[f"{number:0255}" for number in range(100)],
        )
        for n in range(50)
    )  # fmt: skip
    DeadLetter.objects.bulk_create(
        DeadLetter(
            destination=made[0], row=n, xid=1, document_id=f"{n}", answer=400, reason="r" * 500
        )
        for n in range(2_000)
    )
    body = encrypt(b"[" * 1000)
    rejected = RejectedEvent.objects.bulk_create(
        RejectedEvent(
            channel=busy, source="telemetry", received_at=now, position=n, reason="invalid",
            detail="d" * 500, digest=f"{n:064}", size=1000, encrypted_body=body, is_indexed=True,
        )
        for n in range(REJECTED)
    )  # fmt: skip
    Session.objects.bulk_create(
        Session(
            xid=1, modified_at=now, key=f"00000000-0000-4000-8000-{n:012}", channel=busy,
            is_client_session=False, device_id=f"device-{n}", sender_session_id=f"s-{n}",
            landing_url="https://shop.example/" + "p" * 200, started_at=now, ended_at=now,
            closes_at=now, closed=True, event_count=9, answer_count=9, types={"ASSESS": 9},
            buckets=[],
        )
        for n in range(2_000)
    )  # fmt: skip
    job = Job.objects.filter(channel=busy, files__isnull=False).latest("pk")
    many = Job.objects.filter(channel=busy, pk__lt=job.pk - JOBS // 2)
    many.update(tag="many")
    event = StoredEvent.objects.filter(channel=busy).latest("pk")
    return {
        "channel": CHANNEL, "tag": job.tag, "request_id": job.request_id, "name": "d-0",
        "index": "index", "pk": str(rejected[0].pk), "part": "1", "public_id": "none",
        "event": str(event.identity), "device": event.device_id,
        "session": "00000000-0000-4000-8000-000000000001", "action": "pause",
    }  # fmt: skip
