"""The audit log in the console: days, targets, download."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client
from django.utils import timezone

from exhaust.console import audit_log
from ingest import audit
from ingest.audit import reads
from ingest.models import AuditEvent, ReadCount
from tests.conftest import make_channel
from tests.exhaust.console.test_console import C, read_html, sign_in

pytestmark = pytest.mark.django_db


@pytest.fixture
def auditor() -> Client:
    return sign_in("uma", audit=True)


def record_on(day: int, actor: str = "asha") -> None:
    AuditEvent.objects.create(
        action="key.created", actor=actor, channel="ORG_001", subject="abcdefgh",
        recorded_at=datetime(2026, 3, day, 23, 30, tzinfo=UTC),
    )  # fmt: skip


def test_days_are_both_included(auditor: Client) -> None:
    for day in (1, 2, 3, 4):
        record_on(day, f"actor{day}")
    html = read_html(auditor.get(f"{C}/audit?from=2026-03-02&to=2026-03-03"))
    rows = html.split("<tbody>")[1]
    assert [f"actor{day}" in rows for day in (1, 2, 3, 4)] == [False, True, True, False]
    assert rows.index("actor3") < rows.index("actor2")


@pytest.mark.parametrize("query", ["from=soon", "to=2026-02-30", "from=0001-01-01", "to=%00"])
@pytest.mark.parametrize("path", ["audit", "audit/download"])
def test_wrong_day_is_reported(auditor: Client, path: str, query: str) -> None:
    assert "Enter days as YYYY-MM-DD" in read_html(auditor.get(f"{C}/{path}?{query}"), 400)


def test_slow_search_says_so(auditor: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def time_out(_seconds: float) -> Iterator[None]:
        yield
        raise TimeoutError

    record_on(1)
    monkeypatch.setattr(audit_log, "limit_query_seconds", time_out)
    html = read_html(auditor.get(f"{C}/audit?actor=asha"), 400)
    assert "Reading took too long. Choose fewer days." in html


def test_view_is_recorded(auditor: Client) -> None:
    record_on(1)
    assert "This view is recorded in the audit log" in read_html(auditor.get(f"{C}/audit"))
    auditor.get(f"{C}/audit/download").getvalue()
    count = ReadCount.objects.get(action="audit.viewed")
    assert (count.actor, count.subject, count.row_count) == ("uma", "console", 2)
    reads.roll_up(timezone.now() + timedelta(hours=2))
    assert AuditEvent.objects.get(action="audit.viewed").actor == "uma"


def test_download_keeps_the_filter(auditor: Client) -> None:
    record_on(1, "=cmd()"), record_on(2, "bela")
    AuditEvent.objects.create(action="key.created", actor="zoe", channel="ORG_002")
    answer = auditor.get(f"{C}/audit/download?to=2026-03-01")
    assert answer["Content-Disposition"] == 'attachment; filename="audit.csv"'
    rows = list(csv.reader(io.StringIO(answer.getvalue().decode())))
    assert [row[4] for row in rows] == ["Actor", "'=cmd()"]
    whole = auditor.get(f"{C}/audit/download").getvalue().decode()
    assert "bela" in whole
    assert "zoe" not in whole


def test_targets_are_links() -> None:
    make_channel()
    with audit.act_as(audit.Actor("asha")):
        audit.record("destination.paused", channel="ORG_001", subject="lake")
        audit.record("schedule.created", channel="ORG_001", subject="nightly")
        audit.record("schedule.deleted", channel="ORG_001", subject="gone")
        audit.record("job.submitted", channel="ORG_001", subject="ABC123")
        audit.record("participants.viewed", channel="ORG_001", subject="participant 7")
    everything = sign_in(audit=True, administer=True, submit_response=True, submit_private=True)
    html = read_html(everything.get(f"{C}/audit"))
    for target in ("destinations/one/lake", "schedules/one/nightly", "exports?text=ABC123",
                   "participants/7"):  # fmt: skip
        assert f'<a href="{C}/{target}">' in html
    assert "schedules/one/gone" not in html
    # an auditor may open none of them
    html = read_html(sign_in("uma", audit=True).get(f"{C}/audit"))
    assert "lake" in html
    assert "destinations/one/lake" not in html


def test_pages_go_on_by_time(auditor: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "PER_PAGE", 2)
    for day in (3, 1, 2):  # written in another order than their time
        record_on(day, f"actor{day}")
    html = read_html(auditor.get(f"{C}/audit"))
    assert "actor1</td>" not in html
    more = html.split('<div class="pages"><a class="button" href="')[1].split('"')[0]
    html = read_html(auditor.get(f"{C}/audit{more.replace('&amp;', '&')}"))
    assert "actor1" in html
    assert "actor2</td>" not in html


@pytest.mark.parametrize("path", ["audit", "audit/download"])
def test_slow_search_asks_for_fewer_days(
    auditor: Client, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    @contextmanager
    def time_out(seconds: float) -> Iterator[None]:
        yield
        raise TimeoutError

    record_on(1)
    monkeypatch.setattr(audit_log, "limit_query_seconds", time_out)
    html = read_html(auditor.get(f"{C}/{path}?subject=nobody"), 400)
    assert "Reading took too long. Choose fewer days." in html
    assert "No matching entries." not in html
