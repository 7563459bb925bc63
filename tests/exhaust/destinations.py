"""What the tests of sinks are made of."""

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
from exhaust.feed.pages import LAST_ID
from exhaust.models import Sink
from ingest.adapters import desk
from ingest.derive import deriver
from ingest.feed.watermark import watermark
from ingest.models import Channel, Deriver, Session, StoredEvent
from ingest.store import batches
from tests.conftest import make_channel
from tests.exhaust.receiver import Behaviour, Received, Receiver, answering
from tests.ingest.adapters.test_desk import CALL, lines, session

LONG_AGO = timedelta(seconds=1)


def make_sink(receiver: Receiver | None = None, **overrides: Any) -> Sink:
    """A sink that has had nothing yet, and is due."""
    channel = make_channel(overrides.pop("channel", "ORG_001"))
    password, secret = overrides.pop("password", None), overrides.pop("secret", None)
    path = "/_bulk" if overrides.get("kind") == "elasticsearch" else "/hook"
    url = f"http://127.0.0.1:{receiver.port}{path}" if receiver else "https://sink.example/hook"
    values: dict[str, Any] = {"name": "ours", "url": url, **overrides}
    sink = destinations.save(Sink(channel=channel, **values), password, secret)
    Sink.objects.filter(pk=sink.pk).update(xid=0, place_id=0)
    return due_now(sink)


def due_now(sink: Sink) -> Sink:
    Sink.objects.filter(pk=sink.pk).update(next_at=timezone.now() - LONG_AGO)
    sink.refresh_from_db()
    return sink


def emit(*numbers: int, channel: str = "ORG_001", **overrides: Any) -> list[str]:
    """Sessions that a DESK sender gives; the ids that a receiver is to know."""
    made = make_channel(channel)
    sent = [session(number, **overrides) for number in numbers]
    call = structs.replace(CALL, channel=channel, application_id=None, received_at=timezone.now())
    batch = desk.parse(lines(*sent), call)
    assert not batch.rejections
    batches.append(made.pk, batch)
    derive(made)
    return [f"xxx-{said['userSessionId']}-{said['startTime']}" for said in sent]


def derive(channel: Channel) -> None:
    Deriver.objects.get_or_create(channel=channel)
    settle()
    while deriver.step(channel.pk):
        pass
    settle()


def settle() -> None:
    """Until the watermark has passed all there is; other writers of the cluster may hold it."""
    last = max(
        model.objects.aggregate(last=Max("xid"))["last"] or 0 for model in (StoredEvent, Session)
    )
    until = time.monotonic() + 20
    while watermark() <= last:
        assert time.monotonic() < until
        time.sleep(0.01)


def pumped(sink: Sink) -> Sink:
    """The sink after everything that is due was sent."""
    due_now(sink)
    pump.run(20)
    sink.refresh_from_db()
    return sink


def documents(receiver: Receiver) -> list[dict[str, Any]]:
    """All lines that came, also those that came twice."""
    return [json.loads(line) for got in receiver.received for line in got.body.splitlines()]


def ids(receiver: Receiver) -> list[str]:
    return [
        f"{said['tenantId']}-{said['userSessionId']}-{said['startTime']}"
        for said in documents(receiver)
    ]


def at_end(sink: Sink) -> bool:
    return sink.place_id == LAST_ID and destinations.lag(sink).documents == 0


@dataclass
class Elastic:
    """An index that takes what `judging` lets it: by id, the source; a status for each item."""

    judging: Callable[[str], int] = lambda identifier: 201
    held: dict[str, Any] = field(default_factory=dict)
    asked: list[list[str]] = field(default_factory=list)
    actions: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, request: Received) -> Behaviour:
        assert request.body.endswith(b"\n")
        rows = [json.loads(line) for line in request.body.splitlines()]
        items = []
        self.asked.append([])
        for action, source in zip(rows[::2], rows[1::2], strict=True):
            said = action["index"]
            self.actions.append(said)
            self.asked[-1].append(said["_id"])
            status = self.judging(said["_id"])
            item: dict[str, Any] = {"_index": said["_index"], "_id": said["_id"], "status": status}
            if status < 300:
                self.held[said["_id"]] = source
            else:
                item["error"] = {"type": "because", "reason": f"of {said['_id']}"}
            items.append({"index": item})
        errors = any(next(iter(item.values()))["status"] >= 300 for item in items)
        return answering(
            200, json.dumps({"took": 1, "errors": errors, "items": items}).encode(),
            Content_Type="application/json",
        )  # fmt: skip
