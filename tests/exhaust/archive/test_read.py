"""An export has the same bytes wherever its rows are: in files of the archive, in the database, or
in both, and whichever of them overlap."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from exhaust.archive import answers as archived_answers
from exhaust.archive import late, objects, read, runs, snapshot, write
from exhaust.archive.row_groups import AnswerGroup
from exhaust.archive.schema import ANSWERS
from exhaust.datasets import DATASETS, answers, survey
from exhaust.datasets.resolve import resolve_selection
from exhaust.datasets.selection import Selection
from exhaust.datasets.summary import BY
from exhaust.files import parallel_copy, storage
from exhaust.files.formats import FORMATS
from exhaust.files.parallel_copy import CancellableQueries
from exhaust.jobs import attempt, transitions
from exhaust.models import ArchiveFile, ArchiveRun, ArchiveState, File, Job
from ingest.feed.values import FeedPosition
from ingest.feed.watermark import fetch_watermark
from ingest.models import Channel, Participant, PruneState, StoredEvent
from ingest.privacy import erasure
from tests.conftest import make_channel
from tests.exhaust import corpus
from tests.exhaust.archive import compare
from tests.exhaust.archive.conftest import Archive
from tests.exhaust.datasets import surveys
from tests.exhaust.datasets.surveys import SUMMARY, SURVEY, list_options
from tests.exhaust.factories import (
    BOT,
    RESPONSE,
    make_answer,
    make_claimed,
    revise_answer,
    send_events,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("archive")]
READS = {RESPONSE: 1, SURVEY: 2, SUMMARY: 2}  # how often a file reads each row group
CONFIG = {"conversationId": BOT, "startDate": "2022-01-01", "endDate": "2022-12-31"}
OTHER_BOT = "other-bot"
MEALS = list_options(surveys.MEALS)
LATER = FeedPosition(2**62, 2**62)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "ANSWERS", replace(ANSWERS, group_rows=4))
    monkeypatch.setattr(late, "TABLE_ROWS", 3)
    monkeypatch.setattr(archived_answers, "TABLE_ROWS", 3)
    monkeypatch.setattr(archived_answers, "SORTED_BYTES", 1500)
    monkeypatch.setattr(archived_answers, "SAMPLED_KEYS", 8)
    monkeypatch.setattr(answers, "SAMPLE_ANSWERS", 9)


def archive_to(end: FeedPosition = LATER) -> int:
    """Archives the answers from the channel's place to another one; returns how many files."""
    channel = make_channel()
    last = StoredEvent.objects.order_by("xid", "id").values_list("xid", "id").last()
    end = min(end, FeedPosition(*last or ()))
    state, _ = ArchiveState.objects.get_or_create(channel=channel)
    range_ = write.Range(channel.pk, FeedPosition(state.xid, state.event_id), end)
    run = ArchiveRun.objects.create(
        channel=channel,
        state=ArchiveRun.State.ARCHIVED,
        lease_until=timezone.now(),
        from_xid=state.xid,
        from_id=state.event_id,
        to_xid=end.xid,
        to_id=end.id,
    )
    plans = [plan for plan in write.plan_files(range_) if plan.table is write.ANSWERS]
    for plan in plans:
        summary = write.Summary()
        key = objects.make_key("answers", plan.month, run)
        stored = objects.store_blocks(key, write.write_file(range_, plan, summary))
        ArchiveFile.objects.create(
            channel=channel,
            run=run,
            table="answers",
            key=key,
            row_count=summary.row_count,
            byte_count=stored.byte_count,
            sha256=stored.sha256,
            archive_from=state.number + 1,
            **summary.list_bounds(),
        )
    ArchiveState.objects.filter(pk=channel.pk).update(
        xid=end.xid, event_id=end.id, number=state.number + 1
    )
    return len(plans)


def choose(config: dict[str, Any] = CONFIG, watermark: int | None = None) -> Selection:
    return resolve_selection(
        DATASETS[RESPONSE], make_channel().pk, config, watermark or fetch_watermark()
    )


def require_same(
    selection: Selection, config: dict[str, Any] = CONFIG, formats: Any = FORMATS, limit: int = 0
) -> None:
    compare.require_same(RESPONSE, selection, config, formats, limit)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("limit", [0, 3000])
def test_awkward_answers_have_the_same_bytes(name: str, limit: int) -> None:
    selection = corpus.store_corpus()
    archive_to()

    require_same(selection, formats=[name], limit=limit)


CHOICES: list[dict[str, Any]] = [
    {"columns": ["Timestamp"]},
    {"columns": ["Message ID"]},
    {"columns": ["Conversation Name"]},
    {"columns": ["Question Response", "Device ID", "Eof"], "timestamps": "local"},
    {"layout": "uci-2022"},
    {"columns": ["Timestamp", "Question Score"], "timestamps": "local", "timezone": "Asia/Kolkata"},
    {"timestamps": "local", "timezone": "Europe/London"},
    {"timestamps": "local", "timezone": "Africa/Abidjan"},
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: json.dumps(choice)[:40])
def test_chosen_columns_have_the_same_bytes(choice: dict[str, Any]) -> None:
    # given
    corpus.store_corpus()
    devices = StoredEvent.objects.values_list("device_id", flat=True)
    refuse(*devices[:2])
    refuse(*devices, channel="ORG_002")  # which says nothing of this channel
    config = {**CONFIG, "conversationId": corpus.CONVERSATION, "timezone": "UTC", **choice}
    archive_to()

    # then
    require_same(choose(config), config, ["csv", "jsonl", "parquet", "xlsx"])

    # and with hashed devices
    Channel.objects.update(hash_device_ids=True)
    require_same(choose(config), config, ["csv", "jsonl"])


def refuse(*devices: str, channel: str = "ORG_001") -> None:
    for device in set(devices):
        Participant.objects.update_or_create(
            channel=make_channel(channel),
            device_id=device,
            defaults={"consent": False, "updated_at": timezone.now()},
        )


def make_random_answers(chance: random.Random, count: int, first: int) -> list[dict[str, Any]]:
    texts = list(corpus.TEXTS.values())
    events = []
    for number in range(first, first + count):
        event = make_answer(number, chance.choice(texts))
        # three months in any order, and many at the same moment
        event["ets"] += chance.choice([0, 0, 86_400_000 * 20, 86_400_000 * 50])
        event["ets"] -= (number // 4 % 5) * 60_000 * number
        event["context"]["did"] = f"device-{number % 7}" if number % 11 else ""
        event["context"]["sid"] = f"session-{number % 3}" if number % 5 else ""
        event["context"]["rollup"]["l3"] = f"/{number % 4}"
        event["edata"]["item"]["id"] = f"q{number % 3}"
        if number % 3:
            event["edata"]["item"]["params"] = MEALS
            event["edata"]["resvalues"] = chance.sample(MEALS, 2)
        event["edata"]["item"]["title"] = chance.choice(texts)
        bots = chance.choice([[BOT], [BOT], [OTHER_BOT], [OTHER_BOT, BOT], [BOT, OTHER_BOT]])
        event["context"]["cdata"] = [{"type": "Conversation", "id": bot} for bot in bots]
        events.append(event)
    return events


def pick_place(chance: random.Random) -> FeedPosition:
    """A position of an event behind the archived place."""
    state = ArchiveState.objects.filter(channel=make_channel()).first()
    place = FeedPosition(state.xid, state.event_id) if state else FeedPosition()
    positions = sorted(starmap(FeedPosition, StoredEvent.objects.values_list("xid", "id")))
    return chance.choice([each for each in positions if each > place] or [place])


def prune_to(end: FeedPosition) -> None:
    """Deletes events as the daily run does, up to a position."""
    for row in StoredEvent.objects.all():
        if FeedPosition(row.xid, row.pk) <= end:
            row.delete()
    PruneState.objects.update_or_create(
        channel=make_channel(),
        defaults={"xid": end.xid, "event_id": end.id, "pruned_before": timezone.now()},
    )


def random_steps(chance: random.Random) -> Iterator[Callable[[], Any]]:
    """Sends, replacements, refusals and archivings, in any order; at last a pruning."""
    number = 0
    texts = list(corpus.TEXTS.values())
    for _ in range(8):
        kind = chance.choice(["send", "send", "archive", "archive", "revise", "refuse"])
        if kind == "send" or not number:
            events = make_random_answers(chance, chance.randint(1, 12), number)
            number += len(events)
            yield partial(send_events, *events)
        elif kind == "archive":
            yield lambda: archive_to(pick_place(chance))
        elif kind == "revise":
            text = f"{chance.random()} {chance.choice(texts)}"
            yield partial(revise_answer, 1000 + chance.randint(0, 2), text)
        else:
            yield partial(refuse, f"device-{chance.randint(0, 6)}")
    yield lambda: archive_to(pick_place(chance))
    yield lambda: prune_to(pick_place(random.Random(chance.random())))


def choose_tables(chance: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """The datasets that arrange or count answers, each with options."""
    rows, choice = chance.choice(survey.ROWS), chance.choice(survey.ANSWERS)
    return [(SURVEY, {"rows": rows, "answers": choice}), (SUMMARY, {"by": chance.choice(BY)})]


@pytest.mark.parametrize("seed", range(12))
def test_any_history_has_the_same_bytes(seed: int, small_groups: None) -> None:
    chance = random.Random(seed)
    watermarks = [1]
    compared = 0
    for step in random_steps(chance):
        step()
        watermarks.append(fetch_watermark())
        config = {**CONFIG, "conversationId": chance.choice([BOT, BOT, OTHER_BOT])}
        if chance.random() < 0.5:
            config |= {"startDate": "2022-03-04", "endDate": "2022-03-25"}
        selection = choose(config, chance.choice(watermarks[-3:]))
        if chance.random() < 0.3:
            selection = replace(selection, since_xid=chance.choice(watermarks))
        name = chance.choice(list(FORMATS))
        limit = chance.choice([0, 0, 500])
        if compare.is_archived(RESPONSE, selection):
            require_same(selection, config, ["csv", name], limit)
            compared += 1
        for dataset, choice in choose_tables(chance):
            if compare.is_archived(dataset, selection):
                compare.require_same(dataset, selection, config | choice, ["csv"], limit)
    assert compared


@pytest.mark.postgresql
def test_later_rows_are_copied_meanwhile(
    small_groups: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setattr(parallel_copy, "SLICE_ROWS", 2)
    send_events(*(make_answer(number) for number in range(20)))
    archive_to()
    send_events(*(make_answer(number) for number in range(1000, 1030)))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE ingest_storedevent")
    selection = choose()
    require_same(selection)
    archive = snapshot.find_archive(DATASETS[RESPONSE], selection)
    assert archive is not None

    # when
    rows = read.iter_rows(
        archive, DATASETS[RESPONSE], selection, FORMATS["csv"], CancellableQueries()
    )
    taken = [next(rows), next(rows)]

    # then
    assert "copying" in {thread.name for thread in threading.enumerate()}
    rows.close()
    assert "copying" not in {thread.name for thread in threading.enumerate()}
    assert sum(chunk.rows_left for chunk in taken) == 8  # of the archive


# Jobs ---------------------------------------------------------------------------------------------


def run_job(**overrides: Any) -> File:
    job = make_claimed(**overrides)
    assert attempt.run(job)
    return File.objects.get(job=job)


@pytest.fixture
def read_groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that jobs read."""
    numbers: list[int] = []
    original = AnswerGroup.fetch

    def fetch(group: AnswerGroup) -> Any:
        numbers.append(group.number)
        return original(group)

    monkeypatch.setattr(AnswerGroup, "fetch", fetch)
    return numbers


@pytest.mark.parametrize(("dataset", "reads"), READS.items())
def test_job_reads_either_storage(
    each_archive: Archive, read_groups: list[int], settings: Any, dataset: str, reads: int
) -> None:
    # given
    send_events(*(make_answer(number) for number in range(9)))
    refuse("device-3")
    from_rows = run_job(dataset=dataset)
    assert archive_to() == 1
    send_events(make_answer(-5), make_answer(4000))

    # when
    found = [run_job(dataset=dataset)]
    assert read_groups == [0] * reads
    settings.EXHAUST_ARCHIVE_URL = ""
    found.append(run_job(dataset=dataset))

    # then
    assert len(read_groups) == reads
    assert from_rows.sha256 != found[0].sha256 == found[1].sha256
    assert found[0].row_count == found[1].row_count


def test_boundary_moves_while_a_file_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    send_events(*(make_answer(number) for number in range(6)))
    expected = run_job().sha256
    archive_to(pick_place(random.Random(1)))
    original = attempt.produce

    def archive_and_produce(*args: Any) -> Any:
        assert archive_to()
        return original(*args)

    monkeypatch.setattr(attempt, "produce", archive_and_produce)

    assert run_job().sha256 == expected


@pytest.mark.parametrize("dataset", READS)
def test_job_without_its_archived_file_is_made_of_rows(
    archive: Archive, read_groups: list[int], dataset: str
) -> None:
    # given
    send_events(*(make_answer(number) for number in range(6)))
    expected = run_job(dataset=dataset).sha256
    archive_to()
    for key in archive.list_keys():
        (Path(archive.url) / key).unlink()
    job = make_claimed(dataset=dataset)

    # when
    assert not attempt.run(job)

    # then
    job.refresh_from_db()
    assert (job.status, job.status_message) == (
        Job.Status.SUBMITTED,
        "The archive changed while the file was made; the file is made again.",
    )
    Job.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    again = transitions.claim(job.pk)
    assert again is not None
    assert attempt.run(again)
    assert File.objects.get(job=job).sha256 == expected
    assert read_groups == []


@pytest.mark.parametrize("dataset", [RESPONSE, SURVEY])
def test_erased_person_is_in_no_later_file(read_groups: list[int], dataset: str) -> None:
    send_events(*(make_answer(number) for number in range(6)))
    assert runs.archive_channel(make_channel().pk, is_forced=True) is not None

    finished = erasure.erase(make_channel().pk, "device-2", 60)

    assert finished.finished_at is not None
    file = run_job(dataset=dataset)
    assert file.row_count == 5
    assert read_groups
    with storage.get_storage().open(file.key) as content:
        assert b"device-2" not in content.read()


@pytest.mark.parametrize("dataset", READS)
def test_file_read_during_an_erasure_is_not_published(
    monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    send_events(*(make_answer(number) for number in range(6)))
    assert runs.archive_channel(make_channel().pk, is_forced=True) is not None
    original = attempt.produce

    def erase_and_produce(*args: Any) -> Any:
        erasure.start_erasure(make_channel().pk, "device-2")
        return original(*args)

    monkeypatch.setattr(attempt, "produce", erase_and_produce)
    job = make_claimed(dataset=dataset)

    assert not attempt.run(job)
    assert not File.objects.filter(job=job).exists()


def test_memory_holds_few_row_groups(small_groups: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    send_events(*(make_answer(number) for number in range(200)))
    archive_to()
    selection = choose()
    found = snapshot.find_archive(DATASETS[RESPONSE], selection)
    assert found is not None
    read_count = taken_count = most = 0
    original = AnswerGroup.fetch

    def fetch(group: AnswerGroup) -> Any:
        nonlocal read_count, most
        read_count += 1
        most = max(most, read_count - taken_count)
        return original(group)

    monkeypatch.setattr(AnswerGroup, "fetch", fetch)

    # when
    rows = read.iter_rows(
        found, DATASETS[RESPONSE], selection, FORMATS["csv"], CancellableQueries()
    )
    for _ in rows:
        taken_count += 1

    # then
    assert (read_count, taken_count) == (50, 50)
    assert most <= 8
