"""Files of answers that one month of arrival brought become one, which is read alike."""

import json
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from django.db import OperationalError
from django.utils import timezone

from exhaust import tasks
from exhaust.archive import check, compact, deletion, objects, runs, snapshot, write
from exhaust.archive.lease import RunLost
from exhaust.archive.schema import ANSWERS
from exhaust.datasets import DATASETS
from exhaust.failpoints import REWRITING_FAILPOINTS
from exhaust.files import storage
from exhaust.maintenance import retention
from exhaust.models import ArchiveFile, ArchiveRun
from ingest.adapters.telemetry import parser as telemetry
from ingest.events import Call
from ingest.models import Erasure, PruneState, StoredEvent
from ingest.privacy import erasure
from ingest.store import batches
from tests.conftest import make_channel
from tests.exhaust.archive.conftest import Archive
from tests.exhaust.archive.test_erase import CANARY, find_canary, watch_certificates
from tests.exhaust.archive.test_read import (
    BOT,
    CONFIG,
    OTHER_BOT,
    choose,
    make_random_answers,
    refuse,
    require_same,
)
from tests.exhaust.archive.test_runs import (
    archive_all,
    archived_ids,
    expire_lease,
    find_faults,
    run_process,
)
from tests.exhaust.factories import RESPONSE, make_answer

pytestmark = pytest.mark.django_db(transaction=True)
FIRST_ARRIVAL = datetime(2022, 6, 10, 12, tzinfo=UTC)
DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges and row groups of few rows."""
    monkeypatch.setattr(runs, "RUN_ROWS", 6)
    small = replace(ANSWERS, group_rows=4)
    monkeypatch.setattr(write, "ANSWERS", small)
    monkeypatch.setattr(compact, "ANSWERS", small)


def receive(*events: dict[str, Any], after_days: int = 0) -> int:
    """Stores events as telemetry that arrived so many days after the first arrival."""
    received_at = FIRST_ARRIVAL + timedelta(days=after_days)
    batch = telemetry.parse(json.dumps(events).encode(), Call("ORG_001", received_at))
    assert not batch.rejections
    return batches.append_batch(make_channel().pk, batch).stored


def make_late_answer(number: int, days: int, bot: str = BOT) -> dict[str, Any]:
    """An answer of March, or so many days earlier."""
    event = make_answer(number)
    event["ets"] -= days * DAY_MS
    event["context"]["cdata"] = [{"type": "Conversation", "id": bot}]
    return event


def archive_months() -> None:
    """Two months of arrival, each in several runs with answers of three months."""
    for number in range(0, 36, 3):
        late = [make_late_answer(number + place, 30 * place) for place in range(3)]
        receive(*reversed(late), after_days=number)
    while archive_all():
        pass


def compact_all() -> int:
    """Returns how many files were made."""
    count = 0
    while compact.compact_month(make_channel().pk):
        count += 1
    return count


def count_months(table: str = "answers") -> Counter[str]:
    files = ArchiveFile.objects.filter(table=table, archive_until=None)
    return Counter(objects.parse_month(key) for key in files.values_list("key", flat=True))


def read_rows(table: str = "answers") -> list[dict[str, Any]]:
    """Returns all rows of current files, sorted."""
    rows: list[dict[str, Any]] = []
    for file in ArchiveFile.objects.filter(table=table, archive_until=None):
        found = pq.read_table(objects.ObjectFile(file.key, file.byte_count)).to_pylist()
        if table == "answers":
            order = [(row["conversation_id"], row["occurred_at"], row["id"]) for row in found]
            assert order == sorted(order)
        rows += found
    return sorted(rows, key=lambda row: (row["id"], row.get("conversation_id") or 0))


def test_month_of_arrival_becomes_one_file(
    each_archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    archive_months()
    before, events = read_rows(), count_months("events")
    assert count_months() == {"2022-03": 7, "2022-02": 7, "2022-01": 7}
    monkeypatch.setattr(runs, "RUN_ROWS", 1000)

    # when
    assert compact_all() == 6

    # then
    assert count_months() == {"2022-03": 2, "2022-02": 2, "2022-01": 2}
    assert read_rows() == before
    assert count_months("events") == events
    assert each_archive.list_keys() == set(ArchiveFile.objects.values_list("key", flat=True))
    assert find_faults() == []
    assert not ArchiveRun.objects.filter(state="WRITING").exists()
    # and its groups are full, and its bounds those of its rows
    file = ArchiveFile.objects.filter(table="answers").earliest("pk")
    parquet = pq.ParquetFile(objects.ObjectFile(file.key, file.byte_count))
    sizes = [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]
    assert sizes == [4] * (file.row_count // 4) + [file.row_count % 4] * (file.row_count % 4 > 0)
    times = parquet.read(["occurred_at"])["occurred_at"].to_pylist()
    assert (file.first_occurred_at, file.last_occurred_at) == (min(times), max(times))


def test_large_files_stay(archive: Archive) -> None:
    """No merged file has more rows than a run."""
    archive_months()
    files = ArchiveFile.objects.filter(table="answers", archive_until=None)
    assert Counter(files.values_list("row_count", flat=True)) == {1: 6, 2: 15}

    compact_all()

    assert Counter(files.values_list("row_count", flat=True)) == {5: 6, 2: 3}
    assert len(archived_ids("answers")) == 36


def test_open_month_waits(archive: Archive, settings: Any) -> None:
    # given answers of March, and of an earlier month, that arrived this month
    now = timezone.now()
    for number in range(4):
        receive(make_answer(number), after_days=(now - FIRST_ARRIVAL).days)
        assert archive_all() is not None
    assert count_months() == {"2022-03": 4}

    # then
    assert compact_all() == 0
    # and a month that is over, but not yet past the hot window
    settings.EXHAUST_ARCHIVE_AFTER_DAYS = 3650
    archive_months()
    assert compact_all() == 0


@pytest.mark.parametrize("seed", range(8))
def test_any_history_is_read_alike(
    seed: int, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sends, resends, refusals, archivings and merges in any order; files have rows' bytes."""
    chance = random.Random(seed)
    sent: list[dict[str, Any]] = []
    days = 0
    for _ in range(14):
        kind = chance.choice(["send", "send", "send", "resend", "archive", "merge", "refuse"])
        days += chance.randint(0, 12)
        if kind == "send" or not sent:
            events = make_random_answers(chance, chance.randint(1, 9), len(sent))
            assert receive(*events, after_days=days) == len(events)
            sent += events
        elif kind == "resend":  # archived or not, an event is known
            again = chance.sample(sent, min(len(sent), 5))
            assert receive(*again, after_days=days) == 0
        elif kind == "archive":
            while archive_all():
                pass
        elif kind == "merge":
            monkeypatch.setattr(runs, "RUN_ROWS", chance.choice([6, 20, 1000]))
            before = (read_rows(), read_rows("events"))
            compact_all()
            assert (read_rows(), read_rows("events")) == before
        else:
            refuse(f"device-{chance.randint(0, 6)}")
        config = {**CONFIG, "conversationId": chance.choice([BOT, OTHER_BOT])}
        selection = choose(config)
        if snapshot.find_archive(DATASETS[RESPONSE], selection) is not None:
            require_same(selection, config, ["csv", "jsonl"])
    for number in range(3):  # runs of one month
        assert receive(make_answer(5000 + number), after_days=days + 60) == 1
        while archive_all():
            pass
    assert compact_all()
    ids = sorted(StoredEvent.objects.values_list("pk", flat=True))
    assert archived_ids() == ids
    assert set(archived_ids("answers")) == set(ids)
    assert find_faults() == []


# What others do meanwhile -------------------------------------------------------------------------


def test_erasure_finds_the_person_in_a_merged_file(
    each_archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    for number in range(4):
        event = make_answer(number, text=CANARY)
        event["context"]["did"] = event["actor"]["id"] = CANARY
        receive(event, make_answer(10 + number), after_days=number)
        assert archive_all() is not None
    monkeypatch.setattr(runs, "RUN_ROWS", 1000)
    assert compact_all() == 1
    assert find_canary(each_archive) == 5
    given = watch_certificates(monkeypatch, each_archive)

    # when
    erasure.erase(make_channel().pk, CANARY, float("inf"))

    # then
    assert given == [0]
    assert len(archived_ids("answers")) == 4
    assert list(check.find_faults(is_reading=True)) == []


def test_merge_waits_for_erasures(archive: Archive) -> None:
    archive_months()
    pending = Erasure.objects.create(
        channel=make_channel(), subject="s", requested_at=timezone.now()
    )
    assert compact_all() == 0

    pending.finished_at = timezone.now()
    pending.save()
    assert compact_all()


def test_erasure_meanwhile_ends_the_merge(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_months()
    before = archive.list_keys()
    monkeypatch.setattr("exhaust.archive.lease.RENEW_SECONDS", 0.05)
    store_file = runs.store_file

    def store_slowly(*args: Any) -> Any:
        stored = store_file(*args)
        Erasure.objects.create(channel=make_channel(), subject="s", requested_at=timezone.now())
        while args[-1].is_held:
            time.sleep(0.05)
        return stored

    monkeypatch.setattr(runs, "store_file", store_slowly)
    with pytest.raises(RunLost):
        compact_all()

    assert archive.list_keys() == before
    assert not ArchiveRun.objects.filter(state="WRITING").exists()
    assert find_faults() == []


def test_overtaken_merge_changes_nothing(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive_months()
    rows, keys = read_rows(), archive.list_keys()
    store_file = runs.store_file

    def overtake(*args: Any) -> Any:
        stored = store_file(*args)
        ArchiveRun.objects.filter(state="WRITING").update(attempt=9)
        return stored

    with monkeypatch.context() as patch:
        patch.setattr(runs, "store_file", overtake)
        with pytest.raises(RunLost):
            compact_all()
    assert archive.list_keys() == keys
    assert compact_all() == 0  # another attempt has the channel

    expire_lease()
    assert compact_all()
    assert read_rows() == rows
    assert find_faults() == []


def test_merge_that_loses_a_row_changes_nothing(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_months()
    rows, keys = read_rows(), archive.list_keys()
    write_blocks = write.write_blocks

    def lose_row(table: Any, groups: Any, summary: write.Summary) -> Any:
        return write_blocks(table, iter([next(groups).slice(1), *groups]), summary)

    with monkeypatch.context() as patch:
        patch.setattr(write, "write_blocks", lose_row)
        with pytest.raises(RunLost):
            compact_all()
    assert (read_rows(), archive.list_keys()) == (rows, keys)


def test_missing_object_ends_the_merge(archive: Archive) -> None:
    archive_months()
    for key in ArchiveFile.objects.filter(table="answers").values_list("key", flat=True):
        (Path(archive.url) / key).unlink()
    keys = archive.list_keys()

    with pytest.raises(RunLost):
        compact_all()

    assert archive.list_keys() == keys
    assert not ArchiveRun.objects.filter(state="WRITING").exists()


def test_pruned_file_goes_with_its_month_of_arrival(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given two months of arrival, with answers of the same months
    archive_months()
    monkeypatch.setattr(runs, "RUN_ROWS", 1000)
    compact_all()
    june = StoredEvent.objects.filter(received_at__month=6).latest("xid", "pk")
    PruneState.objects.create(
        channel=make_channel(), xid=june.xid, event_id=june.pk, pruned_before=timezone.now()
    )
    StoredEvent.objects.filter(received_at__month=6).delete()

    # when
    assert sum(retention.delete_pruned_archive())

    # then nothing of June is left
    assert archived_ids("answers") == sorted(StoredEvent.objects.values_list("pk", flat=True))
    assert find_faults() == []


# Attempts that die --------------------------------------------------------------------------------

MERGING = """
import django
django.setup()
from django.conf import settings
from exhaust.archive import compact
settings.EXHAUST_ARCHIVE_AFTER_DAYS = 0
compact.compact_month({channel})
"""


@pytest.mark.parametrize("name", REWRITING_FAILPOINTS)
def test_killed_merge_is_finished(
    name: str, archive: Archive, tmp_path: Path, settings: Any
) -> None:
    archive_months()
    rows = read_rows()
    failpoints = tmp_path / "failpoints"
    failpoints.mkdir()
    (failpoints / name).write_text("kill")

    code = MERGING.format(channel=make_channel().pk)
    assert run_process(code, settings, failpoints) == -signal.SIGKILL

    assert read_rows() == rows
    expire_lease()
    compact_all()
    list(deletion.delete_replaced(make_channel().pk))
    list(deletion.sweep())
    assert read_rows() == rows
    assert archive.list_keys() == set(ArchiveFile.objects.values_list("key", flat=True))
    assert find_faults() == []
    assert not ArchiveRun.objects.filter(state="WRITING").exists()


@pytest.mark.parametrize("name", REWRITING_FAILPOINTS)
def test_failed_merge_loses_nothing(name: str, archive: Archive, armed: Path) -> None:
    archive_months()
    rows = read_rows()
    (armed / name).write_text("error the answer was lost")

    with pytest.raises(OperationalError, match="the answer was lost"):
        compact_all()

    assert read_rows() == rows
    assert not ArchiveRun.objects.filter(state="WRITING").exists()
    assert compact_all()
    list(deletion.delete_replaced(make_channel().pk))
    assert read_rows() == rows
    assert find_faults() == []


def test_full_storage_is_tried_again(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive_months()
    rows = read_rows()

    def fail(*_: Any) -> None:
        raise storage.StorageOutage("full")

    with monkeypatch.context() as patch:
        patch.setattr(storage.FolderStorage, "put", fail)
        with pytest.raises(storage.StorageOutage):
            compact_all()
    assert read_rows() == rows
    assert compact_all()
    assert read_rows() == rows


# The task -----------------------------------------------------------------------------------------


def test_task_merges_when_nothing_is_due(archive: Archive, enqueued_tasks: list[str]) -> None:
    archive_months()
    files = ArchiveFile.objects.filter(table="answers", archive_until=None)
    count = files.count()

    tasks.archive_events()

    assert enqueued_tasks == ["exhaust.archive_events"]
    assert files.count() < count
    while enqueued_tasks:
        enqueued_tasks.clear()
        tasks.archive_events()
    assert compact_all() == 0
