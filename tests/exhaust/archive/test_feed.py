"""A page of the feed is the same wherever its events are, and whenever they are archived."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from exhaust.archive import deletion, event_rows, feed, objects, runs
from exhaust.delivery import batches
from exhaust.feed import pages
from exhaust.feed.pages import FeedQuery, Page
from exhaust.files.storage import StorageError
from ingest.adapters import telemetry
from ingest.auth import keys
from ingest.events import Call, RequestError
from ingest.feed.values import START, FeedPosition
from ingest.models import StoredEvent
from ingest.privacy import erasure
from ingest.store.batches import append_batch
from tests.conftest import make_channel, make_key
from tests.exhaust.api.test_pull import walk_pages
from tests.exhaust.archive.conftest import Archive
from tests.exhaust.archive.test_events import archive_next, archive_some, store_next
from tests.exhaust.archive.test_read import pick_place, prune_to, refuse
from tests.exhaust.destinations import make_destination
from tests.exhaust.factories import FIRST_ANSWER, make_answer, revise_answer, send_events

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("archive")]


@pytest.fixture(autouse=True)
def forgotten_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "paused_until", 0.0)


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the files that pages read, once a page."""
    read: list[str] = []
    original = event_rows.iterate_rows

    def iterate_rows(files: Any, *args: Any) -> Iterator[Any]:
        read.extend(file.key for file in files)
        return original(files, *args)

    monkeypatch.setattr(event_rows, "iterate_rows", iterate_rows)
    return read


def query(**fields: Any) -> FeedQuery:
    return FeedQuery(make_channel().pk, "events", **fields)


def read_either(
    settings: Any, chosen: FeedQuery, position: FeedPosition, limit: int
) -> Page | RequestError:
    """Reads a page from archive and rows, and the same one from rows alone."""
    url = settings.EXHAUST_ARCHIVE_URL
    pages_read: list[Any] = []
    for each in (url, ""):
        settings.EXHAUST_ARCHIVE_URL = each
        try:
            pages_read.append(pages.read_page(chosen, position, limit))
        except RequestError as error:
            pages_read.append(error)
    settings.EXHAUST_ARCHIVE_URL = url
    found, expected = pages_read
    if isinstance(expected, RequestError):
        assert (found.status, found.detail) == (expected.status, expected.detail)
    else:
        assert found == expected
    return found  # type: ignore[no-any-return]


def choose_randomly(chance: random.Random) -> FeedQuery:
    fields: dict[str, Any] = {}
    if chance.random() < 0.3:
        fields["start"] = FIRST_ANSWER
    if chance.random() < 0.3:
        types = ["ASSESS", "_page_view", "pageOpened", "orderPlaced", "eventOccurred", "none"]
        fields["types"] = tuple(chance.sample(types, chance.randint(1, 2)))
    if chance.random() < 0.3:
        application = chance.choice(["my-app", "other-app"])
        fields["application"] = application
    return query(**fields)


@pytest.mark.parametrize("seed", range(12))
def test_any_page_is_the_same(
    seed: int,
    read_files: list[str],
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    armed: Path,
) -> None:
    chance = random.Random(seed)
    for name in ("my-app", "other-app"):
        keys.create_application(name, make_channel())
    monkeypatch.setattr("ingest.feed.reader.WINDOW_ROWS", chance.choice([3, 10_000]))
    monkeypatch.setattr(event_rows, "MAX_ROWS", chance.choice([2, 1000]))
    for number in range(0, 200, 20):
        store_next(chance, number)
        if chance.random() < 0.5:
            archive_some(chance, armed)
        if number == 160:
            prune_to(pick_place(random.Random(chance.random())))
        positions = [START, *map(_find_position, StoredEvent.objects.all())]
        for _ in range(4):
            limit = chance.choice([1, 4, 1000])
            read_either(settings, choose_randomly(chance), chance.choice(positions), limit)
    assert read_files


def _find_position(event: StoredEvent) -> FeedPosition:
    return FeedPosition(event.xid, event.pk)


def test_reader_walks_across_a_boundary_that_moves(read_files: list[str], settings: Any) -> None:
    # given
    send_events(*map(make_answer, range(20)))
    revise_answer(1000, "first")
    send_events(*map(make_answer, range(20, 30)))
    refuse("device-3")
    settings.EXHAUST_ARCHIVE_URL, url = "", settings.EXHAUST_ARCHIVE_URL
    expected, _ = walk_pages(Client(headers={"X-Api-Key": make_key("pull")}), "events", 7)
    settings.EXHAUST_ARCHIVE_URL = url
    chosen, position = query(), START
    items: list[bytes] = []

    # when events are archived between the pages, and a reader's own too
    for count in (4, 1, 6, 12, 1, 3):
        archive_next(count)
        page = read_either(settings, chosen, position, 7)
        assert isinstance(page, Page)
        items += page.items
        position = page.position

    # then
    assert len(items) == len(expected) == 31
    assert read_files


def test_archived_page_reads_no_row(settings: Any) -> None:
    send_events(*map(make_answer, range(9)))
    expected = read_either(settings, query(), START, 5)
    archive_next()

    StoredEvent.objects.update(payload={})

    assert pages.read_page(query(), START, 5) == expected


@pytest.mark.parametrize("is_whole", [False, True])
def test_replaced_version_is_left_out(is_whole: bool, settings: Any) -> None:
    send_events(make_answer(1), make_answer(2))
    revise_answer(1000, "first")
    archive_next()

    revise_answer(1000, "second")

    if is_whole:
        archive_next()
    page = read_either(settings, query(), START, 10)
    assert isinstance(page, Page)
    assert len(page.items) == 3
    assert b"second" in page.items[-1]


def test_rows_are_read_where_the_storage_fails(
    settings: Any, monkeypatch: pytest.MonkeyPatch, read_files: list[str]
) -> None:
    # given two runs
    send_events(*map(make_answer, range(9)))
    expected = pages.read_page(query(), START, 100)
    archive_next(4)
    archive_next()
    last_run = runs.ArchiveRun.objects.latest("pk").pk
    fetch = event_rows.fetch_metadata

    def fetch_metadata(file: Any) -> Any:
        if f"/{last_run}-" in file.key:
            raise StorageError("gone")
        return fetch(file)

    # when the second one's file is not to be had
    monkeypatch.setattr(event_rows, "fetch_metadata", fetch_metadata)
    assert pages.read_page(query(), START, 100) == expected

    # then this process reads rows for a while
    read_files.clear()
    assert pages.read_page(query(), START, 100) == expected
    assert read_files == []


def test_missing_object_is_made_up_for_by_rows(archive: Archive, settings: Any) -> None:
    send_events(*map(make_answer, range(9)))
    expected = pages.read_page(query(), START, 100)
    archive_next(4)
    archive_next()
    for key in archive.list_keys():
        objects.purge(key)

    assert pages.read_page(query(), START, 100) == expected


def test_person_leaves_pages_at_once(read_files: list[str], settings: Any) -> None:
    send_events(*map(make_answer, range(9)))
    archive_next()
    channel_id = make_channel().pk

    # while the erasure goes on, rows say what is left of the person
    erasure.start_erasure(channel_id, "device-2")
    read_either(settings, query(), START, 100)
    assert read_files == []

    # and then files without the person
    assert erasure.erase(channel_id, "device-2", 60).finished_at is not None
    page = read_either(settings, query(), START, 100)
    assert isinstance(page, Page)
    assert read_files
    assert len(page.items) == 9
    assert b"device-2" not in b"".join(page.items)


def test_refusal_holds_in_the_next_page(settings: Any) -> None:
    send_events(*map(make_answer, range(3)))
    archive_next()
    assert b"because 1" in b"".join(pages.read_page(query(), START, 10).items)

    refuse("device-1")

    page = read_either(settings, query(), START, 10)
    assert isinstance(page, Page)
    assert b"because 1" not in b"".join(page.items)


def test_dropped_archive_is_made_up_for_by_rows(read_files: list[str]) -> None:
    send_events(*map(make_answer, range(9)))
    archive_next()
    expected = pages.read_page(query(), START, 100)
    read_files.clear()

    list(deletion.drop())

    assert pages.read_page(query(), START, 100) == expected
    assert read_files == []


@pytest.mark.parametrize("seed", range(4))
def test_any_push_is_the_same(
    seed: int, read_files: list[str], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    chance = random.Random(seed)
    for name in ("my-app", "other-app"):
        keys.create_application(name, make_channel())
    for number in range(0, 120, 20):
        store_next(chance, number)
        archive_next(chance.randint(1, 15))
    url = settings.EXHAUST_ARCHIVE_URL
    monkeypatch.setattr(batches, "FIRST_READ_ROWS", 2)

    for number, fields in enumerate(
        ({}, {"types": ["ASSESS"]}, {"types": ["orderPlaced"], "application": "my-app"})
    ):
        destination = make_destination(name=f"{number}", resource="events", **fields)
        for position in [START, *map(_find_position, StoredEvent.objects.all())][::5]:
            limit = chance.choice([1, 4, 1000])
            settings.EXHAUST_ARCHIVE_URL = url
            found = batches.read_batch(destination, limit, position)
            settings.EXHAUST_ARCHIVE_URL = ""
            # then
            assert batches.read_batch(destination, limit, position) == found
    assert read_files


def test_archived_event_is_known_when_it_is_sent_again(settings: Any) -> None:
    send_events(*map(make_answer, range(3)))
    archive_next()

    batch = telemetry.parse(
        json.dumps([make_answer(1), make_answer(-9)]).encode(), Call("ORG_001", timezone.now())
    )
    outcome = append_batch(make_channel().pk, batch)

    # and a late one is of the next run
    assert (outcome.stored, outcome.duplicate) == (1, 1)
    archive_next()
    page = read_either(settings, query(), START, 10)
    assert isinstance(page, Page)
    mids = [json.loads(item)["payload"]["mid"] for item in page.items]
    assert mids == ["ASSESS:0", "ASSESS:1", "ASSESS:2", "ASSESS:-9"]
