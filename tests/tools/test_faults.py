"""The campaign's own check of the events that it sends."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.utils import timezone

from ingest.adapters import telemetry
from ingest.events import Call
from ingest.models import Channel
from ingest.store import batches
from tests.ingest.telemetry_samples import answer
from tools.faults import sender

pytestmark = pytest.mark.django_db


def store(mids: list[str], number: int) -> None:
    body = json.dumps([answer(number) | {"mid": mid} for mid in mids]).encode()
    channel = Channel.objects.get(identifier=sender.CHANNEL)
    batches.append_batch(
        channel.pk, telemetry.parse(body, Call(channel.identifier, timezone.now()))
    )


def test_sent_events_are_checked():
    checked = sender.Sender(cast(Any, SimpleNamespace(web_port=0)))
    store(["a", "b", "unacknowledged"], 1)
    checked.sent[0].acknowledged += ["a"]
    checked.sent[1].acknowledged += ["b"]
    checked.sent[0].statuses.update({"200": 2, "503": 4, "cut": 1})
    assert checked.check() == []

    checked.sent[1].acknowledged += ["c"]
    checked.sent[1].statuses["500"] += 1
    store(["b"], 2)  # another moment: another event, with the same mid

    assert checked.check() == [
        ("lost", "acknowledged event c"),
        ("twice", "event b has 2 rows"),
        ("not met", "1 answers to events were 500"),
    ]
