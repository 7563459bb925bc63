"""Events of several sources are in one file, in sessions and among users."""

import csv
import io
import json
from base64 import b64encode
from pathlib import Path

import pytest
from django.core.management import call_command
from django.test import Client

from exhaust.models import File, Job
from ingest.auth import keys
from ingest.models import AppUser, Participant, Session
from tests.conftest import bearer, make_channel, make_key
from tests.ingest.telemetry_samples import CONVERSATION, STARTED_MS, answer, encode_batch

pytestmark = pytest.mark.django_db(transaction=True)  # a position is readable after its commit
QUESTION = "65292cdc-0000-4000-8000-000000000002"


def clickstream_answer(number: int) -> dict[str, object]:
    """An answer as the Clickstream SDK sends it."""
    return {
        "event_type": "answer",
        "event_id": f"e-{number}",
        "timestamp": STARTED_MS + number * 1000,
        "device_id": "browser-1",
        "unique_id": "person-1",
        "user": {"_user_id": {"value": "asha", "set_timestamp": STARTED_MS}},
        "attributes": {
            "_session_id": "s-1",
            "conversation_id": CONVERSATION,
            "question_id": QUESTION,
            "question_title": "Which class are you in?",
            "response": "the second",
        },
    }


def test_two_sources_share_one_file(files: Path):
    # given an answer by telemetry and one by attributes
    keys.create_application("my-app", make_channel())
    sender = Client(headers=bearer(make_key("ingest")))
    assert (
        sender.post("/v1/telemetry", encode_batch(answer(1)), "application/json").status_code == 200
    )
    page = Client()
    response = page.post(
        "/collect?appId=my-app", json.dumps([clickstream_answer(2)]), "application/json"
    )
    assert (response.status_code, response.content) == (200, b"")

    # when the conversation is exported
    asker = Client(headers=bearer(make_key("export:response")))
    config = {"conversationId": CONVERSATION, "startDate": "2022-04-01", "endDate": "2022-04-01"}
    request = {"tag": "t", "dataset": "uci-response-exhaust", "datasetConfig": config}
    asker.post("/dataset/v1/request/submit", {"request": request}, "application/json")
    call_command("run_jobs")

    # then the file has both, in the same columns
    assert Job.objects.get().status == "SUCCESS"
    text = (files / File.objects.get().key).read_text()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    message = [
        (row["Device ID"], row["Question Id"], row["Question Title"], row["Question Response"])
        for row in rows
    ]
    title = "Which class are you in?"
    assert message == [
        (answer()["context"]["did"], QUESTION, title, '[{"2": {"text": "2 Class 2"}}]'),
        ("browser-1", QUESTION, title, '[{"ans1": "the second"}]'),
    ]


def test_each_source_derives_sessions():
    # given a sender of each source
    channel = make_channel()
    secret = keys.create_application("my-app", channel)[1]
    sender = Client(headers=bearer(make_key("ingest")))
    sender.post("/v1/telemetry", encode_batch(answer(1), answer(2)), "application/json")
    anyone = Client()
    anyone.post("/collect?appId=my-app", json.dumps([clickstream_answer(3)]), "application/json")
    hits = {
        "identities": [{"identity": {"email": "dds@example.com"}, "ts": "2022-04-01T12:00:05"}],
        "features": [
            {"name": "f", "identity": {"email": "dds@example.com"}, "ts": "2022-04-01T12:00:06"}
        ],
    }
    anyone.post("/hit/bulk?client_id=my-app", json.dumps(hits), "application/json")
    basic = b64encode(f"my-app:{secret}".encode()).decode()
    session = {
        "tenantId": "t",
        "userSessionId": "1394_1008",
        "startTime": STARTED_MS,
        "endTime": STARTED_MS + 60_000,
        "internalUserId": "1394",
        "userId": "fearghasbag",
        "userActions": [{"name": "Checkout", "startTime": STARTED_MS + 5}],
    }
    desk = Client(headers={"Authorization": f"Basic {basic}"})
    assert desk.put("/export/events", json.dumps(session), "application/json").status_code == 200

    call_command("derive")

    # then each made one session, and one user
    created = Session.objects.filter(parent__isnull=True, event_count__gt=0)
    message = created.order_by("device_id").values_list(
        "device_id", "event_count", "is_client_session"
    )
    assert list(message) == [
        (answer()["context"]["did"], 2, False),
        ("1394", 1, True),
        ("browser-1", 1, False),
        ("dds@example.com", 2, False),
    ]
    users = set(AppUser.objects.values_list("identifier", flat=True))
    assert {"asha", "fearghasbag", "dds@example.com", answer()["actor"]["id"]} <= users
    assert Participant.objects.get().device_id == "dds@example.com"
