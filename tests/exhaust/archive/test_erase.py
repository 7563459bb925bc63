"""An erased person is in no object of the archive before the certificate is given."""

import signal
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from django.db import OperationalError
from django.db.models.functions import Now

from exhaust.archive import check, deletion, erase, objects, runs
from exhaust.failpoints import REWRITING_FAILPOINTS
from exhaust.files import storage
from exhaust.models import ArchiveFile, ArchiveRun
from ingest.feed import reader
from ingest.models import Erasure, StoredEvent
from ingest.privacy import erasure
from tests.conftest import make_channel
from tests.exhaust.archive.conftest import Archive
from tests.exhaust.archive.test_runs import archive_all, archived_ids, expire_lease, run_process
from tests.exhaust.factories import make_answer, send_events

pytestmark = pytest.mark.django_db(transaction=True)
CANARY = "canary-7f3a9c51"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits no second for others."""
    monkeypatch.setattr(erase, "PAUSE_SECONDS", 0.01)


def archive_canary() -> None:
    """Two runs, both with events of the person and of others."""
    for first in (0, 10):
        canary = make_answer(first, text=CANARY)
        canary["context"]["did"] = canary["actor"]["id"] = CANARY
        canary["context"]["sid"] = f"session of {CANARY}"
        send_events(canary, *(make_answer(first + number) for number in range(1, 4)))
        assert archive_all() is not None


def read_texts(archive: Archive) -> list[str]:
    """Every value of every object and version, as text."""
    return [
        str(pq.read_table(BytesIO(content)).to_pylist()) + repr(read_footer(content))
        for content in archive.list_contents().values()
        if content
    ]


def read_footer(content: bytes) -> Any:
    metadata = pq.ParquetFile(BytesIO(content)).metadata
    return [
        metadata.row_group(group).column(column).to_dict()
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]


def find_canary(archive: Archive) -> int:
    return sum(CANARY in text for text in read_texts(archive))


def watch_certificates(monkeypatch: pytest.MonkeyPatch, archive: Archive) -> list[int]:
    """Counts the objects with the person whenever a certificate is given."""
    counts: list[int] = []
    record = erasure.audit.record

    def watched(action: str, **details: Any) -> None:
        if action == "participant.erased":
            counts.append(find_canary(archive))
        record(action, **details)

    monkeypatch.setattr(erasure.audit, "record", watched)
    return counts


def test_canary_is_in_no_object(each_archive: Archive, monkeypatch: pytest.MonkeyPatch):
    # given objects with the person, also one that no row names and one of a dead attempt
    archive_canary()
    file = ArchiveFile.objects.filter(table="events").earliest("pk")
    content = objects.ObjectFile(file.key, file.byte_count).read()
    orphan = objects.make_key("events", "2026-01", ArchiveRun.objects.earliest("pk"))
    objects.store_blocks(orphan, iter([content]))
    dead = ArchiveRun.objects.create(
        channel=make_channel(), lease_until=Now(), from_xid=0, from_id=0, to_xid=0, to_id=0
    )
    objects.store_blocks(objects.make_key("answers", "2026-01", dead), iter([content]))
    assert find_canary(each_archive) == 6
    given = watch_certificates(monkeypatch, each_archive)

    # when
    certificate = erasure.erase(make_channel().pk, CANARY, float("inf"))

    # then at the certificate no object and no version has it
    assert given == [0]
    assert certificate.finished_at is not None
    assert certificate.counts["archived"] == 4
    assert certificate.searched["archive"] == 4
    assert each_archive.list_keys() == set(ArchiveFile.objects.values_list("key", flat=True))
    assert list(check.find_faults(is_reading=True)) == []

    # and the files have the events as the database has them, and the answers of the others
    files = ArchiveFile.objects.all()
    rows = {
        row["id"]: row
        for file in files.filter(table="events")
        for row in pq.read_table(objects.ObjectFile(file.key, file.byte_count)).to_pylist()
    }
    events = reader.fetch_events(StoredEvent.objects.all())
    assert len(rows) == len(events) == 8
    for event in events:
        row = rows[event.id]
        assert (row["payload"], row["device_id"], row["session_id"], row["is_answer"]) == (
            event.payload.decode(), event.device_id, event.session_id, event.is_answer,
        )  # fmt: skip
        assert (row["xid"], row["type"]) == (event.xid, event.type)
    answers = StoredEvent.objects.filter(is_answer=True).values_list("pk", flat=True)
    assert archived_ids("answers") == sorted(answers)
    assert len(answers) == 6
    assert {file.archive_from for file in files} == {3, 4, 5, 6}


def test_other_channels_stay(archive: Archive):
    archive_canary()
    send_events(make_answer(1), channel="ORG_002")
    archive_all("ORG_002")
    theirs = ArchiveFile.objects.filter(channel=make_channel("ORG_002"))
    before = list(theirs.values())

    erasure.erase(make_channel("ORG_002").pk, CANARY, float("inf"))
    assert find_canary(archive) == 4
    erasure.erase(make_channel().pk, "device-1", float("inf"))
    assert list(theirs.values()) == before


def test_only_answers_of_the_person(archive: Archive):
    """A file that would be empty goes, and nothing comes in its place."""
    canary = make_answer(1)
    canary["context"]["did"] = CANARY
    send_events(canary)
    archive_all()

    erasure.erase(make_channel().pk, CANARY, float("inf"))

    assert [file.table for file in ArchiveFile.objects.all()] == ["events"]
    assert find_canary(archive) == 0
    assert list(check.find_faults(is_reading=True)) == []


def test_second_erasure_rewrites_nothing(archive: Archive):
    archive_canary()
    erasure.erase(make_channel().pk, CANARY, float("inf"))
    before = archive.list_contents()

    certificate = erasure.erase(make_channel().pk, CANARY, float("inf"))

    assert archive.list_contents() == before
    assert certificate.counts["archived"] == 4


ERASING = f"""
import django
django.setup()
from ingest.privacy import erasure
erasure.erase({{channel}}, "{CANARY}", float("inf"))
"""


@pytest.mark.parametrize("name", REWRITING_FAILPOINTS)
def test_killed_rewriting_is_finished(
    name: str, archive: Archive, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
):
    archive_canary()
    ids = archived_ids()
    failpoints = tmp_path / "failpoints"
    failpoints.mkdir()
    (failpoints / name).write_text("kill")
    code = ERASING.format(channel=make_channel().pk)
    assert run_process(code, settings, failpoints) == -signal.SIGKILL
    given = watch_certificates(monkeypatch, archive)

    # while the dead attempt owns the channel there is no certificate, and readers miss nothing
    erasure.resume(0.5)
    assert given == []
    assert Erasure.objects.get().finished_at is None
    assert archived_ids() == ids

    # when
    expire_lease()
    assert not erasure.resume(60)

    # then
    assert given == [0]
    assert find_canary(archive) == 0
    assert archived_ids() == ids
    assert Erasure.objects.get().counts["archived"] == 4
    assert archive.list_keys() == set(ArchiveFile.objects.values_list("key", flat=True))
    assert list(check.find_faults(is_reading=True)) == []
    assert not ArchiveRun.objects.filter(state="WRITING").exists()


def test_erasure_waits_for_a_running_attempt(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    archive_canary()
    run = ArchiveRun.objects.create(
        channel=make_channel(),
        lease_until=Now() + timedelta(seconds=60),
        from_xid=0, from_id=0, to_xid=0, to_id=0,
    )  # fmt: skip

    assert erasure.erase(make_channel().pk, CANARY, 0.2).finished_at is None
    assert erasure.resume(0.1)
    assert find_canary(archive) == 4

    run.delete()
    assert not erasure.resume(60)
    assert find_canary(archive) == 0


def test_no_certificate_without_storage(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    archive_canary()

    def fail(*_: Any) -> None:
        raise storage.StorageOutage("out")

    for method in ("purge", "put", "list_versions"):
        with monkeypatch.context() as patch:
            patch.setattr(storage.FolderStorage, method, fail)
            assert erasure.erase(make_channel().pk, CANARY, 0.2).finished_at is None
    # the rows are erased at once, whatever the storage does
    assert not StoredEvent.objects.filter(device_id=CANARY).exists()
    expire_lease()
    assert not erasure.resume(60)
    assert find_canary(archive) == 0


def test_no_certificate_without_address(archive: Archive, settings: Any):
    archive_canary()
    url, settings.EXHAUST_ARCHIVE_URL = settings.EXHAUST_ARCHIVE_URL, ""

    assert erasure.erase(make_channel().pk, CANARY, 0.2).finished_at is None

    settings.EXHAUST_ARCHIVE_URL = url
    assert not erasure.resume(60)
    assert find_canary(archive) == 0


def test_overtaken_rewriting_changes_nothing(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    archive_canary()
    store_file = runs.store_file

    def overtake(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(runs, "store_file", store_file)
        stored = store_file(*args, **options)
        ArchiveRun.objects.filter(state="WRITING").update(attempt=9)
        return stored

    monkeypatch.setattr(runs, "store_file", overtake)
    assert erasure.erase(make_channel().pk, CANARY, 0.5).finished_at is None
    assert runs.store_file is store_file
    assert not ArchiveFile.objects.filter(archive_until__isnull=False).exists()
    expire_lease()
    assert not erasure.resume(60)
    assert find_canary(archive) == 0
    assert list(check.find_faults(is_reading=True)) == []


def test_failed_swap_erases_nothing(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    """Counts and files change together."""
    archive_canary()
    monkeypatch.setattr(
        deletion, "replace_files", lambda *_: (_ for _ in ()).throw(OperationalError("lost"))
    )
    with pytest.raises(OperationalError):
        erasure.erase(make_channel().pk, CANARY, float("inf"))
    assert "archived" not in Erasure.objects.get().counts
    assert ArchiveFile.objects.filter(archive_until=None).count() == 4
