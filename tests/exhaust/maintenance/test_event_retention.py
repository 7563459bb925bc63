"""Events past their life: what is pruned, and what is said to who would have read them."""

from datetime import UTC, datetime, timedelta
from io import StringIO
from ipaddress import ip_network
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from exhaust.delivery import destinations, pump
from exhaust.feed import pages
from exhaust.jobs import attempt, transitions
from exhaust.maintenance import daily, retention
from exhaust.models import DailyRun, Job, Sink
from ingest.derive import deriver
from ingest.events import Refused
from ingest.feed import pruning, values
from ingest.feed.watermark import watermark
from ingest.models import Deriver, Horizon, Session, StoredEvent
from tests.conftest import make_channel, make_key
from tests.exhaust.destinations import derive, documents, due_now, make_sink, pumped
from tests.exhaust.factories import CONFIG, answer, make_claimed, make_job, send
from tests.exhaust.receiver import Receiver

pytestmark = pytest.mark.django_db(transaction=True)
DAYS = 30
OLD = timedelta(days=DAYS + 1)


@pytest.fixture(autouse=True)
def kept_for_days(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.EVENT_RETENTION_DAYS = DAYS
    settings.PUSH_ALLOWED_NETWORKS = [ip_network("127.0.0.0/8")]
    monkeypatch.setattr(pruning, "STEP", 3)


@pytest.fixture
def puller(db: None) -> Client:
    return Client(headers={"X-Api-Key": make_key("pull", "export:response")})


def arrive(first: int, last: int, ago: timedelta = OLD, derived: bool = True) -> None:
    """Answers of these numbers, which came so long ago, one batch each."""
    for number in range(first, last + 1):
        send(answer(number))
    mids = [f"ASSESS:{number}" for number in range(first, last + 1)]
    StoredEvent.objects.filter(payload__mid__in=mids).update(received_at=timezone.now() - ago)
    if derived:
        derive(make_channel())


def prune() -> int:
    return sum(count for _, count in retention.prune_events())


def mids() -> list[str]:
    return [row.payload["mid"] for row in StoredEvent.objects.order_by("id")]


def numbered(*numbers: int) -> list[str]:
    return [f"ASSESS:{number}" for number in numbers]


def pulled(client: Client, cursor: str = "", size: int = 1000) -> Any:
    return client.get("/export/events", {"cursor": cursor, "pageSize": size})


def told(answered: Any) -> list[str]:
    assert answered.status_code == 200, answered.content
    return [item["payload"]["mid"] for item in answered.json()["items"]]


def test_what_arrived_before_is_pruned_and_nothing_else(settings: Any) -> None:
    # given more than one step of old events, and one that came late behind a younger one
    arrive(1, 7)
    arrive(8, 8, timedelta(days=1))
    arrive(9, 9)

    # when / then
    settings.EVENT_RETENTION_DAYS = 0
    assert prune() == 0
    settings.EVENT_RETENTION_DAYS = DAYS
    assert prune() == 7
    assert mids() == numbered(8, 9)
    assert prune() == 0

    # and sessions stay, a kept event sent again is known, a pruned one is new
    assert Session.objects.count() == 9
    with pytest.raises(AssertionError):
        send(answer(9))
    send(answer(1))
    assert mids() == numbered(8, 9, 1)


def test_what_the_deriver_has_not_read_stays() -> None:
    arrive(1, 3)
    arrive(4, 6, derived=False)
    assert prune() == 3
    assert mids() == numbered(4, 5, 6)
    Deriver.objects.all().delete()
    assert prune() == 0


def test_another_channels_horizon_says_nothing_of_ours(puller: Client) -> None:
    # given a cursor behind what was pruned of its channel, and before what was pruned of another
    arrive(1, 2)
    arrive(3, 5, timedelta())
    prune()
    cursor = pulled(puller, size=1).json()["nextCursor"]
    place = values.Place(watermark(), 0)
    Horizon.objects.create(
        channel=make_channel("ORG_002"), xid=place.xid, event_id=1, arrived_before=timezone.now()
    )

    # when / then
    assert told(pulled(puller, cursor)) == numbered(4, 5)


def test_a_cursor_before_the_horizon_is_gone_and_one_at_it_goes_on(puller: Client) -> None:
    # given a reader that has read up to each event
    arrive(1, 4)
    arrive(5, 6, timedelta())
    cursors, cursor = [], ""
    for _ in range(6):
        cursors.append(cursor := pulled(puller, cursor, 1).json()["nextCursor"])

    # when
    assert prune() == 4

    # then who has not read all that was pruned is told, and from where to go on
    for cursor in cursors[:3]:
        gone = pulled(puller, cursor)
        assert gone.status_code == 410
        assert gone["Content-Type"] == "application/problem+json"
        said = gone.json()
        assert said["details"] == said["detail"]
        assert "pull without a cursor" in said["detail"]
        assert "are not kept" in said["detail"]
    assert told(pulled(puller, cursors[3])) == numbered(5, 6)
    assert told(pulled(puller, cursors[4])) == numbered(6)
    assert told(pulled(puller)) == numbered(5, 6)


def test_a_page_that_is_read_while_it_is_pruned_is_no_page(monkeypatch: Any) -> None:
    # given a reader behind the first event, and a pruning that ends before its page is read
    arrive(1, 5)
    (first,) = StoredEvent.objects.order_by("id")[:1]
    read = pages._READERS["events"]

    def late(*asked: Any) -> Any:
        assert prune() == 5
        return read(*asked)

    monkeypatch.setitem(pages._READERS, "events", late)
    question = pages.Question(make_channel().pk, "events")
    with pytest.raises(Refused, match="not kept"):
        pages.read(question, values.Place(first.xid, first.pk), 10)


def test_a_sink_that_falls_behind_says_so(puller: Client) -> None:
    with Receiver() as receiver:
        # given one that has had everything, one that has had nothing, one of sessions
        arrive(1, 3)
        ahead = pumped(make_sink(receiver, name="ahead", resource="events"))
        arrive(4, 4, timedelta(days=1))
        behind = make_sink(receiver, name="behind", resource="events")
        sessions = make_sink(receiver, name="sessions")
        destinations.pause(behind)
        received = len(documents(receiver))

        # when
        assert prune() == 3

        # then it alone is off, with the reason, and nothing of it was sent
        states = {sink.name: destinations.state(sink) for sink in Sink.objects.all()}
        assert states == {"ahead": "working", "behind": "off", "sessions": "working"}
        behind.refresh_from_db()
        assert "not kept" in behind.switched_off
        assert "rewind" in behind.switched_off

        # and it goes on from what is kept, not before it was told to
        address = "/dataset/v1/sink/behind"
        refused = puller.post(f"{address}/resume", {}, "application/json")
        assert refused.status_code == 410
        assert refused.json()["params"]["err"] == "GONE"
        old = {"request": {"cursor": destinations.cursor_of(behind)}}
        Sink.objects.filter(pk=behind.pk).update(xid=1, place_id=1)
        behind.refresh_from_db()
        older = {"request": {"cursor": destinations.cursor_of(behind)}}
        assert puller.post(f"{address}/rewind", older, "application/json").status_code == 410
        assert puller.post(f"{address}/rewind", old, "application/json").status_code == 200
        assert puller.post(f"{address}/resume", {}, "application/json").status_code == 200
        pumped(behind)
        pumped(ahead)
        assert sessions.pk
        sent = [said["payload"]["mid"] for said in documents(receiver)[received:]]
        assert sent == numbered(4, 4)


def test_a_sink_that_was_reading_meanwhile_is_overtaken() -> None:
    # given a pump that has claimed a sink
    arrive(1, 3)
    make_sink(resource="events")
    sink = pump._claim()
    assert sink is not None

    # when its events go before it reads them
    assert prune() == 3

    # then it moves nothing
    assert pump._prepared(sink) is None
    sink.refresh_from_db()
    assert (sink.xid, sink.place_id) == (0, 0)
    assert destinations.state(sink) == "off"


def test_a_supplement_of_what_was_pruned_is_refused(puller: Client) -> None:
    # given a file, and what arrived since
    arrive(1, 2)
    first = make_claimed(request_id="A" * 32)
    assert attempt.run(first)
    arrive(3, 4)
    arrive(5, 5, timedelta())
    waiting = make_job(config={**CONFIG, "since": first.request_id})

    # when the file's own events are pruned, it can go on
    with_two = timezone.now() - timedelta(days=DAYS)
    assert pruning.prune(make_channel().pk, with_two, 2) == 2
    asked = {"request": {"tag": "t", "dataset": CONFIG["type"],
                         "datasetConfig": {**CONFIG, "since": first.request_id}}}  # fmt: skip
    ask = ("/dataset/v1/request/preview", asked, "application/json")
    assert puller.post(*ask).status_code == 200

    # and not when what came after is
    assert prune() == 2
    refused = puller.post(*ask)
    assert refused.status_code == 410
    assert "ask without since" in refused.json()["params"]["errmsg"]
    job = transitions.claim(waiting.pk)
    assert job is not None
    assert not attempt.run(job)
    waiting.refresh_from_db()
    assert (waiting.status, "ask without since" in waiting.status_message) == ("FAILED", True)


def test_every_attempt_finds_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a request whose first attempt broke behind its watermark
    arrive(1, 4)
    arrive(5, 5, timedelta())
    job = make_claimed()
    with monkeypatch.context() as broken:
        broken.setattr(attempt, "_stored", lambda *_: 1 / 0)
        assert not attempt.run(job)
    Job.objects.update(due_at=timezone.now() - timedelta(seconds=1))

    # when / then nothing is pruned until it has its file, with all of them
    assert prune() == 0
    again = transitions.claim(job.pk)
    assert again is not None
    assert attempt.run(again)
    again.refresh_from_db()
    assert again.files.get().row_count == 5
    assert again.status_message == ""
    assert prune() == 4

    # and a later file says what is no longer there
    later = make_claimed()
    assert attempt.run(later)
    later.refresh_from_db()
    assert later.files.get().row_count == 1
    assert "are not kept" in later.status_message


def test_a_request_that_is_overtaken_fails_with_a_sentence() -> None:
    # given a request that has begun, unseen by a pruning
    arrive(1, 4)
    job = make_job()
    Job.objects.filter(pk=job.pk).update(watermark=watermark())
    assert pruning.prune(make_channel().pk, timezone.now()) > 0

    # when / then
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert not attempt.run(claimed)
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("FAILED", 1)
    assert "pruned meanwhile; send it again" in job.status_message


def test_the_daily_run_and_the_command_say_how_many() -> None:
    arrive(1, 4)
    make_sink(resource="events", name="slow")

    def said(*options: str) -> str:
        out = StringIO()
        call_command("prune", *options, stdout=out)
        return out.getvalue()

    shown = said("--dry-run")
    assert "files: 0" in shown
    assert "ORG_001: 4" in shown
    assert "ORG_001/slow" in shown
    assert len(mids()) == 4
    assert "ORG_001: 4 of 4" in said("--events")
    assert mids() == []
    arrive(5, 9)
    assert daily.run(datetime(2026, 3, 10, 3, tzinfo=UTC))
    assert DailyRun.objects.get().events_deleted == 5
    assert Horizon.objects.get().arrived_before < timezone.now() - timedelta(days=DAYS - 1)
    assert deriver.lag(make_channel().pk).events == 0
    assert due_now(Sink.objects.get()).switched_off
