"""The form of a new export: presets, samples, the same export, and a session that ends."""

import html
import re
from datetime import timedelta
from urllib.parse import unquote

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from exhaust.datasets import DATASETS
from exhaust.jobs import repeats
from exhaust.models import File, Job, OwnDataset
from ingest.models import Channel, UserSettings
from tests.conftest import make_channel
from tests.exhaust.console.test_console import C, export_form, read_html, sign_in
from tests.exhaust.factories import (
    BOT,
    CONFIG,
    PRIVATE,
    RESPONSE,
    make_answer,
    make_finished,
    make_job,
    make_submission,
    send_events,
)

pytestmark = pytest.mark.django_db
FORM, PREVIEW = f"{C}/exports/new", f"{C}/exports/new/preview"


@pytest.fixture
def asha() -> Client:
    """May request responses only."""
    return sign_in(submit_response=True)


def test_datasets_have_sentence_and_sample() -> None:
    page = read_html(sign_in("bela", submit_response=True, submit_private=True).get(FORM))
    for name in DATASETS:
        address = f"/static/console/samples/{name}.csv"
        assert f'href="{address}"' in page
        sample = b"".join(Client().get(address))
        assert sample.count(b"\n") > 1
    assert "A row for each answer" in page


def test_own_dataset_lists_its_columns(asha: Client) -> None:
    columns = [{"header": "Kind", "path": "type", "personal": False}]
    definition = {"name": "mine", "title": "Mine", "columns": columns}
    OwnDataset.objects.create(channel=make_channel(), name="mine", definition=definition)
    page = read_html(asha.get(FORM))
    assert "A dataset of this channel: Kind …" in page
    assert "samples/mine.csv" not in page


# Period -------------------------------------------------------------------------------------------


def test_presets_show_their_days(asha: Client) -> None:
    page = read_html(asha.get(FORM))
    today = timezone.now().date()
    assert f"Today <small>{today.day} {today:%b %Y}</small>" in page
    presets = re.findall(r'name="preset" value="([^"]+)"', page)
    assert presets[:2] == ["today", "yesterday"]
    assert page.count("</small></button>") == len(presets)


def test_preset_follows_the_zone(asha: Client) -> None:
    form = export_form(preset="today", timezone="Pacific/Kiritimati")
    page = read_html(asha.post(FORM, form))
    today = (timezone.now() + timedelta(hours=14)).date().isoformat()
    assert page.count(f'value="{today}"') == 2
    # a zone that does not exist shows no days
    page = read_html(asha.post(FORM, export_form(act="search", timezone="Mars/Base")))
    assert "</small></button>" not in page


def test_zone_is_that_of_the_profile(asha: Client) -> None:
    UserSettings.objects.create(user=User.objects.get(), zone="Asia/Kolkata")
    page = read_html(asha.get(FORM))
    assert "<option selected>Asia/Kolkata</option>" in page


# The same export ----------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)  # what is read was committed
def test_same_export_is_offered(asha: Client) -> None:
    # given an export of another user, and an answer since
    send_events(make_answer(1))
    usha = sign_in("usha", submit_response=True)
    usha.post(FORM, export_form(tag="hers"))
    call_command("run_jobs")
    send_events(make_answer(2))

    # when another one asks the same, then they may open it, or take only the new rows
    page = read_html(asha.post(PREVIEW, export_form()))
    job = Job.objects.get()
    assert "You have this export already." in page
    assert "1 row arrived since." in page
    assert f"/exports/hers/{job.request_id}" in page
    assert f"since={job.request_id}" in html.unescape(page)
    # or export it again
    assert asha.post(FORM, export_form(act="again", tag="hers")).status_code == 302
    assert Job.objects.count() == 2

    # and another question or format is not the same
    for change in ({"endDate": "2022-04-02"}, {"outputFormat": "xlsx"}):
        assert "already" not in read_html(asha.post(PREVIEW, export_form(**change)))


def test_same_export_needs_its_file() -> None:
    submission = make_submission()
    readable = [RESPONSE]
    assert repeats.find_same(submission, readable) is None
    make_job(status="FAILED")
    make_job(channel="ORG_002")
    make_job(dataset=PRIVATE, config=CONFIG | {"type": PRIVATE})
    assert repeats.find_same(submission, readable) is None
    waiting = make_job(config=CONFIG | {"timezone": "UTC"})
    found = repeats.find_same(submission, readable)
    assert found is not None
    assert found.pk == waiting.pk
    ready = make_finished(tag="ready")
    found = repeats.find_same(submission, readable)
    assert found is not None
    assert found.pk == ready.pk
    assert repeats.find_same(submission, []) is None
    File.objects.update(deleted_at=timezone.now())
    found = repeats.find_same(submission, readable)
    assert found is not None
    assert found.pk == waiting.pk


def test_same_own_definition_only(asha: Client) -> None:
    columns = [{"header": "Kind", "path": "type", "personal": False}]
    definition = {"name": "mine", "title": "Mine", "columns": columns}
    own = OwnDataset.objects.create(channel=make_channel(), name="mine", definition=definition)
    form = export_form(dataset="mine", conversationId="")
    asha.post(FORM, form)
    assert "already" in read_html(asha.post(PREVIEW, form))

    own.definition = definition | {"columns": [*columns, {"header": "At", "path": "occurred_at"}]}
    own.definition["columns"][1]["personal"] = False
    own.save()

    assert "already" not in read_html(asha.post(PREVIEW, form))


def test_search_for_same_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MAX_LOOKED_AT", 1)
    make_job()
    make_job(tag="newer", config=CONFIG | {"endDate": "2022-04-02"})
    assert repeats.find_same(make_submission(), [RESPONSE]) is None


# Encryption ---------------------------------------------------------------------------------------


def test_encryption_says_what_opens_the_file(asha: Client) -> None:
    page = read_html(asha.get(FORM))
    assert "7-Zip, WinZip and Keka open it" in page
    assert "publickey" not in page
    Channel.objects.update(recipient="age1x", private_encryption="publickey")
    page = read_html(asha.get(FORM))
    assert 'name="encryption" value="publickey"' in page
    assert "Files with personal data are encrypted with the channel" in page


# A session that ends ------------------------------------------------------------------------------


def test_ended_session_keeps_the_form() -> None:
    columns = {f"columns.{RESPONSE}": ["Timestamp", "Eof"]}
    form = export_form(tag="typed", encryptionKey="correct horse battery", forceNew="true")

    answer = Client().post(FORM, form | columns)

    assert answer.status_code == 302
    assert "correct" not in answer["Location"]
    next_page = unquote(answer["Location"].partition("?next=")[2])
    send_events(make_answer(1))
    page = read_html(sign_in(submit_response=True).get(next_page))
    assert 'value="typed"' in page
    assert 'value="2022-03-01"' in page
    assert f'value="{BOT}" checked' in page
    assert 'name="forceNew" value="true" checked' in page
    checked = re.findall(f'name="columns.{RESPONSE}" value="([^"]*)" checked', page)
    assert checked == ["Timestamp", "Eof"]


@pytest.mark.parametrize("path", [PREVIEW, FORM])
def test_ended_session_does_not_reload(path: str) -> None:
    answer = Client().post(path, export_form(), headers={"HX-Request": "true"})
    assert answer["HX-Retarget"] == "#preview"
    assert "HX-Refresh" not in answer
    assert "Sign in and come back to this form" in read_html(answer)
