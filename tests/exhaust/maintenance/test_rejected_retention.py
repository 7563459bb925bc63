"""Rejected events are deleted after `EXHAUST_REJECTED_RETENTION_DAYS`."""

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from exhaust.maintenance import daily, retention
from ingest.events import Rejection
from ingest.models import RejectedDay, RejectedEvent, RejectedWord
from ingest.store import rejections
from tests.conftest import make_channel

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def reject_old_and_new(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.EXHAUST_REJECTED_RETENTION_DAYS = 30
    monkeypatch.setattr(retention, "REJECTED_ROWS", 3)
    for channel in ("ORG_001", "ORG_002"):
        for days in (29, 31):
            rejected = [
                Rejection(number, "bad", "", b'{"did": "d-%d-%d"}' % (days, number))
                for number in range(7)
            ]
            received_at = timezone.now() - timedelta(days=days)
            pk = make_channel(channel).pk
            rejections.store_rejections(pk, "telemetry", received_at, rejected)


def count_rows() -> tuple[int, int, int]:
    return tuple(model.objects.count() for model in (RejectedEvent, RejectedWord, RejectedDay))  # type: ignore[return-value]


def test_deletes_only_old_rejections() -> None:
    assert count_rows() == (28, 28, 4)

    assert list(retention.delete_expired_rejections()) == [3, 3, 1, 3, 3, 1]

    assert count_rows() == (14, 14, 2)
    assert not retention.expired_rejections().exists()


def test_daily_run_deletes_rejections() -> None:
    assert daily.run_daily()
    assert count_rows() == (14, 14, 2)


def test_prune_deletes_rejections() -> None:
    out = StringIO()
    call_command("prune", "--dry-run", stdout=out)
    assert "rejected events: 14\n" in out.getvalue()
    assert count_rows() == (28, 28, 4)

    call_command("prune", "--events", stdout=out)
    assert count_rows() == (28, 28, 4)

    call_command("prune", stdout=out)
    assert count_rows() == (14, 14, 2)
