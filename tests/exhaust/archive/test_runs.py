"""A run archives a range once, whatever kills it, and leaves no object that no row names."""

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.db.models.functions import Now

from exhaust import tasks
from exhaust.archive import check, deletion, due, lease, objects, runs, write
from exhaust.failpoints import ARCHIVE_FAILPOINTS
from exhaust.files import storage
from exhaust.jobs import wakeup
from exhaust.maintenance import daily, retention
from exhaust.models import ArchiveFile, ArchiveRun, ArchiveState
from ingest.feed import pruning
from ingest.models import Erasure, PruneState, StoredEvent
from tests.conftest import make_channel
from tests.exhaust.archive.conftest import Archive
from tests.exhaust.factories import make_answer, make_job, send_events

pytestmark = pytest.mark.django_db(transaction=True)


def archive_all(channel: str = "ORG_001") -> ArchiveRun | None:
    """Returns None where an attempt gave up, too."""
    try:
        return runs.archive_channel(make_channel(channel).pk, is_forced=True)
    except (lease.RunLost, storage.StorageError):
        return None


def receive_on(*days: str) -> None:
    """Stores an event that arrived on each of these days."""
    for number, day in enumerate(days, StoredEvent.objects.count()):
        send_events(make_answer(number))
        received_at = datetime.fromisoformat(f"{day}T12:00+00:00")
        StoredEvent.objects.filter(pk=StoredEvent.objects.latest("pk").pk).update(
            received_at=received_at
        )


def archived_ids(table: str = "events") -> list[int]:
    """Returns the ids of all rows that readers find in files."""
    files = ArchiveFile.objects.filter(table=table, archive_until=None)
    return sorted(
        row_id
        for file in files
        for row_id in pq.read_table(objects.ObjectFile(file.key, file.byte_count))["id"].to_pylist()
    )


def find_faults() -> list[str]:
    return list(check.find_faults(is_reading=True))


def expire_lease() -> None:
    ArchiveRun.objects.update(lease_until=Now() - timedelta(seconds=1))


def test_run_archives_each_event_once(each_archive: Archive):
    send_events(*(make_answer(number) for number in range(5)))
    send_events(make_answer(9), channel="ORG_002")

    run = archive_all()

    assert run is not None
    run.refresh_from_db()
    assert run.state == "ARCHIVED"
    ours = StoredEvent.objects.filter(channel=make_channel())
    ids = sorted(ours.values_list("pk", flat=True))
    assert archived_ids() == archived_ids("answers") == ids
    state = ArchiveState.objects.get()
    last = ours.latest("pk")
    assert (state.xid, state.event_id, state.number) == (last.xid, last.pk, 1)
    assert {file.archive_from for file in ArchiveFile.objects.all()} == {1}
    assert each_archive.list_keys() == set(ArchiveFile.objects.values_list("key", flat=True))
    assert find_faults() == []

    # and later events are of the next run
    assert archive_all() is None
    send_events(make_answer(7))
    assert archive_all() is not None
    assert len(archived_ids()) == len(set(archived_ids())) == 6
    assert find_faults() == []


def test_registry_bounds_the_rows(archive: Archive):
    send_events(*(make_answer(number) for number in range(5)))
    archive_all()

    file = ArchiveFile.objects.get(table="answers")
    rows = pq.read_table(objects.ObjectFile(file.key, file.byte_count)).to_pylist()
    assert file.row_count == 5
    assert file.first_occurred_at == min(row["occurred_at"] for row in rows)
    assert file.last_occurred_at == max(row["occurred_at"] for row in rows)
    assert file.first_conversation == file.last_conversation == rows[0]["conversation_id"]
    assert "channel=" in file.key
    assert "month=2022-03" in file.key


def test_only_old_events_are_archived(archive: Archive, settings: Any):
    settings.EXHAUST_ARCHIVE_AFTER_DAYS = 30
    now = datetime.now(UTC)
    receive_on(*(f"{now - timedelta(days=days):%Y-%m-%d}" for days in (50, 40, 5, 45)))

    while archive_all():
        pass

    # an old one behind a new one waits: the order of arrival has no gaps
    ids = sorted(StoredEvent.objects.values_list("pk", flat=True))
    assert archived_ids() == ids[:2]


def test_little_waits_for_its_month(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    receive_on("2026-01-02", "2026-01-30", "2026-02-03", f"{datetime.now(UTC):%Y-%m-%d}")
    StoredEvent.objects.filter(received_at__gt=Now()).update(received_at=Now())
    channel_id = make_channel().pk

    # a run has the events of about one month
    for expected in (2, 3):
        assert runs.archive_channel(channel_id) is not None
        assert len(archived_ids()) == expected
    # and this month's wait until there are enough
    assert runs.archive_channel(channel_id) is None
    monkeypatch.setattr(runs, "MIN_ROWS", 1)
    assert runs.archive_channel(channel_id) is not None
    assert len(archived_ids()) == 4


def test_large_range_is_split(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs, "RUN_ROWS", 2)
    for number in range(5):
        send_events(make_answer(number))

    assert [archive_all() is not None for _ in range(4)] == [True, True, True, False]
    rows = ArchiveFile.objects.filter(table="events").order_by("pk")
    assert list(rows.values_list("row_count", flat=True)) == [2, 2, 1]
    assert find_faults() == []


def test_folder_is_in_the_data_folder(archive: Archive, settings: Any, tmp_path: Path):
    settings.DATA_DIR, settings.EXHAUST_ARCHIVE_URL = tmp_path, f"past-{tmp_path.name}"
    send_events(make_answer(1))
    archive_all()
    assert (tmp_path / settings.EXHAUST_ARCHIVE_URL / "events").is_dir()


def test_empty_channel_makes_no_run(archive: Archive):
    make_channel()
    assert archive_all() is None
    assert not ArchiveRun.objects.exists()


# Attempts that die --------------------------------------------------------------------------------

ARCHIVING = """
import django
django.setup()
from django.conf import settings
from exhaust.archive import runs
settings.EXHAUST_ARCHIVE_AFTER_DAYS = 0
runs.archive_channel({channel}, is_forced=True)
"""


def run_process(code: str, settings: Any, failpoints: Path) -> int:
    """Runs Python in a process with this database; returns its exit status."""
    database = connection.settings_dict
    url = f"sqlite:///{database['NAME']}"
    if connection.vendor == "postgresql":
        url = (
            f"postgresql://{database['USER']}:{database['PASSWORD']}"
            f"@{database['HOST']}:{database['PORT']}/{database['NAME']}"
        )
    variables = {
        **os.environ,
        "DATABASE_URL": url,
        "SECRET_KEY": settings.SECRET_KEY,
        "EXHAUST_KEY_PEPPER": settings.EXHAUST_KEY_PEPPER,
        "EXHAUST_ENCRYPTION_KEYS": ",".join(settings.EXHAUST_ENCRYPTION_KEYS),
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "EXHAUST_FAILPOINTS": str(failpoints),
        "EXHAUST_ARCHIVE_URL": settings.EXHAUST_ARCHIVE_URL,
    }
    return subprocess.run([sys.executable, "-c", code], env=variables, check=False).returncode


@pytest.mark.parametrize("name", ARCHIVE_FAILPOINTS)
def test_killed_run_is_finished(name: str, archive: Archive, tmp_path: Path, settings: Any):
    """A real process gets SIGKILL at each step; another attempt finishes."""
    send_events(*(make_answer(number) for number in range(5)))
    ids = sorted(StoredEvent.objects.values_list("pk", flat=True))
    failpoints = tmp_path / "failpoints"
    failpoints.mkdir()
    (failpoints / name).write_text("kill")

    code = ARCHIVING.format(channel=make_channel().pk)
    assert run_process(code, settings, failpoints) == -signal.SIGKILL

    # the run is the dead attempt's until its lease ends, and its objects are left alone
    is_registered = name == "archive.registered"
    assert archived_ids() == (ids if is_registered else [])
    assert archive_all() is None
    assert sum(deletion.sweep()) == 0
    if not is_registered:
        assert deletion.find_unreferenced(sorted(archive.list_keys())) == []

    # when
    expire_lease()
    assert (archive_all() is None) == is_registered

    # then every event is archived once, and the sweep leaves no object that no row names
    assert archived_ids() == archived_ids("answers") == ids
    list(deletion.sweep())
    assert archive.list_keys() == set(ArchiveFile.objects.values_list("key", flat=True))
    assert ArchiveRun.objects.get().attempt == (1 if is_registered else 2)
    assert find_faults() == []


@pytest.mark.parametrize("name", ARCHIVE_FAILPOINTS[:-1])
def test_failed_run_leaves_nothing(name: str, each_archive: Archive, armed: Path):
    send_events(make_answer(1))
    (armed / name).write_text("error the answer was lost")

    with pytest.raises(OperationalError, match="the answer was lost"):
        archive_all()

    if name != "archive.claimed":
        assert each_archive.list_contents() == {}
        assert not ArchiveRun.objects.exists()
    expire_lease()
    assert archive_all() is not None
    assert find_faults() == []


def test_lost_answer_keeps_registered_files(archive: Archive, armed: Path):
    # the commit came through, and its answer did not
    send_events(make_answer(1))
    (armed / "archive.registered").write_text("error the answer was lost")

    with pytest.raises(OperationalError):
        archive_all()

    assert len(archived_ids()) == 1
    assert find_faults() == []


def test_overtaken_attempt_registers_nothing(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    send_events(make_answer(1))
    plan_files = write.plan_files

    def overtake(range_: write.Range) -> Any:
        monkeypatch.setattr(write, "plan_files", plan_files)
        expire_lease()
        assert archive_all() is not None  # another process
        return plan_files(range_)

    monkeypatch.setattr(write, "plan_files", overtake)
    assert archive_all() is None

    assert len(archived_ids()) == 1
    assert archive.list_keys() == set(ArchiveFile.objects.values_list("key", flat=True))
    assert find_faults() == []


def test_lost_lease_ends_the_attempt(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    send_events(make_answer(1))
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    write_file = write.write_file

    def write_slowly(*args: Any, **options: Any) -> Any:
        ArchiveRun.objects.update(attempt=7)
        time.sleep(0.5)
        yield from write_file(*args, **options)

    monkeypatch.setattr(write, "write_file", write_slowly)
    assert archive_all() is None

    assert archive.list_contents() == {}
    assert not ArchiveFile.objects.exists()
    assert not [each for each in threading.enumerate() if each.name.startswith("archive-")]


def test_lease_is_renewed(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    send_events(make_answer(1))
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    write_file = write.write_file
    seen: list[datetime] = []

    def write_slowly(*args: Any, **options: Any) -> Any:
        for _ in range(3):
            seen.append(ArchiveRun.objects.get().lease_until)
            time.sleep(0.3)
        yield from write_file(*args, **options)

    monkeypatch.setattr(write, "write_file", write_slowly)
    assert archive_all() is not None
    assert len(set(seen)) > 2  # two threads write


def test_changed_rows_end_the_attempt(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    send_events(make_answer(1), make_answer(2))
    plan_files = write.plan_files

    def plan_then_prune(range_: write.Range) -> Any:
        plans = plan_files(range_)
        StoredEvent.objects.order_by("pk")[0].delete()
        return plans

    monkeypatch.setattr(write, "plan_files", plan_then_prune)
    assert archive_all() is None
    assert archive.list_contents() == {}

    monkeypatch.setattr(write, "plan_files", plan_files)
    assert archive_all() is not None
    assert find_faults() == []


def test_full_storage_is_tried_again(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    send_events(make_answer(1))

    def fail(*_: Any) -> None:
        raise storage.StorageOutage("full")

    with monkeypatch.context() as patch:
        patch.setattr(storage.FolderStorage, "put", fail)
        assert archive_all() is None
    assert not ArchiveRun.objects.exists()
    assert archive_all() is not None


# What others do meanwhile -------------------------------------------------------------------------


def test_runs_wait_for_erasures(archive: Archive):
    send_events(make_answer(1))
    erasure = Erasure.objects.create(
        channel=make_channel(), subject="s", requested_at=datetime.now(UTC)
    )

    assert archive_all() is None
    erasure.finished_at = datetime.now(UTC)
    erasure.save()
    assert archive_all() is not None


def test_erasure_meanwhile_ends_the_attempt(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    # given an erasure that begins and ends while files are written
    send_events(make_answer(1), make_answer(2))
    write_file = write.write_file

    def erase_meanwhile(*args: Any, **options: Any) -> Any:
        yield from write_file(*args, **options)
        Erasure.objects.get_or_create(
            channel=make_channel(),
            subject="s",
            defaults={"requested_at": datetime.now(UTC), "finished_at": datetime.now(UTC)},
        )

    monkeypatch.setattr(write, "write_file", erase_meanwhile)
    assert archive_all() is None
    assert archive.list_contents() == {}
    assert not ArchiveFile.objects.exists()


def test_open_transaction_bounds_the_run(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    for number in range(3):
        send_events(make_answer(number))
    xids = list(StoredEvent.objects.order_by("xid").values_list("xid", flat=True))
    monkeypatch.setattr(runs, "fetch_watermark", lambda: xids[2])

    assert archive_all() is not None
    assert len(archived_ids()) == 2


def test_pruned_files_are_deleted(each_archive: Archive, settings: Any):
    receive_on("2026-01-02", "2026-02-03", "2026-03-04")
    while archive_all():
        pass
    assert len(each_archive.list_keys()) == 6
    StoredEvent.objects.order_by("pk")[0].delete()
    first = ArchiveFile.objects.order_by("pk")[0]
    PruneState.objects.create(
        channel=make_channel(),
        xid=first.last_xid,
        event_id=first.last_id,
        pruned_before=datetime.now(UTC),
    )

    assert sum(retention.delete_pruned_archive()) == 2
    assert len(each_archive.list_keys()) == 4
    assert len(archived_ids()) == 2
    assert sum(retention.delete_pruned_archive()) == 0
    assert find_faults() == []


def test_pruning_and_archiving_agree(archive: Archive, settings: Any):
    settings.EXHAUST_EVENT_RETENTION_DAYS = 400
    now = datetime.now(UTC)
    receive_on(*(f"{now - timedelta(days=days):%Y-%m-%d}" for days in (450, 440, 300, 5)))
    tasks.derive_sessions()
    while archive_all():
        pass

    assert daily.run_daily()

    assert pruning.fetch_prune_state(make_channel().pk) is not None
    assert archived_ids() == sorted(StoredEvent.objects.values_list("pk", flat=True))
    assert len(archived_ids()) == 2
    assert find_faults() == []


def test_sweep_deletes_only_own_orphans(each_archive: Archive):
    send_events(make_answer(1))
    archive_all()
    run = ArchiveRun.objects.get()
    kept = each_archive.list_keys()
    orphan = objects.make_key("answers", "2026-01", run)
    objects.store_blocks(orphan, iter([b"left"]))
    other = objects.make_key("events", "2026-01", ArchiveRun(pk=99, channel_id=99, attempt=1))
    objects.store_blocks(other, iter([b"left"]))
    foreign = "events/notes.txt"
    objects.store_blocks(foreign, iter([b"mine"]))

    assert len(find_faults()) == 2
    assert sum(deletion.sweep(run.channel_id)) == 1
    assert each_archive.list_keys() == {*kept, other, foreign}
    assert sum(deletion.sweep()) == 1
    assert find_faults() == []


# The command and the tasks ------------------------------------------------------------------------


def run_command(*arguments: str) -> str:
    call_command("archive", *arguments, stdout=(out := StringIO()))
    return out.getvalue()


def test_command_archives_and_checks(archive: Archive):
    send_events(make_answer(1))

    assert run_command() == ""
    assert "events/channel=" in run_command("--now")
    assert run_command("check", "--read") == "The archive is whole.\n"

    file = ArchiveFile.objects.get(table="events")
    path = Path(archive.url) / file.key
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    assert run_command("check") == "The archive is whole.\n"
    with pytest.raises(CommandError, match="1 fault"):
        run_command("check", "--read")
    path.write_bytes(content[:-1])
    assert "bytes, and not" in find_faults()[0]
    path.unlink()
    assert find_faults() == [f"{file.key}: the object is missing"]


def test_check_compares_with_the_database(archive: Archive):
    send_events(make_answer(1), make_answer(2))
    archive_all()
    StoredEvent.objects.order_by("pk")[0].delete()

    assert len(find_faults()) == 1
    assert "hold 2 events" in find_faults()[0]


def test_drop_deletes_all_files(each_archive: Archive):
    send_events(make_answer(1), make_answer(2))
    archive_all()

    assert run_command("drop") == "2 files deleted.\n"
    assert each_archive.list_contents() == {}
    assert not ArchiveState.objects.exists()
    assert not ArchiveRun.objects.exists()
    assert StoredEvent.objects.count() == 2

    # and it may begin again
    assert archive_all() is not None
    assert find_faults() == []


def test_command_without_archive():
    with pytest.raises(CommandError, match="EXHAUST_ARCHIVE_URL"):
        run_command()


def test_task_survives_one_channel(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs, "MIN_ROWS", 1)
    for channel in ("ORG_001", "ORG_002", "ORG_003"):
        send_events(make_answer(1), channel=channel)
    errors: list[Exception] = [lease.RunLost(), OperationalError("lost")]
    plan_files = write.plan_files

    def fail_first(range_: write.Range) -> Any:
        if errors:
            raise errors.pop()
        return plan_files(range_)

    monkeypatch.setattr(write, "plan_files", fail_first)
    assert due.archive_due()
    assert ArchiveState.objects.filter(number=1).get().channel == make_channel("ORG_003")
    assert find_faults() == []


def test_command_says_that_it_failed(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    send_events(make_answer(1))

    def fail(*_: Any) -> None:
        raise storage.StorageOutage("folder: full")

    monkeypatch.setattr(storage.FolderStorage, "put", fail)
    with pytest.raises(CommandError, match="folder: full"):
        run_command("--now")


def test_sweep_looks_hourly(archive: Archive, enqueued_tasks: list[str], daily_run_finished: None):
    tasks.sweep()
    assert "exhaust.archive_events" in enqueued_tasks

    enqueued_tasks.clear()
    wakeup.record_start("exhaust.archive_events")
    tasks.sweep()
    assert "exhaust.archive_events" not in enqueued_tasks


def test_task_goes_on_while_due(
    archive: Archive, enqueued_tasks: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runs, "MIN_ROWS", 1)
    send_events(make_answer(1))

    tasks.archive_events()
    assert enqueued_tasks == ["exhaust.archive_events"]
    tasks.archive_events()
    assert enqueued_tasks == ["exhaust.archive_events"]


def test_nothing_is_archived_by_default(enqueued_tasks: list[str], daily_run_finished: None):
    send_events(make_answer(1))
    make_job()
    tasks.sweep()
    tasks.archive_events()

    assert "exhaust.archive_events" not in enqueued_tasks
    assert not ArchiveRun.objects.exists()
