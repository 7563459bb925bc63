"""A rejected event is stored once after a fix."""

import json
import re
from base64 import b64encode
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from ingest.adapters.desk import parser as desk
from ingest.adapters.participants import parser as participants
from ingest.adapters.telemetry import parser as telemetry
from ingest.auth import keys
from ingest.events import RequestError
from ingest.models import Participant, RejectedEvent, StoredEvent
from ingest.store import batches
from tests.conftest import make_channel
from tests.ingest.telemetry_samples import answer, encode_batch


def refuse(*_: Any) -> None:
    raise RequestError("not_yet", "This source cannot be parsed yet.")


def replay(**options: str) -> str:
    out = StringIO()
    call_command("replay_rejected", stdout=out, **options)
    return out.getvalue().strip()


@pytest.fixture
def rejected(sender: Client) -> RejectedEvent:
    body = encode_batch(answer(1), answer(2, eid=""))
    result = sender.post("/v1/telemetry", body, "application/json").json()["result"]
    assert (result["stored"], result["rejected"]) == (1, 1)
    return RejectedEvent.objects.get()


def test_still_invalid_event_stays_rejected(rejected: RejectedEvent):
    assert replay() == "accepted 0, still rejected 1, unreadable 0"

    rejected.refresh_from_db()
    assert rejected.replayed_at is None
    assert (StoredEvent.objects.count(), RejectedEvent.objects.count()) == (1, 1)


def test_fixed_event_is_stored_once(rejected: RejectedEvent, monkeypatch: pytest.MonkeyPatch):
    # given an adapter that has learned to read events without a name
    read = telemetry.identifier
    monkeypatch.setattr(
        telemetry, "identifier", lambda *args, required=False: read(*args) or "x" * required
    )

    assert replay() == "accepted 1, still rejected 0, unreadable 0"
    assert replay() == "accepted 0, still rejected 0, unreadable 0"

    rejected.refresh_from_db()
    assert rejected.replayed_at is not None
    second = StoredEvent.objects.latest("id")
    assert (StoredEvent.objects.count(), second.type) == (2, "x")
    assert second.received_at == rejected.received_at


def test_truncated_event_is_unreadable(rejected: RejectedEvent):
    RejectedEvent.objects.update(size=70_000)

    assert replay() == "accepted 0, still rejected 0, unreadable 1"


def test_dropped_key_makes_it_unreadable(rejected: RejectedEvent, settings):
    settings.EXHAUST_ENCRYPTION_KEYS = ["A" * 43 + "="]

    assert replay() == "accepted 0, still rejected 0, unreadable 1"


def test_counted_events_are_not_replayed(sender: Client):
    sender.post("/v1/telemetry", encode_batch(*range(150)), "application/json")

    assert replay() == "accepted 0, still rejected 100, unreadable 0"
    assert RejectedEvent.objects.get(reason="not_kept").count == 50


def test_replay_outlives_a_deleted_row(rejected: RejectedEvent, monkeypatch: pytest.MonkeyPatch):
    # given a sample of its day, or an erasure, that deletes the row meanwhile
    append_batch = batches.append_batch

    def append_and_delete(*args: Any) -> Any:
        RejectedEvent.objects.all().delete()
        return append_batch(*args)

    monkeypatch.setattr(batches, "append_batch", append_and_delete)

    assert replay() == "accepted 0, still rejected 1, unreadable 0"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"reason": "eid"}, 1),
        ({"reason": "ets"}, 0),
        ({"source": "telemetry"}, 1),
        ({"source": "participants"}, 0),
        ({"since": "2026-01-01"}, 1),
        ({"since": "2999-01-01"}, 0),
    ],
)
def test_replay_filters(rejected: RejectedEvent, options: dict[str, str], found: int):
    assert replay(**options) == f"accepted 0, still rejected {found}, unreadable 0"


def test_invalid_since_day_is_refused(db: None):
    with pytest.raises(CommandError, match="--since: write a day as 2026-01-31"):
        replay(since="yesterday")


def test_fixed_participant_is_stored(sender: Client, monkeypatch: pytest.MonkeyPatch):
    sender.post("/v1/participants", b'[{"deviceId": "a", "phone": "123"}]', "application/json")
    assert Participant.objects.count() == 0
    monkeypatch.setattr(participants, "E164", re.compile(".*"))

    assert replay(source="participants") == "accepted 1, still rejected 0, unreadable 0"
    assert Participant.objects.get().device_id == "a"


def test_replay_keeps_newer_version(monkeypatch: pytest.MonkeyPatch, db):
    # given a rejected session, and its stored next version
    secret = keys.create_application("desk-1", make_channel())[1]
    session = {"tenantId": "t", "userSessionId": "s", "startTime": 1511441593539}
    basic = b64encode(f"desk-1:{secret}".encode()).decode()
    client = Client(headers={"Authorization": f"Basic {basic}"})
    with monkeypatch.context() as patch:
        patch.setattr(desk, "parse_session", refuse)
        client.put("/export/events", json.dumps(session | {"v": 1}), "application/json")
    assert (StoredEvent.objects.count(), RejectedEvent.objects.count()) == (0, 1)
    client.put("/export/events", json.dumps(session | {"v": 2}), "application/json")

    assert replay(source="desk") == "accepted 1, still rejected 0, unreadable 0"

    assert StoredEvent.objects.get().payload["v"] == 2
