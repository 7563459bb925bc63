"""Readers miss no event after a crash, a failover or a restore, on a cluster of the tests' own."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction

from exhaust.feed import pages
from exhaust.feed.pages import LAST_ID, FeedQuery
from exhaust.files import last_position
from ingest.events import RequestError
from ingest.feed import restore
from ingest.feed.values import START, FeedPosition
from ingest.feed.watermark import fetch_watermark
from ingest.models import Channel, LostPosition, StoredEvent
from ingest.store import batches
from tests import postgres
from tests.ingest.telemetry_samples import answer, batch
from tests.postgres import Cluster

pytestmark = pytest.mark.postgresql
LATER = 30  # events


@pytest.fixture(scope="module")
def cluster(django_db_setup: None, django_db_blocker: Any) -> Iterator[Cluster]:
    if postgres.find_programs() is None:
        pytest.skip("needs PostgreSQL's initdb and pg_ctl on this machine")
    with (
        postgres.run_cluster() as own_cluster,
        django_db_blocker.unblock(),
        postgres.use_cluster(own_cluster),
    ):
        call_command("migrate", verbosity=0)
        Channel.objects.create(identifier="ORG_001")
        yield own_cluster


def send(count: int) -> None:
    """Sends new events, each in a batch of its own."""
    channel = Channel.objects.get()
    first = StoredEvent.objects.count()
    for number in range(first, first + count):
        batches.append_batch(channel.pk, batch(answer(number)))


def read(position: FeedPosition, **filters: Any) -> tuple[int, FeedPosition]:
    """Reads to the end. Returns how many events, and the position that the reader is given."""
    query = FeedQuery(Channel.objects.get().pk, "events", **filters)
    page = pages.read_page(query, position, 1000)
    return len(page.items), page.position


def switch_server(old: Cluster, new: Cluster) -> None:
    connection.close()
    old.stop()
    new.start()


def test_crash_after_page_loses_no_event(cluster: Cluster) -> None:
    # given readers at the end, and numbers that no flush of the log has followed
    send(5)
    for _ in range(20):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id()")
            transaction.set_rollback(True)
    channel = Channel.objects.get()
    manifest_position = FeedPosition(fetch_watermark() - 1, LAST_ID)
    channel.save()  # as a job stores its watermark
    positions = [
        read(START)[1],
        read(START, types=("none has this type",))[1],
        pages.fetch_current_position(channel.pk, "events"),
        manifest_position,
    ]

    # when PostgreSQL crashes, and gives these numbers out again
    switch_server(cluster, cluster)
    send(LATER)

    # then each reader finds what came since
    assert [read(position)[0] for position in positions] == [LATER] * 4
    assert restore.find_fault() == ""


def test_failover_to_lagging_standby(cluster: Cluster) -> None:
    # given a reader of events that a standby has not received
    standby = cluster.back_up("standby", "-R")
    send(40)
    _, position = read(START)

    # when the standby is promoted
    switch_server(cluster, standby)
    standby.promote()
    try:
        send(LATER)

        # then the reader finds what came since
        assert read(position)[0] == LATER
        assert restore.find_fault() == ""
    finally:
        switch_server(standby, cluster)


def test_restored_backup_is_named(cluster: Cluster) -> None:
    # given a reader of events that are later than the backup
    backup = cluster.back_up("backup")
    send(40)
    last_position.keep_last_position()
    _, position = read(START)

    # when the backup is restored, and the reader comes
    switch_server(cluster, backup)
    with pytest.raises(RequestError, match="rebase_positions") as error:
        read(position)

    # then all are told, and by the storage before any reader comes
    assert error.value.status == 409
    assert "rebase_positions" in restore.find_fault()
    LostPosition.objects.all().delete()
    assert "rebase_positions" in last_position.find_fault_at_start()

    # and after the remedy the reader finds what came since
    call_command("rebase_positions")
    assert restore.find_fault() == ""
    send(LATER)
    assert read(position)[0] == LATER
