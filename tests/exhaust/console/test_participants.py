"""Participants in the console: search, consent history, erasure."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from ingest.events import Profile
from ingest.models import AuditEvent, Erasure, Participant, StoredEvent
from ingest.privacy import erasure
from ingest.store.participants import store_participants
from tests.conftest import make_channel
from tests.exhaust.console.test_console import C, read_html, sign_in
from tests.exhaust.factories import make_answer, send_events

pytestmark = pytest.mark.django_db
PHONE = "+919000000001"
ERASE = f"{C}/participants/erase"


def store_profile(
    device: str = "device-1", phone: str | None = PHONE, consent: bool | None = True,
    channel: str = "ORG_001",
) -> Participant:  # fmt: skip
    profile = Profile(device, "Asha Rao", phone, consent, timezone.now())
    store_participants(make_channel(channel).pk, timezone.now(), [profile])
    return Participant.objects.get(channel__identifier=channel, device_id=device)


@pytest.fixture
def bela() -> Client:
    """Administers the channel and may see personal data."""
    return sign_in("bela", administer=True, submit_private=True)


def test_find_by_phone(bela: Client) -> None:
    row = store_profile()
    store_profile("device-2", "+919000000002")
    store_profile("device-3", PHONE, channel="ORG_002")
    html = read_html(bela.post(f"{C}/participants", {"phone": PHONE}))
    assert html.count("A***") == 1
    assert f"{C}/participants/{row.pk}" in html
    assert "device-" not in html.split("<tbody>")[1]
    assert "No participant has this phone" in read_html(
        bela.post(f"{C}/participants", {"phone": "+919000000009"})
    )
    html = read_html(bela.post(f"{C}/participants", {"phone": "0900"}), 400)
    assert "country code" in html
    assert PHONE not in str(list(AuditEvent.objects.values()))


def test_phone_of_before_is_found(bela: Client) -> None:
    row = store_profile()
    Participant.objects.update(phone_digest=None)  # as before there was a hash
    assert f"/participants/{row.pk}" in read_html(bela.post(f"{C}/participants", {"phone": PHONE}))
    row.refresh_from_db()
    assert row.phone_digest is not None


def test_removed_phone_is_not_found(bela: Client) -> None:
    store_profile()
    store_profile(phone="", consent=None)
    assert "No participant has this phone" in read_html(
        bela.post(f"{C}/participants", {"phone": PHONE})
    )
    assert Participant.objects.get().phone_digest is None


def test_consent_history_is_kept(bela: Client) -> None:
    row = store_profile(consent=True)
    for consent in (True, False, True, None):
        store_profile(consent=consent)
    row.refresh_from_db()
    earlier = row.earlier_consents
    assert earlier is not None
    assert [each["consent"] for each in earlier] == [True, False]
    html = read_html(bela.get(f"{C}/participants/{row.pk}"))
    table = html.split("Consent history</h2>")[1].split("</table>")[0]
    assert table.count("<tr>") == 4  # the header, and three consents
    assert "device-1" in html
    assert "Asha" not in html
    assert "now" in table
    entry = AuditEvent.objects.filter(action="participants.viewed").get()
    assert (entry.actor, entry.subject) == ("bela", f"participant {row.pk}")


def test_history_has_a_limit() -> None:
    for number in range(50):
        store_profile(consent=number % 2 == 0)
    earlier = Participant.objects.get().earlier_consents
    assert earlier is not None
    assert len(earlier) == 20


def test_other_channels_participant_is_hidden(bela: Client) -> None:
    row = store_profile(channel="ORG_002")
    assert bela.get(f"{C}/participants/{row.pk}").status_code == 404
    html = read_html(bela.get(f"{ERASE}?participant={row.pk}"))
    assert row.device_id not in html


def test_erase_and_show_certificate(bela: Client) -> None:
    row = store_profile()
    send_events(make_answer(1))
    device = StoredEvent.objects.get().device_id
    assert f'value="{row.device_id}"' in read_html(bela.get(f"{ERASE}?participant={row.pk}"))
    page = bela.post(ERASE, {"device": device, "confirmation": device}, follow=True)
    html = read_html(page)
    assert "Running" in html
    assert "every 2s" in html
    assert device not in html
    entry = AuditEvent.objects.get(action="participant.erasure_requested")
    certificate = Erasure.objects.get()
    assert (entry.actor, entry.subject) == ("bela", certificate.subject)
    erasure.resume(60)
    html = read_html(bela.get(f"{C}/participants/erasures/{certificate.pk}"))
    assert "Finished" in html
    assert "every 2s" not in html
    assert "<dt>Events</dt><dd>1</dd>" in html
    assert certificate.subject in html
    assert certificate.subject[:16] in read_html(bela.get(ERASE))
    assert StoredEvent.objects.get().device_id == ""


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"device": "device-1", "confirmation": "device-2"}, "confirmation"),
        ({"device": "device-1"}, "confirmation"),
        ({"device": "", "confirmation": ""}, "device"),
        ({"device": "x" * 256, "confirmation": "x" * 256}, "device"),
        ({"device": "a\0b", "confirmation": "a\0b"}, "device"),
    ],
)
def test_unconfirmed_erases_nothing(bela: Client, form: dict[str, str], field: str) -> None:
    store_profile()
    assert f'id="e-{field}"' in read_html(bela.post(ERASE, form), 400)
    assert Participant.objects.count() == 1
    assert not Erasure.objects.exists()


def test_unknown_device_has_no_certificate(bela: Client) -> None:
    page = bela.post(ERASE, {"device": "nobodys", "confirmation": "nobodys"}, follow=True)
    assert "We hold nothing of this device ID" in read_html(page)
    answer = bela.get(f"{C}/participants/erasures/1")
    assert "There is no such certificate" in read_html(answer, 404)
    assert answer["HX-Refresh"] == "true"


def test_erasing_needs_both_permissions() -> None:
    row = store_profile()
    form = {"device": row.device_id, "confirmation": row.device_id}
    for client in (sign_in("a", administer=True), sign_in("b", submit_private=True)):
        assert client.post(ERASE, form).status_code == 403
    html = read_html(sign_in("b").get(f"{C}/participants/{row.pk}"))
    assert "Erase" not in html
    assert Participant.objects.count() == 1


def test_future_consent_is_dated(bela: Client) -> None:
    row = store_profile()
    Participant.objects.update(consent_at=timezone.now() + timedelta(hours=3))
    assert "in 2 hours" in read_html(bela.get(f"{C}/participants")).replace("\xa0", " ")
    assert row.pk
