"""Rejected events in the console: mend, dismiss, download."""

import json
from datetime import timedelta

import pytest
from django.test import Client

from ingest.models import Application, AuditEvent, RejectedEvent, StoredEvent
from ingest.store.rejections import MAX_STORED_BYTES
from tests.conftest import make_channel
from tests.exhaust.console.test_console import C, read_html, sign_in
from tests.exhaust.console.test_pages import reject_event
from tests.exhaust.factories import make_answer

pytestmark = pytest.mark.django_db


@pytest.fixture
def bela() -> Client:
    """Administers the channel and may see personal data."""
    return sign_in("bela", administer=True, submit_private=True)


def test_reason_and_sender_in_words(bela: Client) -> None:
    row = reject_event()
    html = read_html(bela.get(f"{C}/rejected"))
    assert "Not a JSON object" in html
    assert "a key or a page of the channel, telemetry" in html
    row.application = Application.objects.create(
        channel=make_channel(), identifier="shop", name="Our shop"
    )
    row.save()
    assert "shop, telemetry" in read_html(bela.get(f"{C}/rejected/{row.pk}"))


def test_repeats_are_shown(bela: Client) -> None:
    row = reject_event()
    later = row.received_at + timedelta(hours=2)
    RejectedEvent.objects.update(count=4321, repeated_at=later)
    assert "4,321" in read_html(bela.get(f"{C}/rejected"))
    html = read_html(bela.get(f"{C}/rejected/{row.pk}"))
    assert "4,321" in html
    assert f'datetime="{later.isoformat()}"' in html or f"{later:%H:%M}" in html
    line = json.loads(bela.get(f"{C}/rejected/download").content)
    assert (line["count"], line["lastReceivedAt"]) == (4321, later.isoformat())


def test_mended_event_is_stored(bela: Client) -> None:
    row = reject_event()
    assert "Edit and resend" in read_html(bela.get(f"{C}/rejected/{row.pk}"))
    text = json.dumps(make_answer(1), indent=1).replace("\n", "\r\n")  # as a form sends it
    page = bela.post(f"{C}/rejected/{row.pk}/resend", {"text": text}, follow=True)
    assert "The event was accepted." in read_html(page)
    assert StoredEvent.objects.get().received_at == row.received_at
    row.refresh_from_db()
    assert row.replayed_at is not None
    entry = AuditEvent.objects.get(action="rejected_event.replayed")
    assert (entry.actor, entry.subject, entry.details["edited"]) == ("bela", str(row.pk), True)
    assert bela.post(f"{C}/rejected/{row.pk}/resend", {"text": text}).status_code == 404


@pytest.mark.parametrize("text", ['{"eid": 7', "[]", "", "7"])
def test_wrong_mend_is_explained(bela: Client, text: str) -> None:
    row = reject_event()
    html = read_html(bela.post(f"{C}/rejected/{row.pk}/resend", {"text": text}), 400)
    assert "still rejected" in html
    assert (RejectedEvent.objects.count(), StoredEvent.objects.count()) == (1, 0)
    row.refresh_from_db()
    assert row.replayed_at is None


def test_mend_has_a_limit(bela: Client) -> None:
    row = reject_event()
    text = "x" * (MAX_STORED_BYTES + 1)
    page = bela.post(f"{C}/rejected/{row.pk}/resend", {"text": text})
    assert "more than 256 KiB" in read_html(page, 400)


def test_mend_needs_both_permissions() -> None:
    row = reject_event()
    for client in (sign_in("a", administer=True), sign_in("b", submit_private=True)):
        assert "Edit and resend" not in read_html(client.get(f"{C}/rejected/{row.pk}"))
        assert client.post(f"{C}/rejected/{row.pk}/resend", {"text": "{}"}).status_code == 403


def test_cut_event_cannot_be_mended(bela: Client) -> None:
    row = reject_event()
    RejectedEvent.objects.update(size=row.size + 1)
    assert "Edit and resend" not in read_html(bela.get(f"{C}/rejected/{row.pk}"))
    assert bela.post(f"{C}/rejected/{row.pk}/resend", {"text": "{}"}).status_code == 404


def test_dismissed_event_is_gone(bela: Client) -> None:
    row = reject_event()
    page = bela.post(f"{C}/rejected/dismiss", {"pk": row.pk}, follow=True)
    assert "1 entry is deleted." in read_html(page)
    assert not RejectedEvent.objects.exists()
    entry = AuditEvent.objects.get(action="rejected_event.dismissed")
    assert (entry.subject, entry.details) == (str(row.pk), {"events": 1})


def test_dismiss_all_of_a_reason(bela: Client) -> None:
    reject_event()
    other = RejectedEvent.objects.get()
    other.pk, other.digest, other.channel = None, "0" * 64, make_channel("ORG_002")
    other.save()
    page = bela.post(f"{C}/rejected/dismiss", {"reason": "not_an_object"}, follow=True)
    assert "1 entry is deleted." in read_html(page)
    assert RejectedEvent.objects.get().channel.identifier == "ORG_002"
    assert bela.post(f"{C}/rejected/dismiss").status_code == 404


def test_download_masks_the_text(bela: Client) -> None:
    row = reject_event()
    answer = sign_in(submit_response=True).get(f"{C}/rejected/download")
    line = json.loads(answer.content)
    assert (line["id"], line["reason"], line["text"]) == (row.pk, "not_an_object", None)
    assert answer["Content-Disposition"].startswith("attachment")
    assert not AuditEvent.objects.filter(action="rejected.viewed").exists()

    line = json.loads(bela.get(f"{C}/rejected/download?reason=not_an_object").content)
    assert line["text"] == '"Asha"'
    entry = AuditEvent.objects.get(action="rejected.viewed")
    assert (entry.actor, entry.details) == ("bela", {"events": 1})
    assert bela.get(f"{C}/rejected/download?reason=other").content == b""
