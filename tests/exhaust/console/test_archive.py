"""The page Archive: months and channels with what their files hold."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client

from exhaust.archive import deletion
from exhaust.console.templatetags.console import size as format_size
from exhaust.models import ArchiveFile
from ingest.db.clock import read_clock
from ingest.models import StoredEvent
from tests.exhaust.archive.conftest import Archive, archive
from tests.exhaust.archive.test_runs import archive_all, receive_on
from tests.exhaust.console.test_console import C, read_html, sign_in
from tests.exhaust.factories import make_answer, send_events

pytestmark = pytest.mark.django_db(transaction=True)
__all__ = ["archive"]  # a fixture


def read_rows(client: Client, query: str = "") -> list[list[str]]:
    """Returns the cells of the page's rows, without markup."""
    html = read_html(client.get(f"{C}/archive{query}"))
    rows = re.findall(r"<tr>(<td.*?)</tr>", html, re.DOTALL)
    return [
        [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", row)]
        for row in rows
    ]


@pytest.fixture
def bela() -> Client:
    return sign_in("bela", administer=True)


def test_months_hold_what_files_hold(archive: Archive, bela: Client) -> None:
    receive_on("2026-01-20", "2026-02-03", "2026-02-04")
    while archive_all():
        pass
    channel, *months = read_rows(bela)
    assert channel == ["ORG_001", "3", format_size(_sum_bytes()), "up to date", "0"]
    assert months == [
        ["February 2026", "events", "2", "1", format_size(_sum_bytes("events/", "2026-02"))],
        ["January 2026", "events", "1", "1", format_size(_sum_bytes("events/", "2026-01"))],
        ["March 2022", "answers", "3", "2", format_size(_sum_bytes("answers/"))],
    ]


def _sum_bytes(folder: str = "", month: str = "") -> int:
    files = ArchiveFile.objects.filter(key__startswith=folder, key__contains=f"month={month}")
    return sum(files.values_list("byte_count", flat=True))


def test_waiting_events_are_told(archive: Archive, bela: Client, settings: Any) -> None:
    settings.EXHAUST_ARCHIVE_AFTER_DAYS = 30
    send_events(make_answer(1))
    StoredEvent.objects.update(received_at=read_clock() - timedelta(days=33))
    assert read_rows(bela)[0][3] == "3 d"
    assert "Nothing is archived yet." in read_html(bela.get(f"{C}/archive"))


def test_replaced_and_unreferenced_are_counted(archive: Archive, bela: Client) -> None:
    receive_on("2026-01-20")
    archive_all()
    file = ArchiveFile.objects.get(table="events")
    stray = Path(archive.url, re.sub("[0-9a-f]{16}.parquet", f"{'0' * 16}.parquet", file.key))
    stray.write_bytes(b"x")
    assert "Objects that no file names: 1." in read_html(bela.get(f"{C}/archive?objects=1"))
    with transaction.atomic():
        deletion.replace_files(file.channel_id, ArchiveFile.objects.filter(pk=file.pk))
    assert read_rows(bela)[0][4] == "1"


def test_others_channels_are_theirs(archive: Archive, bela: Client) -> None:
    receive_on("2026-01-20")
    send_events(make_answer(1), channel="ORG_002")
    archive_all()
    archive_all("ORG_002")
    assert [row[0] for row in read_rows(bela)][:1] == ["ORG_001"]
    assert "ORG_002" not in read_html(bela.get(f"{C}/archive"))
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    assert [row[0] for row in read_rows(root)][:2] == ["ORG_001", "ORG_002"]


def test_page_is_off_without_an_archive(bela: Client) -> None:
    assert "The archive is off." in read_html(bela.get(f"{C}/archive"))
    assert f'href="{C}/archive"' not in read_html(bela.get(f"{C}/"))
