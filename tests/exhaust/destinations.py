"""Helpers for tests of destinations."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db.models import Max
from django.utils import timezone
from msgspec import structs

from exhaust.delivery import destinations, pump
from exhaust.feed.pages import fetch_current_position
from exhaust.models import Destination
from ingest.adapters import desk
from ingest.derive import deriver
from ingest.feed.watermark import fetch_watermark
from ingest.models import Channel, DerivationState, Session, StoredEvent
from ingest.store import batches
from tests.conftest import make_channel
from tests.exhaust.receiver import Behaviour, Received, Receiver, respond_with
from tests.ingest.adapters.test_desk import CALL, lines, session

LONG_AGO = timedelta(seconds=1)


def make_destination(receiver: Receiver | None = None, **overrides: Any) -> Destination:
    """Returns a destination at the start of its feed that is due."""
    channel = make_channel(overrides.pop("channel", "ORG_001"))
    password, secret = overrides.pop("password", None), overrides.pop("secret", None)
    path = "/_bulk" if overrides.get("kind") == "elasticsearch" else "/hook"
    url = (
        f"http://127.0.0.1:{receiver.port}{path}"
        if receiver
        else "https://destination.example/hook"
    )
    values: dict[str, Any] = {"name": "ours", "url": url, **overrides}
    destination = destinations.save(Destination(channel=channel, **values), password, secret)
    Destination.objects.filter(pk=destination.pk).update(cursor_xid=0, cursor_id=0)
    return make_due(destination)


def make_due(destination: Destination) -> Destination:
    Destination.objects.filter(pk=destination.pk).update(next_at=timezone.now() - LONG_AGO)
    destination.refresh_from_db()
    return destination


def emit_sessions(*numbers: int, channel: str = "ORG_001", **overrides: Any) -> list[str]:
    """Stores sessions of a DESK sender. Returns the ids that a receiver gets."""
    stored_channel = make_channel(channel)
    sessions = [session(number, **overrides) for number in numbers]
    call = structs.replace(CALL, channel=channel, application_id=None, received_at=timezone.now())
    batch = desk.parse(lines(*sessions), call)
    assert not batch.rejections
    batches.append_batch(stored_channel.pk, batch)
    derive_sessions(stored_channel)
    return [
        f"xxx-{sent_session['userSessionId']}-{sent_session['startTime']}"
        for sent_session in sessions
    ]


def derive_sessions(channel: Channel) -> None:
    DerivationState.objects.get_or_create(channel=channel)
    wait_for_watermark()
    while deriver.derive_step(channel.pk):
        pass
    wait_for_watermark()


def wait_for_watermark() -> None:
    """Waits until the watermark has passed all rows; other writers may hold it back."""
    last = max(
        model.objects.aggregate(last=Max("xid"))["last"] or 0 for model in (StoredEvent, Session)
    )
    until = time.monotonic() + 20
    while fetch_watermark() <= last:
        assert time.monotonic() < until
        time.sleep(0.01)


def deliver_all(destination: Destination) -> Destination:
    """Returns the destination after every due document was sent."""
    make_due(destination)
    pump.deliver_due(20)
    destination.refresh_from_db()
    return destination


def received_documents(receiver: Receiver) -> list[dict[str, Any]]:
    """Returns all received documents, repeated ones included."""
    return [json.loads(line) for request in receiver.received for line in request.body.splitlines()]


def received_ids(receiver: Receiver) -> list[str]:
    return [
        f"{document['tenantId']}-{document['userSessionId']}-{document['startTime']}"
        for document in received_documents(receiver)
    ]


def is_at_end(destination: Destination) -> bool:
    end_position = fetch_current_position(destination.channel_id, destination.resource)
    return (destination.cursor_xid, destination.cursor_id) == end_position


@dataclass
class FakeElasticsearch:
    """An index that answers each item with the status that `judge` returns for its id."""

    judge: Callable[[str], int] = lambda identifier: 201
    indexed: dict[str, Any] = field(default_factory=dict)
    requested_ids: list[list[str]] = field(default_factory=list)
    actions: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, request: Received) -> Behaviour:
        assert request.body.endswith(b"\n")
        rows = [json.loads(line) for line in request.body.splitlines()]
        items = []
        self.requested_ids.append([])
        for action, source in zip(rows[::2], rows[1::2], strict=True):
            index_action = action["index"]
            self.actions.append(index_action)
            self.requested_ids[-1].append(index_action["_id"])
            status = self.judge(index_action["_id"])
            item: dict[str, Any] = {
                "_index": index_action["_index"],
                "_id": index_action["_id"],
                "status": status,
            }
            if status < 300:
                self.indexed[index_action["_id"]] = source
            else:
                item["error"] = {"type": "because", "reason": f"of {index_action['_id']}"}
            items.append({"index": item})
        errors = any(next(iter(item.values()))["status"] >= 300 for item in items)
        return respond_with(
            200, json.dumps({"took": 1, "errors": errors, "items": items}).encode(),
            Content_Type="application/json",
        )  # fmt: skip
