"""What was rejected goes in after a fix, once."""

import json
import re
from base64 import b64encode
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from ingest.adapters import desk, participants, telemetry
from ingest.auth import keys
from ingest.events import Refused
from ingest.models import Participant, Rejected, StoredEvent
from tests.conftest import make_channel
from tests.ingest.telemetry_samples import answer, sent


def refuse(*_: Any) -> None:
    raise Refused("not_yet", "A door that cannot read it yet.")


def replay(**options: str) -> str:
    out = StringIO()
    call_command("replay_rejected", stdout=out, **options)
    return out.getvalue().strip()


@pytest.fixture
def rejected(sender: Client) -> Rejected:
    body = sent(answer(1), answer(2, eid=""))
    result = sender.post("/v1/telemetry", body, "application/json").json()["result"]
    assert (result["stored"], result["rejected"]) == (1, 1)
    return Rejected.objects.get()


def test_what_is_still_wrong_stays_rejected(rejected: Rejected):
    assert replay() == "accepted 0, still rejected 1, unreadable 0"

    rejected.refresh_from_db()
    assert rejected.replayed_at is None
    assert (StoredEvent.objects.count(), Rejected.objects.count()) == (1, 1)


def test_after_a_fix_it_goes_in_once(rejected: Rejected, monkeypatch: pytest.MonkeyPatch):
    # given a door that has learned to read events without a name
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


def test_what_was_cut_off_is_counted_and_left_alone(rejected: Rejected):
    Rejected.objects.update(size=70_000)

    assert replay() == "accepted 0, still rejected 0, unreadable 1"


def test_a_key_that_is_gone_is_counted(rejected: Rejected, settings):
    settings.ENCRYPTION_KEYS = ["A" * 43 + "="]

    assert replay() == "accepted 0, still rejected 0, unreadable 1"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"reason": "eid"}, 1),
        ({"reason": "ets"}, 0),
        ({"door": "telemetry"}, 1),
        ({"door": "participants"}, 0),
        ({"since": "2026-01-01"}, 1),
        ({"since": "2999-01-01"}, 0),
    ],
)
def test_filters(rejected: Rejected, options: dict[str, str], found: int):
    assert replay(**options) == f"accepted 0, still rejected {found}, unreadable 0"


def test_a_day_that_is_none_is_refused(db: None):
    with pytest.raises(CommandError, match="--since: write a day as 2026-01-31"):
        replay(since="yesterday")


def test_a_participant_goes_in_after_a_fix(sender: Client, monkeypatch: pytest.MonkeyPatch):
    sender.post("/v1/participants", b'[{"deviceId": "a", "phone": "123"}]', "application/json")
    assert Participant.objects.count() == 0
    monkeypatch.setattr(participants, "_E164", re.compile(".*"))

    assert replay(door="participants") == "accepted 1, still rejected 0, unreadable 0"
    assert Participant.objects.get().device_id == "a"


def test_an_older_version_does_not_replace_what_came_later(monkeypatch: pytest.MonkeyPatch, db):
    # given a session that was refused, and its next version that was not
    secret = keys.create_application("desk-1", make_channel())[1]
    session = {"tenantId": "t", "userSessionId": "s", "startTime": 1511441593539}
    basic = b64encode(f"desk-1:{secret}".encode()).decode()
    client = Client(headers={"Authorization": f"Basic {basic}"})
    with monkeypatch.context() as patch:
        patch.setattr(desk, "_events", refuse)
        client.put("/export/events", json.dumps(session | {"v": 1}), "application/json")
    assert (StoredEvent.objects.count(), Rejected.objects.count()) == (0, 1)
    client.put("/export/events", json.dumps(session | {"v": 2}), "application/json")

    assert replay(door="desk") == "accepted 1, still rejected 0, unreadable 0"

    assert StoredEvent.objects.get().payload["v"] == 2
