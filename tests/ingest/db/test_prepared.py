"""A row that `insert` writes is the row that the ORM would write."""

from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.forms.models import model_to_dict

from exhaust.models import Job
from ingest.db.prepared import insert
from ingest.models import AuditEvent
from tests.conftest import make_channel

pytestmark = pytest.mark.django_db


def test_inserted_row_is_that_of_the_orm() -> None:
    # given values with quotes, bytes, JSON and nothing, and columns that the database fills
    values: dict[str, Any] = {
        "channel": make_channel(),
        "tag": "it's %s",
        "dataset": "uci-response-exhaust",
        "config": {"conversationId": "bot-1", "list": [1, None, "ü"]},
        "encrypted_key": b"\x00\xff",
        "fingerprint": "f" * 64,
        "requested_by": "somebody",
    }
    saved = Job.objects.create(request_id="A" * 32, **values)

    # when
    job = Job(request_id="B" * 32, due_at=saved.due_at, submitted_at=saved.submitted_at, **values)
    insert(job)

    # then
    stored = Job.objects.get(pk=job.pk)
    unlike = ["id", "request_id"]
    assert model_to_dict(stored, exclude=unlike) == model_to_dict(saved, exclude=unlike)
    assert (stored.conversation, stored.submitted_at) == ("bot-1", saved.submitted_at)
    assert stored.submitted_xid >= Job.objects.get(pk=saved.pk).submitted_xid
    assert bytes(stored.encrypted_key) == b"\x00\xff"  # type: ignore[arg-type]


def test_second_row_of_an_identity_is_refused() -> None:
    insert(AuditEvent(action="job.submitted", details={"a": 1}))
    first = AuditEvent.objects.get()
    assert (first.details, first.outcome) == ({"a": 1}, "done")

    identity = {"channel": make_channel(), "tag": "t", "request_id": "A" * 32, "config": {}}
    insert(Job(**identity))
    with pytest.raises(IntegrityError), transaction.atomic():
        insert(Job(**identity))
    assert Job.objects.count() == 1
