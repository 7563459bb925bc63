"""Positions rise, and readers are answered, after the database was set back."""

from collections.abc import Iterator
from io import BytesIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test import Client

from exhaust import worker
from exhaust.feed import cursor, pages
from exhaust.feed.pages import FeedQuery
from exhaust.files import last_position, storage
from exhaust.models import Job
from exhaust.monitoring import health
from ingest.feed import restore
from ingest.feed.values import START, FeedPosition
from ingest.feed.watermark import POSITIONED_TABLES, build_end_sql, fetch_upper_bound
from ingest.models import Channel, LostPosition, StoredEvent
from ingest.store import batches
from tests.conftest import make_channel, make_key
from tests.ingest.telemetry_samples import answer, batch

pytestmark = pytest.mark.django_db(transaction=True)
AHEAD = 5_000_000


@pytest.fixture(autouse=True)
def _without_shift(django_db_setup: None) -> Iterator[None]:
    """Resets the functions, which outlive a test."""
    yield
    restore.create_functions(0)


@pytest.fixture
def channel() -> Channel:
    return make_channel()


def send(channel: Channel, number: int) -> None:
    batches.append_batch(channel.pk, batch(answer(number)))


def read(channel: Channel, position: FeedPosition) -> tuple[int, FeedPosition]:
    page = pages.read_page(FeedQuery(channel.pk, "events"), position, 100)
    return len(page.items), page.position


@pytest.mark.postgresql
@pytest.mark.usefixtures("probed")
def test_dump_of_a_cluster_further_on(client: Client, channel: Channel) -> None:
    # given rows of a cluster that had counted further than this one
    send(channel, 0)
    StoredEvent.objects.update(xid=fetch_upper_bound() + AHEAD)
    position = FeedPosition(StoredEvent.objects.get().xid, StoredEvent.objects.get().pk)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "rebase_positions" in answer.json()["database"]
    assert read(channel, START)[0] == 0

    # when
    call_command("rebase_positions")

    # then old and new rows are there, in order, and after the position of any reader
    send(channel, 1)
    assert read(channel, START)[0] == 2
    assert read(channel, position)[0] == 1
    assert restore.find_fault() == ""
    job = Job.objects.create(channel=channel, tag="t", request_id="R", dataset="d", config={})
    job.refresh_from_db()
    assert job.submitted_xid > StoredEvent.objects.latest("id").xid


def test_readers_cursor_ahead_of_a_copy(channel: Channel) -> None:
    # given a reader of rows that a restored copy lacks
    send(channel, 0)
    lost = FeedPosition(fetch_upper_bound() + AHEAD, 7)
    text = cursor.encode(list(lost), pages.query_fingerprint(FeedQuery(channel.pk, "events")))
    puller = Client(headers={"X-Api-Key": make_key("pull")})

    # when it comes back, then it gets no empty page but the reason
    response = puller.get("/export/events", {"cursor": text})
    assert response.status_code == 409
    assert response.json()["title"] == "cursor_ahead"
    assert "rebase_positions" in response.json()["detail"]
    assert LostPosition.objects.get().xid == lost.xid

    # and so does the operator, until the remedy
    assert "rebase_positions" in restore.find_fault()
    call_command("rebase_positions")
    assert restore.find_fault() == ""
    send(channel, 1)
    response = puller.get("/export/events", {"cursor": text})
    assert len(response.json()["items"]) == 1


def test_storage_knows_a_later_position(channel: Channel) -> None:
    # given the position of an event, kept in the storage
    send(channel, 0)
    last_position.keep_last_position()
    assert last_position.find_fault_at_start() == ""

    # when the database is of before that event
    storage.get_storage().put(last_position.KEY, BytesIO(b"%d" % (fetch_upper_bound() + AHEAD)), "")

    # then a start is refused, until the remedy
    assert "rebase_positions" in last_position.find_fault_at_start()
    with pytest.raises(CommandError, match="rebase_positions"):
        call_command("serve")
    with pytest.raises(SystemExit, match="rebase_positions"):
        worker.prepare_worker()
    call_command("rebase_positions")
    assert last_position.find_fault_at_start() == ""


def test_page_ends_at_the_last_row(channel: Channel) -> None:
    # given rows after which positions go on without a row
    other = make_channel("ORG_002")
    send(channel, 0)
    last = StoredEvent.objects.get()
    batches.append_batch(other.pk, batch(answer(5)))

    # then no reader is given a position beyond the channel's last row
    end = FeedPosition(last.xid, last.pk)
    assert read(channel, START) == (1, end)
    assert read(channel, end) == (0, end)
    filtered = FeedQuery(channel.pk, "events", types=("none has this type",))
    assert pages.read_page(filtered, START, 10).position == end
    assert pages.fetch_current_position(channel.pk, "events") == end
    assert pages.fetch_current_position(channel.pk, "sessions") == START


@pytest.mark.postgresql
@pytest.mark.parametrize("table", POSITIONED_TABLES)
def test_end_is_one_index_lookup(table: str) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        # the index is to have the order, also of an empty table
        for way in ("seqscan", "bitmapscan", "sort"):
            cursor.execute(f"SET LOCAL enable_{way} = off")
        cursor.execute(f"EXPLAIN {build_end_sql(table)}", [1, 10])
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Backward" in plan
    assert "Sort" not in plan


def test_own_rows_are_no_fault(channel: Channel) -> None:
    with transaction.atomic():
        send(channel, 0)
        assert restore.find_fault() == ""


@pytest.mark.postgresql
def test_readiness_takes_no_number() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        health.require_writable()
        assert restore.find_fault() == ""
        cursor.execute("SELECT pg_current_xact_id_if_assigned()")
        assert cursor.fetchone() == (None,)


@pytest.mark.postgresql
def test_unsynchronous_commit_is_named() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        try:
            assert "synchronous_commit" in restore.find_fault()
        finally:
            cursor.execute("SET synchronous_commit = on")
