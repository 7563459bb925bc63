"""Event retention: which events are pruned, and how readers learn about it."""

from datetime import UTC, datetime, timedelta
from io import StringIO
from ipaddress import ip_network
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from exhaust.delivery import destinations, loop, pump, states
from exhaust.feed import pages
from exhaust.files import storage
from exhaust.jobs import attempt, transitions
from exhaust.maintenance import daily, retention
from exhaust.models import DailyRun, Destination, Job
from ingest.derive import deriver
from ingest.events import RequestError
from ingest.feed import pruning, values
from ingest.feed.watermark import fetch_watermark
from ingest.models import DerivationState, PruneState, Session, StoredEvent
from tests.conftest import make_channel, make_key
from tests.exhaust.destinations import (
    deliver_all,
    derive_sessions,
    make_destination,
    make_due,
    received_documents,
)
from tests.exhaust.factories import CONFIG, make_answer, make_claimed, make_job, send_events
from tests.exhaust.receiver import Receiver

pytestmark = pytest.mark.django_db(transaction=True)
DAYS = 30
OLD = timedelta(days=DAYS + 1)


@pytest.fixture(autouse=True)
def kept_for_days(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.EXHAUST_EVENT_RETENTION_DAYS = DAYS
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {"ORG_001": [ip_network("127.0.0.0/8")]}
    monkeypatch.setattr(pruning, "PRUNE_ROWS", 3)


@pytest.fixture
def puller(db: None) -> Client:
    return Client(headers={"X-Api-Key": make_key("pull", "export:response")})


def store_arrivals(first: int, last: int, ago: timedelta = OLD, derived: bool = True) -> None:
    """Stores answers with these numbers that arrived so long ago, one batch each."""
    for number in range(first, last + 1):
        send_events(make_answer(number))
    mids = [f"ASSESS:{number}" for number in range(first, last + 1)]
    StoredEvent.objects.filter(payload__mid__in=mids).update(received_at=timezone.now() - ago)
    if derived:
        derive_sessions(make_channel())


def run_pruning() -> int:
    return sum(count for _, count in retention.prune_events())


def stored_mids() -> list[str]:
    return [row.payload["mid"] for row in StoredEvent.objects.order_by("id")]


def mids_of(*numbers: int) -> list[str]:
    return [f"ASSESS:{number}" for number in numbers]


def pull_events(client: Client, cursor: str = "", size: int = 1000) -> Any:
    return client.get("/export/events", {"cursor": cursor, "pageSize": size})


def identifiers_of(response: Any) -> list[str]:
    assert response.status_code == 200, response.content
    return [item["payload"]["mid"] for item in response.json()["items"]]


def test_prunes_only_expired_events(settings: Any) -> None:
    # given more than one step of old events, and one that arrived late, after a younger one
    store_arrivals(1, 7)
    store_arrivals(8, 8, timedelta(days=1))
    store_arrivals(9, 9)

    # when / then
    settings.EXHAUST_EVENT_RETENTION_DAYS = 0
    assert run_pruning() == 0
    settings.EXHAUST_EVENT_RETENTION_DAYS = DAYS
    assert run_pruning() == 7
    assert stored_mids() == mids_of(8, 9)
    assert run_pruning() == 0

    # and sessions stay, a stored event is a duplicate, and a pruned one is new
    assert Session.objects.count() == 9
    with pytest.raises(AssertionError):
        send_events(make_answer(9))
    send_events(make_answer(1))
    assert stored_mids() == mids_of(8, 9, 1)


def test_underived_events_are_kept() -> None:
    store_arrivals(1, 3)
    store_arrivals(4, 6, derived=False)
    assert run_pruning() == 3
    assert stored_mids() == mids_of(4, 5, 6)
    DerivationState.objects.all().delete()
    assert run_pruning() == 0


def test_pruning_is_per_channel(puller: Client) -> None:
    # given a cursor after its channel's pruned events, and before another channel's
    store_arrivals(1, 2)
    store_arrivals(3, 5, timedelta())
    run_pruning()
    cursor = pull_events(puller, size=1).json()["nextCursor"]
    place = values.FeedPosition(fetch_watermark(), 0)
    PruneState.objects.create(
        channel=make_channel("ORG_002"), xid=place.xid, event_id=1, pruned_before=timezone.now()
    )

    # when / then
    assert identifiers_of(pull_events(puller, cursor)) == mids_of(4, 5)


def test_pruned_cursor_is_410(puller: Client) -> None:
    # given a reader that has read up to each event
    store_arrivals(1, 4)
    store_arrivals(5, 6, timedelta())
    cursors, cursor = [], ""
    for _ in range(6):
        cursors.append(cursor := pull_events(puller, cursor, 1).json()["nextCursor"])

    # when
    assert run_pruning() == 4

    # then a reader that missed pruned events gets 410, and where to continue
    for cursor in cursors[:3]:
        response = pull_events(puller, cursor)
        assert response.status_code == 410
        assert response["Content-Type"] == "application/problem+json"
        error_body = response.json()
        assert error_body["details"] == error_body["detail"]
        assert "pull without a cursor" in error_body["detail"]
        assert "are not kept" in error_body["detail"]
    assert identifiers_of(pull_events(puller, cursors[3])) == mids_of(5, 6)
    assert identifiers_of(pull_events(puller, cursors[4])) == mids_of(6)
    assert identifiers_of(pull_events(puller)) == mids_of(5, 6)


def test_page_pruned_while_read_is_410(monkeypatch: Any) -> None:
    # given a reader behind the first event, and a pruning that ends before its page is read
    store_arrivals(1, 5)
    (first,) = StoredEvent.objects.order_by("id")[:1]
    read = pages.READERS["events"]

    def read_late(*args: Any) -> Any:
        assert run_pruning() == 5
        return read(*args)

    monkeypatch.setitem(pages.READERS, "events", read_late)
    question = pages.FeedQuery(make_channel().pk, "events")
    with pytest.raises(RequestError, match="not kept"):
        pages.read_page(question, values.FeedPosition(first.xid, first.pk), 10)


def test_lagging_destination_is_disabled(puller: Client) -> None:
    with Receiver() as receiver:
        # given one that got all events, one that got none, one of sessions
        store_arrivals(1, 3)
        ahead = deliver_all(make_destination(receiver, name="ahead", resource="events"))
        store_arrivals(4, 4, timedelta(days=1))
        behind = make_destination(receiver, name="behind", resource="events")
        sessions = make_destination(receiver, name="sessions")
        destinations.pause(behind)
        received = len(received_documents(receiver))

        # when
        assert run_pruning() == 3

        # then it alone is disabled, with the reason, and its events were not sent
        found = {
            destination.name: states.determine_state(destination)
            for destination in Destination.objects.all()
        }
        assert found == {"ahead": "working", "behind": "disabled", "sessions": "working"}
        behind.refresh_from_db()
        assert "not kept" in behind.disabled_reason
        assert "rewind" in behind.disabled_reason

        # and it continues with stored events, after it was resumed
        address = "/dataset/v1/destination/behind"
        refused = puller.post(f"{address}/resume", {}, "application/json")
        assert refused.status_code == 410
        assert refused.json()["params"]["err"] == "GONE"
        old = {"request": {"cursor": destinations.encode_cursor(behind)}}
        Destination.objects.filter(pk=behind.pk).update(cursor_xid=1, cursor_id=1)
        behind.refresh_from_db()
        older = {"request": {"cursor": destinations.encode_cursor(behind)}}
        assert puller.post(f"{address}/rewind", older, "application/json").status_code == 410
        assert puller.post(f"{address}/rewind", old, "application/json").status_code == 200
        assert puller.post(f"{address}/resume", {}, "application/json").status_code == 200
        deliver_all(behind)
        deliver_all(ahead)
        assert sessions.pk
        sent = received_documents(receiver)[received:]
        sent_mids = [event["payload"]["mid"] for event in sent if "payload" in event]
        assert sent_mids == mids_of(4, 4)


def test_pruning_fences_reading_destination() -> None:
    # given a pump that has claimed a destination
    store_arrivals(1, 3)
    make_destination(resource="events")
    destination = loop.claim(pump.find_due())
    assert destination is not None

    # when its events go before it reads them
    assert run_pruning() == 3

    # then it moves no cursor
    assert pump.PushQueue().prepare(destination) is None
    destination.refresh_from_db()
    assert (destination.cursor_xid, destination.cursor_id) == (0, 0)
    assert states.determine_state(destination) == "disabled"


def test_supplement_of_pruned_file_is_410(puller: Client) -> None:
    # given a file, and events that arrived later
    store_arrivals(1, 2)
    first = make_claimed(request_id="A" * 32)
    assert attempt.run(first)
    store_arrivals(3, 4)
    store_arrivals(5, 5, timedelta())
    waiting = make_job(config={**CONFIG, "since": first.request_id})

    # when the file's own events are pruned, it can go on
    with_two = timezone.now() - timedelta(days=DAYS)
    assert pruning.prune_events(make_channel().pk, with_two, 2) == 2
    body = {"request": {"tag": "t", "dataset": CONFIG["type"],
                         "datasetConfig": {**CONFIG, "since": first.request_id}}}  # fmt: skip
    preview = ("/dataset/v1/request/preview", body, "application/json")
    assert puller.post(*preview).status_code == 200

    # and not after the later events are pruned
    assert run_pruning() == 2
    refused = puller.post(*preview)
    assert refused.status_code == 410
    assert "ask without since" in refused.json()["params"]["errmsg"]
    job = transitions.claim(waiting.pk)
    assert job is not None
    assert not attempt.run(job)
    waiting.refresh_from_db()
    assert (waiting.status, "ask without since" in waiting.status_message) == ("FAILED", True)


def test_pruning_waits_for_running_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a request whose first attempt failed after it had its watermark
    store_arrivals(1, 4)
    store_arrivals(5, 5, timedelta())
    job = make_claimed()
    with monkeypatch.context() as broken:
        broken.setattr(storage.FolderStorage, "put", lambda *_: 1 / 0)
        assert not attempt.run(job)
    Job.objects.update(due_at=timezone.now() - timedelta(seconds=1))

    # when / then no event is pruned before the file with all of them is made
    assert run_pruning() == 0
    second_claim = transitions.claim(job.pk)
    assert second_claim is not None
    assert attempt.run(second_claim)
    second_claim.refresh_from_db()
    assert second_claim.files.get().row_count == 5
    assert second_claim.status_message == ""
    assert run_pruning() == 4

    # and a later file's message names the pruned time
    later = make_claimed()
    assert attempt.run(later)
    later.refresh_from_db()
    assert later.files.get().row_count == 1
    assert "are not kept" in later.status_message


def test_pruned_request_fails_with_message() -> None:
    # given a running request that a pruning did not see
    store_arrivals(1, 4)
    job = make_job()
    Job.objects.filter(pk=job.pk).update(watermark=fetch_watermark())
    assert pruning.prune_events(make_channel().pk, timezone.now()) > 0

    # when / then
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert not attempt.run(claimed)
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("FAILED", 1)
    assert "pruned while the file was made; send the request again" in job.status_message


def test_pruning_counts_are_reported() -> None:
    store_arrivals(1, 4)
    make_destination(resource="events", name="slow")

    def said(*options: str) -> str:
        out = StringIO()
        call_command("prune", *options, stdout=out)
        return out.getvalue()

    output = said("--dry-run")
    assert "files: 0" in output
    assert "ORG_001: 4" in output
    assert "ORG_001/slow" in output
    assert len(stored_mids()) == 4
    assert "ORG_001: 4 of 4" in said("--events")
    assert stored_mids() == []
    store_arrivals(5, 9)
    assert daily.run_daily(datetime(2026, 3, 10, 3, tzinfo=UTC))
    assert DailyRun.objects.get().events_deleted == 5
    assert PruneState.objects.get().pruned_before < timezone.now() - timedelta(days=DAYS - 1)
    assert deriver.measure_lag(make_channel().pk).events == 0
    assert make_due(Destination.objects.get()).disabled_reason
